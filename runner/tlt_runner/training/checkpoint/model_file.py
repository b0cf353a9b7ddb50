"""A model file that says where it comes from: an entry ``tlt.json`` beside Keras' own in the ``.keras`` zip.

Written by :mod:`tlt_runner.training.checkpoint.keeper`. Read where a file must be this run's, or its score is
needed: when a training resumes, and by ``tlt evaluate``. Keras ignores the entry.
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
    """Where a model comes from."""

    run: str
    """Uid of the TrainingJob."""
    job: str
    """``namespace/name`` of it."""
    epoch: int
    """Epochs that it was trained for."""
    evaluation: Metrics | None = None
    """Of the best model."""


def save(model: FasterRCNN, path: Path, origin: Origin) -> None:
    """Write the model with its origin to a local ``.keras`` file."""
    detector.save(model, path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo(ENTRY, (1980, 1, 1, 0, 0, 0)), origin.model_dump_json(by_alias=True))


def origin_of(path: Path) -> Origin | None:
    """The origin of a model file; None where it says nothing of it."""
    try:
        with zipfile.ZipFile(path) as file:
            return Origin.model_validate_json(file.read(ENTRY))
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
