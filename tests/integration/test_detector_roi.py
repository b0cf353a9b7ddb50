"""RoI pooling against bilinear sampling, written out."""

import numpy as np
import pytest

from lazy import Lazy

roi = Lazy("tlt_runner.detector.roi")


def bilinear(features: np.ndarray, y: float, x: float) -> np.ndarray:
    """Value at continuous cell coordinates, border values outside."""
    height, width, _ = features.shape
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = features[top, left] * (1 - dx) + features[top, right] * dx
    below = features[bottom, left] * (1 - dx) + features[bottom, right] * dx
    return above * (1 - dy) + below * dy


def reference(features: np.ndarray, box: np.ndarray, size: int, samples: int) -> np.ndarray:
    out = np.zeros((size, size, features.shape[2]), np.float32)
    step_y, step_x = (box[2] - box[0]) / (size * samples), (box[3] - box[1]) / (size * samples)
    for row in range(size * samples):
        for column in range(size * samples):
            y = (box[0] + (row + 0.5) * step_y) / 16 - 0.5
            x = (box[1] + (column + 0.5) * step_x) / 16 - 0.5
            out[row // samples, column // samples] += bilinear(features, y, x) / samples**2
    return out


@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_pooling_equals_bilinear_sampling(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(2, *shape, 3)).astype(np.float32)
    boxes = np.array(
        [[[3, 5, 60, 90], [0, 0, 96, 128], [40.5, 7.25, 44, 120]], [[80, 100, 96, 128]] * 3], np.float32
    )
    pooled = np.asarray(roi.pool(features, boxes, 5)).reshape(2, 3, 5, 5, 3)
    for image in range(2):
        for index in range(3):
            expected = reference(features[image], boxes[image, index], 5, roi.SAMPLES)
            np.testing.assert_allclose(pooled[image, index], expected, rtol=1e-4, atol=1e-5)


def test_a_box_of_one_cell_takes_the_mean_around_its_centre() -> None:
    column = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    pooled = roi.pool(column, np.array([[[0, 32, 16, 48]]], np.float32), 1)  # cell 2
    np.testing.assert_allclose(pooled, [[[[2.0]]]], rtol=1e-6)


def test_weights_of_a_bin_sum_to_one() -> None:
    weights = np.asarray(roi.weights(np.array([[-20.0, 3.0]]), np.array([[500.0, 4.0]]), 6, 7))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
