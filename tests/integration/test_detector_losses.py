"""The losses, worked out by hand: their sums and their divisors."""

import numpy as np

from lazy import Lazy

losses = Lazy("tlt_runner.detector.losses")
matching = Lazy("tlt_runner.detector.matching")


def test_smooth_l1_is_quadratic_then_linear() -> None:
    values = losses.smooth_l1(np.array([0.0, 0.5, -0.5, 2.0], np.float32), beta=1.0)
    np.testing.assert_allclose(values, [0, 0.125, 0.125, 1.5])


def test_rpn_losses_are_divided_by_the_mini_batch_and_averaged_over_images() -> None:
    objectness = np.zeros((2, 3), np.float32)  # each costs log 2
    deltas = np.ones((2, 3, 4), np.float32)
    targets = matching.AnchorTargets(
        positive=np.array([[1, 0, 0], [0, 0, 0]], np.float32),
        sampled=np.array([[1, 1, 0], [1, 0, 0]], np.float32),
        deltas=np.zeros((2, 3, 4), np.float32),
    )
    out = losses.rpn_losses(objectness, deltas, targets, size=8)
    np.testing.assert_allclose(out["rpn_objectness"], np.log(2) * 3 / 8 / 2, rtol=1e-6)
    np.testing.assert_allclose(out["rpn_deltas"], 4 * (1 - 1 / 18) / 8 / 2, rtol=1e-6)


def test_head_losses_use_the_offsets_of_the_true_class_only() -> None:
    logits = np.array([[[0, 20, 0], [0, 0, 20]]], np.float32)  # sure, and right both times
    deltas = np.array([[[[9] * 4, [1, 0, 0, 0]], [[9] * 4, [9] * 4]]], np.float32)
    targets = matching.RoiTargets(
        boxes=np.zeros((1, 2, 4), np.float32),
        classes=np.array([[1, 2]], np.int32),  # 2 is background
        positive=np.array([[1, 0]], np.float32),
        sampled=np.ones((1, 2), np.float32),
        deltas=np.zeros((1, 2, 4), np.float32),
    )
    out = losses.head_losses(logits, deltas, targets)
    np.testing.assert_allclose(out["head_classes"], 0, atol=1e-6)
    np.testing.assert_allclose(out["head_deltas"], 0.5 / 2, rtol=1e-6)
