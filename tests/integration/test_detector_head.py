"""From logits to detections, by hand."""

import numpy as np

from lazy import Lazy
from tlt_api.model import Detections
from tlt_runner.detector.config import DetectorConfig

head = Lazy("tlt_runner.detector.head")
CONFIG = DetectorConfig(
    class_names=["car", "dog"],
    height=64,
    width=64,
    detections=Detections(score_threshold=0.2, nms_overlap=0.5, max_detections=5),
)
PROPOSALS = np.array([[[0, 0, 20, 20], [0, 1, 20, 21], [40, 40, 60, 60], [0, 0, 20, 20]]], np.float32)


def detect(logits: list[list[float]], valid: list[bool]) -> dict[str, np.ndarray]:
    deltas = np.zeros((1, 4, 2, 4), np.float32)
    detections = head.detect(CONFIG, PROPOSALS, np.array([valid]), np.array([logits], np.float32), deltas)
    return {name: np.asarray(value)[0] for name, value in detections.items()}


def test_suppression_is_within_a_class_and_rows_left_over_are_padding() -> None:
    car, dog = [5.0, 0.0, 0.0], [0.0, 4.0, 0.0]
    weaker_car, background = [3.0, 0.0, 0.0], [0.0, 0.0, 9.0]
    detections = detect([car, weaker_car, background, dog], [True] * 4)
    assert detections["count"] == 2
    np.testing.assert_array_equal(detections["classes"], [0, 1, -1, -1, -1])
    np.testing.assert_allclose(detections["boxes"][:2], [PROPOSALS[0, 0], PROPOSALS[0, 3]], atol=1e-4)
    np.testing.assert_array_equal(detections["boxes"][2:], np.zeros((3, 4)))
    np.testing.assert_allclose(detections["scores"][0], np.exp(5) / (np.exp(5) + 2), rtol=1e-5)
    np.testing.assert_array_equal(detections["scores"][2:], [0, 0, 0])


def test_an_invalid_proposal_is_never_detected() -> None:
    detections = detect([[9.0, 0.0, 0.0]] * 4, [False, False, True, False])
    assert detections["count"] == 1
    np.testing.assert_allclose(detections["boxes"][0], PROPOSALS[0, 2], atol=1e-4)


def test_the_score_threshold_holds() -> None:
    detections = detect([[0.0, 0.0, 2.0]] * 4, [True] * 4)  # 0.11 for either class
    assert detections["count"] == 0
    np.testing.assert_array_equal(detections["classes"], [-1] * 5)
