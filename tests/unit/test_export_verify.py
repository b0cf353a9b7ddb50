"""How detections are matched and when a loss of mAP fails the job; numbers worked out by hand."""

import numpy as np
import pytest

from lazy import Lazy
from tlt_api.failures import Reason
from tlt_api.status import ExportStatus
from tlt_runner.errors import RunnerError

export = Lazy("tlt_runner.tasks.export")
verify = Lazy("tlt_runner.export.verify")
SQUARE, FAR = [10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 70.0, 70.0]


def found(*detections):
    """One image: (box, score, class) each; padded with one place."""
    padded = [*detections, ([0.0] * 4, 0.0, -1)]
    boxes, scores, classes = zip(*padded, strict=True)
    return {
        "boxes": np.array([boxes], np.float32),
        "scores": np.array([scores], np.float32),
        "classes": np.array([classes], np.int32),
    }


def test_order_of_near_equal_scores_does_not_matter():
    difference = verify.compare(
        [found((SQUARE, 0.500, 0), (FAR, 0.499, 0))], [found((FAR, 0.501, 0), (SQUARE, 0.500, 0))]
    )
    assert (difference.matched, difference.unmatched) == (2, 0)
    assert difference.max_abs_error == pytest.approx(0.002, abs=1e-6)


def test_same_box_of_another_class_is_no_match():
    difference = verify.compare([found((SQUARE, 0.9, 0))], [found((SQUARE, 0.9, 1))])
    assert difference == verify.Difference(0.0, 0, 2)


def test_box_moved_by_a_tenth_of_its_side_is_no_match():
    """IoU of two 20 px squares 2 px apart: 18 * 20 / (2 * 400 - 360) = 0.82."""
    moved = [10.0, 12.0, 30.0, 32.0]
    difference = verify.compare([found((SQUARE, 0.9, 0))], [found((moved, 0.9, 0))])
    assert difference.matched == 0


def test_one_detection_matches_once():
    difference = verify.compare([found((SQUARE, 0.9, 0))], [found((SQUARE, 0.8, 0), (SQUARE, 0.7, 0))])
    assert (difference.matched, difference.unmatched) == (1, 1)


def test_detection_that_is_not_a_number_is_counted_as_unmatched():
    difference = verify.compare([found((SQUARE, 0.9, 0))], [found((SQUARE, float("nan"), 0))])
    assert difference == verify.Difference(0.0, 0, 1)


def test_no_detections_at_all_is_no_difference():
    assert verify.compare([found()], [found()]) == verify.Difference(0.0, 0, 0)


def test_random_images_are_reproducible_and_in_range():
    one, other = (list(verify.random_images(5, 2, 3, 32, 48)) for _ in range(2))
    assert [batch.shape for batch in one] == [(3, 32, 48, 3)] * 2
    np.testing.assert_array_equal(one[1], other[1])
    assert min(b.min() for b in one) >= 0 and max(b.max() for b in one) <= 255


def test_metric_drop_names_precision_both_values_and_the_limit():
    exports = [
        ExportStatus(precision="fp32", m_ap=0.9, m_ap_drop=0.0),
        ExportStatus(precision="fp16", m_ap=0.85, m_ap_drop=0.05),
    ]
    with pytest.raises(RunnerError, match=r"0\.01.*fp16 has mAP 0\.8500 of 0\.9000") as caught:
        export._refuse_drops(exports, 0.01)
    assert caught.value.reason == Reason.METRIC_DROP
    assert "fp32" not in str(caught.value)


def test_loss_at_the_limit_passes_and_so_does_a_gain_or_no_map():
    export._refuse_drops(
        [
            ExportStatus(precision="fp32", m_ap=0.9, m_ap_drop=-0.2),
            ExportStatus(precision="fp16", m_ap=0.89, m_ap_drop=0.01),
        ],
        0.01,
    )
    export._refuse_drops([ExportStatus(precision="fp16", max_abs_error=0.5)], 0.0)
