"""The state of a training in one file, so that another attempt goes on as if nothing had happened.

``last.state.npz`` holds weights, batch normalisation's statistics, the optimizer, and where the training was.
It is one file so that it is published whole or not at all, and apart from ``last.keras``, which is for people
and other jobs. Random draws and the order of images depend on seed, epoch and step: there is no more state.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlt_api.base import StatusModel
from tlt_api.model import Anchors
from tlt_api.status import Artifact, Metrics
from tlt_runner.storage import Storage

log = logging.getLogger(__name__)


class Position(StatusModel):
    """Where a training is, and what it has achieved."""

    run: str
    """Uid of the TrainingJob: a state of another one is not resumed."""
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps taken in the epoch that has begun; 0 between epochs."""
    batch_size: int
    """Images of a step: a step number means nothing for another size."""
    anchors: Anchors | None = None
    """The model's: the same weights mean other boxes with others."""
    best: Metrics | None = None
    """Evaluation of the best model so far; its epoch is in it."""
    best_loss: float | None = None
    """Lowest mean loss of an epoch so far."""
    artifacts: list[Artifact] = []
    """What was published."""
    stale: int = 0
    """Evaluations (or epochs) since what early stopping monitors was at its best."""


def write(path: Path, position: Position, variables: Sequence[Any]) -> None:
    """Write position and variables to a local file."""
    arrays: dict[str, Any] = {
        f"{index:05d}": np.asarray(variable) for index, variable in enumerate(variables)
    }
    arrays["position"] = np.frombuffer(position.model_dump_json().encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def resume(storage: Storage, uri: str, start: Position, variables: Sequence[Any]) -> Position:
    """Where to go on: the state at ``uri`` where it is this run's, else ``start``.

    Args:
        storage: Where checkpoints are.
        uri: Address of the state file.
        start: The position of a run that has not begun: its uid, batch size and anchors.
        variables: Are set where a state is resumed, and left alone otherwise.
    """
    if not storage.exists(uri):
        return start
    try:
        position, arrays = read(storage.fetch(uri))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        log.warning("training starts anew: the checkpoint %s cannot be read: %s", uri, error)
        return start
    if position.run != start.run:
        log.warning("training starts anew: the checkpoint %s is of another run (%s)", uri, position.run)
        return start
    if position.anchors is not None and position.anchors != start.anchors:
        log.warning(
            "training starts anew: the checkpoint %s has other anchors; the data have changed since", uri
        )
        return start
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        log.warning("training starts anew: the checkpoint %s is of another model or optimizer", uri)
        return start
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    if position.step and position.batch_size != start.batch_size:
        log.info("epoch %d begins again: the batch size has changed", position.epoch + 1)
        position = position.model_copy(update={"step": 0})
    log.info("resuming after epoch %d and step %d of the next", position.epoch, position.step)
    return position.model_copy(update={"batch_size": start.batch_size})


def read(path: Path) -> tuple[Position, list[np.ndarray]]:
    """Read a file of :func:`write`.

    Raises:
        OSError, KeyError, ValueError, zipfile.BadZipFile: It is none.
    """
    with np.load(path, allow_pickle=False) as file:
        position = Position.model_validate_json(file["position"].tobytes())
        return position, [file[name] for name in sorted(file.files) if name != "position"]
