"""Targets of both stages, worked out by hand."""

import keras
import numpy as np

from tlt_api.model import Proposals, Roi
from tlt_runner.detector import matching

ANCHORS = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18], [50, 50, 60, 60]], np.float32)
OBJECT = np.array([[[0, 0, 10, 10], [0, 0, 0, 0]]], np.float32)
CLASSES = np.array([[1, -1]], np.int32)


def draws() -> keras.random.SeedGenerator:
    return keras.random.SeedGenerator(7)


def test_anchors_are_positive_ignored_or_negative_by_overlap() -> None:
    # IoU with the object: 1, 60/140 = 0.43, 20/180 = 0.11, 0
    targets = matching.anchor_targets(ANCHORS, OBJECT, CLASSES, Proposals(), draws())
    np.testing.assert_array_equal(targets.positive, [[1, 0, 0, 0]])
    np.testing.assert_array_equal(targets.sampled, [[1, 0, 1, 1]])
    np.testing.assert_allclose(targets.deltas[0, 0], [0, 0, 0, 0], atol=1e-6)


def test_an_object_that_no_anchor_covers_gets_the_best_one() -> None:
    small = np.array([[[0, 4, 4, 8]]], np.float32)  # IoU 0.16 with the first two anchors
    targets = matching.anchor_targets(ANCHORS, small, np.array([[0]], np.int32), Proposals(), draws())
    np.testing.assert_array_equal(targets.positive, [[1, 1, 0, 0]])


def test_an_image_without_objects_has_only_negatives() -> None:
    nothing = np.array([[-1, -1]], np.int32)
    targets = matching.anchor_targets(ANCHORS, OBJECT, nothing, Proposals(), draws())
    np.testing.assert_array_equal(targets.positive, np.zeros((1, 4)))
    np.testing.assert_array_equal(targets.sampled, np.ones((1, 4)))


def test_the_mini_batch_is_at_most_half_positive_and_filled_with_negatives() -> None:
    many = np.concatenate([np.tile(ANCHORS[:1], (30, 1)), np.tile(ANCHORS[3:], (70, 1))])
    targets = matching.anchor_targets(many, OBJECT, CLASSES, Proposals(mini_batch=20), draws())
    assert float(np.sum(targets.positive)) == 10
    assert float(np.sum(targets.sampled)) == 20


def test_draws_differ_between_steps_and_repeat_for_the_same_step() -> None:
    from tlt_runner.detector.draws import StepDraws

    many = np.tile(ANCHORS[3:], (100, 1))
    spec = Proposals(mini_batch=10)

    def sampled(step: int) -> np.ndarray:
        draw = StepDraws(1, np.int64(step))
        return np.asarray(matching.anchor_targets(many, OBJECT, CLASSES, spec, draw).sampled)

    np.testing.assert_array_equal(sampled(3), sampled(3))
    assert (sampled(3) != sampled(4)).any()


def test_proposals_take_class_and_offsets_of_their_object() -> None:
    proposals = np.array([[[0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 60, 60], [0, 0, 0, 0]]], np.float32)
    valid = np.array([[True, True, True, False]])
    spec = Roi(mini_batch=4, positive_fraction=0.5, ground_truth_as_roi=False)
    targets = matching.roi_targets(proposals, valid, OBJECT, CLASSES, spec, 3, draws())
    by_box = {tuple(box): index for index, box in enumerate(np.asarray(targets.boxes)[0].tolist())}
    exact, shifted, far = by_box[(0, 0, 10, 10)], by_box[(0, 1, 10, 11)], by_box[(50, 50, 60, 60)]
    classes, positive = np.asarray(targets.classes)[0], np.asarray(targets.positive)[0]
    assert (classes[exact], classes[shifted], classes[far]) == (1, 1, 3)
    assert (positive[exact], positive[shifted], positive[far]) == (1, 1, 0)
    np.testing.assert_allclose(np.asarray(targets.deltas)[0, shifted], [0, -1, 0, 0], atol=1e-4)
    assert float(np.sum(targets.sampled)) == 3  # the invalid one has no weight


def test_objects_join_the_proposals_when_asked_for() -> None:
    proposals = np.array([[[50, 50, 60, 60]]], np.float32)
    spec = Roi(mini_batch=8, ground_truth_as_roi=True)
    targets = matching.roi_targets(proposals, np.array([[True]]), OBJECT, CLASSES, spec, 3, draws())
    assert targets.boxes.shape == (1, 3, 4)
    assert float(np.sum(targets.positive)) == 1
    assert float(np.sum(targets.sampled)) == 2


def test_positives_of_the_head_are_capped_by_their_fraction() -> None:
    proposals = np.concatenate([np.tile(ANCHORS[:1], (20, 1)), np.tile(ANCHORS[3:], (20, 1))])[None]
    spec = Roi(mini_batch=16, positive_fraction=0.25, ground_truth_as_roi=False)
    targets = matching.roi_targets(proposals, np.ones((1, 40), bool), OBJECT, CLASSES, spec, 3, draws())
    assert float(np.sum(targets.positive)) == 4
    assert float(np.sum(targets.sampled)) == 16
