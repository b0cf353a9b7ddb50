"""Saves a model in training as checkpoints: the state to resume from, and the model with its origin.

Called by the train task once there is a model; the loop calls :class:`CheckpointWriter`, which passes its
files to :class:`~tlt_runner.training.checkpoint.artifacts.Checkpoints`. The loop waits only while variables
are copied to the host's memory and a model is written to the scratch folder; hashing and publishing happen in
a thread. A model file is Keras' ``.keras`` zip
with one more entry, ``tlt.json``, which Keras ignores and ``tlt evaluate`` reads: the training that made the
model.
"""

from __future__ import annotations

import logging
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from tlt_api.base import StatusModel
from tlt_api.failures import Reason
from tlt_api.status import Metrics
from tlt_runner.context import Context
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.report import FILE_NAME as DETAILS
from tlt_runner.files import sha256_of
from tlt_runner.training.checkpoint import manifest as manifests
from tlt_runner.training.checkpoint import state
from tlt_runner.training.checkpoint.artifacts import OLD_STATE, Checkpoints
from tlt_runner.training.checkpoint.background import Background
from tlt_runner.training.checkpoint.manifest import FOLDER, Checkpoint
from tlt_runner.training.checkpoint.state import Position, Saved

ENTRY = "tlt.json"
log = logging.getLogger(__name__)


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
        minutes: Time after which a checkpoint is due within an epoch; 0 for none.
        clock: Monotonic seconds.
        details: Writes the details of the last evaluation, whose metrics it is given, to a file; published
            beside the best model.
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
        minutes: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        details: Callable[[Metrics, Path], None] | None = None,
    ) -> None:
        self._scratch = context.scratch
        self._checkpoints = checkpoints
        self._model = model
        self._variables = variables
        self._keep = keep
        self._published_weights = published_weights
        self._publishes = publishes
        self._seconds, self._clock = 60.0 * minutes, clock
        self._saved_at = clock()
        self._background = Background("checkpoints")
        self._details = details

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

    def is_due(self) -> bool:
        """Return whether a checkpoint within the epoch is due; cheap, called before each step.

        The chief alone decides, by its clock: the others have nothing to write, and a checkpoint's step is
        the same on all workers, whose steps wait for each other.

        Raises:
            RunnerError: The error with which an earlier checkpoint failed.
        """
        # While one is being written the next one waits, and not the training.
        if not self._publishes or self._background.busy or not self._seconds:
            return False
        return self._clock() - self._saved_at >= self._seconds

    def snapshot(self) -> list[np.ndarray]:
        """Return copies of all variables, once no checkpoint is being written: memory holds one copy.

        Raises:
            RunnerError: OutOfMemory where there is no room for them; the error with which an earlier
                checkpoint failed.
        """
        self._background.wait()
        self._saved_at = self._clock()
        with _memory_explained(self._variables):
            # copy(): an array of a variable on the CPU may share the memory that the next step overwrites.
            return [np.asarray(variable).copy() for variable in self._variables]

    def save_state(self, position: Position, snapshot: list[np.ndarray] | None = None) -> None:
        """Begin to save a checkpoint for resuming: within an epoch, before an evaluation, or at a stop.

        Args:
            position: Progress of the training.
            snapshot: The variables at this position; by default as they are now.
        """
        if not self._publishes:
            return
        variables = self.snapshot() if snapshot is None else snapshot
        # The state only: a model is published at the end of an epoch, once it is evaluated.
        self._background.start(
            lambda: self._record(
                position, self._with_state(position, variables), is_best=False, is_last=False
            )
        )

    def finish(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            RunnerError: The error with which it failed.
        """
        self._background.wait()

    def save_epoch(
        self, position: Position, metrics: Metrics | None, *, is_best: bool, is_last: bool
    ) -> None:
        """Begin to record a finished epoch, with its model where that is the best one or a checkpoint is due.

        Args:
            position: Progress of the training, the evaluation included.
            metrics: The evaluation; None where none was due.
            is_best: The model is the best one so far.
            is_last: A checkpoint is due.
        """
        if not self._publishes:
            return
        # The manifest says what is published only once nothing is being written any more.
        self._background.wait()
        self._saved_at = self._clock()
        # 1. The state. The one saved before the evaluation has the same weights and is not written again.
        current = self._current(position)
        variables = None if current else self.snapshot()
        # 2. The model, unless it is neither best nor due: then the entry gets its metrics only.
        local = None
        if is_best or is_last:
            local = self._scratch / "model.keras"
            owner = self._checkpoints.owner
            origin = Origin(
                run=owner.uid,
                job=f"{owner.namespace}/{owner.name}",
                epoch=position.epoch,
                evaluation=metrics if is_best else None,
            )
            # The averages, where the spec asks for them; the state has weights and averages in their places.
            # Keras writes the model in training only: so to the scratch folder here, elsewhere later.
            with self._published_weights():
                save(_with_thresholds(self._model, metrics), local, origin)
        # Written here, before another evaluation takes the place of this one.
        details = self._scratch / DETAILS if is_best and metrics and self._details else None
        if details is not None and metrics is not None and self._details is not None:
            self._details(metrics, details)

        def write() -> None:
            checkpoint = self._with_state(position, variables) if variables is not None else current
            assert checkpoint is not None
            checkpoint = checkpoint.model_copy(update={"metrics": metrics})
            if local is not None:
                # Under the checkpoint's own name: nothing refers to it yet.
                file = self._checkpoints.publish(local, f"{FOLDER}/{checkpoint.name}/model.keras")
                checkpoint = checkpoint.model_copy(update={"model": file})
            # Before the manifest: a run that is killed in between evaluates this epoch again, and writes the
            # same details.
            if details is not None:
                self._checkpoints.publish(details, DETAILS)
                details.unlink()
            # 3. The manifest, which makes both exist.
            self._record(position, checkpoint, is_best=is_best, is_last=is_last, model=local)
            if local is not None:
                local.unlink()

        self._background.start(write)

    def _current(self, position: Position) -> Checkpoint | None:
        """Return the checkpoint whose state has the weights of this position, if it can still get a model."""
        manifest = self._checkpoints.manifest
        checkpoint = manifest.checkpoint(manifest.resume) if manifest else None
        # Files of a checkpoint never change: one that has a model gets no other.
        if checkpoint is None or checkpoint.model is not None or checkpoint.name == OLD_STATE:
            return None
        # The same epoch and step of one training are the same weights.
        return checkpoint if (checkpoint.epoch, checkpoint.step) == (position.epoch, position.step) else None

    def _with_state(self, position: Position, variables: Sequence[np.ndarray]) -> Checkpoint:
        """Publish the state and return its checkpoint; one with the same content is not published again."""
        local = self._scratch / "state.npz"
        # Written in order to know its digest, which is part of the name.
        with _memory_explained(variables):
            state.write(local, position, variables)
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
        log.info("checkpoint %s written", checkpoint.name)


def _with_thresholds(model: FasterRCNN, metrics: Metrics | None) -> FasterRCNN:
    """Return the model with the score thresholds of its evaluation, if there was one that has any."""
    thresholds = metrics.score_thresholds if metrics else None
    if thresholds is None:
        return model
    return detector.with_config(model, model.config.model_copy(update={"score_thresholds": thresholds}))


@contextmanager
def _memory_explained(variables: Sequence[Any]) -> Iterator[None]:
    """Say of host memory that runs out here that a checkpoint needed it, and not a step's images.

    Raises:
        RunnerError: OutOfMemory.
    """
    try:
        yield
    except MemoryError as error:
        megabytes = sum(math.prod(variable.shape) * 4 for variable in variables) / 2**20
        raise RunnerError(
            Reason.OUT_OF_MEMORY,
            f"a checkpoint needs {megabytes:.0f} MiB of the host's memory for a copy of all variables",
            "Raise spec.resources.memory; a smaller batch does not help.",
        ) from error


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
