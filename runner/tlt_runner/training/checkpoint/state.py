"""The state of a training in one file, so that another attempt goes on with the next step.

A state file (``state.npz``; ``last.state.npz`` in outputs of before 2026-12) holds the position of the
training and every variable that it changes: weights, batch normalisation's statistics, the optimizer,
averages, loss scale. Random draws and the order of images depend on seed, epoch and step alone, so that
nothing else needs saving. Called by :mod:`tlt_runner.training.checkpoint.artifacts`; knows no addresses but
those in its messages.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, Field

from tlt_api.base import StatusModel
from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_api.status import Artifact, Metrics
from tlt_runner.detector.variant import DEFAULT, Variant
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.storage import Storage
from tlt_runner.training.pretrained.class_outputs import ClassChange

DAMAGED = (EOFError, KeyError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""Errors of reading a file that is damaged or no state file. RuntimeError: a damaged header can make an entry
look encrypted or compressed in an unknown way. Not OSError: the next attempt may be able to read the file."""

POSITION, DIGEST = "position", "sha256"
"""Entries beside the variables. The digest covers all other entries: the zip's own checksums have 32 bits."""

log = logging.getLogger(__name__)


class Position(StatusModel):
    """Progress of a training: finished epochs and steps, and its best evaluation."""

    run: str
    """Uid of the TrainingJob. Only its own attempts resume it."""
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps taken in the current epoch; 0 between epochs."""
    loss_sum: float = 0.0
    """Sum of the losses of those steps."""
    epoch_finished: Annotated[
        bool, Field(validation_alias=AliasChoices("epochFinished", "epoch_finished", "closed"))
    ] = True
    """False while the evaluation and the checkpoint after the last epoch are still to be made. State files of
    before 2026-12 call it ``closed``."""
    batch_size: int
    """Images of a step: step numbers of another batch size are not comparable."""
    data: str | None = None
    """Digest of the records: epochs and scores of other records are not comparable. None in files of before
    2026-11-29."""
    anchors: Anchors | None = None
    """Anchors of the model: with other anchors, the same weights predict other boxes."""
    class_names: list[str] | None = None
    """Classes of the model, by id."""
    variant: Variant = DEFAULT
    """Variant of the backbone: in another one, the same weights give other features. State files of before
    2026-12 name none."""
    block_numbers: Literal["tlt", "former"] = "former"
    """Meaning of the numbers in freezeBlocks, which decide what the optimizer trains."""
    best: Metrics | None = None
    """Evaluation of the best model so far, with its epoch."""
    artifacts: list[Artifact] = []
    """Published models, in state files of before 2026-12; since then the manifest lists them."""
    reached: float | None = None
    """Last mAP, or negative loss, that early stopping counted as an improvement."""
    stale: int = 0
    """Evaluations (or epochs) since that improvement."""


@dataclass(frozen=True)
class Saved:
    """A saved state of this run.

    Attributes:
        position: Progress of the training.
        path: The state file on this machine.
        uri: Its address.
    """

    position: Position
    path: Path
    uri: str


def write(path: Path, position: Position, variables: Sequence[Any]) -> None:
    """Write position and variables to a local file. The same content gives the same bytes."""
    arrays: dict[str, Any] = {
        f"{index:05d}": np.asarray(variable) for index, variable in enumerate(variables)
    }
    # Text as an array of bytes: as a string it would take four bytes for each character.
    arrays[POSITION] = np.frombuffer(position.model_dump_json().encode(), np.uint8)
    arrays[DIGEST] = np.frombuffer(_digest(arrays), np.uint8)
    # A stream, because np.savez appends .npz to a path. Not compressed: weights hardly shrink.
    with path.open("wb") as file:
        np.savez(file, **arrays)


def find(storage: Storage, uri: str, run: str) -> Saved | None:
    """Read the position of the state file at an address.

    Returns:
        None where the training starts over, which is logged: there is no file, it is damaged, or of another
        run.

    Raises:
        RunnerError: The storage's reasons, where there may be a file that cannot be read now.
    """
    if not storage.exists(uri):
        return None
    path = storage.fetch(uri)
    try:
        # All of it, so that damage is known before a model is built for this position.
        with storage_errors(uri):
            position, _ = read(path)
    except DAMAGED as error:
        log.warning("training starts over: checkpoint %s is damaged: %s", uri, error)
        return None
    # A resource that was deleted and created again has the same output and another uid.
    if position.run != run:
        log.warning("training starts over: checkpoint %s belongs to another run (%s)", uri, position.run)
        return None
    return Saved(position, path, uri)


def resume(saved: Saved, start: Position, variables: Sequence[Any]) -> Position:
    """Restore the variables and return the position to continue from.

    Args:
        saved: A state of this run.
        start: Position of a run at its start: its uid, batch size, anchors and classes.
        variables: Restored from the file, or left alone where ``start`` is returned.

    Returns:
        The saved position, or ``start`` where the file is damaged or has other anchors.

    Raises:
        RunnerError: ModelMismatch where the state belongs to another model; the storage's reasons.
    """
    position = saved.position
    # Anchors differ only where anchors.auto fitted them to a data set that has changed since.
    if position.anchors is not None and position.anchors != start.anchors:
        log.warning("training starts over: its checkpoint has other anchors because the dataset changed")
        return start
    # Before the shapes are compared: names say more than a shape that differs.
    _check_classes(saved, start)
    try:
        with storage_errors(saved.uri):
            _, arrays = read(saved.path)
    except DAMAGED as error:
        log.warning("training starts over: its checkpoint is damaged: %s", error)
        return start
    # All or nothing: no variable is assigned before every shape is known to fit.
    _check_shapes(saved.uri, arrays, variables)
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    # Scores and steps of other images are not comparable; the weights still are the best start.
    if position.data not in (None, start.data):
        position = _with_changed_data(position)
    # Steps of another batch size cover other images: the epoch starts over.
    if position.step and position.batch_size != start.batch_size:
        log.info("epoch %d starts over: the batch size changed", position.epoch + 1)
        position = position.model_copy(update={"step": 0, "loss_sum": 0.0})
    log.info("resuming after epoch %d and step %d of the next", position.epoch, position.step)
    # The next checkpoint describes what is trained with now.
    current = {name: getattr(start, name) for name in ("data", "batch_size", "class_names")}
    return position.model_copy(update=current)


def read(path: Path) -> tuple[Position, list[np.ndarray]]:
    """Read a file of :func:`write`.

    Raises:
        DAMAGED: The file is damaged, or no state file.
        OSError: The file cannot be read now.
    """
    with _opened(path) as file:
        # Names are five digits: sorted, they are in the order in which the variables were written.
        arrays = {name: file[name] for name in sorted(file.files)}
        # Files of before 2026-11-29 have none.
        digest = arrays.pop(DIGEST, None)
        if digest is not None and digest.tobytes() != _digest(arrays):
            raise ValueError("its content has another sha256 than when it was written")
    position = _position(arrays)
    return position, [array for name, array in arrays.items() if name != POSITION]


def _with_changed_data(position: Position) -> Position:
    """Keep the weights, restart the epoch and drop the best score: the dataset changed."""
    restarted = f"; epoch {position.epoch + 1} starts over" if position.step else ""
    log.warning(
        "dataset changed since the checkpoint; previous best mAP discarded (measured on other images)%s",
        restarted,
    )
    discarded = {"step": 0, "loss_sum": 0.0, "best": None, "reached": None, "stale": 0}
    # Between two epochs the model is evaluated again, on the new images, before it is trained on.
    finished = position.step > 0 or position.epoch == 0
    return position.model_copy(update={**discarded, "epoch_finished": finished})


def _check_classes(saved: Saved, start: Position) -> None:
    """Refuse a checkpoint for other classes, or for the same ones in another order.

    Raises:
        RunnerError: ModelMismatch, with the difference.
    """
    before, now = saved.position.class_names, start.class_names
    # Old files do not say; then only a shape that differs can tell.
    if before is None or now is None or before == now:
        return
    # Refused and not converted: the optimizer's moments belong to the former outputs, too.
    classes = ClassChange.between(before, now)
    parts = ("new: ", classes.new), ("gone: ", classes.gone)
    change = "; ".join(label + ", ".join(names) for label, names in parts if names) or "in another order"
    raise _mismatch(
        f"{saved.uri}: expected a checkpoint for the classes {', '.join(now)}, got one for "
        f"{', '.join(before)} ({change})"
    )


def _check_shapes(uri: str, arrays: Sequence[np.ndarray], variables: Sequence[Any]) -> None:
    """Refuse a checkpoint whose variables differ from those of the model in number or shape.

    Raises:
        RunnerError: ModelMismatch, with the first difference.
    """
    saved_shapes, expected_shapes = (
        [array.shape for array in arrays],
        [tuple(variable.shape) for variable in variables],
    )
    if saved_shapes == expected_shapes:
        return
    difference = f"{len(expected_shapes)} variables of model and optimizer, got {len(saved_shapes)}"
    if len(saved_shapes) == len(expected_shapes):
        index = next(index for index, shape in enumerate(saved_shapes) if shape != expected_shapes[index])
        name = getattr(variables[index], "path", f"variable {index}")
        difference = f"{name} {list(expected_shapes[index])}, got {list(saved_shapes[index])}"
    raise _mismatch(f"{uri}: expected a checkpoint with {difference}")


def _mismatch(message: str) -> RunnerError:
    # A run's spec is immutable: the initial model or the program version is what can have changed.
    return RunnerError(
        Reason.MODEL_MISMATCH,
        message,
        "The spec, the initial model or the program version changed under this run. Restore what it started "
        "with, or remove checkpoint.json and last.state.npz to start over.",
    )


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        # With type and shape, because the same bytes can be other numbers.
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        # A view: the bytes of a copy would need the memory of the largest variable once more.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a state file; an entry is read when it is asked for.

    Raises:
        DAMAGED: The file is damaged, or no state file.
        OSError: The file cannot be read now.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            yield file
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # zipfile seeks to a negative offset: the central directory is damaged, the disk is not.
        raise ValueError("an entry begins before the file does") from error


def _position(file: Mapping[str, np.ndarray]) -> Position:
    return Position.model_validate_json(file[POSITION].tobytes())
