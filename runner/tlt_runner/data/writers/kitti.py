"""KITTI folders out: ``training/{image_2,label_2}`` and ``validation/{image_2,label_2}``.

Columns are separated by white space, so a class "traffic light" is written "traffic_light". Occlusion says
"difficult", too (from 1 on, as in TLT): a difficult object without occlusion is written as 3 (unknown), an
occluded one that is not difficult as 0. The columns of the third dimension are 0, as TLT wants them.
"""

from __future__ import annotations

from tlt_runner.data.formats.kitti import DIFFICULT_OCCLUSION, IGNORED_CLASS
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import LabelledBox
from tlt_runner.data.writers import Entry, Writer, number

UNKNOWN_OCCLUSION = 3
_LABEL_FOLDERS: dict[Subset, str] = {"training": "training/label_2", "validation": "validation/label_2"}


class KittiWriter(Writer):
    """One text file an image, one line an object."""

    image_folders = {"training": "training/image_2", "validation": "validation/image_2"}
    dataset = {
        "format": "kitti",
        "images": image_folders["training"],
        "labels": _LABEL_FOLDERS["training"],
        "validation": {"images": image_folders["validation"], "labels": _LABEL_FOLDERS["validation"]},
    }

    @classmethod
    def class_name(cls, source: str) -> str:
        """The class as one column; one that would mean "do not care" gets a "_" behind it."""
        name = "_".join(super().class_name(source).split())
        return f"{name}_" if name == IGNORED_CLASS else name

    @classmethod
    def lost(cls, box: LabelledBox) -> tuple[str, ...]:
        """Occlusion, where it contradicts "difficult"."""
        return () if _occlusion(box) == box.occlusion else ("occlusion",)

    def add(self, entry: Entry) -> None:
        """Write one label file, an empty one where there is no object."""
        self._write(f"{_LABEL_FOLDERS[entry.subset]}/{entry.name}.txt", map(_line, entry.boxes))

    def close(self) -> None:
        """Nothing concerns the whole."""


def _line(box: LabelledBox) -> str:
    y1, x1, y2, x2 = (number(edge, 2) for edge in box.yxyx)
    truncation = number(box.truncation, 2)
    return f"{box.class_name} {truncation} {_occlusion(box)} 0.00 {x1} {y1} {x2} {y2} 0 0 0 0 0 0 0\n"


def _occlusion(box: LabelledBox) -> int:
    if box.difficult == (box.occlusion >= DIFFICULT_OCCLUSION):
        return box.occlusion
    return UNKNOWN_OCCLUSION if box.difficult else 0
