"""Matching of detections, threads, and the loss of mAP that fails a job; numbers worked out by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lazy import Lazy
from tlt_api.exportjob import Verification
from tlt_api.failures import Reason
from tlt_api.status import ExportStatus, Metrics
from tlt_runner import cpus
from tlt_runner.errors import RunnerError

export = Lazy("tlt_runner.tasks.export")
verify = Lazy("tlt_runner.export.verify")
SQUARE, FAR = [10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 70.0, 70.0]


def detections(*items):
    """Detections of one image, (box, score, class) each, and one row of padding."""
    padded = [*items, ([0.0] * 4, 0.0, -1)]
    boxes, scores, classes = zip(*padded, strict=True)
    return {
        "boxes": np.array([boxes], np.float32),
        "scores": np.array([scores], np.float32),
        "classes": np.array([classes], np.int32),
    }


def test_a_gate_with_confidence_asks_for_an_interval_below_the_limit():
    gate = Verification(max_metric_drop=0.01, confidence=0.95)
    sure, unsure, alone = (
        ExportStatus(
            precision="fp16", m_ap=0.9, m_ap_drop=0.005, m_ap_drop_interval=interval, comparison="0.5 points"
        )
        for interval in ([0.0, 0.01], [-0.01, 0.02], None)
    )
    export._refuse_drops([sure], gate, has_data=True)
    for refused in (unsure, alone):
        with pytest.raises(RunnerError, match="at most 1 points of mAP with 95 % confidence") as caught:
            export._refuse_drops([sure, refused], gate, has_data=True)
        assert caught.value.reason == Reason.METRIC_DROP
    # Without confidence the measured loss decides.
    export._refuse_drops([unsure, alone], Verification(max_metric_drop=0.01), has_data=True)
    # A model from a uri has no data to be sure by.
    export._refuse_drops([ExportStatus(precision="fp16")], gate, has_data=False)


def test_order_of_near_equal_scores_does_not_matter():
    difference = verify.compare(
        [detections((SQUARE, 0.500, 0), (FAR, 0.499, 0))], [detections((FAR, 0.501, 0), (SQUARE, 0.500, 0))]
    )
    assert (difference.matched, difference.unmatched) == (2, 0)
    assert difference.max_abs_error == pytest.approx(0.002, abs=1e-6)


def test_same_box_of_another_class_is_no_match():
    difference = verify.compare([detections((SQUARE, 0.9, 0))], [detections((SQUARE, 0.9, 1))])
    assert difference == verify.Difference(0.0, 0, 2)


def test_box_moved_by_a_tenth_of_its_side_is_no_match():
    """IoU of two 20 px squares 2 px apart: 18 * 20 / (2 * 400 - 360) = 0.82."""
    moved = [10.0, 12.0, 30.0, 32.0]
    difference = verify.compare([detections((SQUARE, 0.9, 0))], [detections((moved, 0.9, 0))])
    assert difference.matched == 0


def test_one_detection_matches_once():
    difference = verify.compare(
        [detections((SQUARE, 0.9, 0))], [detections((SQUARE, 0.8, 0), (SQUARE, 0.7, 0))]
    )
    assert (difference.matched, difference.unmatched) == (1, 1)


def test_detection_that_is_not_a_number_is_counted_as_unmatched():
    difference = verify.compare([detections((SQUARE, 0.9, 0))], [detections((SQUARE, float("nan"), 0))])
    assert difference == verify.Difference(0.0, 0, 1)


def test_no_detections_at_all_is_no_difference():
    assert verify.compare([detections()], [detections()]) == verify.Difference(0.0, 0, 0)


def results(*items):
    return verify.Results(metrics=None, detections=[detections(*items)])


def test_an_export_fails_if_no_detection_agrees():
    with pytest.raises(RunnerError) as caught:
        verify.status_of("fp16", results((SQUARE, 0.9, 0)), results((FAR, 0.9, 0)), 1, 1.0)
    assert caught.value.reason == Reason.EXPORT_FAILED


def test_an_export_with_one_more_detection_does_not_fail():
    status = verify.status_of(
        "fp16", results((SQUARE, 0.9, 0)), results((SQUARE, 0.8, 0), (FAR, 0.4, 0)), 1, 1.0
    )
    assert status.max_abs_error == pytest.approx(0.1)
    assert status.unmatched == 1


def test_onnx_runtime_starts_as_many_threads_as_the_cpu_limit_allows(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("100000 100000\n")  # a quota of one CPU
    allowed = cpus.available_cpus(tmp_path / "cpu.max")
    monkeypatch.setattr(cpus, "available_cpus", lambda: allowed)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "model.onnx")
    session = verify.OnnxDetector(tmp_path / "model.onnx")._session
    assert session.get_session_options().intra_op_num_threads == allowed == 1


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
        export._refuse_drops(exports, Verification(max_metric_drop=0.01), has_data=True)
    assert caught.value.reason == Reason.METRIC_DROP
    assert "fp32" not in str(caught.value)


def test_loss_at_the_limit_passes_and_so_does_a_gain():
    export._refuse_drops(
        [
            ExportStatus(precision="fp32", m_ap=0.9, m_ap_drop=-0.2),
            ExportStatus(precision="fp16", m_ap=0.89, m_ap_drop=0.01),
        ],
        Verification(max_metric_drop=0.01),
        has_data=True,
    )


def test_no_map_passes_without_validation_data_and_fails_with_them():
    exports = [ExportStatus(precision="fp16", max_abs_error=0.5)]
    # A model from a file: the status says that nothing was compared.
    export._refuse_drops(exports, Verification(), has_data=False)
    with pytest.raises(RunnerError, match="mAP is empty: the first 500 validation images") as caught:
        export._refuse_drops(exports, Verification(max_metric_drop=1.0), has_data=True)
    assert caught.value.reason == Reason.NO_LABELS


@pytest.mark.parametrize(
    ("metrics", "count", "expected"),
    [
        (Metrics(m_ap=0.5), 1, None),
        (None, 1, "the model comes from a file"),
        (Metrics(), 1, "the validation images have no object that counts"),
        (Metrics(m_ap=0.0), 0, "neither Keras nor the exported model detects anything"),
    ],
)
def test_what_was_not_compared_is_said(metrics, count, expected):
    batch = {
        "boxes": np.array([[[0, 0, 10, 10]]], np.float32)[:, :count],
        "scores": np.array([[0.9]], np.float32)[:, :count],
        "classes": np.array([[0]])[:, :count],
    }
    results = verify.Results(metrics, [batch])
    said = verify.status_of("fp32", results, results, 1, 1.0).not_compared
    assert said == expected if expected is None else said.startswith(expected)
