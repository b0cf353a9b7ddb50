"""Model files with their origin: an entry ``tlt.json`` in the ``.keras`` zip, which Keras ignores.

Written by :mod:`tlt_runner.training.checkpoint.artifacts`. Read by ``tlt evaluate``, which says whose model
it is.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from tlt_api.base import StatusModel
from tlt_api.status import Metrics
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN

ENTRY = "tlt.json"


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
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
