"""Writer of COCO folders: ``images/{train,val}`` and ``annotations/instances_{train,val}.json``.

``file_name`` is relative to the subset's image folder, as in COCO's own train2017. Images and annotations are
written as they come, none is kept in memory; because both are lists of one JSON object, annotations wait in a
file beside it until the images are complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tlt_runner.data.formats.writer import ExportedImage, Writer
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import LabelledBox

LABEL_FILES: dict[Subset, str] = {
    "training": "annotations/instances_train.json",
    "validation": "annotations/instances_val.json",
}


class CocoWriter(Writer):
    """Writes one JSON file for each subset; classes are numbers from 1."""

    image_folders = {"training": "images/train", "validation": "images/val"}
    dataset = {
        "format": "coco",
        "images": image_folders["training"],
        "labels": LABEL_FILES["training"],
        "validation": {"images": image_folders["validation"], "labels": LABEL_FILES["validation"]},
    }

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        super().__init__(root, classes)
        (root / "annotations").mkdir()
        self._files = {subset: _Instances(root / name, self._classes) for subset, name in LABEL_FILES.items()}

    def add(self, image: ExportedImage) -> None:
        """Write one image and its annotations."""
        self._files[image.subset].add(image)

    def close(self) -> None:
        """Complete both files."""
        for file in self._files.values():
            file.close()


class _Instances:
    """Writes one JSON file, entry by entry."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._path = path
        self._category = {name: number for number, name in enumerate(classes, start=1)}
        # In the JSON all annotations come after all images: until then they wait in a second file.
        self._waiting = path.with_suffix(".annotations")
        self._images: IO[str] = path.open("x", encoding="ascii")
        self._annotations: IO[str] = self._waiting.open("x", encoding="ascii")
        self._image_count = self._annotation_count = 0
        categories = [{"id": number, "name": name} for name, number in self._category.items()]
        self._images.write(f'{{"categories": {json.dumps(categories)},\n"images": [')

    def add(self, image: ExportedImage) -> None:
        height, width = image.size
        self._image_count += 1
        entry = {
            "id": self._image_count,
            "file_name": f"{image.name}{image.suffix}",
            "height": height,
            "width": width,
        }
        _append(self._images, entry, first=self._image_count == 1)
        # Ids count from 1: pycocotools takes an annotation id of 0 for no match.
        for box in image.boxes:
            self._annotation_count += 1
            annotation = self._annotation(box, self._annotation_count)
            _append(self._annotations, annotation, first=self._annotation_count == 1)

    def close(self) -> None:
        self._annotations.close()
        with self._images, self._waiting.open(encoding="ascii") as annotations:
            self._images.write('],\n"annotations": [')
            shutil.copyfileobj(annotations, self._images)
            self._images.write("]}\n")
        self._waiting.unlink()

    def _annotation(self, box: LabelledBox, number: int) -> dict[str, Any]:
        y1, x1, y2, x2 = box.yxyx
        return {
            "id": number,
            "image_id": self._image_count,
            "category_id": self._category[box.class_name],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "segmentation": [],
        }


def _append(stream: IO[str], item: dict[str, Any], *, first: bool) -> None:
    stream.write(("\n" if first else ",\n") + json.dumps(item))
