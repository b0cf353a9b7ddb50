"""labelme's labels, read and written: one JSON file an image, most often beside it; one shape an object.

A shape has a label, points ``[x, y]`` in pixels from 0, and a type. The box of a rectangle is that of its
points; of a polygon, a circle, a mask and a turned rectangle it is the smallest upright box around them.
Shapes with one label and one ``group_id`` are parts of one object, as labelme means them. Points and lines
have no area, and are findings. ``imageData``, a copy of the image, is not used, and ``imagePath`` is not
opened: an image's label is found by its name. Source: ``label_file.py`` and ``shape.py`` of labelme 5.5.

The flag ``difficult`` of a shape is read and written; the format has no other attribute. Folders are written
as ``train`` and ``val``, each with images and labels side by side, as labelme opens them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tlt_api.dataset import LONGEST_CLASS
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.folder_reader import FolderReader
from tlt_runner.data.formats.format import EntryError, ExportedImage, Format, Writer
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Problem

MAX_BYTES = 256 << 20
"""Bytes of a file at most; most of them are a copy of the image."""
MAX_SHAPES = 10_000
_FAR = 1e6
"""Pixels: no image is as large."""
_NO_AREA = {"point", "points", "line", "linestrip"}
_EXACT = {"rectangle", "circle"}
"""Shapes whose box is no guess."""
_EXPECTED = "expected the JSON of labelme, with shapes"


@dataclass(frozen=True)
class LabelmeReader(FolderReader):
    """Reads a folder of images and a folder of JSON files with the same names; both may be one."""

    suffix = ".json"

    def read_file(self, path: Path, file: str, image_size: tuple[int, int]) -> Labels:
        """Read one JSON file; its pixels are absolute, so ``image_size`` does not matter."""
        try:
            document = json.loads(lines.text(path, MAX_BYTES))
        except (ValueError, RecursionError) as error:
            return _unreadable(file, f"expected JSON: {str(error)[:200]}")
        if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
            return _unreadable(file, _EXPECTED)
        shapes = document["shapes"]
        # All or nothing: the first shapes alone would make background of the other objects.
        if len(shapes) > MAX_SHAPES:
            return _unreadable(file, f"expected at most {MAX_SHAPES:,} shapes, got {len(shapes):,}")
        boxes: dict[tuple[object, ...], LabelledBox] = {}
        findings = []
        outlined = set()
        for number, shape in enumerate(shapes):
            try:
                key, box = _box(shape, number)
            except EntryError as error:
                entry = f"shapes[{number}]"
                findings.append(Finding(file, error.problem, f"{entry}: {error}", box=error.box, entry=entry))
                continue
            if key in boxes or shape.get("shape_type") not in _EXACT:
                outlined.add(key)
            boxes[key] = _joined(boxes[key], box) if key in boxes else box
        return Labels(
            tuple(boxes.values()),
            tuple(findings),
            image_size=_image_size(document),
            outlines=len(outlined),
        )


def _unreadable(file: str, message: str) -> Labels:
    return Labels(findings=(Finding(file, Problem.UNREADABLE_LABEL, message),))


def _box(shape: Any, number: int) -> tuple[tuple[object, ...], LabelledBox]:
    """Make a box of one shape, and the key that it shares with other parts of its object.

    Raises:
        EntryError: It cannot be used.
    """
    if not isinstance(shape, dict):
        raise EntryError(Problem.MISSING_FIELD, "expected an object with label and points")
    label, kind = shape.get("label"), shape.get("shape_type") or "polygon"
    if not isinstance(label, str) or not label.strip():
        raise EntryError(Problem.MISSING_FIELD, "expected the field label, with the class")
    if len(label) > LONGEST_CLASS:
        raise EntryError(Problem.UNKNOWN_CLASS, lines.LONG_NAME)
    xs, ys = _points(shape.get("points"))
    # The centre, and any point of the circle.
    if kind == "circle" and len(xs) == 2:
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        xs, ys = [xs[0] - radius, xs[0] + radius], [ys[0] - radius, ys[0] + radius]
    box = (min(ys), min(xs), max(ys), max(xs))
    if kind in _NO_AREA or not (box[0] < box[2] and box[1] < box[3]):
        raise EntryError(Problem.INVERTED_BOX, f"expected a shape with an area, got a {str(kind)[:40]}", box)
    flags = shape.get("flags")
    difficult = isinstance(flags, dict) and flags.get("difficult") is True
    group = shape.get("group_id")
    # Without a group every shape is an object of its own.
    key: tuple[object, ...] = (
        (number,) if not isinstance(group, int | str) else (label.strip(), str(group), "")
    )
    return key, LabelledBox(label.strip(), box, difficult=difficult)


def _points(points: Any) -> tuple[list[float], list[float]]:
    """Check the points of a shape, and return their columns and rows."""
    if not isinstance(points, list) or not points:
        raise EntryError(Problem.MISSING_FIELD, "expected the field points, with pairs of numbers")
    for point in points:
        numbers = isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))
        if not numbers:
            got = json.dumps(point)[:40]
            raise EntryError(Problem.NOT_A_NUMBER, f"points: expected pairs of finite numbers, got {got}")
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def _is_number(value: Any) -> bool:
    # A bool is an int in Python; NaN and 1e400 are numbers to its JSON parser; huge integers overflow.
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FAR <= value <= _FAR


def _joined(first: LabelledBox, second: LabelledBox) -> LabelledBox:
    (top, left, bottom, right), (y1, x1, y2, x2) = first.yxyx, second.yxyx
    around = (min(top, y1), min(left, x1), max(bottom, y2), max(right, x2))
    return replace(first, yxyx=around, difficult=first.difficult or second.difficult)


def _image_size(document: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width; None where they are not stated, as in files of old versions."""
    height, width = document.get("imageHeight"), document.get("imageWidth")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None


class LabelmeWriter(Writer):
    """Writes one JSON file for each image, beside it."""

    image_folders = {"training": "train", "validation": "val"}
    dataset = {
        "format": "labelme",
        "images": "train",
        "labels": "train",
        "validation": {"images": "val", "labels": "val"},
    }

    @classmethod
    def lost(cls, box: LabelledBox) -> tuple[str, ...]:
        """Name truncation and occlusion where there is any."""
        attributes = {"truncation": box.truncation, "occlusion": box.occlusion}
        return tuple(name for name, value in attributes.items() if value)

    def add(self, image: ExportedImage) -> None:
        """Write one JSON file, also where there is no object."""
        document: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [_shape(box) for box in image.boxes],
            # Relative to the label file.
            "imagePath": PurePosixPath(self.image_file(image)).name,
            "imageData": None,
            "imageHeight": image.size[0],
            "imageWidth": image.size[1],
        }
        text = json.dumps(document, ensure_ascii=False, indent=1)
        self._write(f"{self.image_folders[image.subset]}/{image.name}.json", [f"{text}\n"])

    def close(self) -> None:
        """Do nothing: no file concerns all images."""


def _shape(box: LabelledBox) -> dict[str, Any]:
    y1, x1, y2, x2 = box.yxyx
    return {
        "label": box.class_name,
        "points": [[x1, y1], [x2, y2]],
        "group_id": None,
        "description": "",
        "shape_type": "rectangle",
        "flags": {"difficult": True} if box.difficult else {},
    }


FORMAT = Format(LabelmeReader.open, LabelmeWriter, images="images", labels="images")
