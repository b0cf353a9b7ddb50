"""One COCO file and its entries, checked.

The file is not trusted: whatever is wrong with it is a :class:`FileError` or an :class:`EntryError`. Of the
JSON only the fields that are read here stay in memory; polygons are let go as soon as they are parsed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tlt_api.dataset import LONGEST_CLASS, Shapes
from tlt_runner.data.formats import lines, names
from tlt_runner.data.formats.format import EntryError
from tlt_runner.data.sample import Finding, Problem

MAX_BYTES = 2 << 30
LISTS = ("images", "annotations", "categories")
_FIELDS = {*LISTS, "id", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd", "name"}
_MASK = "mask"
_PLACES = {"bbox", "segmentation"}
"""Fields that say where an object is."""
_FAR = 1e6
"""Pixels: no image is as large."""

Id = int | str
Box = tuple[float, float, float, float]


class FileError(Exception):
    """A file that cannot be used at all.

    Attributes:
        finding: Why.
        other_kind: True for a sound file of something else than boxes (captions, panoptic, image_info).
    """

    def __init__(self, file: str, message: str, line: int | None = None, *, other_kind: bool = False) -> None:
        super().__init__(message)
        self.other_kind = other_kind
        self.finding = Finding(file, Problem.UNREADABLE_LABEL, message, line)


@dataclass(frozen=True)
class CocoFile:
    """A file that has the three lists; what is in them is not checked yet.

    Attributes:
        file: Path relative to the data set's root.
        images: Its images[].
        annotations: Its annotations[].
        categories: Its categories[].
    """

    file: str
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


def load(file: str, path: Path) -> CocoFile:
    """Parse one file.

    Args:
        file: Its path relative to the data set's root, for messages.
        path: Where it is.

    Raises:
        FileError: It is no COCO file with boxes.
        OSError: The storage fails.
    """
    top = _parse(file, _text(file, path))
    if not isinstance(top, dict):
        raise FileError(file, f"expected an object at the top, got {_kind(top)}")
    for name in LISTS:
        if not isinstance(top.get(name), list):
            got = _kind(top[name]) if name in top else "none"
            # Without one of the lists it is a file of another kind; one that is no list is a broken COCO
            # file.
            message = f"expected a list {name}, got {got}: no COCO file with boxes"
            raise FileError(file, message, other_kind=not set(LISTS) <= top.keys())
    annotations = top["annotations"]
    # captions_*.json has the three lists, too, but no boxes.
    if annotations and not any(isinstance(entry, dict) and _PLACES & entry.keys() for entry in annotations):
        message = f"expected annotations with a bbox, got {len(annotations)} without"
        raise FileError(file, message, other_kind=True)
    return CocoFile(file, top["images"], annotations, top["categories"])


def _text(file: str, path: Path) -> str:
    try:
        data = lines.content(path, MAX_BYTES)
    except ValueError as error:
        raise FileError(file, str(error)) from error
    # A byte order mark is dropped: json would refuse it.
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"expected UTF-8 text, got byte 0x{data[error.start]:02x}"
        raise FileError(file, message, data.count(b"\n", 0, error.start) + 1) from error


def _parse(file: str, text: str) -> Any:
    try:
        # The hook is called for every object as soon as it is parsed, so polygons are dropped before the next
        # one.
        return json.loads(text, object_hook=_read_fields)
    except json.JSONDecodeError as error:
        raise FileError(file, f"expected JSON, column {error.colno}: {error.msg}", error.lineno) from error
    except RecursionError as error:
        raise FileError(file, "expected JSON that is not nested as deeply") from error
    # Python refuses whole numbers of more than 4,300 digits, which take time to convert.
    except ValueError as error:
        raise FileError(file, f"expected numbers of a usual size: {error}") from error


def _read_fields(entry: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in entry.items() if name in _FIELDS}
    # An outline stays only where nothing else says where the object is.
    if "segmentation" in entry and not entry.get("bbox"):
        # A run-length encoded mask is an object, of which this function has left no field.
        fields["segmentation"] = entry["segmentation"] if entry["segmentation"] != {} else _MASK
    return fields


def entry_name(name: str, index: int, entry: object) -> str:
    """Name an entry for messages: ``annotations[12] (id 345)``."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return f"{name}[{index}] (id {_short(number)})" if _is_id(number) else f"{name}[{index}]"


def fields(entry: object) -> Mapping[str, Any]:
    """Return an entry of one of the lists as an object.

    Raises:
        EntryError: It is none.
    """
    if not isinstance(entry, dict):
        raise EntryError(Problem.MISSING_FIELD, f"expected an object, got {_kind(entry)}")
    return entry


def identity(entry: Mapping[str, Any], name: str) -> Id:
    """Read ``id``, ``image_id`` or ``category_id``: a whole number, or text as some tools write it.

    Raises:
        EntryError: There is none.
    """
    value = _required(entry, name)
    if not _is_id(value):
        raise EntryError(Problem.NOT_A_NUMBER, f"{name}: expected a whole number, got {_short(value)}")
    # Some tools write 1.0 for 1: as whole numbers both are one key.
    return value if isinstance(value, str) else int(value)


def file_name(entry: Mapping[str, Any]) -> str:
    """Read an image's ``file_name``; no file is opened by it (:mod:`.file_names`).

    Raises:
        EntryError: There is none, or it is no name of a file.
    """
    value = _required(entry, "file_name")
    if not isinstance(value, str) or not PurePosixPath(value).parts:
        raise EntryError(Problem.MISSING_FIELD, f"file_name: expected text, got {_short(value)}")
    if not names.is_safe(value) or not value.strip("./\\"):
        expected = "the path of an image, without control characters"
        raise EntryError(Problem.UNSAFE_NAME, f"file_name: expected {expected}, got {_short(value)}")
    return value


def image_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Read height and width of an image; None for 0 or a missing field, with which tools say "unknown".

    Raises:
        EntryError: They are no size.
    """
    # 0 counts as unknown, as for a missing field.
    size = []
    for name in ("height", "width"):
        value = entry.get(name) or 0
        if not _is_number(value) or not 0 <= value <= _FAR or value != int(value):
            raise EntryError(Problem.NOT_A_NUMBER, f"{name}: expected whole pixels, got {_short(value)}")
        size.append(int(value))
    return (size[0], size[1]) if all(size) else None


def class_name(entry: Mapping[str, Any]) -> str:
    """Read the name of a category.

    Raises:
        EntryError: There is none.
    """
    value = _required(entry, "name")
    if not isinstance(value, str) or not value.strip() or not names.is_safe(value):
        raise EntryError(Problem.MISSING_FIELD, f"name: expected text, got {_short(value)}")
    if len(value.strip()) > LONGEST_CLASS:
        raise EntryError(Problem.UNKNOWN_CLASS, lines.LONG_NAME)
    return value.strip()


def is_crowd(entry: Mapping[str, Any]) -> bool:
    """Return True for an annotation that marks a region to leave out of account.

    Raises:
        EntryError: ``iscrowd`` is neither 0 nor 1.
    """
    value = entry.get("iscrowd")
    # Tools that know no crowds leave the field out.
    if value is not None and value not in (0, 1):
        raise EntryError(Problem.NOT_A_NUMBER, f"iscrowd: expected 0 or 1, got {_short(value)}")
    return bool(value)


def has_box(entry: Mapping[str, Any]) -> bool:
    """Return False for an annotation with an outline and no ``bbox``."""
    return bool(entry.get("bbox")) or not entry.get("segmentation")


def box(entry: Mapping[str, Any]) -> Box:
    """Convert ``bbox`` to top, left, bottom, right edge, in pixels.

    Raises:
        EntryError: It is missing, no numbers, or has no area.
    """
    x, y, width, height = _pixels(_required(entry, "bbox"), "bbox", "[x, y, width, height]", lambda n: n == 4)
    # From x, y, width, height to top, left, bottom, right; COCO's pixels begin at 0, as ours.
    edges = (y, x, y + height, x + width)
    if not (edges[0] < edges[2] and edges[1] < edges[3]):
        message = f"bbox: expected a width and a height above 0, got {width:g} and {height:g}"
        raise EntryError(Problem.INVERTED_BOX, message, edges)
    return edges


def outline_box(entry: Mapping[str, Any], shapes: Shapes) -> Box:
    """Find the smallest upright box around the polygons of an annotation without ``bbox``.

    Args:
        entry: The annotation.
        shapes: What is done with outlines.

    Raises:
        EntryError: There is no such box, or none is wanted; ``NotABox`` leaves the image out.
    """
    polygons = entry["segmentation"]
    if shapes == "refuse":
        advice = "dataset.shapes: boundingBox takes the box around its polygons"
        raise EntryError(Problem.NOT_A_BOX, f"expected the field bbox, got an outline alone; {advice}")
    if not isinstance(polygons, list):
        message = "expected the field bbox, got a mask alone: export boxes or polygons"
        raise EntryError(Problem.NOT_A_BOX, message)
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        values = _pixels(
            polygon, "segmentation", "polygons of three points or more", lambda n: n >= 6 and n % 2 == 0
        )
        xs += values[0::2]
        ys += values[1::2]
    edges = (min(ys), min(xs), max(ys), max(xs))
    if not (edges[0] < edges[2] and edges[1] < edges[3]):
        message = f"segmentation: expected points that leave an area, got {len(xs)} points on a line"
        raise EntryError(Problem.INVERTED_BOX, message, edges)
    return edges


def _pixels(value: object, name: str, expected: str, fits: Callable[[int], bool]) -> list[float]:
    """Check a list of pixels."""
    if not isinstance(value, list) or not fits(len(value)):
        got = f"{len(value)} values" if isinstance(value, list) else _kind(value)
        raise EntryError(Problem.WRONG_COLUMNS, f"{name}: expected {expected}, got {got}")
    for number in value:
        if not _is_number(number):
            raise EntryError(Problem.NOT_A_NUMBER, f"{name}: expected finite numbers, got {_short(number)}")
        if not -_FAR <= number <= _FAR:
            message = f"{name}: expected {-_FAR:g} to {_FAR:g}, got {_short(number)}"
            raise EntryError(Problem.NOT_A_NUMBER, message)
    return list(map(float, value))


def _required(entry: Mapping[str, Any], name: str) -> Any:
    if entry.get(name) is None:
        raise EntryError(Problem.MISSING_FIELD, f"expected the field {name}")
    return entry[name]


def _is_number(value: object) -> bool:
    # A bool is an int in Python, but no number in JSON.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(_near(value))


def _near(value: float) -> float:
    """Return a float as it is, and 0 for a whole number: it is finite, even where no float can hold it."""
    return value if isinstance(value, float) else 0.0


def _is_id(value: object) -> bool:
    return isinstance(value, str) or (_is_number(value) and value == int(value))  # type: ignore[call-overload]


def _kind(value: object) -> str:
    # JSON's own words, since the reader of the message looks into a JSON file.
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return _kind(value)
    text = repr(value[:80]) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
