"""The losses, worked out by hand: their sums and their divisors."""

import numpy as np

from lazy import Lazy

tiny_detector = Lazy("tiny_detector")
detector = Lazy("tlt_runner.detector.model")
losses = Lazy("tlt_runner.detector.losses")
seeds = Lazy("tlt_runner.detector.seeds")
matching = Lazy("tlt_runner.detector.matching")


def test_smooth_l1_is_quadratic_then_linear() -> None:
    values = losses.smooth_l1(np.array([0.0, 0.5, -0.5, 2.0], np.float32), beta=1.0)
    np.testing.assert_allclose(values, [0, 0.125, 0.125, 1.5])


def test_losses_of_anchors_sum_over_the_mini_batches_of_all_images() -> None:
    objectness = np.zeros((2, 3), np.float32)  # each costs log 2
    deltas = np.ones((2, 3, 4), np.float32)
    targets = matching.AnchorTargets(
        positive=np.array([[1, 0, 0], [0, 0, 0]], np.float32),
        sampled=np.array([[1, 1, 0], [1, 0, 0]], np.float32),
        deltas=np.zeros((2, 3, 4), np.float32),
    )
    of_objectness, of_deltas = losses.rpn_sums(objectness, deltas, targets)
    np.testing.assert_allclose(of_objectness, np.log(2) * 3, rtol=1e-6)
    np.testing.assert_allclose(of_deltas, 4 * (1 - 1 / 18), rtol=1e-6)


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
    of_classes, of_deltas = losses.head_sums(logits, deltas, targets)
    np.testing.assert_allclose(of_classes, 0, atol=1e-6)
    np.testing.assert_allclose(of_deltas, 0.5, rtol=1e-6)


def test_losses_are_divided_by_the_configured_mini_batches_and_averaged_over_images() -> None:
    # Fresh logits and offsets are close to 0: log 2 for every sampled anchor, log 3 for every proposal drawn.
    config = tiny_detector.training_config(["car", "dog"])
    model = detector.build(config, 1)
    images = np.full((3, config.height, config.width, 3), 127.5, np.float32)
    boxes, classes = np.full((3, 1, 4), -1.0, np.float32), np.full((3, 1), -1, np.int32)
    values = losses.losses(model, images, boxes, classes, seeds.StepSeeds(1, np.int64(0)))
    np.testing.assert_allclose(values, [np.log(2), 0, np.log(3), 0], rtol=0.1)
