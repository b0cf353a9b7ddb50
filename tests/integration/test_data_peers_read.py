"""Our readers and those of supervision and pycocotools find the same boxes and classes in the same files."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision
from pycocotools.coco import COCO

from tlt_runner.data.formats.coco import CocoReader
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.voc import VocReader
from tlt_runner.data.sample import Reader

Objects = list[tuple[str, float, float, float, float]]
HEIGHT, WIDTH = 48, 64
CLASSES = ("bicycle", "car", "person")


def _drawn(count: int = 12) -> dict[str, Objects]:
    """Images and their objects: class, x1, y1, x2, y2 in whole pixels; the first image has none."""
    random = np.random.default_rng(7)
    drawn: dict[str, Objects] = {}
    for number in range(count):
        objects = []
        for _ in range(number % 4):
            x1, y1 = int(random.integers(0, WIDTH - 1)), int(random.integers(0, HEIGHT - 1))
            x2, y2 = int(random.integers(x1 + 1, WIDTH + 1)), int(random.integers(y1 + 1, HEIGHT + 1))
            objects.append((str(random.choice(CLASSES)), float(x1), float(y1), float(x2), float(y2)))
        drawn[f"{number:06d}"] = objects
    return drawn


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for stem in _drawn():
        cv2.imwrite(str(folder / f"{stem}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return folder


@pytest.fixture
def voc(tmp_path: Path, images: Path) -> Path:
    folder = tmp_path / "Annotations"
    folder.mkdir()
    for stem, objects in _drawn().items():
        elements = [
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:g}</xmin>"
            f"<ymin>{y1 + 1:g}</ymin><xmax>{x2:g}</xmax><ymax>{y2:g}</ymax></bndbox></object>"
            for name, x1, y1, x2, y2 in objects
        ]
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{stem}.png</filename>{size}{''.join(elements)}</annotation>"
        (folder / f"{stem}.xml").write_text(text)
    return folder


@pytest.fixture
def coco(tmp_path: Path, images: Path) -> Path:
    """Category ids with gaps, not in the order of the names, and one crowd."""
    ids = {"person": 1, "car": 17, "bicycle": 90}
    entries, annotations = [], []
    for number, (stem, objects) in enumerate(_drawn().items(), start=100):
        entries.append({"id": number, "file_name": f"{stem}.png", "width": WIDTH, "height": HEIGHT})
        for name, x1, y1, x2, y2 in objects:
            annotations.append(_coco_annotation(len(annotations), number, ids[name], x1, y1, x2, y2))
    crowd = _coco_annotation(999, 103, ids["person"], 0, 0, 9, 9)
    annotations.append(
        {**crowd, "iscrowd": 1, "segmentation": {"counts": [HEIGHT * WIDTH], "size": [HEIGHT, WIDTH]}}
    )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    return path


def _coco_annotation(
    number: int, image: int, category: int, x1: float, y1: float, x2: float, y2: float
) -> dict[str, object]:
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
        "segmentation": [],
    }


def _ours(reader: Reader) -> dict[str, Objects]:
    objects = {}
    for sample in reader.listing().samples:
        labels = reader.read(sample, (HEIGHT, WIDTH))
        assert (labels.findings, labels.image_size) == ((), (HEIGHT, WIDTH))
        objects[sample.stem] = sorted(
            (box.class_name, box.yxyx[1], box.yxyx[0], box.yxyx[3], box.yxyx[2]) for box in labels.boxes
        )
    return objects


def _theirs(dataset: supervision.DetectionDataset) -> dict[str, Objects]:
    return {
        Path(path).stem: sorted(_detections(dataset.classes, detections))
        for path, detections in dataset.annotations.items()
    }


def _detections(
    classes: list[str], detections: supervision.Detections
) -> Iterator[tuple[str, float, float, float, float]]:
    crowds = detections.data.get("iscrowd", np.zeros(len(detections)))
    class_ids = [] if detections.class_id is None else detections.class_id
    for class_id, box, crowd in zip(class_ids, detections.xyxy.tolist(), crowds, strict=True):
        if not crowd:
            yield (classes[class_id], *box)


def _sorted(drawn: dict[str, Objects]) -> dict[str, Objects]:
    return {stem: sorted(objects) for stem, objects in drawn.items()}


def test_voc_is_read_as_supervision_reads_it(images: Path, voc: Path) -> None:
    """Both take VOC's pixels as counted from 1 with the last one inside: ``x1 = xmin - 1, x2 = xmax``."""
    dataset = supervision.DetectionDataset.from_pascal_voc(str(images), str(voc))
    ours = _ours(VocReader(SourceFolder(images, "images"), SourceFolder(voc, "Annotations")))
    assert ours == _theirs(dataset)
    assert ours == _sorted(_drawn())


def test_coco_is_read_as_supervision_reads_it(images: Path, coco: Path) -> None:
    dataset = supervision.DetectionDataset.from_coco(str(images), str(coco))
    ours = _ours(CocoReader(SourceFolder(images, "images"), [("instances.json", coco)]))
    assert ours == _theirs(dataset)
    assert ours == _sorted(_drawn())


def test_coco_is_read_as_pycocotools_reads_it(images: Path, coco: Path) -> None:
    peer = COCO(str(coco))
    theirs = {}
    for image in peer.loadImgs(peer.getImgIds()):
        annotations = peer.loadAnns(peer.getAnnIds(imgIds=[image["id"]], iscrowd=False))
        theirs[Path(image["file_name"]).stem] = sorted(
            (peer.cats[entry["category_id"]]["name"], x, y, x + width, y + height)
            for entry in annotations
            for x, y, width, height in [entry["bbox"]]
        )
    reader = CocoReader(SourceFolder(images, "images"), [("instances.json", coco)])
    assert _ours(reader) == theirs
    crowds = {s.stem: len(reader.read(s, (HEIGHT, WIDTH)).ignored) for s in reader.listing().samples}
    assert [stem for stem, ignored in crowds.items() if ignored] == ["000003"]
