"""The state of a training in one file, so that another attempt goes on as if nothing had happened.

``last.state.npz`` holds weights, batch normalisation's statistics, the optimizer, and where the training was.
It is one file so that it is published whole or not at all, and apart from ``last.keras``, which is for people
and other jobs. Random draws and the order of images depend on seed, epoch and step: there is no more state.
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
from typing import Any

import numpy as np

from tlt_api.base import StatusModel
from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_api.status import Artifact, Metrics
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.storage import Storage
from tlt_runner.training.pretrained.class_outputs import ClassChange

DAMAGED = (EOFError, KeyError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""What reading a file that is no state, or a damaged one, raises (RuntimeError: where it seems encrypted, or
compressed in another way). An OSError is not among them: another attempt may read what this one could not."""

POSITION, DIGEST = "position", "sha256"
"""Entries beside the variables; the second is the digest of all others, for a zip's own have 32 bits."""

log = logging.getLogger(__name__)


class Position(StatusModel):
    """Where a training is, and what it has achieved."""

    run: str
    """Uid of the TrainingJob: a state of another one is not resumed."""
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps taken in the epoch that has begun; 0 between epochs."""
    loss_sum: float = 0.0
    """Sum of those steps' losses."""
    closed: bool = True
    """Whether the epoch that ended last has been evaluated and kept, where that was due."""
    batch_size: int
    """Images of a step: a step number means nothing for another size."""
    data: str | None = None
    """Digest of the records: of others, an epoch is another one and a score says something else. None in
    files of before 2026-11-29."""
    anchors: Anchors | None = None
    """The model's: the same weights mean other boxes with others."""
    class_names: list[str] | None = None
    """The model's, by id."""
    best: Metrics | None = None
    """Evaluation of the best model so far; its epoch is in it."""
    artifacts: list[Artifact] = []
    """What was published."""
    reached: float | None = None
    """The last mAP, or negative loss, that early stopping counted as better."""
    stale: int = 0
    """Evaluations (or epochs) since what early stopping monitors was at its best."""


@dataclass(frozen=True)
class Saved:
    """A state of this run that was found.

    Attributes:
        position: Where the training was.
        path: The whole state, a local file.
        uri: Its address.
    """

    position: Position
    path: Path
    uri: str


def write(path: Path, position: Position, variables: Sequence[Any]) -> None:
    """Write position and variables to a local file."""
    arrays: dict[str, Any] = {
        f"{index:05d}": np.asarray(variable) for index, variable in enumerate(variables)
    }
    arrays[POSITION] = np.frombuffer(position.model_dump_json().encode(), np.uint8)
    arrays[DIGEST] = np.frombuffer(_digest(arrays), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def find(storage: Storage, uri: str, run: str) -> Saved | None:
    """The state at an address, where it is this run's; None where a training starts anew, which is said.

    Raises:
        RunnerError: The storage's reasons, where a state may be there and cannot be read now.
    """
    if not storage.exists(uri):
        return None
    path = storage.fetch(uri)
    try:
        with storage_errors(uri), _opened(path) as file:
            position = _position(file)
    except DAMAGED as error:
        log.warning("training starts anew: the checkpoint %s cannot be read: %s", uri, error)
        return None
    if position.run != run:
        log.warning("training starts anew: the checkpoint %s is of another run (%s)", uri, position.run)
        return None
    return Saved(position, path, uri)


def resume(saved: Saved, start: Position, variables: Sequence[Any]) -> Position:
    """Where to go on: at the saved position; at ``start`` where the state is damaged or the data changed.

    Args:
        saved: What :func:`find` found.
        start: The position of a run that has not begun: its uid, batch size, anchors and classes.
        variables: Are set where a state is resumed, and left alone otherwise.

    Raises:
        RunnerError: ModelMismatch where the state is of another model, which a run's spec does not change to;
            the storage's reasons.
    """
    position = saved.position
    if position.anchors is not None and position.anchors != start.anchors:
        log.warning("training starts anew: its checkpoint has other anchors; the data have changed since")
        return start
    _check_classes(saved, start)
    try:
        with storage_errors(saved.uri):
            _, arrays = read(saved.path)
    except DAMAGED as error:
        log.warning("training starts anew: its checkpoint cannot be read: %s", error)
        return start
    _check_shapes(saved.uri, arrays, variables)
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    if position.data not in (None, start.data):
        position = _of_other_data(position)
    if position.step and position.batch_size != start.batch_size:
        log.info("epoch %d begins again: the batch size has changed", position.epoch + 1)
        position = position.model_copy(update={"step": 0, "loss_sum": 0.0})
    log.info("resuming after epoch %d and step %d of the next", position.epoch, position.step)
    known = {name: getattr(start, name) for name in ("data", "batch_size", "class_names")}
    return position.model_copy(update=known)


def _of_other_data(position: Position) -> Position:
    """Where to go on with the same weights: no step of the epoch and no score counts any more."""
    begins = f"epoch {position.epoch + 1} begins again, and " if position.step else ""
    log.warning(
        "the data have changed since the checkpoint: %swhat was the best model is not compared with what "
        "comes, for it was judged on others",
        begins,
    )
    forgotten = {"step": 0, "loss_sum": 0.0, "best": None, "reached": None, "stale": 0}
    return position.model_copy(update={**forgotten, "closed": position.step > 0 or position.epoch == 0})


def _check_classes(saved: Saved, start: Position) -> None:
    before, now = saved.position.class_names, start.class_names
    if before is None or now is None or before == now:
        return
    classes = ClassChange.between(before, now)
    parts = ("new: ", classes.new), ("gone: ", classes.gone)
    change = "; ".join(what + ", ".join(names) for what, names in parts if names) or "in another order"
    raise _mismatch(
        f"{saved.uri}: expected a checkpoint for the classes {', '.join(now)}, got one for "
        f"{', '.join(before)} ({change})"
    )


def _check_shapes(uri: str, arrays: Sequence[np.ndarray], variables: Sequence[Any]) -> None:
    got, wanted = [array.shape for array in arrays], [tuple(variable.shape) for variable in variables]
    if got == wanted:
        return
    where = f"{len(wanted)} variables of model and optimizer, got {len(got)}"
    if len(got) == len(wanted):
        index = next(index for index, shape in enumerate(got) if shape != wanted[index])
        name = getattr(variables[index], "path", f"variable {index}")
        where = f"{name} {list(wanted[index])}, got {list(got[index])}"
    raise _mismatch(f"{uri}: expected a checkpoint with {where}")


def _mismatch(message: str) -> RunnerError:
    """A run's spec does not change: another program version made this, or another model to start from."""
    return RunnerError(
        Reason.MODEL_MISMATCH,
        message,
        "The spec, the model it starts from or the program version changed under this run. Go back to what "
        "it began with, or remove last.state.npz to start anew.",
    )


def read(path: Path) -> tuple[Position, list[np.ndarray]]:
    """Read a file of :func:`write`.

    Raises:
        DAMAGED: It is none, or damaged.
        OSError: It cannot be read now.
    """
    with _opened(path) as file:
        arrays = {name: file[name] for name in sorted(file.files)}
        digest = arrays.pop(DIGEST, None)  # files of before 2026-11-29 have none
        if digest is not None and digest.tobytes() != _digest(arrays):
            raise ValueError("its content has another sha256 than when it was written")
    position = _position(arrays)
    return position, [array for name, array in arrays.items() if name != POSITION]


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.digest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            yield file
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("an entry begins before the file does") from error


def _position(file: Mapping[str, np.ndarray]) -> Position:
    return Position.model_validate_json(file[POSITION].tobytes())
