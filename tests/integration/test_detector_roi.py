"""Both forms of RoI pooling, values and gradients, against bilinear sampling written out."""

from contextlib import nullcontext

import numpy as np
import pytest

from lazy import Lazy

kernels = Lazy("tlt_runner.detector.kernels")
roi = Lazy("tlt_runner.detector.roi")
tf = Lazy("tensorflow")
FORMS = ["native", "portable"]
SHAPES = [(6, 8), (8, 6), (1, 5)]
BOXES = np.array(
    [[[3, 5, 60, 90], [0, 0, 96, 128], [40.5, 7.25, 44, 120], [33, 21, 33, 21]], [[80, 100, 96, 128]] * 4],
    np.float32,
)
"""Two images of four boxes: inside, larger than the map, flat, without a size; and at the border."""


def in_form(form: str):
    return kernels.portable() if form == "portable" else nullcontext()


def corners(length: int, position: float) -> list[tuple[int, float]]:
    """Cells and weights of linear interpolation at a continuous cell coordinate, border values outside."""
    position = min(max(position, 0.0), length - 1.0)
    lower = int(position)
    return [(lower, 1 - (position - lower)), (min(lower + 1, length - 1), position - lower)]


def matrix(box: np.ndarray, shape: tuple[int, int], size: int, sampling: str) -> np.ndarray:
    """Weights [P, P, H, W] with which the bins of a box take the cells of the map.

    RoIAlign, aligned, as torchvision and Detectron2 compute it: the mean of n x n samples, n = 2 or the size
    of the bin in cells, rounded up.
    """
    box = box.astype(np.float64)
    weights = np.zeros((size, size, *shape))
    bins = [(box[2] - box[0]) / size, (box[3] - box[1]) / size]
    adaptive = [min(max(int(np.ceil(side / 16)), 1), 4) for side in bins]
    samples = adaptive if sampling == "adaptive" else [2, 2]
    for p, q in np.ndindex(size, size):
        for i, j in np.ndindex(*samples):
            y = (box[0] + (p + (i + 0.5) / samples[0]) * bins[0]) / 16 - 0.5
            x = (box[1] + (q + (j + 0.5) / samples[1]) * bins[1]) / 16 - 0.5
            for row, above in corners(shape[0], y):
                for column, left in corners(shape[1], x):
                    weights[p, q, row, column] += above * left / (samples[0] * samples[1])
    return weights


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampling", ["fixed", "adaptive"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_bilinear_sampling(
    form: str, sampling: str, shape: tuple[int, int]
) -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(2, *shape, 3)).astype(np.float32)
    upstream = random.normal(size=(8, 5, 5, 3)).astype(np.float32)
    source, boxes = tf.constant(features), tf.constant(BOXES)
    with tf.GradientTape() as tape, in_form(form):
        tape.watch([source, boxes])
        pooled = roi.pool(source, boxes, 5, sampling)
    of_features, of_boxes = tape.gradient(pooled, [source, boxes], upstream)
    assert of_boxes is None
    expected, gradient = np.zeros((8, 5, 5, 3)), np.zeros_like(features, np.float64)
    for index in range(8):
        weights = matrix(BOXES[index // 4, index % 4], shape, 5, sampling)
        expected[index] = np.einsum("pqhw,hwc->pqc", weights, features[index // 4])
        gradient[index // 4] += np.einsum("pqhw,pqc->hwc", weights, upstream[index])
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    np.testing.assert_allclose(tf.convert_to_tensor(of_features), gradient, atol=1e-4)


def test_large_boxes_get_more_samples_with_adaptive_sampling() -> None:
    """One bin over 8 cells, of which the fifth is 8: two samples miss it, of four one takes half of it."""
    peak = np.array([[[[0.0], [0.0], [0.0], [0.0], [8.0], [0.0], [0.0], [0.0]]]], np.float32)
    box = np.array([[[0, 0, 16, 128]]], np.float32)
    # Samples at cells 1.5 and 5.5; and at 0.5, 2.5, 4.5 and 6.5.
    np.testing.assert_allclose(roi.pool(peak, box, 1), [[[[0.0]]]], atol=1e-6)
    np.testing.assert_allclose(roi.pool(peak, box, 1, "adaptive"), [[[[8 / 2 / 4]]]], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_box_of_one_cell_takes_the_mean_around_its_centre(form: str) -> None:
    column = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    with in_form(form):
        pooled = roi.pool(column, np.array([[[0, 32, 16, 48]]], np.float32), 1)  # cell 2
    np.testing.assert_allclose(pooled, [[[[2.0]]]], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_box_that_is_no_number_spoils_its_own_values_only(form: str) -> None:
    """A training that diverges must end with a message, not with a crash of the process."""
    features = np.ones((1, 4, 4, 2), np.float32)
    boxes = np.array([[[np.nan] * 4, [0, 0, 64, 64]]], np.float32)
    with in_form(form):
        pooled = np.asarray(roi.pool(features, boxes, 3))
    assert np.isnan(pooled[0]).all()
    np.testing.assert_allclose(pooled[1], 1.0, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_mixed_precision_pools_in_its_own_type(form: str) -> None:
    random = np.random.default_rng(2)
    features = tf.constant(random.normal(size=(2, 6, 8, 4)), tf.bfloat16)
    with tf.GradientTape() as tape, in_form(form):
        tape.watch(features)
        pooled = roi.pool(features, BOXES, 5)
    gradient = tape.gradient(pooled, features)
    assert pooled.dtype == gradient.dtype == tf.bfloat16
    full = roi.pool(tf.cast(features, tf.float32), BOXES, 5)
    # bfloat16 has 8 bits: a relative error of 1 / 256 for each of 4 steps, values up to 4.
    np.testing.assert_allclose(tf.cast(pooled, tf.float32), full, atol=0.06)


def test_gradients_of_many_boxes_on_the_same_cells_add_up() -> None:
    """The gradient of tf.image.crop_and_resize loses some of them on CPUs: threads add without a lock."""
    features, boxes = tf.ones((1, 4, 4, 64)), np.tile(np.array([0, 0, 64, 64], np.float32), (1, 500, 1))
    with tf.GradientTape() as tape:
        tape.watch(features)
        total = tf.reduce_sum(roi.pool(features, boxes, 7))
    # Each of 500 x 49 x 64 values has weights that sum to 1.
    np.testing.assert_allclose(tf.reduce_sum(tape.gradient(total, features)), 500 * 49 * 64, rtol=1e-5)
