"""Targets of both stages, worked out by hand."""

from typing import Any

import numpy as np
import pytest

from lazy import Lazy
from tlt_api.model import DeltaScales, Proposals, Roi
from tlt_runner.detector.config import DetectorConfig

keras = Lazy("keras")
matching = Lazy("tlt_runner.detector.matching")
seeds = Lazy("tlt_runner.detector.seeds")
ANCHORS = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18], [50, 50, 60, 60]], np.float32)
OBJECT = np.array([[[0, 0, 10, 10], [0, 0, 0, 0]]], np.float32)
CLASSES = np.array([[1, -1]], np.int32)


def config(**changes: Any) -> DetectorConfig:
    return DetectorConfig(class_names=["a", "b", "c"], height=64, width=64, **changes)


def generator() -> Any:
    return keras.random.SeedGenerator(7)


def test_anchors_are_positive_ignored_or_negative_by_overlap() -> None:
    # IoU with the object: 1, 60/140 = 0.43, 20/180 = 0.11, 0
    targets = matching.anchor_targets(config(), ANCHORS, OBJECT, CLASSES, generator())
    np.testing.assert_array_equal(targets.positive, [[1, 0, 0, 0]])
    np.testing.assert_array_equal(targets.sampled, [[1, 0, 1, 1]])
    np.testing.assert_allclose(targets.deltas[0, 0], [0, 0, 0, 0], atol=1e-6)


def test_an_object_that_no_anchor_covers_gets_the_best_one() -> None:
    small = np.array([[[0, 4, 4, 8]]], np.float32)  # IoU 0.16 with the first two anchors
    targets = matching.anchor_targets(config(), ANCHORS, small, np.array([[0]], np.int32), generator())
    np.testing.assert_array_equal(targets.positive, [[1, 1, 0, 0]])


def test_an_image_without_objects_has_only_negatives() -> None:
    nothing = np.array([[-1, -1]], np.int32)
    targets = matching.anchor_targets(config(), ANCHORS, OBJECT, nothing, generator())
    np.testing.assert_array_equal(targets.positive, np.zeros((1, 4)))
    np.testing.assert_array_equal(targets.sampled, np.ones((1, 4)))


def test_the_mini_batch_is_at_most_half_positive_and_filled_with_negatives() -> None:
    many = np.concatenate([np.tile(ANCHORS[:1], (30, 1)), np.tile(ANCHORS[3:], (70, 1))])
    of_twenty = config(proposals=Proposals(mini_batch=20))
    targets = matching.anchor_targets(of_twenty, many, OBJECT, CLASSES, generator())
    assert float(np.sum(targets.positive)) == 10
    assert float(np.sum(targets.sampled)) == 20


def test_draws_differ_between_steps_and_repeat_for_the_same_step() -> None:
    many = np.tile(ANCHORS[3:], (100, 1))
    of_ten = config(proposals=Proposals(mini_batch=10))

    def sampled(step: int) -> np.ndarray:
        random = seeds.StepSeeds(1, np.int64(step))
        return np.asarray(matching.anchor_targets(of_ten, many, OBJECT, CLASSES, random).sampled)

    np.testing.assert_array_equal(sampled(3), sampled(3))
    assert (sampled(3) != sampled(4)).any()


def test_proposals_take_class_and_offsets_of_their_object() -> None:
    proposals = np.array([[[0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 60, 60], [0, 0, 0, 0]]], np.float32)
    valid = np.array([[True, True, True, False]])
    spec = config(roi=Roi(mini_batch=4, positive_fraction=0.5, ground_truth_as_roi=False))
    targets = matching.roi_targets(spec, proposals, valid, OBJECT, CLASSES, generator())
    by_box = {tuple(box): index for index, box in enumerate(np.asarray(targets.boxes)[0].tolist())}
    exact, shifted, far = by_box[(0, 0, 10, 10)], by_box[(0, 1, 10, 11)], by_box[(50, 50, 60, 60)]
    classes, positive = np.asarray(targets.classes)[0], np.asarray(targets.positive)[0]
    assert (classes[exact], classes[shifted], classes[far]) == (1, 1, 3)
    assert (positive[exact], positive[shifted], positive[far]) == (1, 1, 0)
    np.testing.assert_allclose(np.asarray(targets.deltas)[0, shifted], [0, -1, 0, 0], atol=1e-4)
    assert float(np.sum(targets.sampled)) == 3  # the invalid one has no weight


def test_a_proposal_of_exactly_max_overlap_is_positive_and_one_below_is_not() -> None:
    half = np.array([[[0, 0, 10, 5], [0, 0, 10, 4]]], np.float32)  # IoU 0.5 and 0.4 with the object
    spec = config(roi=Roi(mini_batch=4, max_overlap=0.5, positive_fraction=0.5, ground_truth_as_roi=False))
    targets = matching.roi_targets(spec, half, np.ones((1, 2), bool), OBJECT, CLASSES, generator())
    by_width = dict(
        zip(np.asarray(targets.boxes)[0, :, 3].tolist(), np.asarray(targets.positive)[0], strict=True)
    )
    assert (by_width[5], by_width[4]) == (1, 0)


def test_ground_truth_boxes_are_added_to_the_proposals_if_configured() -> None:
    proposals = np.array([[[50, 50, 60, 60]]], np.float32)
    spec = config(roi=Roi(mini_batch=8, ground_truth_as_roi=True))
    targets = matching.roi_targets(spec, proposals, np.array([[True]]), OBJECT, CLASSES, generator())
    assert targets.boxes.shape == (1, 3, 4)
    assert float(np.sum(targets.positive)) == 1
    assert float(np.sum(targets.sampled)) == 2


def test_positives_of_the_head_are_capped_by_their_fraction() -> None:
    proposals = np.concatenate([np.tile(ANCHORS[:1], (20, 1)), np.tile(ANCHORS[3:], (20, 1))])[None]
    spec = config(roi=Roi(mini_batch=16, positive_fraction=0.25, ground_truth_as_roi=False))
    targets = matching.roi_targets(spec, proposals, np.ones((1, 40), bool), OBJECT, CLASSES, generator())
    assert float(np.sum(targets.positive)) == 4
    assert float(np.sum(targets.sampled)) == 16


def test_positives_that_fill_the_mini_batch_leave_no_room_for_negatives() -> None:
    proposals = np.array([[[0, 0, 10, 10], [50, 50, 60, 60]]], np.float32)
    spec = config(roi=Roi(mini_batch=1, ground_truth_as_roi=False))
    targets = matching.roi_targets(spec, proposals, np.ones((1, 2), bool), OBJECT, CLASSES, generator())
    assert float(np.sum(targets.positive)) == float(np.sum(targets.sampled)) == 1


def test_targets_are_scaled_by_the_configured_factors() -> None:
    scaled = config(
        proposals=Proposals(delta_scale=2.0),
        roi=Roi(mini_batch=1, ground_truth_as_roi=False, delta_scales=DeltaScales(x=3, y=4, w=1, h=1)),
    )
    lower = np.array([[1, 2, 11, 12]], np.float32)  # its object is a tenth higher and two tenths further left
    of_anchors = matching.anchor_targets(scaled, lower, OBJECT, CLASSES, generator())
    np.testing.assert_allclose(of_anchors.deltas[0, 0], [-0.2, -0.4, 0, 0], atol=1e-6)
    of_rois = matching.roi_targets(scaled, lower[None], np.array([[True]]), OBJECT, CLASSES, generator())
    np.testing.assert_allclose(of_rois.deltas[0, 0], [-0.4, -0.6, 0, 0], atol=1e-6)


def iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    shared = np.prod(np.clip(np.minimum(left[:, None, 2:], right[None, :, 2:]) - low, 0, None), -1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], -1) for boxes in (left, right)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def tlt_assignment(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Assign objects to anchors as TLT's RPNTargetGenerator does, in numpy; -1 for no object.

    Objects that are the best of no anchor of IoU 0.7 take the anchor that overlaps them most, in order: a
    later one takes an anchor from an earlier one. Unlike in TLT, which takes the first, several anchors of
    the same overlap are all taken ("the anchor/anchors with the highest" IoU, Ren et al.).
    """
    overlaps = iou(anchors, boxes)
    assigned = np.where(overlaps.max(1) >= 0.7, overlaps.argmax(1), -1)
    for index in sorted(set(range(len(boxes))) - set(assigned)):
        if overlaps[:, index].max() > 0:
            assigned[overlaps[:, index] == overlaps[:, index].max()] = index
    return assigned


def assignment(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The object of each positive anchor by the product, from its regression targets; -1 for no object."""
    everything = config(proposals=Proposals(mini_batch=4096))  # no positive is left out by the draw
    classes = np.zeros((1, len(boxes)), np.int32)
    targets = matching.anchor_targets(everything, anchors, boxes[None], classes, generator())
    box_ops = Lazy("tlt_runner.detector.boxes")
    decoded = np.asarray(box_ops.decode(targets.deltas, anchors[None], everything.rpn_scales))[0]
    objects = np.abs(decoded[:, None] - boxes[None]).max(-1).argmin(1)
    return np.where(np.asarray(targets.positive)[0] > 0, objects, -1)


GRID = np.array(
    [
        [y - s / 2, x - s / 2, y + s / 2, x + s / 2]
        for y in range(8, 96, 16)
        for x in range(8, 96, 16)
        for s in (32, 64)
    ],
    np.float32,
)


@pytest.mark.parametrize("seed", range(6))
def test_objects_are_assigned_as_in_tlt_and_those_that_tlt_leaves_without_get_an_anchor(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = 12 if seed % 2 else 6
    centres = random.uniform(0, 96, (count, 2))
    sides = np.exp(random.uniform(np.log(6), np.log(80), (count, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1).clip(0, 96).astype(np.float32)
    expected, got = tlt_assignment(GRID, boxes), assignment(GRID, boxes)
    served = set(expected) - {-1}
    assert set(got) - {-1} == set(range(len(boxes)))
    if len(served) == len(boxes):
        np.testing.assert_array_equal(got, expected)


def test_an_object_gets_its_best_anchor_even_if_that_prefers_another_one() -> None:
    # The anchor overlaps the first object by 1 and the second by 25/100; no other touches the second.
    boxes = np.array([[0, 0, 10, 10], [0, 0, 5, 5]], np.float32)
    anchors = np.array([[0, 0, 10, 10], [0, 2, 10, 12], [50, 50, 60, 60]], np.float32)
    # The second claims the first anchor (0.25 against 15/110), the first one the next best (0.67).
    assert assignment(anchors, boxes).tolist() == [1, 0, -1]


def test_equal_objects_get_an_anchor_each() -> None:
    boxes = np.tile(np.array([[40, 40, 52, 52]], np.float32), (5, 1))
    classes = np.zeros((1, 5), np.int32)
    spec = config(proposals=Proposals(mini_batch=4096))
    targets = matching.anchor_targets(spec, GRID, boxes[None], classes, generator())
    # One after the other: each round the anchors that overlap most of those that are still free.
    assert float(np.sum(targets.positive)) >= 5


def test_an_object_that_no_anchor_touches_gets_none_and_the_others_theirs() -> None:
    boxes = np.array([[200, 200, 210, 210], [0, 0, 10, 10]], np.float32)
    assert assignment(ANCHORS, boxes).tolist() == [1, -1, -1, -1]


REGION = np.array([[[48, 48, 64, 64], [0, 0, 10, 10]]], np.float32)


@pytest.mark.parametrize("ignored", [-2, -3, -5])
def test_anchors_inside_an_ignored_region_take_no_part(ignored: int) -> None:
    # The fourth anchor is inside the region; the second and third share 60 and 20 of 100 with the object.
    classes = np.array([[ignored, 1]], np.int32)
    targets = matching.anchor_targets(config(), ANCHORS, REGION, classes, generator())
    np.testing.assert_array_equal(targets.positive, [[1, 0, 0, 0]])
    np.testing.assert_array_equal(targets.sampled, [[1, 0, 1, 0]])


def test_an_anchor_is_inside_a_region_from_half_of_its_own_area() -> None:
    anchors = np.array([[0, 0, 10, 10], [0, 1, 10, 11], [-30, -30, 30, 30]], np.float32)
    region = np.array([[[0, -40, 10, 5]]], np.float32)  # 50, 40 and 350 of 100, 100 and 3,600
    targets = matching.anchor_targets(config(), anchors, region, np.array([[-2]], np.int32), generator())
    np.testing.assert_array_equal(targets.sampled, [[0, 1, 1]])


def test_two_regions_do_not_add_up_as_in_coco() -> None:
    regions = np.array([[[0, 0, 10, 4], [0, 6, 10, 10]]], np.float32)
    targets = matching.anchor_targets(config(), ANCHORS[:1], regions, np.full((1, 2), -2), generator())
    np.testing.assert_array_equal(targets.sampled, [[1]])


def test_an_object_within_a_region_is_learnt_and_the_background_around_it_is_not() -> None:
    classes = np.array([[1, -2]], np.int32)
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 20, 20]]], np.float32)
    targets = matching.anchor_targets(config(), ANCHORS, boxes, classes, generator())
    np.testing.assert_array_equal(targets.positive, [[1, 0, 0, 0]])
    np.testing.assert_array_equal(targets.sampled, [[1, 0, 0, 1]])


def test_proposals_inside_an_ignored_region_are_no_background_and_the_region_is_no_proposal() -> None:
    proposals = np.array([[[49, 49, 59, 59], [20, 20, 30, 30], [0, 0, 10, 10]]], np.float32)
    spec = config(roi=Roi(mini_batch=8, ground_truth_as_roi=True))
    classes = np.array([[-3, 1]], np.int32)
    targets = matching.roi_targets(spec, proposals, np.ones((1, 3), bool), REGION, classes, generator())
    sampled = np.asarray(targets.sampled)[0] > 0
    drawn = {tuple(box) for box in np.asarray(targets.boxes)[0][sampled].tolist()}
    assert drawn == {(20, 20, 30, 30), (0, 0, 10, 10)}
    # The proposal of the object and the object itself are positive, the other one is background.
    assert sorted(np.asarray(targets.classes)[0][sampled].tolist()) == [1, 1, 3]
