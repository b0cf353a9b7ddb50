"""Publishes what a training makes: the best model, the last one, and the state to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlt_api.status import Artifact
from tlt_runner.context import Context
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.storage import join, sha256_of
from tlt_runner.training import checkpoints
from tlt_runner.training.checkpoints import Position

BEST, LAST, STATE = "best", "last", "last.state.npz"


class Keeper:
    """Files of one training below its output address.

    Args:
        context: Storage, reporter and scratch folder.
        output_uri: Where results go.
        model: The model in training.
        state: All variables that training changes.
    """

    def __init__(self, context: Context, output_uri: str, model: FasterRCNN, state: Sequence[Any]) -> None:
        self._context = context
        self._output = output_uri
        self._model = model
        self._state = state
        self._artifacts: dict[str, Artifact] = {}

    def resume(self, start: Position) -> Position:
        """Take up the state of an earlier attempt of this run, and report again what it had published.

        A file that is not the recorded one (the attempt ended between two files) is left out: going on from
        the state makes it again.
        """
        position = checkpoints.resume(self._context.storage, join(self._output, STATE), start, self._state)
        for artifact in position.artifacts:
            if self._context.storage.exists(artifact.uri) and self._digest(artifact) == artifact.sha256:
                self._add(artifact)
        if position.best is not None and BEST in self._artifacts:
            self._context.reporter.metrics(position.best)
            return position
        return position.model_copy(update={"best": None})

    def save_best(self, position: Position) -> None:
        """Publish the model as the best one; then its metrics."""
        self._publish(BEST, position)
        if position.best is not None:
            self._context.reporter.metrics(position.best)

    def save_last(self, position: Position) -> None:
        """Publish the model as the last one, and the state."""
        self._publish(LAST, position)
        self.save_position(position)

    def save_position(self, position: Position) -> None:
        """Publish the state only."""
        local = self._scratch(STATE)
        position = position.model_copy(update={"artifacts": list(self._artifacts.values())})
        checkpoints.write(local, position, self._state)
        self._context.storage.publish(local, join(self._output, STATE))
        local.unlink()

    def _publish(self, name: str, position: Position) -> None:
        local = self._scratch(f"{name}.keras")
        detector.save(self._model, local)
        published = self._context.storage.publish(local, join(self._output, local.name))
        local.unlink()
        self._add(
            Artifact(
                name=name,
                uri=published.uri,
                sha256=published.sha256,
                size_bytes=published.size_bytes,
                epoch=position.epoch,
            )
        )

    def _add(self, artifact: Artifact) -> None:
        self._artifacts[artifact.name] = artifact
        self._context.reporter.artifact(artifact)

    def _digest(self, artifact: Artifact) -> str:
        return sha256_of(self._context.storage.fetch(artifact.uri))

    def _scratch(self, name: str) -> Path:
        return self._context.scratch / name
