"""Objects that anchors fit on the grid: by hand, against all anchors of a network, and in the report."""

import numpy as np
import pytest

from tlt_api.dataset import ImageSize
from tlt_api.model import Anchors
from tlt_runner.data import anchor_grid
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.report import anchor_fit
from tlt_runner.data.report.report import DatasetReport, ReportedSize
from tlt_runner.data.report.statistics import DatasetStatistics
from tlt_runner.data.sample import Sample, SampleOutcome
from tlt_runner.detector.anchors import anchors as all_anchors
from tlt_runner.detector.config import STRIDE, DetectorConfig
from tlt_runner.evaluation.matching import iou_matrix

SIZE = ImageSize(width=640, height=384)


def test_the_best_anchor_is_that_of_a_comparison_with_all_anchors() -> None:
    random = np.random.default_rng(0)
    config = DetectorConfig(class_names=["a"], height=96, width=160)
    centres = random.uniform(0, [96, 160], (300, 2))  # some lie at the image's border
    half = np.exp(random.uniform(np.log(3), np.log(90), (300, 2))) / 2
    boxes = np.concatenate([centres - half, centres + half], axis=1).clip(0, [96, 160, 96, 160])
    expected = iou_matrix(boxes, all_anchors(config).astype(np.float64)).max(axis=1)
    shapes = anchor_grid.shapes_of(config.anchors)
    np.testing.assert_allclose(anchor_grid.best_overlaps(boxes, shapes, 96, 160), expected, rtol=1e-4)
    assert STRIDE == anchor_grid.STRIDE


# Monte Carlo with a million places each: squares of s pixels, moved by up to 8 along both axes from an equal
# one, have IoU 0.5 with it in this share of cases.
@pytest.mark.parametrize(("side", "share"), [(12, 0.142), (16, 0.252), (24, 0.568), (32, 0.854), (64, 1.0)])
def test_anchors_of_the_own_shape_fit_small_objects_at_some_places_only(side: int, share: float) -> None:
    size = np.array([[side, side]])
    assert anchor_grid.shares_found(size, None, 384, 640)[0] == pytest.approx(share, abs=0.01)


def test_an_object_as_large_as_the_image_has_one_place() -> None:
    # Centre (192, 320) lies on a corner of four cells: the next anchors stand 8 pixels away along each axis.
    shapes = np.array([[384, 640]], np.float32)
    shared = 376 * 632
    iou = shared / (2 * 384 * 640 - shared)
    assert anchor_grid.best_overlaps(np.array([[0, 0, 384, 640]]), shapes, 384, 640)[0] == pytest.approx(iou)
    assert anchor_grid.shares_found(np.array([[384, 640]]), shapes, 384, 640).tolist() == [1.0]


def _report(*objects: tuple[int, float, int]) -> DatasetReport:
    """Of class id, side of a square and number of objects."""
    statistics = DatasetStatistics()
    for class_id, side, count in objects:
        outcome = SampleOutcome(example=b"x", objects=[class_id] * count, sizes=[(side, side)] * count)
        statistics.add(Sample("a", "a", None, "a.jpg", "a.txt", "a"), outcome, "training")  # type: ignore[arg-type]
    return statistics.to_report(ClassMapping({"car": "car", "dog": "dog"}))


def test_the_report_has_sizes_by_class() -> None:
    report = _report((0, 12, 3), (1, 12, 2), (1, 70, 1))
    # 2 ** (14 / 4) = 11.3 <= 12 < 13.5; 2 ** (24 / 4) = 64 <= 70 < 76.1
    small, large = 12.34, 69.79
    assert report.sizes_by_class == {
        "car": [ReportedSize(width=small, height=small, objects=3)],
        "dog": [
            ReportedSize(width=small, height=small, objects=2),
            ReportedSize(width=large, height=large, objects=1),
        ],
    }
    assert [size.objects for size in report.box_sizes] == [5, 1]


def test_objects_that_no_anchor_fits_are_warned_of_by_size_and_class() -> None:
    report = _report((0, 12, 30), (1, 12, 7), (1, 70, 100))
    fits = anchor_fit.by_class_and_size(report, Anchors(), SIZE)
    # 12.3 x 12.3 in 64 x 64 has an IoU of 0.04; one of its own shape fits at 15 % of the places.
    assert [(fit.name, fit.size, fit.objects, fit.found) for fit in fits[:2]] == [
        ("car", 8, 30, 0.0),
        ("dog", 8, 7, 0.0),
    ]
    assert fits[0].own_shape == pytest.approx(30 * 0.15, abs=0.5)
    (warning,) = anchor_fit.warnings(fits, Anchors())
    assert warning.startswith(
        "objects of 8 to 16 pixels have no anchor that overlaps them by IoU 0.5 (car 30 of 30, dog 7 of 7): "
        "the anchors of scales 64, 128, 256 fit 0% of 37 on their grid of 16 pixels"
    )
    assert "enlarge imageSize" in warning


def test_other_anchors_are_advised_where_they_would_help() -> None:
    fits = anchor_fit.by_class_and_size(_report((0, 40, 10)), Anchors(), SIZE)
    (warning,) = anchor_fit.warnings(fits, Anchors())
    assert "`tlt anchors` suggests better ones" in warning
    assert (
        anchor_fit.warnings(
            anchor_fit.by_class_and_size(_report((0, 40, 10)), Anchors(scales=[40], ratios=[1.0]), SIZE),
            Anchors(),
        )
        == []
    )


def test_a_data_set_without_objects_has_no_fits() -> None:
    assert anchor_fit.by_class_and_size(_report(), Anchors(), SIZE) == []
