"""The state of a training in one file, so that another attempt goes on as if nothing had happened.

``last.state.npz`` holds weights, batch normalisation's statistics, the optimizer, and where the training was.
It is one file so that it is published whole or not at all, and apart from ``last.keras``, which is for people
and other jobs. Random draws and the order of images depend on seed, epoch and step: there is no more state.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlt_api.base import StatusModel
from tlt_api.model import Anchors
from tlt_api.status import Artifact, Metrics
from tlt_runner.storage import Storage

UNREADABLE = (OSError, EOFError, KeyError, ValueError, zlib.error, zipfile.BadZipFile)
"""What reading a file that is no state, or a damaged one, raises."""

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
    anchors: Anchors | None = None
    """The model's: the same weights mean other boxes with others."""
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
    """

    position: Position
    path: Path


def write(path: Path, position: Position, variables: Sequence[Any]) -> None:
    """Write position and variables to a local file."""
    arrays: dict[str, Any] = {
        f"{index:05d}": np.asarray(variable) for index, variable in enumerate(variables)
    }
    arrays["position"] = np.frombuffer(position.model_dump_json().encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def find(storage: Storage, uri: str, run: str) -> Saved | None:
    """The state at an address, where it is this run's; None where a training starts anew, which is said."""
    if not storage.exists(uri):
        return None
    path = storage.fetch(uri)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            position = _position(file)
    except UNREADABLE as error:
        log.warning("training starts anew: the checkpoint %s cannot be read: %s", uri, error)
        return None
    if position.run != run:
        log.warning("training starts anew: the checkpoint %s is of another run (%s)", uri, position.run)
        return None
    return Saved(position, path)


def resume(saved: Saved, start: Position, variables: Sequence[Any]) -> Position:
    """Where to go on: the saved position where its state fits, else ``start``, which is said.

    Args:
        saved: What :func:`find` found.
        start: The position of a run that has not begun: its uid, batch size and anchors.
        variables: Are set where a state is resumed, and left alone otherwise.
    """
    position = saved.position
    if position.anchors is not None and position.anchors != start.anchors:
        log.warning("training starts anew: its checkpoint has other anchors; the data have changed since")
        return start
    try:
        _, arrays = read(saved.path)
    except UNREADABLE as error:
        log.warning("training starts anew: its checkpoint cannot be read: %s", error)
        return start
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        log.warning("training starts anew: its checkpoint is of another model or optimizer")
        return start
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    if position.step and position.batch_size != start.batch_size:
        log.info("epoch %d begins again: the batch size has changed", position.epoch + 1)
        position = position.model_copy(update={"step": 0, "loss_sum": 0.0})
    log.info("resuming after epoch %d and step %d of the next", position.epoch, position.step)
    return position.model_copy(update={"batch_size": start.batch_size})


def read(path: Path) -> tuple[Position, list[np.ndarray]]:
    """Read a file of :func:`write`.

    Raises:
        UNREADABLE: It is none, or damaged: every entry has a check sum.
    """
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return _position(file), [file[name] for name in sorted(file.files) if name != "position"]


def _position(file: Any) -> Position:
    return Position.model_validate_json(file["position"].tobytes())
