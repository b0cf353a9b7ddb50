"""Pascal VOC labels, read and written: one XML file an image, one ``<object>`` an object.

VOC counts pixels from 1 and its boxes include their last pixel, so xmin 1, xmax 1 is the first column:
``x1 = xmin - 1``, ``x2 = xmax``, and the same down the rows; whole numbers or fractions. Many tools write
edges that count from 0 instead (``x1 = xmin``, ``x2 = xmax``): which of the two a data set has is decided
over all its files (:mod:`tlt_runner.data.preparation.conventions`). The boxes of
``<part>`` (head, hand, foot of the person layout task) are no objects. An image's label is found by the
image's name alone; what ``<filename>``, ``<folder>`` and ``<path>`` say is never opened.

The files are not trusted: defusedxml refuses DTDs and entities, and size, depth and the number of objects are
limited. A file that breaks a limit, or is no XML to its end, yields no objects at all: half of an image's
objects would teach that the other half is background. Source: the VOC2012 development kit.

Folders are written as ``JPEGImages``, ``Annotations`` and ``ImageSets/Main/{train,val}.txt``. Edges are whole
numbers where the box is on whole pixels, else they have decimals. The format has no sub-folders, and its
lists separate by white space: ``street 1/000001`` becomes ``street_1__000001``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from xml.sax import SAXException, SAXParseException
from xml.sax.handler import ContentHandler
from xml.sax.saxutils import escape

from defusedxml import sax
from defusedxml.common import DefusedXmlException

from tlt_api.dataset import LONGEST_CLASS
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.folder_reader import FolderReader
from tlt_runner.data.formats.format import EdgeEvidence, EntryError, ExportedImage, Format, Writer, decimal
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Problem

if TYPE_CHECKING:
    from xml.sax.xmlreader import AttributesImpl

MAX_BYTES = 16 << 20
MAX_DEPTH = 64
MAX_OBJECTS = 10_000
MAX_TEXT = 1_000
"""Characters of a field."""
_ROOT = "annotation"
_OBJECT = (_ROOT, "object")
_SIZE: dict[tuple[str, ...], str] = {(_ROOT, "size", name): name for name in ("width", "height")}
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_OBJECT_FIELDS: dict[tuple[str, ...], str] = {
    **{(*_OBJECT, name): name for name in ("name", "difficult", "truncated", "occluded")},
    **{(*_OBJECT, "bndbox", name): name for name in _EDGES},
}
_FAR = 1e6
"""Pixels: no image is as large."""
_UNSPECIFIED = ("", "unspecified")
"""Texts that tools write in an optional field that nobody filled in."""


@dataclass(frozen=True)
class VocReader(FolderReader):
    """Reads a folder of images and a folder of XML files with the same names.

    Attributes:
        first_pixel: Number of the first pixel: 1 as VOC defines it, or 0 for edges that count from 0.
    """

    first_pixel: int = 1
    suffix = ".xml"

    def zero_based(self) -> VocReader:
        """Return a reader of labels whose edges count from 0."""
        return replace(self, first_pixel=0)

    def read_file(self, path: Path, file: str, image_size: tuple[int, int]) -> Labels:
        """Read one XML file; its pixels are absolute, so ``image_size`` does not matter."""
        return read_file(path, file, self.first_pixel)


_EDGE_TAGS = (b"xmin", b"ymin", b"xmax", b"ymax")
_NO_EDGES = (math.nan,) * 4
_SIZE_TAGS = (b"width", b"height")
_EDGE_TOKENS = re.compile(rb"<(bndbox|xmin|ymin|xmax|ymax|width|height)[^<>]{0,40}>\s{0,40}([^<\s]{0,40})")


def edge_evidence(data: bytes, file: str) -> EdgeEvidence:
    """Count the boxes of one XML file that lie at the edges of its image.

    It looks at tags alone, which costs a tenth of parsing the file: nothing is read by it, and boxes that
    make no sense are passed over. Boxes of ``<part>`` count: they have the same first pixel.

    Args:
        data: The file's content.
        file: Its path relative to the data set's root.
    """
    size: dict[bytes, float] = {}
    box: dict[bytes, float] = {}
    boxes: list[dict[bytes, float]] = []
    for tag, text in _EDGE_TOKENS.findall(data):
        if tag == b"bndbox":
            box = {}
            boxes.append(box)
            continue
        try:
            value = float(text)
        except ValueError:
            continue
        # Of a repeated field the first counts, as when the file is read.
        (size if tag in _SIZE_TAGS else box).setdefault(tag, value)
    width, height = size.get(b"width"), size.get(b"height")
    total = at_zero = at_one = at_end = fractions = 0
    for box in boxes:
        # NaN and boxes without an edge or inside out: every comparison with them is false.
        x1, y1, x2, y2 = map(box.get, _EDGE_TAGS, _NO_EDGES)
        if not (x1 <= x2 < _FAR and y1 <= y2 < _FAR):
            continue
        total += 1
        # Below 0 is outside the image by either count, and tells nothing.
        if 0 <= x1 < 1 or 0 <= y1 < 1:
            at_zero += 1
        elif x1 == 1 or y1 == 1:
            at_one += 1
        at_end += x2 == width or y2 == height
        fractions += not (x1.is_integer() and y1.is_integer() and x2.is_integer() and y2.is_integer())
    return EdgeEvidence(
        total, at_zero, at_one, at_end, fractions, file if at_zero else "", file if at_one else ""
    )


def read_file(path: Path, file: str, first_pixel: int = 1) -> Labels:
    """Read one XML file.

    Args:
        path: The file.
        file: Its path relative to the data set's root, for messages.
        first_pixel: Number of the first pixel, 0 or 1.

    Raises:
        OSError: The storage fails.
    """
    try:
        data = lines.content(path, MAX_BYTES)
    except ValueError as error:
        return _unreadable(file, str(error), None)
    # defusedxml's parser raises for what it forbids, instead of resolving it.
    parser = sax.make_parser()
    # Without a DTD there are no entities, with which a few bytes of XML expand to gigabytes.
    parser.forbid_dtd = True
    # A SAX handler keeps only the fields that matter; a tree of a hostile file would fill the memory.
    annotation = _Annotation(parser.getLineNumber)
    parser.setContentHandler(annotation)
    try:
        # In one piece: fed by pieces, expat before 2.6 scans a long token again and again (CVE-2023-52425).
        parser.feed(data, isFinal=True)
    except SAXParseException as error:
        return _unreadable(file, f"expected XML: {error.getMessage()[:200]}", error.getLineNumber())
    except DefusedXmlException as error:
        message = f"expected no DTD and no entities ({type(error).__name__})"
        return _unreadable(file, message, parser.getLineNumber())
    # A limit of ours, or a declared encoding that does not exist (LookupError) or does not fit (ValueError).
    except (SAXException, ValueError, LookupError) as error:
        return _unreadable(file, str(error)[:200], parser.getLineNumber())
    return annotation.labels(file, first_pixel)


def _unreadable(file: str, message: str, line: int | None) -> Labels:
    return Labels(findings=(Finding(file, Problem.UNREADABLE_LABEL, message, line),))


class _LimitError(SAXException):
    """Raised to end the parsing of a file that is no annotation, or exceeds a limit."""


@dataclass
class _Fields:
    """Text of an element's fields; the first of a repeated field, whose name is then in ``twice``."""

    line: int
    text: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        if name in self.text:
            self.twice.append(name)
        self.text.setdefault(name, text)


class _Annotation(ContentHandler):
    """Collects the fields that matter while expat walks through a file."""

    def __init__(self, line_number: Callable[[], int]) -> None:
        super().__init__()
        self._line_number = line_number
        self._path: list[str] = []
        self._objects: list[_Fields] = []
        self._size: _Fields | None = None
        self._text: list[str] | None = None
        self._length = 0

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802 (SAX)
        self._path.append(name)
        # The whole path counts, not the name: a <part> inside an <object> has a <name> and a <bndbox>, too.
        path = tuple(self._path)
        if len(path) == 1 and name != _ROOT:
            raise _LimitError(f"expected <{_ROOT}>, got <{name[:40]}>")
        # The path costs memory with its depth, and every element compares it.
        if len(path) > MAX_DEPTH:
            raise _LimitError(f"expected elements at most {MAX_DEPTH} deep")
        if path == _OBJECT:
            if len(self._objects) == MAX_OBJECTS:
                raise _LimitError(f"expected at most {MAX_OBJECTS} objects")
            self._objects.append(_Fields(self._line_number()))
        elif path in _SIZE or path in _OBJECT_FIELDS:
            # Text arrives in pieces of any size (characters), so it is collected until the element ends.
            self._text, self._length = [], 0

    def characters(self, content: str) -> None:
        # Text between the fields (indentation, <segmented>, <pose>) is of no interest.
        if self._text is None:
            return
        self._length += len(content)
        if self._length > MAX_TEXT:
            raise _LimitError(f"expected at most {MAX_TEXT} characters in <{self._path[-1][:40]}>")
        self._text.append(content)

    def endElement(self, name: str) -> None:  # noqa: N802 (SAX)
        path = tuple(self._path)
        self._path.pop()
        if path in _SIZE:
            # An annotation without <size> is legal: the image is then not compared with it.
            self._size = self._size or _Fields(self._line_number())
            self._size.add(_SIZE[path], "".join(self._text or []).strip())
            self._text = None
        elif path in _OBJECT_FIELDS:
            # The path has an <object> in it, so one has been opened.
            self._objects[-1].add(_OBJECT_FIELDS[path], "".join(self._text or []).strip())
            self._text = None

    def labels(self, file: str, first_pixel: int) -> Labels:
        """Make the labels of the whole file."""
        boxes, findings = [], []
        # One bad object is a finding of its own; the others of the file stay.
        for fields in self._objects:
            try:
                boxes.append(_box(fields, first_pixel))
            except EntryError as error:
                findings.append(Finding(file, error.problem, str(error), fields.line, error.box))
        image_size = None
        if self._size is not None:
            try:
                image_size = _image_size(self._size)
            except EntryError as error:
                findings.append(Finding(file, error.problem, str(error), self._size.line))
        return Labels(tuple(boxes), tuple(findings), image_size=image_size)


def _box(fields: _Fields, first_pixel: int) -> LabelledBox:
    """Make a box of one ``<object>``.

    Raises:
        EntryError: It cannot be used.
    """
    # Two boxes or names of one object: nobody can tell which one is right.
    if fields.twice:
        raise EntryError(Problem.WRONG_COLUMNS, f"expected one <{fields.twice[0]}> in <object>, got more")
    # An object without a class, or without an edge, is dropped; the others stay.
    if not fields.text.get("name"):
        raise EntryError(Problem.MISSING_FIELD, "expected <name> in <object>, with the class")
    if len(fields.text["name"]) > LONGEST_CLASS:
        raise EntryError(Problem.UNKNOWN_CLASS, lines.LONG_NAME)
    edges = {}
    for name in _EDGES:
        if name not in fields.text:
            raise EntryError(Problem.MISSING_FIELD, f"expected <{name}> in the <bndbox> of <object>")
        edges[name] = _number(name, fields.text[name], -_FAR, _FAR)
    # VOC counts pixels from 1 and includes the last one; ours are edges, and pixel 0 reaches from 0 to 1.
    box = (edges["ymin"] - first_pixel, edges["xmin"] - first_pixel, edges["ymax"], edges["xmax"])
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        # Counted from 1, an object of one pixel has xmin = xmax, since both are included.
        if not edges[low] - first_pixel < edges[high]:
            bound = f"{low} - 1" if first_pixel else low
            message = f"expected {bound} < {high}, got {low} {edges[low]:g} and {high} {edges[high]:g}"
            raise EntryError(Problem.INVERTED_BOX, message, box)
    return LabelledBox(
        class_name=fields.text["name"],
        yxyx=box,
        truncation=_optional(fields, "truncated", 1),
        occlusion=int(_optional(fields, "occluded", 3, whole=True)),
        difficult=_optional(fields, "difficult", 1, whole=True) == 1,
        line=fields.line,
    )


def _image_size(fields: _Fields) -> tuple[int, int] | None:
    """Read height and width of ``<size>``; None for 0 or an empty field, with which tools say "unknown".

    Raises:
        EntryError: It is no size.
    """
    height, width = (int(_optional(fields, name, _FAR, whole=True)) for name in ("height", "width"))
    return (height, width) if height and width else None


def _optional(fields: _Fields, name: str, most: float, *, whole: bool = False) -> float:
    text = fields.text.get(name, "")
    # A missing field means the same as an empty one.
    return 0.0 if text.lower() in _UNSPECIFIED else _number(name, text, 0, most, whole=whole)


def _number(name: str, text: str, least: float, most: float, *, whole: bool = False) -> float:
    value = lines.number(text)
    if value is None or (whole and value != int(value)):
        kind = "a whole number" if whole else "a finite number"
        raise EntryError(Problem.NOT_A_NUMBER, f"{name}: expected {kind}, got {text[:40]!r}")
    if not least <= value <= most:
        message = f"{name}: expected {least:g} to {most:g}, got {text[:40]!r}"
        raise EntryError(Problem.NOT_A_NUMBER, message)
    return value


IMAGES, LABELS = "JPEGImages", "Annotations"
LISTS: dict[Subset, str] = {
    "training": "ImageSets/Main/train.txt",
    "validation": "ImageSets/Main/val.txt",
}
OCCLUDED = 1


class VocWriter(Writer):
    """One XML file an image, and a list of the images of each subset."""

    flat = True
    image_folders = {"training": IMAGES, "validation": IMAGES}
    dataset = {
        "format": "voc",
        # Said, and not left to be found: boxes with fractions and none at an edge tell nothing.
        "coordinates": "oneBased",
        "imageSet": LISTS["training"],
        "validation": {"imageSet": LISTS["validation"]},
    }

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        super().__init__(root, classes)
        # In VOC one folder holds both subsets; the lists tell them apart.
        self._listed: dict[Subset, list[str]] = {subset: [] for subset in LISTS}
        (root / LABELS).mkdir()

    @classmethod
    def lost(cls, box: LabelledBox) -> tuple[str, ...]:
        """Name truncation and occlusion where they are more than a yes or no."""
        return tuple(
            name
            for name, lost in (
                ("truncation", box.truncation not in (0, 1)),
                ("occlusion", box.occlusion not in (0, OCCLUDED)),
            )
            if lost
        )

    def add(self, image: ExportedImage) -> None:
        """Write one XML file."""
        lines = _xml(image, PurePosixPath(self.image_file(image)).name)
        self._write(f"{LABELS}/{image.name}.xml", lines)
        self._listed[image.subset].append(image.name)

    def close(self) -> None:
        """Write the lists."""
        for subset, listed in self._listed.items():
            self._write(LISTS[subset], (f"{name}\n" for name in listed))


def _xml(image: ExportedImage, file_name: str) -> Iterator[str]:
    height, width = image.size
    yield "<annotation>\n"
    yield f"  <folder>{IMAGES}</folder>\n  <filename>{escape(file_name)}</filename>\n"
    yield f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    yield "  <segmented>0</segmented>\n"
    for box in image.boxes:
        y1, x1, y2, x2 = box.yxyx
        yield f"  <object>\n    <name>{escape(box.class_name)}</name>\n    <pose>Unspecified</pose>\n"
        yield f"    <truncated>{int(box.truncation > 0)}</truncated>\n"
        yield f"    <occluded>{int(box.occlusion > 0)}</occluded>\n"
        yield f"    <difficult>{int(box.difficult)}</difficult>\n"
        # Back to pixels from 1, of which the last one is included: only the upper left corner moves.
        yield f"    <bndbox><xmin>{decimal(x1 + 1)}</xmin><ymin>{decimal(y1 + 1)}</ymin>"
        yield f"<xmax>{decimal(x2)}</xmax><ymax>{decimal(y2)}</ymax></bndbox>\n  </object>\n"
    yield "</annotation>\n"


FORMAT = Format(VocReader.open, VocWriter, images=IMAGES, labels=LABELS, edge_evidence=edge_evidence)
