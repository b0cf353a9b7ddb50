"""Cluster-NMS against greedy NMS."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazy import Lazy

nms = Lazy("tlt_runner.detector.nms")
ROOM = 64.0


def greedy(boxes: np.ndarray, valid: np.ndarray, threshold: float, classes: np.ndarray) -> np.ndarray:
    """Greedy suppression as in textbooks: keep the best box, drop those that overlap it, go on."""
    kept: list[int] = []
    for index in np.flatnonzero(valid):
        same = [other for other in kept if classes[other] == classes[index]]
        if not any(iou(boxes[index], boxes[other]) > threshold for other in same):
            kept.append(int(index))
    mask = np.zeros(len(boxes), bool)
    mask[kept] = True
    return mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / max(areas - shared, 1e-6)


def random_boxes(seed: int, count: int, side: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner, size = random.uniform(0, ROOM, (count, 2)), random.uniform(side / 2, side, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    side=st.sampled_from([8.0, 24.0, 60.0]),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
    block=st.sampled_from([7, 40, 80, 512]),
)
def test_unrolled_rounds_equal_greedy_suppression(
    seed: int, side: float, threshold: float, block: int
) -> None:
    boxes = np.stack([random_boxes(seed, 80, side), random_boxes(seed + 1, 80, side)])
    random = np.random.default_rng(seed)
    valid, classes = random.random((2, 80)) < 0.9, random.integers(0, 3, (2, 80)).astype(np.int32)
    kept = np.asarray(nms.keep_mask(boxes, valid, threshold, classes, block=block))
    for image in range(2):
        np.testing.assert_array_equal(
            kept[image], greedy(boxes[image], valid[image], threshold, classes[image])
        )


def test_a_suppressed_box_suppresses_nothing() -> None:
    row = [[0, x, 10, x + 10] for x in (0, 4, 8)]  # neighbours overlap by 6/14, first and last by 2/18
    kept = nms.keep_mask(np.array([row], np.float32), np.ones((1, 3), bool), 0.3)
    np.testing.assert_array_equal(kept, [[True, False, True]])


def test_an_invalid_box_is_not_kept_and_suppresses_nothing() -> None:
    same = np.array([[[0, 0, 10, 10]] * 2], np.float32)
    np.testing.assert_array_equal(nms.keep_mask(same, np.array([[False, True]]), 0.5), [[False, True]])


@pytest.mark.parametrize("rounds", [2, 4, 16])
def test_too_few_rounds_never_lose_a_box_that_greedy_suppression_keeps(rounds: int) -> None:
    chain = np.array([[0, 4.0 * i, 10, 4.0 * i + 10] for i in range(60)], np.float32)
    valid, classes = np.ones(60, bool), np.zeros(60, np.int32)
    kept = np.asarray(nms.keep_mask(chain[None], valid[None], 0.3, rounds=rounds))[0]
    expected = greedy(chain, valid, 0.3, classes)
    assert not (expected & ~kept).any()
    assert kept[: rounds + 1].tolist() == expected[: rounds + 1].tolist()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), side=st.sampled_from([8.0, 24.0, 60.0]), rounds=st.sampled_from([2, 4]))
def test_too_few_rounds_of_a_block_lose_nothing_in_later_blocks(seed: int, side: float, rounds: int) -> None:
    boxes, valid = random_boxes(seed, 90, side), np.ones(90, bool)
    kept = np.asarray(nms.keep_mask(boxes[None], valid[None], 0.3, rounds=rounds, block=30))[0]
    assert not (greedy(boxes, valid, 0.3, np.zeros(90)) & ~kept).any()


def test_the_best_kept_boxes_come_first_and_the_rest_is_marked() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    indices, kept = nms.keep_best(scores, np.array([[True, False, True, False]]), 3)
    assert np.asarray(indices)[0, :2].tolist() == [0, 2]
    assert np.asarray(kept)[0].tolist() == [True, True, False]
