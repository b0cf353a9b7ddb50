"""Our YOLO reader and that of supervision find the same boxes and classes in the same files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision

from tlt_api.dataset import Dataset
from tlt_runner.data.preparation import sources
from tlt_runner.storage import Storage

HEIGHT, WIDTH = 48, 64
CLASSES = ("bicycle", "car", "person")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images of up to three objects each, with six decimals as tools write them."""
    random = np.random.default_rng(7)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text(f"nc: {len(CLASSES)}\nnames: {list(CLASSES)}\n")
    for number in range(12):
        lines = []
        for _ in range(number % 4):
            width, height = random.uniform(0.05, 0.5, 2)
            x, y = random.uniform(width / 2, 1 - width / 2), random.uniform(height / 2, 1 - height / 2)
            lines.append(f"{random.integers(3)} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n")
        (tmp_path / f"labels/{number:03d}.txt").write_text("".join(lines))
        cv2.imwrite(str(tmp_path / f"images/{number:03d}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return tmp_path


def test_yolo_is_read_as_supervision_reads_it(root: Path) -> None:
    spec = {
        "uri": f"file://{root}",
        "format": "yolo",
        "targetClassMapping": {name: name for name in CLASSES},
        "imageSize": {"width": 64, "height": 64},
    }
    (source,) = sources.find(Dataset.model_validate(spec), Storage(scratch=root / ".scratch"))
    peer = supervision.DetectionDataset.from_yolo(
        str(root / "images"), str(root / "labels"), str(root / "data.yaml")
    )
    theirs = {Path(path).stem: found for path, found in peer.annotations.items()}
    objects = 0
    for sample in source.listing.samples:
        labels = source.reader.read(sample, (HEIGHT, WIDTH))
        found = theirs.pop(sample.stem)
        assert labels.findings == ()
        assert [box.class_name for box in labels.boxes] == [peer.classes[place] for place in found.class_id]
        ours = np.array([box.yxyx for box in labels.boxes]).reshape(-1, 4)[:, [1, 0, 3, 2]]
        np.testing.assert_allclose(ours, found.xyxy, atol=1e-5)  # theirs is float32
        objects += len(labels.boxes)
    assert (theirs, objects) == ({}, 18)


def _boxes(root: Path, **fields: object) -> dict[str, list[list[float]]]:
    """Stem -> left, top, right, bottom edge of each box as our reader has them."""
    spec = {
        "uri": f"file://{root}",
        "targetClassMapping": {name: name for name in CLASSES},
        "imageSize": {"width": 64, "height": 64},
        **fields,
    }
    (source,) = sources.find(Dataset.model_validate(spec), Storage(scratch=root / ".scratch"))
    boxes = {}
    for sample in source.listing.samples:
        labels = source.reader.read(sample, (HEIGHT, WIDTH))
        assert labels.findings == ()
        boxes[sample.stem] = [[*box.yxyx[1::-1], *box.yxyx[:1:-1]] for box in labels.boxes]
    return boxes


def test_polygons_and_rotated_boxes_have_the_boxes_that_supervision_gives_them(root: Path) -> None:
    random = np.random.default_rng(5)
    for label in sorted((root / "labels").iterdir()):
        lines = []
        for corners in (3, 4, 9):
            points = random.integers(0, (WIDTH, HEIGHT), (corners, 2)) / (WIDTH, HEIGHT)
            lines.append(f"{random.integers(3)} {' '.join(f'{value:.6f}' for value in points.ravel())}\n")
        label.write_text("".join(lines))
    peer = supervision.DetectionDataset.from_yolo(
        str(root / "images"), str(root / "labels"), str(root / "data.yaml")
    )
    ours = _boxes(root, format="yolo", shapes="boundingBox")
    assert len(ours) == 12
    for path, found in peer.annotations.items():
        # Six decimals of a share are 0.00003 pixels.
        np.testing.assert_allclose(ours[Path(path).stem], found.xyxy, atol=1e-3)


def test_what_supervision_writes_is_read(root: Path, tmp_path: Path) -> None:
    peer = supervision.DetectionDataset.from_yolo(
        str(root / "images"), str(root / "labels"), str(root / "data.yaml")
    )
    out = tmp_path / "out"
    peer.as_yolo(str(out / "images"), str(out / "labels"), str(out / "data.yaml"))
    peer.as_coco(str(out / "images"), str(out / "annotations.json"))
    for fields in ({"format": "yolo"}, {"format": "coco", "labels": "annotations.json"}):
        ours = _boxes(out, **fields)
        for path, found in peer.annotations.items():
            boxes = np.array(ours[Path(path).stem]).reshape(-1, 4)
            np.testing.assert_allclose(boxes, found.xyxy, atol=1e-3)
