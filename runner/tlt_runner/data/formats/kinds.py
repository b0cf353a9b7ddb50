"""Tell what a file of labels is by its content: one of the formats that are read, or a file of a tool.

Files of annotation tools that are not read are named with the export to choose instead, so that nobody has to
find out why "no label" was found. Called by :mod:`tlt_runner.data.preparation.layout`, which looks at a whole
folder, and where a job finds no labels. Nothing here is a reader: a file that looks right may be wrong.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlt_runner.data.formats import lines

HEAD = 64 << 10
"""Bytes of a file by which it is told what it is."""
WHOLE = 16 << 20
"""Bytes of a JSON file up to which it is parsed."""
_KITTI_COLUMNS = 15
_LOOKED_AT = 8
"""Files of a folder that are looked at."""
SUFFIXES = (".txt", ".xml", ".json", ".csv", ".record", ".tfrecord", ".tfrecords")
"""Suffixes of files that may hold labels, in lower case."""


@dataclass(frozen=True)
class ToolFile:
    """File of an annotation tool that is not read.

    Attributes:
        name: Tool and kind of file.
        instead: Export to choose instead.
    """

    name: str
    instead: str

    def __str__(self) -> str:
        """Return both as one sentence part."""
        return f"{self.name}, which is not read: {self.instead}"


_DATUMARO = "convert it with `datum convert -if {} -f coco_instances`"
TOOL_FILES: dict[str, ToolFile] = {
    "label-studio": ToolFile("Label Studio JSON", "export as COCO or YOLO with images from Label Studio"),
    "label-studio-csv": ToolFile("Label Studio CSV", "export as COCO or YOLO with images from Label Studio"),
    "cvat-images": ToolFile("CVAT for images XML", "export the task as COCO 1.0 from CVAT"),
    "cvat-video": ToolFile("CVAT for video XML", "export the task with images as COCO 1.0 from CVAT"),
    "labelme-mit": ToolFile("LabelMe (MIT) XML", _DATUMARO.format("label_me")),
    "vott": ToolFile("VoTT JSON", "choose Pascal VOC as the export format in VoTT"),
    "vott-csv": ToolFile("VoTT CSV", "choose Pascal VOC as the export format in VoTT"),
    "openimages": ToolFile(
        "Open Images CSV", "convert it with `datum convert -if open_images -f coco_instances`, or by FiftyOne"
    ),
    "via": ToolFile("VGG Image Annotator (VIA) JSON", "choose COCO as the export format in VIA"),
    "via-csv": ToolFile("VGG Image Annotator (VIA) CSV", "choose COCO as the export format in VIA"),
    "supervisely": ToolFile("Supervisely JSON", "export the project as COCO or Pascal VOC from Supervisely"),
    "datumaro": ToolFile("Datumaro JSON", _DATUMARO.format("datumaro")),
    "createml": ToolFile("CreateML JSON", "choose COCO or Pascal VOC as the export format"),
    "tensorflow-csv": ToolFile(
        "CSV of TensorFlow's object detection", "choose COCO or Pascal VOC as the export"
    ),
    "coco-results": ToolFile("COCO results (detections)", "name the COCO file with images and annotations"),
    "tfrecord": ToolFile("TFRecords", "name the images and labels of which they were made"),
}
"""Files that are not read, by kind."""


def explain(path: Path) -> str | None:
    """Name a file of labels that is not read, with the export to choose instead; None for any other file."""
    kind = kind_of(path)
    return str(TOOL_FILES[kind]) if kind in TOOL_FILES else None


def explain_folder(folder: Path) -> str:
    """Name a file of a tool among the first files of a folder; "" if there is none."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    for name in names[:_LOOKED_AT]:
        text = explain(folder / name)
        if text is not None:
            return f"{name} is {text}"
    return ""


def kind_of(path: Path) -> str | None:
    """Tell what a file is: the name of a label format, a key of :data:`TOOL_FILES`, or None.

    A file that cannot be opened is None, too.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if suffix == ".json":
        return _json_kind(path, head)
    if suffix == ".xml":
        return _xml_kind(head)
    if suffix == ".txt":
        return _line_kind(head)
    if suffix == ".csv":
        return _csv_kind(head)
    return "tfrecord" if suffix in (".record", ".tfrecord", ".tfrecords") else None


def _json_kind(path: Path, head: bytes) -> str | None:
    try:
        document = json.loads(lines.text(path, WHOLE))
    except (OSError, ValueError, RecursionError):
        # Too large, or cut off: of such files only COCO's are worth a guess.
        is_coco = b'"images"' in head or (b'"image_id"' in head and b'"bbox"' in head)
        return "coco" if is_coco and head.lstrip().startswith(b"{") else None
    return _list_kind(document) if isinstance(document, list) else _object_kind(document)


def _list_kind(document: list[Any]) -> str | None:
    first = document[0] if document and isinstance(document[0], dict) else {}
    # Tasks, with "completions" before 2021; the minimal export has the task's data beside these fields.
    if "data" in first and first.keys() & {"annotations", "completions", "predictions"}:
        return "label-studio"
    if first.keys() & {"annotation_id", "lead_time", "annotator"}:
        return "label-studio"
    if {"image", "annotations"} <= first.keys():
        return "createml"
    return "coco-results" if {"image_id", "category_id", "bbox", "score"} <= first.keys() else None


def _object_kind(document: Any) -> str | None:
    if not isinstance(document, dict):
        return None
    keys = document.keys()
    if "_via_img_metadata" in keys:
        return "via"
    needed = {
        "coco": {"images", "annotations"},
        "labelme": {"shapes", "imagePath"},
        "datumaro": {"items", "categories"},
        "supervisely": {"objects", "size", "tags"},
    }
    for kind, names in needed.items():
        if names <= keys:
            return kind
    if {"assets", "tags"} <= keys or {"asset", "regions"} <= keys:
        return "vott"
    first = next(iter(document.values()), None)
    return "via" if isinstance(first, dict) and {"filename", "regions"} <= first.keys() else None


_ROOT_ELEMENT = re.compile(rb"<([A-Za-z_][\w.-]{0,60})")


def _xml_kind(head: bytes) -> str | None:
    root = _ROOT_ELEMENT.search(head)
    if root is None:
        return None
    if root[1] == b"annotations":
        return "cvat-video" if b"<track" in head and b"<image" not in head else "cvat-images"
    if root[1] != b"annotation":
        return None
    return "labelme-mit" if b"<imagesize>" in head or b"<polygon>" in head and b"<pt>" in head else "voc"


def _line_kind(head: bytes) -> str | None:
    """Tell KITTI and YOLO lines apart by the first line that is one; None for lists and empty files."""
    text = head.decode("utf-8-sig", "replace")
    # The last line may be cut off.
    for line in text.splitlines()[:20]:
        columns = line.split()
        if not columns:
            continue
        values = [lines.number(column) for column in columns]
        if len(columns) >= _KITTI_COLUMNS and values[0] is None and None not in values[1 - _KITTI_COLUMNS :]:
            return "kitti"
        shares = [value for value in values[1:5] if value is not None and -0.1 <= value <= 1.1]
        if len(columns) >= 5 and values[0] is not None and values[0] == int(values[0]) and len(shares) == 4:
            return "yolo"
    return None


def _csv_kind(head: bytes) -> str | None:
    try:
        header = next(csv.reader(head.decode("utf-8-sig", "replace").splitlines()), [])
    except csv.Error:
        return None
    names = {name.strip().lower() for name in header}
    needed = {
        "openimages": {"imageid", "labelname", "xmin"},
        "vott-csv": {"image", "xmin", "ymin", "xmax", "ymax", "label"},
        "via-csv": {"filename", "region_shape_attributes"},
        "label-studio-csv": {"annotation_id", "annotator"},
        "tensorflow-csv": {"filename", "class", "xmin", "ymin"},
    }
    return next((kind for kind, columns in needed.items() if columns <= names), None)
