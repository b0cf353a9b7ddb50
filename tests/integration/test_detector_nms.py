"""Both forms of suppression, TensorFlow's kernels and Cluster-NMS, against greedy suppression."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazy import Lazy

kernels = Lazy("tlt_runner.detector.kernels")
nms = Lazy("tlt_runner.detector.nms")
FORMS = ["native", "portable"]
ROOM = 64.0


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with in_form(request.param):
        yield request.param


def in_form(form: str):
    return kernels.portable() if form == "portable" else nullcontext()


def greedy(boxes: np.ndarray, valid: np.ndarray, threshold: float, classes: np.ndarray) -> list[int]:
    """Greedy suppression as in textbooks: keep the best box, drop those that overlap it, go on."""
    kept: list[int] = []
    for index in np.flatnonzero(valid):
        others = [other for other in kept if classes[other] == classes[index]]
        if not others or not (ious(boxes[index], boxes[others]) > np.float32(threshold)).any():
            kept.append(int(index))
    return kept


def ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of a box with others [M, 4], in float32: equal to the kernels' to the last bit."""
    height = np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0])
    width = np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1])
    shared = np.maximum(height, 0) * np.maximum(width, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) - shared
    return shared / np.maximum(union, np.float32(1e-6))


def kept_of(boxes: np.ndarray, threshold: float, count: int | None = None, valid=None, classes=None) -> list:
    """Indices that are kept of one image's boxes [N, 4]."""
    valid = np.ones(len(boxes), bool) if valid is None else valid
    groups = {} if classes is None else {"classes": classes[None], "class_count": int(classes.max()) + 1}
    best, kept = nms.suppress(
        boxes[None].astype(np.float32), valid[None], threshold, count or len(boxes), **groups
    )
    best, kept = np.asarray(best)[0], np.asarray(kept)[0]
    assert best.min() >= 0 and best.max() < len(boxes)
    return best[kept].tolist()


def of_one_class(boxes: np.ndarray, threshold: float) -> list[int]:
    return greedy(boxes.astype(np.float32), np.ones(len(boxes), bool), threshold, np.zeros(len(boxes)))


def sliding(count: int, step: float = 1.0, side: float = 10.0) -> np.ndarray:
    return np.array([[0, step * i, side, step * i + side] for i in range(count)], np.float32)


@pytest.mark.parametrize(("count", "expected"), [(100, 50), (512, 256), (1500, 750)])
def test_a_chain_of_sliding_boxes_keeps_every_second_one(form: str, count: int, expected: int) -> None:
    """Neighbours one step of a tenth apart have IoU 9 / 11 = 0.82, the next but one 8 / 12 = 0.67."""
    assert kept_of(sliding(count), 0.7) == list(range(0, count, 2))
    assert len(range(0, count, 2)) == expected


def test_a_ramp_of_anchors_of_one_scale_keeps_a_chessboard(form: str) -> None:
    """Anchors of 128 px at stride 16, row by row, as on an image whose score falls from the top left.

    Neighbours have IoU 112 / 144 = 0.78, diagonal ones 0.62: of each pair of neighbours one stays.
    """
    corners = np.array([[y, x] for y in range(30) for x in range(40)])
    boxes = np.concatenate([16.0 * corners, 16.0 * corners + 128], axis=1)
    assert kept_of(boxes, 0.7) == np.flatnonzero(corners.sum(axis=1) % 2 == 0).tolist()


def test_equal_boxes_leave_the_first(form: str) -> None:
    """A flat image: all anchors of a place score alike and lie on one another after clipping."""
    boxes = np.tile(np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32), (300, 1))
    assert kept_of(boxes, 0.5) == [0, 1]


def test_an_overlap_equal_to_the_threshold_suppresses_nothing(form: str) -> None:
    """Halves and tenths: IoU 50 / 100 = 0.5, and 3 / 10, which float32 holds as the threshold's 0.3."""
    assert kept_of(np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32), 0.5) == [0, 1]
    assert kept_of(np.array([[0, 0, 10, 10], [0, 0, 10, 3]], np.float32), 0.3) == [0, 1]
    assert kept_of(np.array([[0, 0, 10, 10], [0, 0, 10, 3.1]], np.float32), 0.3) == [0]


def test_only_as_many_boxes_as_asked_for_are_selected(form: str) -> None:
    assert kept_of(sliding(100), 0.7, count=7) == [0, 2, 4, 6, 8, 10, 12]


def test_a_suppressed_box_suppresses_nothing(form: str) -> None:
    assert kept_of(sliding(3, step=4), 0.3) == [0, 2]  # neighbours overlap by 6/14, first and last by 2/18


def test_an_invalid_box_is_not_kept_and_suppresses_nothing(form: str) -> None:
    boxes = np.array([[0, 0, 10, 10]] * 2, np.float32)
    assert kept_of(boxes, 0.5, valid=np.array([False, True])) == [1]
    assert kept_of(boxes, 0.5, valid=np.array([False, False])) == []


def test_far_from_the_origin_a_class_is_suppressed_with_the_same_precision(form: str) -> None:
    """Classes are not moved apart by offsets: at 3,000 px a hundredth of a pixel still decides."""
    place = np.array([3000, 3000, 3000, 3000], np.float32)
    boxes = place + np.array([[0, 0, 1, 1], [0, 0, 1, 0.495], [0, 0, 1, 0.505]], np.float32)
    classes = np.full(3, 19, np.int32)
    assert kept_of(boxes, 0.5, classes=classes) == [0, 1]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    form=st.sampled_from(FORMS),
    clusters=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1.0, 4.0, 30.0]),
    threshold=st.sampled_from([0.3, 0.5, 0.7, 0.9]),
    count=st.sampled_from([5, 90]),
)
def test_clusters_of_boxes_are_suppressed_greedily(
    seed: int, form: str, clusters: int, spread: float, threshold: float, count: int
) -> None:
    """Proposals of a few objects: boxes moved and resized at random about a few places, in two images."""
    random = np.random.default_rng(seed)
    centres = random.uniform(0, ROOM, (clusters, 4))[random.integers(0, clusters, (2, 90))]
    corners = np.sort((centres + spread * random.normal(size=(2, 90, 4))).reshape(2, 90, 2, 2), axis=2)
    boxes = np.concatenate([corners[:, :, 0], corners[:, :, 1]], axis=-1).astype(np.float32)
    valid, classes = random.random((2, 90)) < 0.9, random.integers(0, 3, (2, 90)).astype(np.int32)
    for groups in (None, classes):
        with in_form(form):
            best, kept = nms.suppress(boxes, valid, threshold, count, groups, 3)
        for image in range(2):
            of = np.zeros(90) if groups is None else groups[image]
            expected = greedy(boxes[image], valid[image], threshold, of)[:count]
            assert np.asarray(best)[image][np.asarray(kept)[image]].tolist() == expected


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), block=st.sampled_from([7, 40, 80]))
def test_blocks_do_not_change_the_result(seed: int, block: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, ROOM, (80, 2))
    boxes = np.concatenate([corners, corners + random.uniform(8, 30, (80, 2))], axis=1).astype(np.float32)
    mask = nms.keep_mask(boxes[None], np.ones((1, 80), bool), 0.4, block=block)
    assert np.flatnonzero(np.asarray(mask)[0]).tolist() == of_one_class(boxes, 0.4)
