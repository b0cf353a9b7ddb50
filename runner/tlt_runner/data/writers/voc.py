"""Pascal VOC folders out: ``JPEGImages``, ``Annotations`` and ``ImageSets/Main/{train,val}.txt``.

Edges count pixels from 1 and include the last one: ``xmin = x1 + 1``, ``xmax = x2``. They are whole numbers
where the box is on whole pixels, else they have decimals. The format has no sub-folders, and its lists
separate by white space: ``street 1/000001`` becomes ``street_1__000001``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

from tlt_runner.data.records import Subset
from tlt_runner.data.sample import LabelledBox
from tlt_runner.data.writers import Entry, Writer, number

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
        "imageSet": LISTS["training"],
        "validation": {"imageSet": LISTS["validation"]},
    }

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        super().__init__(root, classes)
        self._listed: dict[Subset, list[str]] = {subset: [] for subset in LISTS}
        (root / LABELS).mkdir()

    @classmethod
    def lost(cls, box: LabelledBox) -> tuple[str, ...]:
        """How much an object is truncated or occluded."""
        return tuple(
            name
            for name, lost in (
                ("truncation", box.truncation not in (0, 1)),
                ("occlusion", box.occlusion not in (0, OCCLUDED)),
            )
            if lost
        )

    def add(self, entry: Entry) -> None:
        """Write one XML file."""
        lines = _lines(entry, PurePosixPath(self.image_file(entry)).name)
        self._write(f"{LABELS}/{entry.name}.xml", lines)
        self._listed[entry.subset].append(entry.name)

    def close(self) -> None:
        """Write the lists."""
        for subset, listed in self._listed.items():
            self._write(LISTS[subset], (f"{name}\n" for name in listed))


def _lines(entry: Entry, file_name: str) -> Iterator[str]:
    height, width = entry.size
    yield "<annotation>\n"
    yield f"  <folder>{IMAGES}</folder>\n  <filename>{escape(file_name)}</filename>\n"
    yield f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    yield "  <segmented>0</segmented>\n"
    for box in entry.boxes:
        y1, x1, y2, x2 = box.yxyx
        yield f"  <object>\n    <name>{escape(box.class_name)}</name>\n    <pose>Unspecified</pose>\n"
        yield f"    <truncated>{int(box.truncation > 0)}</truncated>\n"
        yield f"    <occluded>{int(box.occlusion > 0)}</occluded>\n"
        yield f"    <difficult>{int(box.difficult)}</difficult>\n"
        yield f"    <bndbox><xmin>{number(x1 + 1)}</xmin><ymin>{number(y1 + 1)}</ymin>"
        yield f"<xmax>{number(x2)}</xmax><ymax>{number(y2)}</ymax></bndbox>\n  </object>\n"
    yield "</annotation>\n"
