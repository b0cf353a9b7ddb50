"""KITTI labels, read and written: one text file an image, one line an object, 15 columns (16 with a score).

``class truncation occlusion alpha xmin ymin xmax ymax height width length x y z rotation``. The box is in
pixels of the image. Of the columns behind it nothing is read. ``DontCare`` lines mark regions to leave out
of account, whatever the class; they are not objects. Source: the KITTI object development kit's readme.

Columns are separated by white space, so a class "traffic light" is written "traffic_light". Some tools (CVAT)
write it as it is: where the last 14 columns (15 with a score) are numbers and the one before is none, all
columns before them are the class. Occlusion says
"difficult", too (from 1 on, as in TLT): a difficult object without occlusion is written as 3 (unknown), an
occluded one that is not difficult as 0. The columns of the third dimension are written as 0, as TLT wants
them.
"""

from __future__ import annotations

from pathlib import Path

from tlt_api.dataset import LONGEST_CLASS
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.folder_reader import FolderReader
from tlt_runner.data.formats.format import ExportedImage, Format, Writer, decimal
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Problem

COLUMNS = (15, 16)
IGNORED_CLASS = "DontCare"
DIFFICULT_OCCLUSION = 1
"""Occlusion from which an object is "difficult" in evaluation, as in TLT."""
UNKNOWN_OCCLUSION = 3
_NUMBERS = {"truncation": 1, "occlusion": 2, "xmin": 4, "ymin": 5, "xmax": 6, "ymax": 7}
# -1 stands for "not known" in files that tools write.
_RANGES = {"truncation": (-1.0, 1.0), "occlusion": (-1.0, 3.0)}
_FAR = 1e6
"""Pixels: no image is as large."""


class KittiReader(FolderReader):
    """Reads a folder of images and a folder of text files with the same names."""

    suffix = ".txt"

    def read_file(self, path: Path, file: str, image_size: tuple[int, int]) -> Labels:
        """Read one label file; its pixels are absolute, so ``image_size`` does not matter."""
        return lines.read(path, file, parse_line)


def parse_line(columns: list[str], file: str, number: int) -> LabelledBox | Finding:
    """Parse one line: an object, a region to leave out of account, or what is wrong with the line."""
    columns = _joined(columns)
    if len(columns) not in COLUMNS:
        return Finding(
            file,
            Problem.WRONG_COLUMNS,
            f"expected 15 or 16 columns, got {len(columns)}: {lines.shown(columns)}",
            number,
        )
    # A longer class could not stand in targetClassMapping.
    if len(columns[0]) > LONGEST_CLASS:
        return Finding(file, Problem.UNKNOWN_CLASS, lines.LONG_NAME, number)
    values: dict[str, float] = {}
    for field, index in _NUMBERS.items():
        value = lines.number(columns[index])
        # Occlusion is a level, 0 to 3; the other columns are measures.
        if value is None or (field == "occlusion" and value != int(value)):
            kind = "a whole number" if field == "occlusion" else "a finite number"
            message = f"{field} (column {index + 1}): expected {kind}, got {columns[index][:40]!r}"
            return Finding(file, Problem.NOT_A_NUMBER, message, number)
        least, most = _RANGES.get(field, (-_FAR, _FAR))
        if not least <= value <= most:
            text = columns[index][:40]
            message = f"{field} (column {index + 1}): expected {least:g} to {most:g}, got {text!r}"
            return Finding(file, Problem.NOT_A_NUMBER, message, number)
        # Of alpha and the columns of the third dimension nothing is checked: they are not used.
        values[field] = value
    box = (values["ymin"], values["xmin"], values["ymax"], values["xmax"])
    # Equal edges have no area: KITTI's coordinates are edges, not pixels that are included.
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if not values[low] < values[high]:
            message = f"expected {low} < {high}, got {low} {values[low]:g} and {high} {values[high]:g}"
            return Finding(file, Problem.INVERTED_BOX, message, number, box)
    if columns[0] == IGNORED_CLASS:
        return LabelledBox("", box, line=number)
    # The whole number was checked above.
    occlusion = int(values["occlusion"])
    return LabelledBox(
        columns[0], box, values["truncation"], occlusion, occlusion >= DIFFICULT_OCCLUSION, number
    )


def _joined(columns: list[str]) -> list[str]:
    """Make one column of a class with spaces, if the line can be read in this one way only."""
    # Nothing to join in a line of KITTI's own form, which is nearly every line.
    if len(columns) < COLUMNS[1] or (len(columns) == COLUMNS[1] and lines.number(columns[1]) is not None):
        return columns
    numeric = 0
    for column in reversed(columns[-COLUMNS[1] :]):
        if lines.number(column) is None:
            break
        numeric += 1
    words = len(columns) - numeric
    # A word, then exactly as many numbers as a line has. "type 2" is a class and a truncation, and "nan" is a
    # number that cannot be used rather than a word.
    if numeric + 1 not in COLUMNS or _is_float(columns[words - 1]):
        return columns
    return [" ".join(columns[:words]), *columns[words:]]


def _is_float(column: str) -> bool:
    try:
        float(column)
    except ValueError:
        return False
    return True


_LABEL_FOLDERS: dict[Subset, str] = {"training": "training/label_2", "validation": "validation/label_2"}


class KittiWriter(Writer):
    """Writes one text file for each image, one line for each object."""

    image_folders = {"training": "training/image_2", "validation": "validation/image_2"}
    dataset = {
        "format": "kitti",
        "images": image_folders["training"],
        "labels": _LABEL_FOLDERS["training"],
        "validation": {"images": image_folders["validation"], "labels": _LABEL_FOLDERS["validation"]},
    }

    @classmethod
    def class_name(cls, source: str) -> str:
        """Return the class as one column; a class called DontCare gets a "_" behind it."""
        name = "_".join(super().class_name(source).split())
        return f"{name}_" if name == IGNORED_CLASS else name

    @classmethod
    def lost(cls, box: LabelledBox) -> tuple[str, ...]:
        """Name the occlusion where it contradicts "difficult"."""
        return () if _occlusion(box) == box.occlusion else ("occlusion",)

    @classmethod
    def region_loss(cls, region: LabelledBox) -> str | None:
        """Say that a region of one class becomes one of every class."""
        return "of every class from now on, no longer of one" if region.class_name else None

    def add(self, image: ExportedImage) -> None:
        """Write one label file, an empty one where there is no object."""
        lines = (*map(_line, image.boxes), *map(_ignored_line, image.regions))
        self._write(f"{_LABEL_FOLDERS[image.subset]}/{image.name}.txt", lines)

    def close(self) -> None:
        """Do nothing: no file concerns all images."""


def _line(box: LabelledBox) -> str:
    y1, x1, y2, x2 = (decimal(edge, 2) for edge in box.yxyx)
    truncation = decimal(box.truncation, 2)
    # Angle 0.00 and the third dimension 0: the box in the image is all that is known.
    return f"{box.class_name} {truncation} {_occlusion(box)} 0.00 {x1} {y1} {x2} {y2} 0 0 0 0 0 0 0\n"


def _ignored_line(region: LabelledBox) -> str:
    y1, x1, y2, x2 = (decimal(edge, 2) for edge in region.yxyx)
    # The other columns as KITTI's own files have them.
    return f"{IGNORED_CLASS} -1 -1 -10 {x1} {y1} {x2} {y2} -1 -1 -1 -1000 -1000 -1000 -10\n"


def _occlusion(box: LabelledBox) -> int:
    # One column says both: where they contradict each other, "difficult" wins, which evaluation looks at.
    if box.difficult == (box.occlusion >= DIFFICULT_OCCLUSION):
        return box.occlusion
    return UNKNOWN_OCCLUSION if box.difficult else 0


FORMAT = Format(KittiReader.open, KittiWriter, images="training/image_2", labels="training/label_2")
