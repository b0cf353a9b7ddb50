"""Saves a model in training as checkpoints: the state to resume from, and the model with its origin.

Called by the train task once there is a model; the loop calls :class:`CheckpointWriter`, which passes its
files to :class:`~tlt_runner.training.checkpoint.artifacts.Checkpoints`. A model file is Keras' ``.keras`` zip
with one more entry, ``tlt.json``, which Keras ignores and ``tlt evaluate`` reads: the training that made the
model.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tlt_api.base import StatusModel
from tlt_api.status import Metrics
from tlt_runner.context import Context
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.files import sha256_of
from tlt_runner.training.checkpoint import manifest as manifests
from tlt_runner.training.checkpoint import state
from tlt_runner.training.checkpoint.artifacts import OLD_STATE, Checkpoints
from tlt_runner.training.checkpoint.manifest import FOLDER, Checkpoint
from tlt_runner.training.checkpoint.state import Position, Saved

ENTRY = "tlt.json"


class CheckpointWriter:
    """Saves a model in training and its state as checkpoints.

    Args:
        context: Scratch folder.
        checkpoints: Takes the files.
        model: The model in training.
        variables: All variables that training changes.
        keep: Newest checkpoints that stay as models of their own.
        published_weights: Context in which the model has the weights to publish (averages).
        publishes: False on workers that only resume.
    """

    def __init__(
        self,
        context: Context,
        checkpoints: Checkpoints,
        model: FasterRCNN,
        variables: Sequence[Any],
        keep: int,
        published_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
        publishes: bool = True,
    ) -> None:
        self._scratch = context.scratch
        self._checkpoints = checkpoints
        self._model = model
        self._variables = variables
        self._keep = keep
        self._published_weights = published_weights
        self._publishes = publishes

    def resume(self, saved: Saved | None, start: Position) -> Position:
        """Restore the state that :meth:`Checkpoints.recall` returned; without one, return ``start``.

        Raises:
            RunnerError: As of :func:`state.resume`.
        """
        if saved is None:
            return start
        position = state.resume(saved, start, self._variables)
        # The state could not be used: what was recalled is of a training that does not go on.
        if position is start:
            self._checkpoints.withdraw()
        return position

    def save_state(self, position: Position) -> None:
        """Save a checkpoint for resuming: before an evaluation, or when the run is stopped."""
        # The state only: a model is published at the end of an epoch, once it is evaluated.
        if self._publishes:
            self._record(position, self._with_state(position), is_best=False, is_last=False)

    def save_epoch(
        self, position: Position, metrics: Metrics | None, *, is_best: bool, is_last: bool
    ) -> None:
        """Record a finished epoch, with its model where that is the best one or a checkpoint is due.

        Args:
            position: Progress of the training, the evaluation included.
            metrics: The evaluation; None where none was due.
            is_best: The model is the best one so far.
            is_last: A checkpoint is due.
        """
        if not self._publishes:
            return
        # 1. The state. The one saved before the evaluation has the same weights and is not written again.
        checkpoint = self._current(position) or self._with_state(position)
        checkpoint = checkpoint.model_copy(update={"metrics": metrics})
        # The model is neither best nor due: the entry gets its metrics only.
        if not (is_best or is_last):
            self._record(position, checkpoint, is_best=False, is_last=False)
            return
        # 2. The model, under the checkpoint's own name: nothing refers to it yet.
        local = self._scratch / "model.keras"
        owner = self._checkpoints.owner
        origin = Origin(
            run=owner.uid,
            job=f"{owner.namespace}/{owner.name}",
            epoch=position.epoch,
            evaluation=metrics if is_best else None,
        )
        # The averages, where the spec asks for them; the state above has weights and averages in their
        # places.
        with self._published_weights():
            save(self._model, local, origin)
        file = self._checkpoints.publish(local, f"{FOLDER}/{checkpoint.name}/model.keras")
        checkpoint = checkpoint.model_copy(update={"model": file})
        # 3. The manifest, which makes both exist.
        self._record(position, checkpoint, is_best=is_best, is_last=is_last, model=local)
        local.unlink()

    def _current(self, position: Position) -> Checkpoint | None:
        """Return the checkpoint whose state has the weights of this position, if it can still get a model."""
        manifest = self._checkpoints.manifest
        checkpoint = manifest.checkpoint(manifest.resume) if manifest else None
        # Files of a checkpoint never change: one that has a model gets no other.
        if checkpoint is None or checkpoint.model is not None or checkpoint.name == OLD_STATE:
            return None
        # The same epoch and step of one training are the same weights.
        return checkpoint if (checkpoint.epoch, checkpoint.step) == (position.epoch, position.step) else None

    def _with_state(self, position: Position) -> Checkpoint:
        """Publish the state and return its checkpoint; one with the same content is not published again."""
        local = self._scratch / "state.npz"
        # Written in order to know its digest, which is part of the name.
        state.write(local, position, self._variables)
        name = manifests.checkpoint_name(position, sha256_of(local))
        manifest = self._checkpoints.manifest
        checkpoint = manifest.checkpoint(name) if manifest else None
        if checkpoint is None or checkpoint.state is None:
            file = self._checkpoints.publish(local, f"{FOLDER}/{name}/state.npz")
            checkpoint = Checkpoint(name=name, epoch=position.epoch, step=position.step, state=file)
        local.unlink()
        return checkpoint

    def _record(
        self,
        position: Position,
        checkpoint: Checkpoint,
        *,
        is_best: bool,
        is_last: bool,
        model: Path | None = None,
    ) -> None:
        """Put a checkpoint into the manifest and have it recorded."""
        # The first checkpoint of a training: there is no manifest to advance.
        manifest = self._checkpoints.manifest or manifests.first(position, checkpoint)
        manifest = manifest.advanced(position, checkpoint, best=is_best, last=is_last, keep=self._keep)
        self._checkpoints.record(manifest, self._scratch, model)


class Origin(StatusModel):
    """The training and the epoch that made a model."""

    run: str
    """Uid of the TrainingJob."""
    job: str
    """``namespace/name`` of the TrainingJob."""
    epoch: int
    """Epochs that the model was trained for."""
    evaluation: Metrics | None = None
    """Evaluation of a model that was the best one when it was written."""


def save(model: FasterRCNN, path: Path, origin: Origin) -> None:
    """Write the model with its origin to a local ``.keras`` file."""
    detector.save(model, path)
    with zipfile.ZipFile(path, "a") as file:
        # The earliest date that a zip can hold, so that the entry does not depend on the time.
        file.writestr(zipfile.ZipInfo(ENTRY, (1980, 1, 1, 0, 0, 0)), origin.model_dump_json(by_alias=True))


def origin_of(path: Path) -> Origin | None:
    """Read the origin of a model file; None where it names none."""
    try:
        with zipfile.ZipFile(path) as file:
            return Origin.model_validate_json(file.read(ENTRY))
    # A file that a user put there: no zip, no such entry, or an entry of something else.
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
