"""YOLO labels, read and written: one text file an image, a line ``class cx cy w h`` an object.

The class is a number; its name comes from ``classNames`` or from a file that tools write with the labels
(:mod:`~tlt_runner.data.formats.yolo_names`). Centre, width and height are shares of the image's width and
height. The score of predictions, a sixth column, is not read. An image without a label file has no objects,
unless the data set says otherwise (``dataset.unlabelled``). Source: the Ultralytics documentation of
detection, segmentation and oriented boxes.

Lines with more columns outline their object: ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, or with four corners
a rotated box. With ``dataset.shapes: boundingBox`` the smallest upright box around the points is taken.
Without it their image is left out as a whole, because its other objects alone would teach that the outlined
ones are background. Keypoints, ``class cx cy w h`` and then points, look the same and are known by
``kpt_shape`` in data.yaml; their box stands in the line, and is read.

Folders are written as ``images/{train,val}``, ``labels/{train,val}`` and ``data.yaml`` with the classes'
names. Shares have 10 decimals: on an image of 10,000 pixels an edge moves by less than 0.00001 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import yaml

from tlt_api.dataset import Shapes
from tlt_runner.data.formats import lines, yolo_names
from tlt_runner.data.formats.folder_reader import FolderReader
from tlt_runner.data.formats.format import DatasetRoot, ExportedImage, Format, Writer
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem

COLUMNS = (5, 6)
FEWEST_OUTLINE_COLUMNS = 7
"""Columns of a polygon of three points."""
ROUNDING = 1e-6
"""Share of a side by which an edge may lie outside the image, since tools write six decimals; it moves to
the image's edge."""
_NUMBERS = ("centre x", "centre y", "width", "height")


@dataclass(frozen=True)
class YoloReader(FolderReader):
    """Reads a folder of images and a folder of text files with the same names.

    Attributes:
        class_names: Class by number.
        names_files: The files that the class names are from, if any, with their paths relative to the data
            set's root.
        shapes: What is done with polygons and rotated boxes.
        keypoint_numbers: Numbers behind the box of each line, of a data set of keypoints.
        overruled: Files with other class names, which do not count.
    """

    class_names: Mapping[int, str]
    names_files: Sequence[tuple[str, Path]] = ()
    shapes: Shapes = field(default="refuse", kw_only=True)
    keypoint_numbers: int | None = field(default=None, kw_only=True)
    overruled: Sequence[str] = field(default=(), kw_only=True)
    suffix = ".txt"

    @classmethod
    def open(cls, root: DatasetRoot, images: str, labels: str) -> Self:
        """Open two folders below a data set's root, which names the classes or has a file that does."""
        image_folder, label_folder = root.folder(images), root.folder(labels)
        dataset = root.dataset
        # Names in the manifest win: the files are then not even read.
        if dataset.class_names:
            classes = yolo_names.ClassNames(dict(enumerate(dataset.class_names)))
        else:
            classes = yolo_names.find(root, [images, labels])
        return cls(
            image_folder,
            label_folder,
            classes.names,
            classes.files,
            # The field's rule: tools write no file for an image without objects.
            unlabelled=dataset.unlabelled or "background",
            shapes=dataset.shapes,
            keypoint_numbers=classes.keypoint_numbers,
            overruled=classes.overruled,
        )

    def listing(self) -> Listing:
        """Pair images and labels by name."""
        listing = super().listing()
        # Their files count as label files: when a class is renamed in one, the records are made again.
        label_files = dict([*listing.label_files, *self.names_files])
        names = [file for file, _ in self.names_files]
        notes = [f"class names are those of {' and '.join(names)}"] if names else []
        warnings = [
            f"{file} has other class names than {' and '.join(names)}, whose names are used"
            for file in self.overruled
        ]
        side_files = [file for file in listing.side_files if file not in (*names, *self.overruled)]
        # A .txt beside images and labels is not among the other files already.
        beside = [name for name in names if self.images.holds(name)]
        beside = [name for name in beside if not (name.endswith(self.suffix) and self.labels.holds(name))]
        return replace(
            listing,
            label_files=list(label_files.items()),
            side_files=side_files,
            read_files=len(beside),
            notes=notes,
            warnings=[*listing.warnings, *warnings],
        )

    def read_file(self, path: Path, file: str, image_size: tuple[int, int]) -> Labels:
        """Read one label file; its shares become pixels of an image of ``image_size`` (height, width)."""
        outlines: list[int] = []
        parse = partial(
            parse_line,
            class_names=self.class_names,
            image_size=image_size,
            shapes=self.shapes,
            keypoint_numbers=self.keypoint_numbers,
            outlines=outlines,
        )
        labels = lines.read(path, file, parse)
        return replace(labels, outlines=len(outlines)) if outlines else labels


def parse_line(
    columns: list[str],
    file: str,
    number: int,
    *,
    class_names: Mapping[int, str],
    image_size: tuple[int, int],
    shapes: Shapes = "refuse",
    keypoint_numbers: int | None = None,
    outlines: list[int] | None = None,
) -> LabelledBox | Finding:
    """Parse one line: an object, or what is wrong with it.

    Args:
        columns: The line's columns.
        file: The label file, for messages.
        number: The line's number, from 1.
        class_names: Class by number.
        image_size: Height and width of the image.
        shapes: What is done with outlines instead of boxes.
        keypoint_numbers: Numbers behind the box of each line, of a data set of keypoints.
        outlines: Receives the line's number if its box is the bounding box of an outline.
    """

    def wrong(problem: Problem, message: str) -> Finding:
        return Finding(file, problem, message, number)

    # Where data.yaml gives the number of keypoints, they stand behind a box.
    is_box = len(columns) in COLUMNS or len(columns) - 5 == keypoint_numbers
    # Text among the columns: a line of another format, such as KITTI's.
    if not is_box and (len(columns) < FEWEST_OUTLINE_COLUMNS or None in map(lines.number, columns)):
        return wrong(Problem.WRONG_COLUMNS, f"{_expected(columns)}: {lines.shown(columns)}")
    # Outlines and keypoints are lines of more columns; taken for boxes they would be nonsense.
    if not is_box and shapes == "refuse":
        return wrong(Problem.NOT_A_BOX, _outline_message(columns))
    # A class number may be written with a decimal point: "3.0".
    class_id = lines.number(columns[0])
    if class_id is None or class_id != int(class_id):
        got = f"class (column 1): expected a whole number, got {columns[0][:40]!r}"
        return wrong(Problem.NOT_A_NUMBER, got)
    class_name = class_names.get(int(class_id))
    if class_name is None:
        return wrong(Problem.UNKNOWN_CLASS, f"{_class_message(class_names)}, got {columns[0][:40]!r}")
    edges = _box_edges(columns) if is_box else _outline_edges(columns)
    if not isinstance(edges, tuple):
        return wrong(edges.problem, edges.message)
    if not is_box and outlines is not None:
        outlines.append(number)
    (x1, x2), (y1, y2) = edges
    # Only here shares become pixels; y and x have their own side.
    height, width = image_size
    return LabelledBox(class_name, (y1 * height, x1 * width, y2 * height, x2 * width), line=number)


@dataclass(frozen=True)
class _Wrong:
    """Describe what is wrong with the numbers of a line."""

    problem: Problem
    message: str


_Edges = tuple[tuple[float, float], tuple[float, float]]
"""Left and right, top and bottom edge, as shares of the image's sides."""


def _box_edges(columns: Sequence[str]) -> _Edges | _Wrong:
    """Read centre and size."""
    values = []
    for column, name in enumerate(_NUMBERS, start=2):
        value, text = lines.number(columns[column - 1]), columns[column - 1][:40]
        position = f"{name} (column {column})"
        if value is None:
            return _Wrong(Problem.NOT_A_NUMBER, f"{position}: expected a finite number, got {text!r}")
        # Columns 4 and 5 are width and height, which must leave an area.
        if column > 3 and value <= 0:
            return _Wrong(Problem.INVERTED_BOX, f"{position}: expected more than 0, got {text!r}")
        if not -ROUNDING <= value <= 1 + ROUNDING:
            side = "width" if column in (2, 4) else "height"
            message = f"{position}: expected a share of the image's {side}, 0 to 1, got {text!r}"
            return _Wrong(Problem.OUTSIDE_IMAGE, message)
        values.append(value)
    (x1, x2), (y1, y2) = _edges(values[0], values[2]), _edges(values[1], values[3])
    if not (x1 < x2 and y1 < y2):
        got = f"got {columns[3][:40]!r} and {columns[4][:40]!r}"
        return _Wrong(Problem.INVERTED_BOX, f"expected a width and a height that leave an area, {got}")
    return (x1, x2), (y1, y2)


def _outline_edges(columns: Sequence[str]) -> _Edges | _Wrong:
    """Read the points of an outline; return the edges of the smallest upright box around them."""
    if len(columns) % 2 == 0:
        return _Wrong(Problem.NOT_A_BOX, _outline_message(columns))
    values = []
    for column, text in enumerate(columns[1:], start=2):
        value = float(text)
        # The corners of a rotated box may lie outside of the image, but not by more than its own size:
        # numbers beyond that are pixels.
        if not -1 <= value <= 2:
            side = "width" if column % 2 == 0 else "height"
            message = f"column {column}: expected a share of the image's {side}, -1 to 2, got {text[:40]!r}"
            return _Wrong(Problem.OUTSIDE_IMAGE, message)
        values.append(value)
    xs, ys = values[0::2], values[1::2]
    if not (min(xs) < max(xs) and min(ys) < max(ys)):
        message = f"expected points that leave an area: {lines.shown(list(columns))}"
        return _Wrong(Problem.INVERTED_BOX, message)
    return (min(xs), max(xs)), (min(ys), max(ys))


def _edges(centre: float, size: float) -> tuple[float, float]:
    # Six decimals of a centre and a size: an edge on the image's border may come out a millionth beyond it.
    low, high = centre - size / 2, centre + size / 2
    return 0.0 if -ROUNDING <= low < 0 else low, 1.0 if 1 < high <= 1 + ROUNDING else high


def _expected(columns: Sequence[str]) -> str:
    return f"expected 5 columns (class cx cy w h) or 6 (with a score), got {len(columns)}"


def _outline_message(columns: Sequence[str]) -> str:
    """Say what a line of more columns may be, and what makes a box of it."""
    line = lines.shown(list(columns))
    # Pairs of numbers behind the class are points.
    if len(columns) % 2 == 0:
        kind = "keypoints, of which data.yaml must give kpt_shape, or no YOLO labels"
        return f"{_expected(columns)}: {kind}: {line}"
    kind = "a rotated box or a polygon" if len(columns) == 9 else "a polygon"
    return f"{_expected(columns)}: {kind}; dataset.shapes: boundingBox takes the box around it: {line}"


def _class_message(class_names: Mapping[int, str]) -> str:
    # data.yaml may number its classes with gaps.
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
        # From 0, as data.yaml lists them.
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
        self._write(yolo_names.YAML_FILES[0], [text])

    def _line(self, box: LabelledBox, size: tuple[int, int]) -> str:
        y1, x1, y2, x2 = box.yxyx
        height, width = size
        fractions = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        return f"{self._numbers[box.class_name]} {' '.join(f'{part:.10f}' for part in fractions)}\n"


FORMAT = Format(YoloReader.open, YoloWriter, images="images", labels="labels")
