"""The manifest of a training's checkpoints: ``checkpoint.json`` at the output address.

The manifest alone decides which checkpoints exist. It is replaced atomically after all files of a
checkpoint are published, and these are never changed: a training that is killed at any point leaves either
the previous manifest or the next one, each with all of its files. A file that it does not name is garbage.

Pure: models in, models out. :mod:`tlt_runner.training.checkpoint.artifacts` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from tlt_api.base import StatusModel
from tlt_api.status import EPOCH_PREFIX, Metrics
from tlt_runner.training.checkpoint.state import Position

MANIFEST, FOLDER = "checkpoint.json", "checkpoints"
BEST, LAST = "best", "last"
_DIGEST_DIGITS = 12


class File(StatusModel):
    """A published file."""

    path: str
    """Relative to the output address."""
    sha256: str
    """Digest of its content."""
    size_bytes: int
    """Size of its content in bytes."""


class Checkpoint(StatusModel):
    """A training at the end of an epoch or between two steps."""

    name: str
    """``epoch-0007-3f2a9c01b7de``; the name of a model in outputs of before 2026-12."""
    epoch: int
    """Epochs finished."""
    step: int = 0
    """Steps taken in the epoch after that."""
    state: File | None = None
    """State file; None once a newer checkpoint replaced it as the one to resume from."""
    model: File | None = None
    """Model file; None where the checkpoint serves resuming only."""
    metrics: Metrics | None = None
    """Evaluation of its model; None until it is evaluated, and where no evaluation is due."""


class Manifest(StatusModel):
    """All checkpoints of a training, and pointers to those that have a name."""

    version: Literal[1] = 1
    """Format of this file."""
    position: Position
    """Progress of the training, newer than the one in the state file by an evaluation."""
    checkpoints: list[Checkpoint]
    """Checkpoints, in the order in which they were made."""
    resume: str
    """Checkpoint whose state the next attempt starts from."""
    best: str | None = None
    """Checkpoint with the best mAP."""
    last: str | None = None
    """Newest checkpoint with a model."""
    kept: list[str] = []
    """Checkpoints that ``training.keepCheckpoints`` keeps, oldest first."""
    superseded: list[str] = []
    """Paths of files that nothing needs since this manifest; the next attempt removes those that are left."""

    def checkpoint(self, name: str | None) -> Checkpoint | None:
        """Return the checkpoint of that name."""
        return next((item for item in self.checkpoints if item.name == name), None)

    def models(self) -> dict[str, Checkpoint]:
        """Checkpoints by the name under which users know their models: ``best``, ``last``, ``epoch-0007``."""
        pointers = {BEST: self.best, LAST: self.last}
        named = {name: self.checkpoint(pointer) for name, pointer in pointers.items()}
        for pointer in self.kept:
            checkpoint = self.checkpoint(pointer)
            if checkpoint is not None:
                # No two kept checkpoints have one epoch: one that is finished again replaces the other.
                named[f"{EPOCH_PREFIX}{checkpoint.epoch:04d}"] = checkpoint
        return {name: item for name, item in named.items() if item is not None and item.model is not None}

    def paths(self) -> set[str]:
        """Paths of all files of all checkpoints."""
        files = [file for item in self.checkpoints for file in (item.state, item.model)]
        return {file.path for file in files if file is not None}

    def without(self, names: Iterable[str]) -> Manifest:
        """Forget models by their users' name: their files are gone."""
        missing_names = set(names)
        checkpoints = self.models()
        # `kept` has the names of checkpoints, not those under which users know them.
        missing_checkpoints = {
            checkpoint.name for name, checkpoint in checkpoints.items() if name in missing_names
        }
        update = {
            "best": None if BEST in missing_names else self.best,
            "last": None if LAST in missing_names else self.last,
            "kept": [name for name in self.kept if name not in missing_checkpoints],
        }
        return self.model_copy(update=update)._trimmed()

    def advanced(
        self, position: Position, checkpoint: Checkpoint, *, best: bool, last: bool, keep: int
    ) -> Manifest:
        """Add or replace a checkpoint as the one to resume from.

        Args:
            position: Progress of the training.
            checkpoint: The checkpoint at that position.
            best: Its model is the best one.
            last: Its model is the last one and, with ``keep``, one of those to keep.
            keep: Newest checkpoints to keep besides best and last.
        """
        others = [item for item in self.checkpoints if item.name != checkpoint.name]
        kept = self.kept
        if last:
            # An epoch that is finished again replaces its earlier checkpoint.
            earlier = [item.name for item in others if item.name in kept and item.epoch != checkpoint.epoch]
            # Not [-keep:] alone: a slice from -0 would keep all.
            kept = [*earlier, checkpoint.name][-keep:] if keep else []
        update = {
            "position": position,
            "checkpoints": [*others, checkpoint],
            "resume": checkpoint.name,
            "best": checkpoint.name if best else self.best,
            "last": checkpoint.name if last else self.last,
            "kept": kept,
        }
        return self.model_copy(update=update)._trimmed()

    def _trimmed(self) -> Manifest:
        """Drop checkpoints that nothing points to, and states that nobody resumes from."""
        pointed = {self.best, self.last, *self.kept}
        trimmed = []
        for item in self.checkpoints:
            # States serve resuming only: those of older checkpoints are dropped, their models stay.
            state = item.state if item.name == self.resume else None
            model = item.model if item.name in pointed else None
            # An entry without files says nothing. Its paths are then among those that record() removes.
            if state is not None or model is not None:
                trimmed.append(item.model_copy(update={"state": state, "model": model}))
        return self.model_copy(update={"checkpoints": trimmed})


def checkpoint_name(position: Position, digest: str) -> str:
    """Return the name of a checkpoint: its place in the training and the digest of its state."""
    # With the digest, an epoch that is trained again has another name unless its result is the same: no file
    # is overwritten.
    step = f"-step-{position.step:06d}" if position.step else ""
    return f"{EPOCH_PREFIX}{position.epoch:04d}{step}-{digest[:_DIGEST_DIGITS]}"


def first(position: Position, checkpoint: Checkpoint) -> Manifest:
    """Create the manifest of a training's first checkpoint, before it has any pointers."""
    return Manifest(position=position, checkpoints=[checkpoint], resume=checkpoint.name)


def of_old_layout(position: Position, state: File) -> Manifest:
    """Create the manifest of an output of before 2026-12, whose state file lists the published models.

    Args:
        position: Position in ``last.state.npz``.
        state: That file.
    """
    models = [
        Checkpoint(
            name=item.name,
            epoch=item.epoch or 0,
            model=File(path=f"{item.name}.keras", sha256=item.sha256, size_bytes=item.size_bytes),
            metrics=position.best if item.name == BEST else None,
        )
        for item in position.artifacts
    ]
    resume = Checkpoint(name=state.path, epoch=position.epoch, step=position.step, state=state)
    # An attempt that was killed early may have published only some of them.
    names = [item.name for item in models]
    return Manifest(
        position=position.model_copy(update={"artifacts": []}),
        checkpoints=[*models, resume],
        resume=resume.name,
        best=BEST if BEST in names else None,
        last=LAST if LAST in names else None,
        kept=[name for name in names if name.startswith(EPOCH_PREFIX)],
    )
