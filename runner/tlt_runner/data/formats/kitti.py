"""KITTI labels: one text file an image, one line an object, 15 columns (16 with a score).

``class truncation occlusion alpha xmin ymin xmax ymax height width length x y z rotation``. The box is in
pixels of the image. Of the columns behind it nothing is read. ``DontCare`` lines mark regions to leave out
of account; they are counted, and are not objects. Source: the KITTI object development kit's readme.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem, Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIX = ".txt"
COLUMNS = (15, 16)
IGNORED_CLASS = "DontCare"
DIFFICULT_OCCLUSION = 1
"""Occlusion from which an object is "difficult" in evaluation, as in TLT."""
_NUMBERS = {"truncation": 1, "occlusion": 2, "xmin": 4, "ymin": 5, "xmax": 6, "ymax": 7}


@dataclass(frozen=True)
class KittiReader:
    """Reads a folder of images and a folder of labels with the same stems.

    Attributes:
        images: Folder.
        labels: Folder.
        image_place: The image folder's path relative to the data set's root, for names and messages.
        label_place: The label folder's.
    """

    images: Path
    labels: Path
    image_place: str
    label_place: str

    def listing(self) -> Listing:
        """Pair images and labels by stem."""
        images, other_files = self._image_names()
        labels = self._label_names()
        samples: dict[str, Sample] = {}
        skipped = []
        for name in images:
            stem = Path(name).stem
            image_file = f"{self.image_place}/{name}"
            problem: tuple[Problem, str] | None = None
            if not (self.images / name).is_file():
                problem = Problem.UNREADABLE_IMAGE, "expected a file, got a link to nothing or a special file"
            elif stem in samples:
                problem = Problem.DUPLICATE_NAME, f"{samples[stem].image.name} has the same stem and is used"
            elif stem not in labels:
                problem = Problem.NO_LABEL, f"expected {self.label_place}/{stem}.txt, which does not exist"
            if problem is not None:
                skipped.append(Finding(image_file, *problem))
                continue
            label = labels[stem]
            samples[stem] = Sample(
                name=f"{self.image_place}/{stem}",
                stem=stem,
                image=self.images / name,
                image_file=image_file,
                label_file=f"{self.label_place}/{label}",
                key=self.labels / label,
            )
        stems = {Path(name).stem for name in images}
        orphans = [
            Finding(
                f"{self.label_place}/{labels[stem]}",
                Problem.LABEL_WITHOUT_IMAGE,
                f"expected {self.image_place}/{stem} with one of {', '.join(IMAGE_SUFFIXES)}",
            )
            for stem in sorted(labels.keys() - stems)
        ]
        label_files = [(f"{self.label_place}/{name}", self.labels / name) for name in labels.values()]
        return Listing(list(samples.values()), len(images), skipped, orphans, [], other_files, label_files)

    def _image_names(self) -> tuple[list[str], int]:
        """File names of the images, sorted, and the number of other entries."""
        with os.scandir(self.images) as entries:
            images = [(_is_named(entry, IMAGE_SUFFIXES), entry.name) for entry in entries]
        return sorted(name for is_image, name in images if is_image), sum(
            not is_image for is_image, _ in images
        )

    def _label_names(self) -> dict[str, str]:
        """Stem -> file name of the labels."""
        with os.scandir(self.labels) as entries:
            names = [e.name for e in entries if _is_named(e, (LABEL_SUFFIX,)) and e.is_file()]
        return {Path(name).stem: name for name in sorted(names)}

    def classes(self, sample: Sample) -> Counter[str]:
        """Objects by class."""
        return Counter(box.class_name for box in self.read(sample, (0, 0)).boxes)

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        """Read one label file; its pixels are absolute, so ``image_size`` does not matter."""
        file = sample.label_file
        try:
            text = Path(str(sample.key)).read_bytes().decode("utf-8-sig")
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


def _is_named(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    """Whether an entry is meant to be read: no folder, not hidden, one of the suffixes in any case."""
    return not entry.name.startswith(".") and entry.name.lower().endswith(suffixes) and not entry.is_dir()


_FAR = 1e6
"""Pixels: no image is as large."""
_RANGES = {"truncation": (-1.0, 1.0), "occlusion": (-1.0, 3.0)}


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
        least, most = _RANGES.get(field, (-_FAR, _FAR))
        if not least <= value <= most:
            given = columns[place][:40]
            message = f"{field} (column {place + 1}): expected {least:g} to {most:g}, got {given!r}"
            return Finding(file, Problem.NOT_A_NUMBER, message, number)
        values[field] = value
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if not values[low] < values[high]:
            message = f"expected {low} < {high}, got {low} {values[low]:g} and {high} {values[high]:g}"
            return Finding(file, Problem.INVERTED_BOX, message, number)
    box = (values["ymin"], values["xmin"], values["ymax"], values["xmax"])
    occlusion = int(values["occlusion"])
    return LabelledBox(
        columns[0], box, values["truncation"], occlusion, occlusion >= DIFFICULT_OCCLUSION, number
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _cut(columns: list[str]) -> str:
    line = " ".join(columns)
    return line if len(line) <= 80 else f"{line[:77]}..."
