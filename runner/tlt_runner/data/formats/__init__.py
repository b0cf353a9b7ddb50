"""Label formats: one module a format, with its reader, its writer and its default paths.

A new format is a module here with a ``FORMAT``, and its name, which is the module's, in
``tlt_api.dataset.LabelFormat``, with the texts that describe it.
"""

from __future__ import annotations

from importlib import import_module
from typing import get_args

from tlt_api.dataset import Dataset, LabelFormat
from tlt_runner.data.formats.format import DatasetRoot, Format
from tlt_runner.data.sample import Reader
from tlt_runner.storage import Storage, relative

FORMATS: dict[str, Format] = {
    name: import_module(f"{__name__}.{name}").FORMAT for name in get_args(LabelFormat)
}
"""Formats by their name in ``spec.dataset.format``."""


def image_and_label_paths(dataset: Dataset) -> tuple[str, str]:
    """Return the paths of images and labels, relative to the root: as given, or the format's defaults."""
    default = FORMATS[dataset.format]
    return relative(dataset.images or default.images), relative(dataset.labels or default.labels)


def open_reader(dataset: Dataset, storage: Storage, images: str, labels: str) -> Reader:
    """Open a folder of images and its labels.

    Args:
        dataset: Says the format, the root and, for yolo, the classes.
        storage: Reads the root.
        images: The images' folder, relative to the root.
        labels: The labels': a folder, or for coco a file or a folder of files.

    Raises:
        RunnerError: ``DatasetNotFound`` or ``NoLabels``, saying what is there; ``InvalidSpec`` where yolo's
            classes are not known.
    """
    return FORMATS[dataset.format].open_reader(DatasetRoot(dataset, storage), images, labels)
