"""YOLO labels, read and written: one text file an image, a line ``class cx cy w h`` an object.

The class is a number; its name comes from ``classNames`` or from ``names`` in the data set's ``data.yaml``.
Centre, width and height are shares of the image's width and height. The score of predictions, a sixth column,
is not read. Lines of more columns are polygons, rotated boxes or keypoints; they get a finding. Source: the
Ultralytics documentation of detection data sets.

Folders are written as ``images/{train,val}``, ``labels/{train,val}`` and ``data.yaml`` with the classes'
names. Shares have 10 decimals: on an image of 10,000 pixels an edge moves by less than 0.00001 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import yaml

from tlt_api.failures import Reason
from tlt_runner.data.formats import class_names, lines
from tlt_runner.data.formats.folder_reader import FolderReader
from tlt_runner.data.formats.format import DatasetRoot, Format
from tlt_runner.data.formats.writer import ExportedImage, Writer
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors

COLUMNS = (5, 6)
ROUNDING = 1e-6
"""Share of a side by which an edge may lie outside the image, since tools write six decimals; it moves to
the image's edge."""
_NUMBERS = ("centre x", "centre y", "width", "height")


@dataclass(frozen=True)
class YoloReader(FolderReader):
    """Reads a folder of images and a folder of text files with the same names.

    Attributes:
        class_names: Class by number.
        names_files: The file that the class names are from, if any, with its path relative to the data set's
            root.
    """

    class_names: Mapping[int, str]
    names_files: Sequence[tuple[str, Path]] = ()
    suffix = ".txt"

    @classmethod
    def open(cls, root: DatasetRoot, images: str, labels: str) -> Self:
        """Open two folders below a data set's root, which names the classes or has a data.yaml."""
        image_folder, label_folder = root.folder(images), root.folder(labels)
        # Names in the manifest win: data.yaml is then not even read.
        if root.dataset.class_names:
            return cls(image_folder, label_folder, dict(enumerate(root.dataset.class_names)))
        path = _names_file(root)
        with storage_errors(root.dataset.uri):
            names = class_names.load(path)
        return cls(image_folder, label_folder, names, [(class_names.FILE, path)])

    def listing(self) -> Listing:
        """Pair images and labels by name."""
        listing = super().listing()
        # data.yaml counts as a label file: when a class is renamed in it, the records are made again.
        return replace(listing, label_files=[*listing.label_files, *self.names_files])

    def read_file(self, path: Path, file: str, image_size: tuple[int, int]) -> Labels:
        """Read one label file; its shares become pixels of an image of ``image_size`` (height, width)."""
        parse = partial(parse_line, class_names=self.class_names, image_size=image_size)
        return lines.read(path, file, parse)


def _names_file(root: DatasetRoot) -> Path:
    try:
        return root.file(class_names.FILE)
    except NotFoundError as error:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected yolo's classes in dataset.classNames or {class_names.FILE}: {error.message}",
            "Name the classes by number, from 0, in spec.dataset.classNames.",
        ) from error


def parse_line(
    columns: list[str],
    file: str,
    number: int,
    *,
    class_names: Mapping[int, str],
    image_size: tuple[int, int],
) -> LabelledBox | Finding:
    """Parse one line: an object, or what is wrong with it."""

    def wrong(problem: Problem, message: str) -> Finding:
        return Finding(file, problem, message, number)

    if len(columns) not in COLUMNS:
        return wrong(Problem.WRONG_COLUMNS, _why_columns(columns))
    # A class number may be written with a decimal point: "3.0".
    class_id = lines.number(columns[0])
    if class_id is None or class_id != int(class_id):
        got = f"class (column 1): expected a whole number, got {columns[0][:40]!r}"
        return wrong(Problem.NOT_A_NUMBER, got)
    class_name = class_names.get(int(class_id))
    if class_name is None:
        return wrong(Problem.UNKNOWN_CLASS, f"{_why_class(class_names)}, got {columns[0][:40]!r}")
    values = []
    for column, field in enumerate(_NUMBERS, start=2):
        value, given = lines.number(columns[column - 1]), columns[column - 1][:40]
        at = f"{field} (column {column})"
        if value is None:
            return wrong(Problem.NOT_A_NUMBER, f"{at}: expected a finite number, got {given!r}")
        # Columns 4 and 5 are width and height, which must leave an area.
        if column > 3 and value <= 0:
            return wrong(Problem.INVERTED_BOX, f"{at}: expected more than 0, got {given!r}")
        if not -ROUNDING <= value <= 1 + ROUNDING:
            side = "width" if column in (2, 4) else "height"
            message = f"{at}: expected a share of the image's {side}, 0 to 1, got {given!r}"
            return wrong(Problem.OUTSIDE_IMAGE, message)
        values.append(value)
    (x1, x2), (y1, y2) = _edges(values[0], values[2]), _edges(values[1], values[3])
    if not (x1 < x2 and y1 < y2):
        got = f"got {columns[3][:40]!r} and {columns[4][:40]!r}"
        return wrong(Problem.INVERTED_BOX, f"expected a width and a height that leave an area, {got}")
    height, width = image_size
    return LabelledBox(class_name, (y1 * height, x1 * width, y2 * height, x2 * width), line=number)


def _edges(centre: float, size: float) -> tuple[float, float]:
    low, high = centre - size / 2, centre + size / 2
    return 0.0 if -ROUNDING <= low < 0 else low, 1.0 if 1 < high <= 1 + ROUNDING else high


def _why_columns(columns: list[str]) -> str:
    expected = f"expected 5 columns (class cx cy w h) or 6 (with a score), got {len(columns)}"
    if len(columns) > max(COLUMNS):
        expected += (
            ", which could be a polygon, a rotated box or keypoints: those are not read, make boxes of them"
        )
    return f"{expected}: {lines.shown(columns)}"


def _why_class(class_names: Mapping[int, str]) -> str:
    numbers = f"0 to {len(class_names) - 1}" if max(class_names) == len(class_names) - 1 else "of the list"
    return f"class (column 1): expected one of the {len(class_names)} classes, {numbers}"


_LABEL_FOLDERS: dict[Subset, str] = {"training": "labels/train", "validation": "labels/val"}


class YoloWriter(Writer):
    """Writes one text file for each image, one line for each object; classes are numbers."""

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

    def add(self, image: ExportedImage) -> None:
        """Write one label file, an empty one where there is no object."""
        lines = (self._line(box, image.size) for box in image.boxes)
        self._write(f"{_LABEL_FOLDERS[image.subset]}/{image.name}.txt", lines)

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


FORMAT = Format(YoloReader.open, YoloWriter, images="images", labels="labels")
