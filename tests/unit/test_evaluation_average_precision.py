"""Average precision against numbers worked out by hand and against a slow, obvious reference."""

from __future__ import annotations

import contextlib
import doctest
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tlt_runner.evaluation import average_precision as average_precision_module
from tlt_runner.evaluation.average_precision import average_precision
from tlt_runner.evaluation.collection import Collector
from tlt_runner.evaluation.evaluate import evaluate
from tlt_runner.evaluation.matching import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    iou_matrix,
    match_voc,
    overlaps,
)
from tlt_runner.evaluation.protocols import Measurement, Protocol, measure

T, F, I = TRUE_POSITIVE, FALSE_POSITIVE, IGNORED  # noqa: E741


class Accumulator(Collector):
    """A collector that measures at one IoU threshold."""

    def __init__(self, class_names, iou_threshold: float) -> None:
        super().__init__(class_names)
        self.iou_threshold = iou_threshold

    def result(self, method) -> Measurement:
        return measure(self.collection(), Protocol(method, (self.iou_threshold,)))


def match_image(boxes, scores, classes, true_boxes, true_classes, difficult, iou_threshold):
    """The outcomes of one image, in the order of its detections."""
    collector = Collector([str(number) for number in range(10)])
    collector.add_image(boxes, scores, classes, true_boxes, true_classes, difficult)
    collection = collector.collection()
    return match_voc(collection, overlaps(collection), np.array([iou_threshold])).outcomes[0]


def match(boxes, scores, classes, true_boxes, true_classes, difficult=None, iou=0.5):
    return match_image(
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores, float),
        np.array(classes, int),
        np.array(true_boxes, float).reshape(-1, 4),
        np.array(true_classes, int),
        np.array(difficult or [False] * len(true_classes), bool),
        iou,
    ).tolist()


def ap(outcomes, objects, method, scores=None):
    scores = np.linspace(0.9, 0.1, len(outcomes)) if scores is None else np.array(scores, float)
    return average_precision(np.array(outcomes, np.int8), scores, objects, method)


def test_iou_adds_no_pixel_to_the_sides_of_boxes():
    left = np.array([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 9.0]])
    right = np.array([[0.0, 5.0, 10.0, 15.0], [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    np.testing.assert_allclose(iou_matrix(left, right), [[50 / 150, 1.0, 0.0], [0.0, 0.0, 0.0]])


def test_the_example_of_the_docstring_gives_its_output():
    results = doctest.testmod(average_precision_module)
    assert (results.failed, results.attempted > 1) == (0, True)


def test_the_higher_score_takes_the_box_and_the_duplicate_is_a_false_positive():
    box = [0, 0, 10, 10]
    assert match([box, box], [0.3, 0.8], [0, 0], [box], [0]) == [F, T]
    assert match([box, box], [0.5, 0.5], [0, 0], [box], [0]) == [T, F]


def test_a_detection_of_another_class_matches_nothing():
    assert match([[0, 0, 10, 10]], [0.9], [1], [[0, 0, 10, 10]], [0]) == [F]


def test_overlap_equal_to_the_threshold_counts():
    assert match([[0, 0, 10, 10]], [0.9], [0], [[0, 0, 10, 5]], [0], iou=0.5) == [T]
    assert match([[0, 0, 10, 10]], [0.9], [0], [[0, 0, 10, 4.99]], [0], iou=0.5) == [F]


def test_a_detection_goes_to_its_best_box_even_if_that_is_taken():
    # VOC: the second detection overlaps the first box most, so it does not fall back on the second box.
    truth = [[0, 0, 10, 10], [0, 2, 10, 12]]
    assert match([[0, 0, 10, 10], [0, 0.5, 10, 10.5]], [0.9, 0.8], [0, 0], truth, [0, 0]) == [T, F]


def test_detections_of_difficult_boxes_are_ignored_however_many():
    box = [0, 0, 10, 10]
    assert match([box, box], [0.9, 0.8], [0, 0], [box], [0], [True]) == [I, I]
    assert match([box], [0.9], [0], [box, [0, 1, 10, 11]], [0, 0], [False, True]) == [T]


def test_no_detections_and_no_objects_are_no_error():
    assert match([], [], [], [[0, 0, 1, 1]], [0]) == []
    assert match([[0, 0, 1, 1]], [0.5], [0], [], []) == [F]


@pytest.mark.parametrize(
    ("outcomes", "objects", "area", "voc07"),
    [
        # precision 1, 1/2, 2/3, 2/4, 3/5; envelope at the hits 1, 2/3, 3/5; recalls 1/4, 2/4, 3/4
        ([T, F, T, F, T], 4, (1 + 2 / 3 + 3 / 5) / 4, (3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11),
        ([T, T], 2, 1.0, 1.0),
        ([F, F], 3, 0.0, 0.0),
        ([], 3, 0.0, 0.0),
        # precision 1/2 at the hit: the envelope lifts everything before it to 1/2
        ([F, T], 1, 0.5, 0.5),
        # recall 3/10 reaches the point 0.3 exactly: four points 0, 0.1, 0.2, 0.3
        ([T, T, T], 10, 0.3, 4 / 11),
        ([T, I, I, T], 2, 1.0, 1.0),
    ],
)
def test_average_precision_by_hand(outcomes, objects, area, voc07):
    assert ap(outcomes, objects, "area") == pytest.approx(area)
    assert ap(outcomes, objects, "voc07") == pytest.approx(voc07)


def test_a_class_without_objects_has_no_average_precision():
    assert ap([F, F], 0, "area") is None
    assert ap([I], 0, "voc07") is None


def slow_average_precision(outcomes, scores, objects, method):
    """The definition: at each recall, the best precision from there on."""
    kept = [(s, o) for s, o in zip(scores, outcomes, strict=True) if o != IGNORED]
    ranked = [o for _, o in sorted(kept, key=lambda pair: -pair[0])]
    points = []
    for last in range(1, len(ranked) + 1):
        hits = ranked[:last].count(TRUE_POSITIVE)
        points.append((hits, hits / last))

    def best(hits_needed):
        return max((p for hits, p in points if hits >= hits_needed), default=0.0)

    if method == "area":
        return sum(best(hit) for hit in range(1, objects + 1)) / objects
    return sum(max((p for h, p in points if 10 * h >= k * objects), default=0.0) for k in range(11)) / 11


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([T, F, I]), st.integers(0, 20)), max_size=25),
    st.integers(0, 10),
    st.sampled_from(["area", "voc07"]),
)
def test_average_precision_equals_the_slow_reference(detections, missed, method):
    outcomes = [outcome for outcome, _ in detections]
    scores = [score / 20 for _, score in detections]
    objects = outcomes.count(T) + missed
    if objects:
        expected = slow_average_precision(outcomes, scores, objects, method)
        assert ap(outcomes, objects, method, scores) == pytest.approx(expected)


def slow_match(boxes, scores, classes, true_boxes, true_classes, difficult, iou):
    outcome, taken = [F] * len(boxes), set()
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        best, best_iou = None, -1.0
        for other, true_box in enumerate(true_boxes):
            overlap = iou_matrix(np.array([boxes[index]], float), np.array([true_box], float))[0, 0]
            if true_classes[other] == classes[index] and overlap > best_iou:
                best, best_iou = other, overlap
        if best is None or best_iou < iou:
            continue
        if difficult[best]:
            outcome[index] = I
        elif best not in taken:
            taken.add(best)
            outcome[index] = T
    return outcome


coordinates = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(coordinates, st.integers(0, 5), st.integers(0, 1)), max_size=8),
    st.lists(st.tuples(coordinates, st.integers(0, 1), st.booleans()), max_size=5),
    st.sampled_from([0.3, 0.5, 0.75]),
)
def test_matching_equals_the_slow_reference(detections, truth, iou):
    boxes, scores, classes = ([item[i] for item in detections] for i in range(3))
    true_boxes, true_classes, difficult = ([item[i] for item in truth] for i in range(3))
    fast = match(boxes, scores, classes, true_boxes, true_classes, difficult, iou)
    assert fast == slow_match(boxes, scores, classes, true_boxes, true_classes, difficult, iou)


def test_boxes_are_matched_within_their_image_only():
    accumulator = Accumulator(["car"], 0.5)
    box, nothing = np.array([[0.0, 0, 10, 10]]), np.zeros((0, 4))
    one, none = np.array([0]), np.zeros(0, int)
    accumulator.add_image(box, np.array([0.9]), one, nothing, none, np.zeros(0, bool))
    accumulator.add_image(nothing, np.zeros(0), none, box, one, np.array([False]))
    result = accumulator.result("area")
    assert (result.mean, result.collection.images) == (0.0, 2)
    assert (result.classes[0].false_positives, result.classes[0].objects) == (1, 1)


def test_detections_that_are_not_numbers_are_left_out_and_counted():
    accumulator = Accumulator(["car"], 0.5)
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, np.nan, 10], [0, 0, 10, 10]])
    scores, classes = np.array([0.5, 0.9, np.inf]), np.array([0, 0, 0])
    accumulator.add_image(boxes, scores, classes, boxes[:1], np.array([0]), np.array([False]))
    result = accumulator.result("area")
    assert (result.collection.non_finite, result.mean) == (2, 1.0)


def test_a_class_id_beyond_the_names_is_refused():
    accumulator = Accumulator(["car"], 0.5)
    box = np.array([[0.0, 0, 10, 10]])
    with pytest.raises(ValueError, match="class ids below 1"):
        accumulator.add_image(box, np.array([0.5]), np.array([1]), box, np.array([0]), np.array([False]))


def batch(valid=(True, True)):
    return {
        "image": np.zeros((2, 16, 16, 3), np.float32),
        "boxes": np.array([[[0, 0, 10, 10], [0, 0, 0, 0]], [[2, 2, 8, 8], [4, 4, 9, 9]]], np.float32),
        "classes": np.array([[0, -1], [0, 1]], np.int32),
        "difficult": np.array([[False, False], [False, True]]),
        "placement": np.array([[1, 1, 0, 0, 16, 16]] * 2, np.float32),
        "valid": np.array(valid),
    }


def detect(images):
    return {
        "boxes": np.array([[[0, 0, 10, 10], [0, 0, 0, 0]], [[4, 4, 9, 9], [0, 0, 1, 1]]], np.float32),
        "scores": np.array([[0.9, 0.0], [0.8, 0.7]], np.float32),
        "classes": np.array([[0, -1], [1, 0]], np.int32),
    }


def test_evaluation_reports_by_class_and_leaves_absent_classes_out_of_the_mean():
    metrics = evaluate(detect, [batch()], ["car", "person", "tram"], Protocol("area", (0.5,))).metrics
    # car: detected in image 0, missed in image 1, with one false positive of lower score: AP 1/2.
    # person: difficult objects only.
    assert metrics.m_ap == pytest.approx(0.5)
    assert [item.average_precision for item in metrics.per_class or []] == [pytest.approx(0.5), None, None]
    assert metrics.iou_threshold == 0.5


def test_images_that_only_fill_up_a_batch_do_not_count():
    metrics = evaluate(
        detect, [batch(valid=(True, False))], ["car", "person"], Protocol("voc07", (0.5,))
    ).metrics
    assert metrics.m_ap == pytest.approx(1.0)


def test_no_object_at_all_gives_no_mean():
    assert evaluate(detect, [], ["car"], Protocol("area", (0.5,))).metrics.m_ap is None


def test_boxes_are_compared_in_pixels_of_the_original_image_and_clipped_to_it():
    # 16 rows of 64 pixels in an input of 16 x 16, with 4 rows of padding above and below. The truth's
    # box is the whole image: rows 4 to 12 of the input.
    one = batch(valid=(True, False))
    one["boxes"][0, 0] = [4, 0, 12, 16]
    one["placement"][0] = [0.5, 0.25, 4, 0, 16, 64]

    def reaches_into_padding(images):
        # Rows 0 to 12: those in the padding do not count, so the overlap is 8 / 8, not 8 / 12.
        return {**detect(images), "boxes": np.array([[[0, 0, 12, 16], [0, 0, 0, 0]]] * 2, np.float32)}

    assert evaluate(
        reaches_into_padding, [one], ["car", "person"], Protocol("area", (0.99,))
    ).metrics.m_ap == pytest.approx(1.0)


def test_a_box_of_padding_alone_is_a_false_positive_and_an_infinite_one_is_left_out():
    one = batch(valid=(True, False))
    one["boxes"][0, 0] = [4, 0, 12, 16]
    one["placement"][0] = [0.5, 0.25, 4, 0, 16, 64]
    wrong = {
        "boxes": np.array([[[0, 0, 3, 16], [4, 0, 12, np.inf], [4, 0, 12, 16]]] * 2, np.float32),
        "scores": np.array([[0.9, 0.8, 0.7]] * 2, np.float32),
        "classes": np.array([[0, 0, 0]] * 2, np.int32),
    }
    # The one that counts comes second, after the one in the padding: precision 1 / 2.
    assert evaluate(
        lambda _: wrong, [one], ["car", "person"], Protocol("area", (0.5,))
    ).metrics.m_ap == pytest.approx(0.5)


def coco_outcomes(boxes, scores, true_boxes, crowds, threshold):
    """The outcomes of one class in one image by pycocotools, in the order of the detections."""

    def annotation(number, box, **more):
        y1, x1, y2, x2 = (float(edge) for edge in box)
        bbox = [x1, y1, x2 - x1, y2 - y1]
        return {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            **more,
        }

    truth, found = COCO(), None
    truth.dataset = {
        "info": {},
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            annotation(number, box, iscrowd=int(crowd))
            for number, (box, crowd) in enumerate(zip(true_boxes, crowds, strict=True), start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(
            [annotation(place + 1, box, score=float(scores[place])) for place, box in enumerate(boxes)]
        )
        judge = COCOeval(truth, found, "bbox")
        judge.params.iouThrs = np.array([threshold])
        judge.evaluate()
    image = judge.evalImgs[0]
    by_id = {
        number: -1 if ignored else int(match > 0)
        for number, match, ignored in zip(
            image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True
        )
    }
    return [by_id[number] for number in range(1, len(boxes) + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_crowds_excuse_the_same_detections_as_in_pycocotools(seed):
    random = np.random.default_rng(seed)

    def some(count, least, most):
        corner = random.uniform(0, 60, (count, 2))
        return np.concatenate([corner, corner + random.uniform(least, most, (count, 2))], axis=1)

    # Objects lie far apart from each other, so that VOC's matching and COCO's agree on them.
    objects = np.array([[0, 0, 10, 10], [0, 50, 12, 62], [70, 0, 80, 10]], float)
    crowds = some(3, 25, 40)
    near = objects[random.integers(0, 3, 6)] + random.uniform(-2, 2, (6, 4))
    boxes = np.concatenate([near, some(10, 4, 20)])
    scores = random.permutation(16) / 16
    true_boxes = np.concatenate([objects, crowds])
    ids = np.array([0, 0, 0, -3, -2, -3])
    ours = match_image(
        boxes, scores, np.zeros(16, int), true_boxes, ids, np.zeros(6, bool), iou_threshold=0.5
    )
    assert -1 in ours
    assert ours.tolist() == coco_outcomes(boxes, scores, true_boxes, ids < 0, 0.5)


def test_a_region_excuses_detections_of_its_class_and_one_of_every_class_excuses_all():
    boxes = np.tile([[0.0, 0, 10, 10]], (2, 1))
    classes, scores = np.array([0, 1]), np.array([0.9, 0.8])

    def outcomes(region_id):
        return match_image(
            boxes, scores, classes, boxes[:1] * 3, np.array([region_id]), np.array([False]), 0.5
        ).tolist()

    assert (outcomes(-2), outcomes(-3), outcomes(-4)) == ([-1, -1], [-1, 0], [0, -1])


def test_an_object_in_a_crowd_is_still_found_or_missed():
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    truth = np.array([[0.0, 0, 10, 10], [0, 0, 40, 40]])
    outcome = match_image(
        boxes, np.array([0.9, 0.8]), np.zeros(2, int), truth, np.array([0, -3]), np.zeros(2, bool), 0.5
    )
    assert outcome.tolist() == [1, -1]
    accumulator = Accumulator(["car"], 0.5)
    accumulator.add_image(
        boxes[1:], np.array([0.8]), np.zeros(1, int), truth, np.array([0, -3]), np.zeros(2, bool)
    )
    (result,) = accumulator.result("area").classes
    assert (result.average_precision, result.objects, result.ignored) == (0.0, 1, 1)
