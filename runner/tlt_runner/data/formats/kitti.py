"""KITTI labels: one text file an image, one line an object, 15 columns (16 with a score).

``class truncation occlusion alpha xmin ymin xmax ymax height width length x y z rotation``. The box is in
pixels of the image. Of the columns behind it nothing is read. ``DontCare`` lines mark regions to leave out
of account; they are counted, and are not objects. Source: the KITTI object development kit's readme.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem, Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIX = ".txt"
COLUMNS = (15, 16)
IGNORED_CLASS = "DontCare"
_NUMBERS = {"truncation": 1, "occlusion": 2, "xmin": 4, "ymin": 5, "xmax": 6, "ymax": 7}


@dataclass(frozen=True)
class KittiReader:
    """Reads a folder of images and a folder of labels with the same stems.

    Attributes:
        images: Folder.
        labels: Folder.
    """

    images: Path
    labels: Path

    def list(self) -> Listing:
        """Pair images and labels by stem."""
        names = sorted(entry.name for entry in os.scandir(self.images) if entry.is_file())
        images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        labels = {
            Path(entry.name).stem: entry.name
            for entry in os.scandir(self.labels)
            if entry.is_file() and entry.name.lower().endswith(LABEL_SUFFIX)
        }
        samples: dict[str, Sample] = {}
        skipped = []
        for name in images:
            stem, file = Path(name).stem, f"{self.images.name}/{name}"
            if stem in samples:
                first = samples[stem].image.name
                skipped.append(
                    Finding(file, Problem.DUPLICATE_NAME, f"{first} has the same stem and is used")
                )
            elif stem not in labels:
                expected = f"expected {self.labels.name}/{stem}{LABEL_SUFFIX}, which does not exist"
                skipped.append(Finding(file, Problem.NO_LABEL, expected))
            else:
                sample_name = f"{self.images.name}/{stem}"
                samples[stem] = Sample(sample_name, self.images / name, self.labels / labels[stem])
        stems = {Path(name).stem for name in images}
        orphans = [
            Finding(
                f"{self.labels.name}/{labels[stem]}",
                Problem.LABEL_WITHOUT_IMAGE,
                f"expected an image {self.images.name}/{stem} with one of {', '.join(IMAGE_SUFFIXES)}",
            )
            for stem in sorted(labels.keys() - stems)
        ]
        return Listing(list(samples.values()), len(images), skipped, orphans, len(names) - len(images))

    def read(self, sample: Sample) -> Labels:
        """Read one label file."""
        file = f"{self.labels.name}/{sample.label.name}"
        try:
            text = sample.label.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            return Labels(
                findings=(Finding(file, Problem.UNREADABLE_LABEL, f"expected UTF-8 text: {error}"),)
            )
        boxes, findings, ignored = [], [], 0
        for number, line in enumerate(text.split("\n"), start=1):
            columns = line.split()
            if not columns:
                continue
            if columns[0] == IGNORED_CLASS:
                ignored += 1
                continue
            result = parse_line(columns, file, number)
            if isinstance(result, Finding):
                findings.append(result)
            else:
                boxes.append(result)
        return Labels(tuple(boxes), tuple(findings), ignored)


def parse_line(columns: list[str], file: str, number: int) -> LabelledBox | Finding:
    """One line as an object, or what is wrong with it."""
    if len(columns) not in COLUMNS:
        return Finding(
            file,
            Problem.WRONG_COLUMNS,
            f"expected 15 or 16 columns, got {len(columns)}: {_cut(columns)}",
            number,
        )
    values: dict[str, float] = {}
    for field, place in _NUMBERS.items():
        value = _number(columns[place])
        if value is None or (field == "occlusion" and value != int(value)):
            kind = "a whole number" if field == "occlusion" else "a finite number"
            message = f"{field} (column {place + 1}): expected {kind}, got {columns[place][:40]!r}"
            return Finding(file, Problem.NOT_A_NUMBER, message, number)
        values[field] = value
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if not values[low] < values[high]:
            message = f"expected {low} < {high}, got {low} {values[low]:g} and {high} {values[high]:g}"
            return Finding(file, Problem.INVERTED_BOX, message, number)
    box = (values["ymin"], values["xmin"], values["ymax"], values["xmax"])
    return LabelledBox(columns[0], box, values["truncation"], int(values["occlusion"]), number)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _cut(columns: list[str]) -> str:
    line = " ".join(columns)
    return line if len(line) <= 80 else f"{line[:77]}..."
