"""Keeps what a training makes: the best model, the last one, those of epochs, and the state to go on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tlt_runner.context import Context
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.training.checkpoint import model_file, state
from tlt_runner.training.checkpoint.published import BEST, LAST, STATE, Published, epoch_name
from tlt_runner.training.checkpoint.state import Position, Saved


class Keeper:
    """Writes a model in training, and its state.

    Args:
        context: Reporter and scratch folder.
        published: Takes the files.
        model: The model in training.
        state: All variables that training changes.
        checkpoints_kept: Newest checkpoints that stay as models of their own.
        published_weights: Within it the model's weights are those that are published (averages).
    """

    def __init__(
        self,
        context: Context,
        published: Published,
        model: FasterRCNN,
        state: Sequence[Any],
        checkpoints_kept: int,
        published_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._context = context
        self._published = published
        self._model = model
        self._state = state
        self._kept = checkpoints_kept
        self._published_weights = published_weights

    def resume(self, saved: Saved | None, start: Position) -> Position:
        """Where to go on: at a state that :meth:`Published.recall` found, or at ``start``.

        Raises:
            RunnerError: As of :func:`state.resume`.
        """
        if saved is None:
            return start
        position = state.resume(saved, start, self._state)
        if position is start:
            self._published.withdraw()
        return position

    def save_best(self, position: Position) -> None:
        """Publish the model as the best one, its evaluation inside; then its metrics."""
        self._save([BEST], position)
        if position.best is not None:
            self._context.reporter.report(position.best)

    def save_last(self, position: Position) -> None:
        """Publish the model as the last one and, where these are kept, as its epoch's; then the state."""
        self._save([LAST, epoch_name(position.epoch)] if self._kept else [LAST], position)
        self._published.retain(self._kept)
        self.save_position(position)

    def save_position(self, position: Position) -> None:
        """Publish the state only."""
        local = self._scratch(STATE)
        position = position.model_copy(update={"artifacts": self._published.artifacts})
        state.write(local, position, self._state)
        self._published.publish_state(local)
        local.unlink()

    def _save(self, names: Sequence[str], position: Position) -> None:
        local = self._scratch("model.keras")
        origin = self._published.origin(position.epoch)
        if BEST in names:
            origin = origin.model_copy(update={"evaluation": position.best})
        with self._published_weights():
            model_file.save(self._model, local, origin)
        for name in names:
            self._published.publish(name, local, position.epoch)
        local.unlink()

    def _scratch(self, name: str) -> Path:
        return self._context.scratch / name
