"""Targets of both stages, worked out by hand."""

from typing import Any

import numpy as np

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
