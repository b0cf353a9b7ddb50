"""KITTI labels: one text file an image, one line an object, 15 columns (16 with a score).

``class truncation occlusion alpha xmin ymin xmax ymax height width length x y z rotation``. The box is in
pixels of the image. Of the columns behind it nothing is read. ``DontCare`` lines mark regions to leave out
of account; they are counted, and are not objects. Source: the KITTI object development kit's readme.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tlt_api.dataset import LONGEST_CLASS
from tlt_runner.data.formats import folders, lines
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem, Sample

LABEL_SUFFIX = ".txt"
COLUMNS = (15, 16)
IGNORED_CLASS = "DontCare"
DIFFICULT_OCCLUSION = 1
"""Occlusion from which an object is "difficult" in evaluation, as in TLT."""
_NUMBERS = {"truncation": 1, "occlusion": 2, "xmin": 4, "ymin": 5, "xmax": 6, "ymax": 7}
_RANGES = {"truncation": (-1.0, 1.0), "occlusion": (-1.0, 3.0)}
_FAR = 1e6
"""Pixels: no image is as large."""


@dataclass(frozen=True)
class KittiReader:
    """Reads a folder of images and a folder of labels with the same names.

    Attributes:
        images: Folder of images.
        labels: Folder of labels.
    """

    images: folders.Place
    labels: folders.Place

    def listing(self) -> Listing:
        """Pair images and labels by name."""
        return folders.pair(self.images, self.labels, LABEL_SUFFIX)

    def classes(self, sample: Sample) -> Counter[str]:
        """Objects by class."""
        return Counter(box.class_name for box in self.read(sample, (0, 0)).boxes)

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        """Read one label file; its pixels are absolute, so ``image_size`` does not matter."""
        return lines.read(Path(str(sample.key)), sample.label_file, parse_line)


def parse_line(columns: list[str], file: str, number: int) -> LabelledBox | Finding | None:
    """One line as an object, or what is wrong with it; None for a region to leave out of account."""
    if columns[0] == IGNORED_CLASS:
        return None
    if len(columns) not in COLUMNS:
        return Finding(
            file,
            Problem.WRONG_COLUMNS,
            f"expected 15 or 16 columns, got {len(columns)}: {lines.shown(columns)}",
            number,
        )
    if len(columns[0]) > LONGEST_CLASS:
        return Finding(file, Problem.UNKNOWN_CLASS, lines.LONG_NAME, number)
    values: dict[str, float] = {}
    for field, place in _NUMBERS.items():
        value = lines.number(columns[place])
        if value is None or (field == "occlusion" and value != int(value)):
            kind = "a whole number" if field == "occlusion" else "a finite number"
            message = f"{field} (column {place + 1}): expected {kind}, got {columns[place][:40]!r}"
            return Finding(file, Problem.NOT_A_NUMBER, message, number)
        least, most = _RANGES.get(field, (-_FAR, _FAR))
        if not least <= value <= most:
            given = columns[place][:40]
            message = f"{field} (column {place + 1}): expected {least:g} to {most:g}, got {given!r}"
            return Finding(file, Problem.NOT_A_NUMBER, message, number)
        values[field] = value
    box = (values["ymin"], values["xmin"], values["ymax"], values["xmax"])
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if not values[low] < values[high]:
            message = f"expected {low} < {high}, got {low} {values[low]:g} and {high} {values[high]:g}"
            return Finding(file, Problem.INVERTED_BOX, message, number, box)
    occlusion = int(values["occlusion"])
    return LabelledBox(
        columns[0], box, values["truncation"], occlusion, occlusion >= DIFFICULT_OCCLUSION, number
    )
