"""Regions to leave out of account, from the label to the batch and the evaluation: DontCare and iscrowd."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lazy import Lazy
from tlt_api.dataset import Dataset
from tlt_api.training import Augmentation
from tlt_runner.data import records as records_module
from tlt_runner.data.records import Records
from tlt_runner.storage import Storage

prepare = Lazy("tlt_runner.data.preparation.prepare")
batches = Lazy("tlt_runner.data.input_pipeline.batches")
evaluate = Lazy("tlt_runner.evaluation.evaluate")
protocols = Lazy("tlt_runner.evaluation.protocols")
SIZE = 64
STILL = Augmentation(horizontal_flip=0)
CAR, REGION = (10, 8, 30, 24), (0, 40, 20, 64)  # yxyx
IMAGES = 6


def _kitti(root: Path) -> dict[str, Any]:
    (root / "label").mkdir()
    for number in range(IMAGES):
        lines = []
        for name, (y1, x1, y2, x2) in (("car", CAR), ("DontCare", REGION)):
            lines.append(f"{name} -1 -1 -10 {x1} {y1} {x2} {y2} -1 -1 -1 -1000 -1000 -1000 -10\n")
        (root / "label" / f"{number}.txt").write_text("".join(lines))
    return {"labels": "label"}


def _coco(root: Path) -> dict[str, Any]:
    annotations = [
        {
            "id": 10 * number + crowd + 1,
            "image_id": number,
            "category_id": 4,
            "bbox": [box[1], box[0], box[3] - box[1], box[2] - box[0]],
            "iscrowd": crowd,
        }
        for number in range(IMAGES)
        for crowd, box in enumerate((CAR, REGION))
    ]
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(IMAGES)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "car"}]}
    (root / "label.json").write_text(json.dumps(content))
    return {"labels": "label.json", "format": "coco"}


# Classes are "boat" and "car": DontCare is of every class (-2), a crowd of cars is -3 - 1.
FORMATS = {"kitti": (_kitti, -2), "coco": (_coco, -4)}


@pytest.fixture(scope="module", params=sorted(FORMATS))
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, int]:
    root = tmp_path_factory.mktemp(request.param)
    (root / "image").mkdir()
    for number in range(IMAGES):
        pixels = np.full((SIZE, SIZE, 3), 20 * number, np.uint8)
        cv2.imwrite(str(root / "image" / f"{number}.png"), pixels)
    write, class_id = FORMATS[request.param]
    dataset = Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "images": "image",
            "targetClassMapping": {"car": "car", "boat": "boat"},
            "imageSize": {"width": SIZE, "height": SIZE},
            "validation": {"fraction": 0.34},
            **write(root),
        }
    )
    return prepare.prepare(dataset, Storage(scratch=root / "scratch"), f"file://{root}/out"), class_id


def _epoch(records: Records, **changes: Any) -> list[dict[str, np.ndarray]]:
    arguments = {"batch_size": 4, "seed": 1, "augmentation": STILL, "max_objects": 1, "epoch": 0, **changes}
    return [
        {name: value.numpy() for name, value in batch.items()}
        for batch in batches.training_batches(records, **arguments)
    ]


def test_regions_are_counted_beside_the_objects(data: tuple[Records, int]) -> None:
    records, _ = data
    assert records.manifest.objects == [0, IMAGES]
    assert records.manifest.ignored_per_image == {1: IMAGES}
    report = json.loads((records.folder / records_module.REPORT).read_bytes())
    assert (report["objects"], report["ignoredRegions"], report["lines"]) == (IMAGES, IMAGES, 2 * IMAGES)


def test_a_training_batch_has_rows_for_regions_beside_those_of_objects(data: tuple[Records, int]) -> None:
    (batch,) = _epoch(data[0])
    assert batch["classes"].tolist() == [[1, -2]] * 4
    assert batch["boxes"].tolist() == [[list(CAR), list(REGION)]] * 4


def test_regions_are_mirrored_with_the_image(data: tuple[Records, int]) -> None:
    (batch,) = _epoch(data[0], augmentation=Augmentation(horizontal_flip=1))
    assert batch["boxes"][0].tolist() == [[10, SIZE - 24, 30, SIZE - 8], [0, 0, 20, SIZE - 40]]


def test_of_a_region_any_visible_part_stays_and_none_counts_as_an_object_lost(
    data: tuple[Records, int],
) -> None:
    # Zoomed by z about the centre (32, 32); y = 30 moves to 32 - 2 z, by which z is known.
    zoomed = Augmentation(horizontal_flip=0, zoom_min=1, zoom_max=2, min_visible=0)
    (batch,) = _epoch(data[0], augmentation=zoomed)
    zoom = (32 - batch["boxes"][:, 0, 2]) / 2
    assert (zoom > 1.34).any() and batch["classes"].tolist() == [[1, -2]] * 4
    for z, region in zip(zoom, batch["boxes"][:, 1], strict=True):
        np.testing.assert_allclose(region, [0, 32 + 8 * z, 32 - 12 * z, 64], atol=1e-3)
    # From 4 / 3 on the car's left edge, 32 - 24 z, is outside: an object that must be whole is lost.
    (batch,) = _epoch(data[0], augmentation=zoomed.model_copy(update={"min_visible": 1.0}))
    lost = (zoom > 4 / 3).astype(int).tolist()
    assert batch["left_out"].tolist() == [[one, 0] for one in lost]
    assert batch["classes"].tolist() == [[-2, -1] if one else [1, -2] for one in lost]


def test_a_mosaic_has_the_regions_of_its_four_images(data: tuple[Records, int]) -> None:
    (batch,) = _epoch(data[0], augmentation=Augmentation(horizontal_flip=0, mosaic=1), max_objects=8)
    for boxes, classes in zip(batch["boxes"], batch["classes"], strict=True):
        regions = boxes[classes == -2]
        # Four images have one each, 20 x 24 shrunk to between a half and three quarters; some are cut away.
        assert 1 <= len(regions) <= 4
        sides = regions[:, 2:] - regions[:, :2]
        assert (sides <= [15.01, 18.01]).all()
        assert boxes.shape == (8 + 4, 4)


def test_a_detection_in_a_region_of_its_class_counts_for_nothing(data: tuple[Records, int]) -> None:
    records, class_id = data
    judged = [
        {name: value.numpy() for name, value in batch.items()}
        for batch in batches.validation_batches(records, 2)
    ]
    assert judged[0]["classes"].tolist() == [[1, class_id]] * 2

    def precision(detected_class: int) -> float | None:
        """AP where a better score than the car's is given to a box of the class, half of it in the region."""

        def detect(images: np.ndarray) -> dict[str, np.ndarray]:
            count = len(images)
            boxes = np.array([[0, 28, 20, 52], CAR], np.float32)  # 12 of 24 columns are in the region
            return {
                "boxes": np.tile(boxes, (count, 1, 1)),
                "scores": np.tile(np.array([0.9, 0.8], np.float32), (count, 1)),
                "classes": np.tile(np.array([detected_class, 1]), (count, 1)),
            }

        measured = evaluate.evaluate(detect, judged, ["boat", "car"], protocols.Protocol())
        return measured.classes[1].average_precision

    assert precision(1) == 1.0


@pytest.mark.parametrize(
    ("maximum", "images", "ignored", "rows"),
    [
        (5, 1, 0, 5),  # room for every object, no region: no row more
        (3, 1, 0, 3 + 2),  # two objects become regions
        (3, 1, 1, 3 + 3),
        (1, 1, 1, 1 + 1),  # five regions could be needed; there are as many rows as for objects
        (20, 4, 1, 20 + 4),  # a mosaic has the objects and regions of four images
        (8, 4, 1, 8 + 8),
    ],
)
def test_rows_are_as_many_as_the_data_need_and_at_most_twice_max_objects(
    data: tuple[Records, int], maximum: int, images: int, ignored: int, rows: int
) -> None:
    counts = {"objects_per_image": {1: 9, 5: 1}, "ignored_per_image": {0: 9, ignored: 1}}
    manifest = data[0].manifest.model_copy(update=counts)
    assert manifest.training_rows(maximum, images) == rows
    assert manifest.most_boxes == 5 + ignored


def test_a_manifest_of_older_records_has_no_regions(data: tuple[Records, int]) -> None:
    older = data[0].manifest.model_dump(mode="json", by_alias=True)
    del older["ignoredPerImage"]
    manifest = records_module.Manifest.model_validate({**older, "schemaVersion": 3})
    assert (manifest.most_boxes, manifest.training_rows(1)) == (1, 1)
