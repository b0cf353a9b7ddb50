"""YOLO labels, read and written: one text file an image, a line ``class cx cy w h`` an object.

The class is a number; its name comes from ``classNames`` or from ``names`` in the data set's ``data.yaml``.
Centre, width and height are shares of the image's width and height. The score of predictions, a sixth column,
is not read. Lines of more columns are polygons, rotated boxes or keypoints; they get a finding. Source: the
Ultralytics documentation of detection data sets.

``data.yaml`` is not trusted. Its YAML is only taken apart, no object is made of it: aliases and merge keys,
with which a small file describes a huge one, stay references, tags are not obeyed, and a class called ``no``
or ``1`` keeps its name.

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

from tlt_api.dataset import LONGEST_CLASS
from tlt_api.failures import Reason
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.folder_reader import FolderReader
from tlt_runner.data.formats.format import DatasetRoot, ExportedImage, Format, Writer
from tlt_runner.data.formats.names import is_safe, printable
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors

NAMES_FILE = "data.yaml"
MAX_NAMES_BYTES = 256 << 10
_MAX_CLASS_NUMBER = 100_000
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
            names = read_class_names(path)
        return cls(image_folder, label_folder, names, [(NAMES_FILE, path)])

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
        return root.file(NAMES_FILE)
    except NotFoundError as error:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected yolo's classes in dataset.classNames or {NAMES_FILE}: {error.message}",
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

    # Polygons and keypoints are lines of more columns; taken for boxes they would be nonsense.
    if len(columns) not in COLUMNS:
        return wrong(Problem.WRONG_COLUMNS, _columns_message(columns))
    # A class number may be written with a decimal point: "3.0".
    class_id = lines.number(columns[0])
    if class_id is None or class_id != int(class_id):
        got = f"class (column 1): expected a whole number, got {columns[0][:40]!r}"
        return wrong(Problem.NOT_A_NUMBER, got)
    class_name = class_names.get(int(class_id))
    if class_name is None:
        return wrong(Problem.UNKNOWN_CLASS, f"{_class_message(class_names)}, got {columns[0][:40]!r}")
    values = []
    for column, field in enumerate(_NUMBERS, start=2):
        value, text = lines.number(columns[column - 1]), columns[column - 1][:40]
        position = f"{field} (column {column})"
        if value is None:
            return wrong(Problem.NOT_A_NUMBER, f"{position}: expected a finite number, got {text!r}")
        # Columns 4 and 5 are width and height, which must leave an area.
        if column > 3 and value <= 0:
            return wrong(Problem.INVERTED_BOX, f"{position}: expected more than 0, got {text!r}")
        if not -ROUNDING <= value <= 1 + ROUNDING:
            side = "width" if column in (2, 4) else "height"
            message = f"{position}: expected a share of the image's {side}, 0 to 1, got {text!r}"
            return wrong(Problem.OUTSIDE_IMAGE, message)
        values.append(value)
    (x1, x2), (y1, y2) = _edges(values[0], values[2]), _edges(values[1], values[3])
    if not (x1 < x2 and y1 < y2):
        got = f"got {columns[3][:40]!r} and {columns[4][:40]!r}"
        return wrong(Problem.INVERTED_BOX, f"expected a width and a height that leave an area, {got}")
    # Only here shares become pixels; y and x have their own side.
    height, width = image_size
    return LabelledBox(class_name, (y1 * height, x1 * width, y2 * height, x2 * width), line=number)


def _edges(centre: float, size: float) -> tuple[float, float]:
    # Six decimals of a centre and a size: an edge on the image's border may come out a millionth beyond it.
    low, high = centre - size / 2, centre + size / 2
    return 0.0 if -ROUNDING <= low < 0 else low, 1.0 if 1 < high <= 1 + ROUNDING else high


def _columns_message(columns: list[str]) -> str:
    expected = f"expected 5 columns (class cx cy w h) or 6 (with a score), got {len(columns)}"
    if len(columns) > max(COLUMNS):
        expected += (
            ", which could be a polygon, a rotated box or keypoints: those are not read, make boxes of them"
        )
    return f"{expected}: {lines.shown(columns)}"


def _class_message(class_names: Mapping[int, str]) -> str:
    # data.yaml may number its classes with gaps.
    numbers = f"0 to {len(class_names) - 1}" if max(class_names) == len(class_names) - 1 else "of the list"
    return f"class (column 1): expected one of the {len(class_names)} classes, {numbers}"


def read_class_names(path: Path) -> dict[int, str]:
    """Read the classes of a ``data.yaml`` by number.

    Raises:
        RunnerError: ``InvalidSpec``, with the field at fault, where it does not say.
        OSError: It cannot be read.
    """
    try:
        # compose() builds nodes only: no object is made, no alias expanded, and "no" stays a text.
        root = yaml.compose(lines.text(path, MAX_NAMES_BYTES), Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise _invalid_names("expected YAML, got lists in lists without end") from error
    except (ValueError, yaml.YAMLError) as error:
        raise _invalid_names(f"expected YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(root, yaml.MappingNode):
        raise _invalid_names("expected fields, among them names")
    fields = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    if "names" not in fields:
        got = ", ".join(printable(key[:40]) for key in list(fields)[:10])
        raise _invalid_names(f"expected the field names, got {got or 'none'}")
    names = _names_by_number(fields["names"])
    # nc is redundant; where it contradicts names, one of them is wrong, and class numbers would be off.
    count = fields.get("nc")
    if isinstance(count, yaml.ScalarNode) and count.value != str(len(names)):
        raise _invalid_names(f"expected as many names as nc says, {count.value[:20]!r}, got {len(names)}")
    return names


def _names_by_number(node: yaml.Node) -> dict[int, str]:
    # Both forms are Ultralytics': a list, whose positions are the numbers, or a mapping from numbers.
    if isinstance(node, yaml.SequenceNode):
        pairs = list(enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        pairs = [(_class_number(key), value) for key, value in node.value]
    else:
        raise _invalid_names("names: expected a list, or number: name", node)
    names: dict[int, str] = {}
    for number, value in pairs:
        # An alias or a nested list is no name.
        name = value.value if isinstance(value, yaml.ScalarNode) else None
        if name is None or not 1 <= len(name) <= LONGEST_CLASS or not is_safe(name):
            expected = f"a name of 1 to {LONGEST_CLASS} characters"
            raise _invalid_names(f"names: expected {expected} for class {number}", value)
        if number in names:
            raise _invalid_names(f"names: expected every number once, got {number} twice", value)
        names[number] = name
    if not names:
        raise _invalid_names("names: expected at least one class", node)
    return names


def _class_number(node: yaml.Node) -> int:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    # isdigit() alone takes digits of other scripts; the length is checked before int() sees the text.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= _MAX_CLASS_NUMBER):
        raise _invalid_names(f"names: expected class numbers from 0, got {text[:40]!r}", node)
    return int(text)


def _invalid_names(message: str, node: yaml.Node | None = None) -> RunnerError:
    line = f":{node.start_mark.line + 1}" if node is not None else ""
    return RunnerError(
        Reason.INVALID_SPEC,
        f"{NAMES_FILE}{line}: {message}",
        "Correct the file, or name the classes by number in spec.dataset.classNames.",
    )


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
        self._write(NAMES_FILE, [text])

    def _line(self, box: LabelledBox, size: tuple[int, int]) -> str:
        y1, x1, y2, x2 = box.yxyx
        height, width = size
        fractions = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        return f"{self._numbers[box.class_name]} {' '.join(f'{part:.10f}' for part in fractions)}\n"


FORMAT = Format(YoloReader.open, YoloWriter, images="images", labels="labels")
