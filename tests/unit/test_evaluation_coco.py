"""COCO's figures against pycocotools, which wants a dict for every box, and against cases by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tlt_runner.data.sample import ignored_id
from tlt_runner.evaluation.average_precision import class_average_precisions
from tlt_runner.evaluation.collection import Collection, Collector
from tlt_runner.evaluation.matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from tlt_runner.evaluation.protocols import Measurement, Protocol, measure

COCO_PROTOCOL = Protocol("coco", tuple(np.linspace(0.5, 0.95, 10)))
T, F, I = TRUE_POSITIVE, FALSE_POSITIVE, IGNORED  # noqa: E741


def random_scenes(seed, images, classes, objects, detections, crowds=0.1, equal_scores=50, grid=None):
    """Objects of all sizes, and detections near them, some of a wrong class; scores have many ties."""
    draws = np.random.default_rng(seed)
    collector = Collector([f"class {number}" for number in range(classes)])
    for _ in range(images):
        count, detected = draws.integers(0, objects + 1), draws.integers(0, detections + 1)
        corner, sides = draws.uniform(0, 400, (count, 2)), np.exp(draws.uniform(2, 5.5, (count, 2)))
        boxes = np.concatenate([corner, corner + sides], axis=1)
        ids = draws.integers(0, classes, count)
        source = draws.integers(0, count, detected) if count else np.zeros(0, int)
        near = boxes[source] + draws.normal(0, 0.12, (len(source), 4)) * np.tile(sides[source], 2)
        found = np.where(
            draws.random(len(source)) < 0.8, ids[source], draws.integers(0, classes, len(source))
        )
        near = np.concatenate([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])], 1)
        if grid:
            boxes, near = np.round(boxes / grid) * grid, np.round(near / grid) * grid
        crowd = draws.random(count) < crowds
        labels = np.array([ignored_id(int(i)) if c else i for i, c in zip(ids, crowd, strict=True)], int)
        scores = draws.integers(1, equal_scores, len(source)) / equal_scores
        collector.add_image(near, scores, found, boxes, labels, np.zeros(count, bool))
    return collector.collection()


def reference(collection: Collection) -> COCOeval:
    """The evaluation of pycocotools, which ends with its twelve figures in ``stats``."""

    def annotation(number, image, box, class_id, **more):
        y1, x1, y2, x2 = (float(edge) for edge in box)
        bbox = [x1, y1, x2 - x1, y2 - y1]
        place = {"id": number + 1, "image_id": int(image) + 1, "category_id": int(class_id) + 1}
        return {**place, "bbox": bbox, "area": bbox[2] * bbox[3], **more}

    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number + 1} for number in range(collection.images)],
        "categories": [{"id": number + 1} for number in range(len(collection.class_names))],
        "annotations": [
            annotation(number, image, box, label if label >= 0 else -3 - label, iscrowd=int(label < 0))
            for number, (image, box, label) in enumerate(
                zip(collection.true_image, collection.true_boxes, collection.true_classes, strict=True)
            )
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        detected = truth.loadRes(
            [
                annotation(number, *row[:3], score=float(row[3]))
                for number, row in enumerate(
                    zip(
                        collection.image,
                        collection.boxes,
                        collection.classes,
                        collection.scores,
                        strict=True,
                    )
                )
            ]
        )
        judge = COCOeval(truth, detected, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def assert_equals_pycocotools(collection: Collection) -> Measurement:
    judge, ours = reference(collection), measure(collection, COCO_PROTOCOL)
    metrics = ours._sizes()
    figures = [ours.mean, ours.at(0.5), ours.at(0.75), *metrics.values()]
    order = ["mean", "50", "75", "small", "medium", "large", "1", "10", "100", "s", "m", "l"]
    for name, value, expected in zip(order, figures, judge.stats, strict=True):
        # -1 is its mark of a figure without objects.
        assert (-1 if value is None else value) == pytest.approx(expected, abs=1e-6), name
    # By class, and by our own matching, whose outcomes are behind curves, errors and intervals.
    precision = judge.eval["precision"][:, :, :, 0, 2].mean(axis=1)
    for index, outcomes in enumerate(ours.matches.outcomes):
        own = class_average_precisions(collection, outcomes, "coco")
        expected = [None if value < 0 else pytest.approx(value, abs=1e-6) for value in precision[index]]
        assert own == expected
        assert [item.by_threshold[index] if item.by_threshold else None for item in ours.classes] == expected
    return ours


@pytest.mark.parametrize(
    "scenes",
    [
        {"images": 30, "classes": 3, "objects": 8, "detections": 40},
        # Digits: large objects of ten classes, in whole pixels, so that overlaps meet thresholds exactly.
        {"images": 25, "classes": 10, "objects": 4, "detections": 8, "crowds": 0.0, "grid": 4},
        # Crowded: more than 100 detections of a class in an image.
        {"images": 6, "classes": 1, "objects": 40, "detections": 300, "crowds": 0.3},
        # Most classes have no object.
        {"images": 5, "classes": 20, "objects": 2, "detections": 10},
        {"images": 8, "classes": 1000, "objects": 10, "detections": 30},
    ],
    ids=["random", "digits", "crowded", "empty classes", "1,000 classes"],
)
def test_coco_figures_equal_pycocotools(scenes):
    ours = assert_equals_pycocotools(random_scenes(seed=1, **scenes))
    assert ours.mean is not None and 0 < ours.mean < 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5]), st.sampled_from([2, 20]))
def test_coco_figures_equal_pycocotools_on_any_scenes(seed, classes, scores):
    collection = random_scenes(seed, 4, classes, 6, 20, crowds=0.3, equal_scores=scores, grid=8)
    if len(collection.scores):
        assert_equals_pycocotools(collection)


def scene(detections, truth, protocol=COCO_PROTOCOL, names=("car", "dog"), images=1):
    """Measure one image: detections (box, score, class) and truth (box, class, difficult or not)."""
    collector = Collector(names)
    for _ in range(images):
        collector.add_image(
            np.array([box for box, _, _ in detections], float).reshape(-1, 4),
            np.array([score for _, score, _ in detections], float),
            np.array([class_id for _, _, class_id in detections], int),
            np.array([row[0] for row in truth], float).reshape(-1, 4),
            np.array([row[1] for row in truth], int),
            np.array([len(row) > 2 for row in truth], bool),
        )
    return measure(collector.collection(), protocol)


BOX, LEFT, APART = [0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]
PROTOCOLS = [Protocol("area"), Protocol("voc07"), COCO_PROTOCOL]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_detections_give_an_ap_of_zero(protocol):
    measured = scene([], [(BOX, 0)], protocol)
    assert (measured.mean, measured.best, measured.metrics.interval) == (0.0, None, None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_ground_truth_gives_no_ap(protocol):
    measured = scene([(BOX, 0.9, 0)], [], protocol)
    assert (measured.mean, measured.best, measured.scored) == (None, None, None)
    assert [item.false_positives for item in measured.classes] == [1, 0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_duplicate_is_a_false_positive(protocol):
    # The duplicate ranks last: precision stays 1 up to recall 1.
    measured = scene([(BOX, 0.9, 0), (BOX, 0.8, 0)], [(BOX, 0)], protocol)
    assert measured.matches.outcomes[0].tolist() == [T, F]
    assert measured.mean == pytest.approx(1.0)


def test_a_detection_of_a_taken_object_falls_back_on_another_one_in_coco_only():
    # The second overlaps the first object with 9.5 / 10.5 and the second one with 8.5 / 11.5.
    truth = [(BOX, 0), ([0, 2, 10, 12], 0)]
    detections = [(BOX, 0.9, 0), ([0, 0.5, 10, 10.5], 0.8, 0)]
    assert scene(detections, truth, Protocol("area")).matches.outcomes[0].tolist() == [T, F]
    assert scene(detections, truth, Protocol("coco")).matches.outcomes[0].tolist() == [T, T]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_of_equal_scores_the_first_comes_first(protocol):
    wrong_first = scene([(APART, 0.5, 0), (BOX, 0.5, 0)], [(BOX, 0)], protocol)
    right_first = scene([(BOX, 0.5, 0), (APART, 0.5, 0)], [(BOX, 0)], protocol)
    assert (wrong_first.mean, right_first.mean) == (pytest.approx(0.5), pytest.approx(1.0))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_difficult_object_is_neither_found_nor_missed(protocol):
    measured = scene([(APART, 0.9, 0), (BOX, 0.8, 0)], [(APART, 0, True), (BOX, 0)], protocol)
    assert measured.matches.outcomes[0].tolist() == [I, T]
    assert (measured.mean, measured.classes[0].objects) == (pytest.approx(1.0), 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("class_id", [0, None])
def test_detections_in_a_crowd_are_ignored_however_many(protocol, class_id):
    crowd = ([40, 40, 70, 70], ignored_id(class_id))
    measured = scene([(APART, 0.9, 0), (APART, 0.8, 0), (BOX, 0.7, 0)], [crowd, (BOX, 0)], protocol)
    assert measured.matches.outcomes[0].tolist() == [I, I, T]
    assert measured.mean == pytest.approx(1.0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_that_only_one_side_has(protocol):
    # Car: labelled, not detected, AP 0. Dog: detected, not labelled, out of the mean.
    measured = scene([(BOX, 0.9, 1)], [(BOX, 0)], protocol)
    assert [item.average_precision for item in measured.classes] == [0.0, None]
    assert measured.mean == 0.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_boxes_at_the_border_and_without_area(protocol):
    # A line at the edge overlaps nothing; a box that touches another one's edge does not overlap it.
    detections = [([0, 0, 0, 10], 0.9, 0), ([0, 10, 10, 20], 0.8, 0), (BOX, 0.7, 0)]
    measured = scene(detections, [(BOX, 0)], protocol)
    assert measured.matches.outcomes[0].tolist() == [F, F, T]
    assert measured.mean == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ["area", "voc07", "coco"])
def test_an_overlap_of_exactly_the_threshold_counts(method):
    # 10 x 5 of 10 x 10: IoU 0.5.
    at, above = Protocol(method, (0.5,)), Protocol(method, (0.51,))
    assert scene([(LEFT, 0.9, 0)], [(BOX, 0)], at).mean == pytest.approx(1.0)
    assert scene([(LEFT, 0.9, 0)], [(BOX, 0)], above).mean == 0.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_that_are_not_numbers_are_left_out_and_counted(protocol):
    measured = scene([(APART, np.nan, 0), (APART, np.inf, 0), (BOX, 0.5, 0)], [(BOX, 0)], protocol)
    assert (measured.collection.non_finite, measured.mean) == (2, pytest.approx(1.0))


def test_ap_is_the_mean_over_the_iou_thresholds():
    # IoU 0.5: right at 0.5, wrong at the other nine thresholds.
    measured = scene([(LEFT, 0.9, 0)], [(BOX, 0)])
    assert (measured.mean, measured.at(0.5), measured.at(0.75)) == (pytest.approx(0.1), 1.0, 0.0)


def test_sizes_are_those_of_the_objects_in_pixels_of_the_original_image():
    # 10 x 10 is small, 40 x 40 medium and 100 x 100 large; only the medium one is detected.
    middle, large = [0, 200, 40, 240], [200, 0, 300, 100]
    measured = scene([(middle, 0.9, 0)], [(BOX, 0), (middle, 0), (large, 0)])
    metrics = measured.metrics
    assert (metrics.ap_small, metrics.ap_medium, metrics.ap_large) == (0.0, pytest.approx(1.0), 0.0)
    # One of three objects: recall 1/3 with one detection as with 100.
    assert (metrics.ar1, metrics.ar100) == (pytest.approx(1 / 3, abs=1e-5),) * 2


def test_only_the_protocol_coco_has_sizes():
    metrics = scene([(BOX, 0.9, 0)], [(BOX, 0)], Protocol("area", (0.5, 0.75))).metrics
    assert (metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ar1) == (1.0, 1.0, None, None)
    assert (metrics.protocol, metrics.iou_threshold) == ("area", None)
