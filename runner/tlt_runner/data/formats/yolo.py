"""YOLO labels: one text file an image, one line an object: ``class cx cy w h``, and a score in predictions.

The class is a number; its name comes from ``classNames`` or from ``names`` in the data set's ``data.yaml``.
Centre, width and height are shares of the image's width and height. The score is not read. Lines of more
columns are polygons, rotated boxes or keypoints; they get a verdict. Source: the Ultralytics documentation of
detection data sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tlt_runner.data.formats import folders, lines
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem, Sample

LABEL_SUFFIX = ".txt"
COLUMNS = (5, 6)
ROUNDING = 1e-6
"""Share of a side by which an edge may lie outside the image, since tools write six decimals; it moves to
the image's edge."""
_NUMBERS = ("centre x", "centre y", "width", "height")


@dataclass(frozen=True)
class YoloReader:
    """Reads a folder of images and a folder of labels with the same names.

    Attributes:
        images: Folder of images.
        labels: Folder of labels.
        class_names: Class by number.
        names_files: The file that says so, where one does, with its path relative to the data set's root.
    """

    images: folders.Place
    labels: folders.Place
    class_names: Mapping[int, str]
    names_files: Sequence[tuple[str, Path]] = ()

    def listing(self) -> Listing:
        """Pair images and labels by name."""
        listing = folders.pair(self.images, self.labels, LABEL_SUFFIX)
        return replace(listing, label_files=[*listing.label_files, *self.names_files])

    def classes(self, sample: Sample) -> Counter[str]:
        """Objects by class."""
        return Counter(box.class_name for box in self.read(sample, (1, 1)).boxes)

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        """Read one label file; its shares become pixels of an image of ``image_size`` (height, width)."""
        parse = partial(parse_line, class_names=self.class_names, image_size=image_size)
        return lines.read(Path(str(sample.key)), sample.label_file, parse)


def parse_line(
    columns: list[str],
    file: str,
    number: int,
    *,
    class_names: Mapping[int, str],
    image_size: tuple[int, int],
) -> LabelledBox | Finding:
    """One line as an object, or what is wrong with it."""

    def verdict(problem: Problem, message: str) -> Finding:
        return Finding(file, problem, message, number)

    if len(columns) not in COLUMNS:
        return verdict(Problem.WRONG_COLUMNS, _why_columns(columns))
    class_id = lines.number(columns[0])
    if class_id is None or class_id != int(class_id):
        got = f"class (column 1): expected a whole number, got {columns[0][:40]!r}"
        return verdict(Problem.NOT_A_NUMBER, got)
    class_name = class_names.get(int(class_id))
    if class_name is None:
        return verdict(Problem.UNKNOWN_CLASS, f"{_why_class(class_names)}, got {columns[0][:40]!r}")
    values = []
    for place, field in enumerate(_NUMBERS, start=2):
        value, given = lines.number(columns[place - 1]), columns[place - 1][:40]
        where = f"{field} (column {place})"
        if value is None:
            return verdict(Problem.NOT_A_NUMBER, f"{where}: expected a finite number, got {given!r}")
        if place > 3 and value <= 0:
            return verdict(Problem.INVERTED_BOX, f"{where}: expected more than 0, got {given!r}")
        if not -ROUNDING <= value <= 1 + ROUNDING:
            side = "width" if place in (2, 4) else "height"
            message = f"{where}: expected a share of the image's {side}, 0 to 1, got {given!r}"
            return verdict(Problem.OUTSIDE_IMAGE, message)
        values.append(value)
    (x1, x2), (y1, y2) = _edges(values[0], values[2]), _edges(values[1], values[3])
    if not (x1 < x2 and y1 < y2):
        got = f"got {columns[3][:40]!r} and {columns[4][:40]!r}"
        return verdict(Problem.INVERTED_BOX, f"expected a width and a height that leave an area, {got}")
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
