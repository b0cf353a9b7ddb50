"""Arithmetic of boxes, by hand and by round trip."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lazy import Lazy

boxes = Lazy("tlt_runner.detector.boxes")

SCALES = (10.0, 10.0, 5.0, 5.0)
SIDES = st.floats(1, 200, width=32)


def test_iou_of_half_overlapping_squares_is_a_third() -> None:
    left = np.array([[0, 0, 10, 10]], np.float32)
    right = np.array([[0, 5, 10, 15], [20, 20, 30, 30], [0, 0, 10, 10]], np.float32)
    np.testing.assert_allclose(boxes.iou(left, right), [[50 / 150, 0, 1]], rtol=1e-6)


def test_iou_of_padding_boxes_is_zero() -> None:
    empty = np.zeros((2, 4), np.float32)
    np.testing.assert_array_equal(boxes.iou(empty, empty), np.zeros((2, 2)))


def test_offsets_are_in_units_of_the_reference_and_scaled() -> None:
    reference = np.array([[0, 0, 10, 20]], np.float32)
    box = np.array([[5, 0, 25, 20]], np.float32)  # centre 10 lower, twice as high
    deltas = boxes.encode(box, reference, SCALES)
    np.testing.assert_allclose(deltas, [[10 * 1.0, 0, 5 * np.log(2), 0]], rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.tuples(SIDES, SIDES, SIDES, SIDES), st.tuples(SIDES, SIDES, SIDES, SIDES))
def test_decoding_inverts_encoding(of_box: tuple[float, ...], of_reference: tuple[float, ...]) -> None:
    box, reference = (np.array([[y, x, y + h, x + w]], np.float32) for y, x, h, w in (of_box, of_reference))
    if max(of_box[2] / of_reference[2], of_box[3] / of_reference[3]) > 60:
        return  # beyond the largest ratio that decoding allows
    again = boxes.decode(boxes.encode(box, reference, SCALES), reference, SCALES)
    np.testing.assert_allclose(again, box, rtol=1e-3, atol=2e-2)


def test_a_wild_prediction_stays_finite() -> None:
    reference = np.array([[0, 0, 16, 16]], np.float32)
    decoded = boxes.decode(np.array([[0, 0, 1e4, 1e4]], np.float32), reference, (1.0,) * 4)
    np.testing.assert_allclose(decoded[0, 2] - decoded[0, 0], 1000, rtol=1e-2)


def test_clipping_keeps_boxes_inside_the_image() -> None:
    wild = np.array([[-5, 3, 120, 70]], np.float32)
    np.testing.assert_array_equal(boxes.clip(wild, height=100, width=60), [[0, 3, 100, 60]])


def test_gather_takes_every_image_from_its_own_rows() -> None:
    values = np.arange(2 * 3 * 2).reshape(2, 3, 2).astype(np.float32)
    taken = boxes.gather(values, np.array([[2, 0], [1, 1]]))
    np.testing.assert_array_equal(taken, [[[4, 5], [0, 1]], [[8, 9], [8, 9]]])
