"""YOLO folders out: ``images/{train,val}``, ``labels/{train,val}`` and ``data.yaml`` with the classes' names.

A line is ``class cx cy w h``, fractions of the image's size with 10 decimals: on an image of 10,000 pixels an
edge moves by less than 0.00001 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from tlt_runner.data.formats import class_names
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import LabelledBox
from tlt_runner.data.writers import Entry, Writer

_LABEL_FOLDERS: dict[Subset, str] = {"training": "labels/train", "validation": "labels/val"}


class YoloWriter(Writer):
    """One text file an image, one line an object; classes are numbers."""

    image_folders = {"training": "images/train", "validation": "images/val"}
    dataset = {
        "format": "yolo",
        "images": image_folders["training"],
        "labels": _LABEL_FOLDERS["training"],
        "validation": {"images": image_folders["validation"], "labels": _LABEL_FOLDERS["validation"]},
    }

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        super().__init__(root, classes)
        self._numbers = {name: number for number, name in enumerate(classes)}

    def add(self, entry: Entry) -> None:
        """Write one label file, an empty one where there is no object."""
        lines = (self._line(box, entry.size) for box in entry.boxes)
        self._write(f"{_LABEL_FOLDERS[entry.subset]}/{entry.name}.txt", lines)

    def close(self) -> None:
        """Write ``data.yaml``, as Ultralytics reads it: paths are relative to it."""
        content = {
            "train": self.image_folders["training"],
            "val": self.image_folders["validation"],
            "nc": len(self._classes),
            "names": list(self._classes),
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        self._write(class_names.FILE, [text])

    def _line(self, box: LabelledBox, size: tuple[int, int]) -> str:
        y1, x1, y2, x2 = box.yxyx
        height, width = size
        fractions = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        return f"{self._numbers[box.class_name]} {' '.join(f'{part:.10f}' for part in fractions)}\n"
