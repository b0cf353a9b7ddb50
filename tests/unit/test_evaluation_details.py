"""Operating points, confusion, types of errors, calibration and intervals on scenes worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tlt_runner.data.sample import IGNORED as REGION
from tlt_runner.evaluation import report
from tlt_runner.evaluation.average_precision import average_precision
from tlt_runner.evaluation.bootstrap import Interval, difference_interval, mean_interval
from tlt_runner.evaluation.collection import Collector
from tlt_runner.evaluation.confusion import confusion_matrix
from tlt_runner.evaluation.error_types import ERROR_TYPES, error_costs
from tlt_runner.evaluation.matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, one_to_one
from tlt_runner.evaluation.operating_point import best_operating_point, calibration, over_thresholds
from tlt_runner.evaluation.protocols import Measurement, Protocol, measure

T, F, I = TRUE_POSITIVE, FALSE_POSITIVE, IGNORED  # noqa: E741
CAR, DOG = 0, 1
BOX, APART, FAR = [0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]
HALF_OFF = [0, 5, 10, 15]
"""IoU of 50 / 150 with BOX: between 0.1 and 0.5."""


def measured(*images, protocol=Protocol("area"), names=("car", "dog")) -> Measurement:  # noqa: B008
    """Measure images: pairs of detections (box, score, class) and truth (box, class, difficult or not)."""
    collector = Collector(names)
    for detections, truth in images:
        collector.add_image(
            np.array([row[0] for row in detections], float).reshape(-1, 4),
            np.array([row[1] for row in detections], float),
            np.array([row[2] for row in detections], int),
            np.array([row[0] for row in truth], float).reshape(-1, 4),
            np.array([row[1] for row in truth], int),
            np.array([len(row) > 2 for row in truth], bool),
        )
    return measure(collector.collection(), protocol)


def best(outcomes, scores, objects):
    return best_operating_point(np.array(outcomes, np.int8), np.array(scores, float), objects)


def test_f1_is_best_where_the_next_detection_costs_more_than_it_gains():
    # F1 = 2 TP / (detections + objects): 2/5, 4/6, 4/7, 6/8, 6/9.
    point = best([T, T, F, T, F], [0.9, 0.8, 0.7, 0.6, 0.5], 4)
    assert point is not None
    assert (point.threshold, point.precision, point.recall, point.f1) == (0.6, 0.75, 0.75, 0.75)


def test_detections_of_one_score_stand_or_fall_together():
    # At 0.9 alone both detections count: F1 2 / (2 + 1), whichever of them comes first.
    for outcomes in ([T, F], [F, T]):
        point = best(outcomes, [0.9, 0.9], 1)
        assert point is not None and (point.precision, point.f1) == (0.5, pytest.approx(2 / 3))


def test_ignored_detections_do_not_move_the_operating_point():
    assert best([I, T, I], [0.9, 0.8, 0.7], 1) == best([T], [0.8], 1)


def test_no_threshold_is_best_where_nothing_is_right():
    assert best([F, F], [0.9, 0.8], 3) is None
    assert best([], [], 3) is None
    assert best([F], [0.9], 0) is None


def test_figures_over_the_score_threshold():
    curves = over_thresholds(np.array([T, F], np.int8), np.array([0.8, 0.4]), 2)
    # Thresholds 0.4, 0.41, 0.8 and 0.81: two detections, one, one, none.
    assert curves["precision"][[40, 41, 80, 81]].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert curves["recall"][[40, 41, 80, 81]].tolist() == [0.5, 0.5, 0.5, 0.0]
    assert curves["f1"][[40, 41, 80, 81]].tolist() == [0.5, pytest.approx(2 / 3), pytest.approx(2 / 3), 0.0]


def test_thresholds_of_classes_without_a_right_detection_are_that_of_all():
    one = measured(([(BOX, 0.7, CAR), (APART, 0.9, DOG)], [(BOX, CAR), (FAR, DOG)]))
    # All classes: at 0.9 nothing is right, at 0.7 one of two is.
    assert one.best is not None and one.best.threshold == 0.7
    assert one.score_thresholds == [0.7, 0.7]
    metrics = one.metrics
    assert [item.best_threshold for item in metrics.per_class or ()] == [0.7, None]
    assert metrics.score_thresholds == [0.7, 0.7]


def test_a_best_threshold_is_rounded_down_so_that_its_detection_reaches_it():
    one = measured(([(BOX, 0.123456789, CAR)], [(BOX, CAR)]))
    assert one.metrics.best_threshold == 0.12345


def test_calibration_by_hand():
    # Bin 0.8 to 0.9: scores 0.8 and 0.88, one right. Bin 0.2 to 0.3: 0.25, right. The score 1 is in the last.
    outcomes, scores = np.array([T, F, T, T, I], np.int8), np.array([0.8, 0.88, 0.25, 1.0, 0.5])
    bins, error = calibration(outcomes, scores)
    counts = [item.detections for item in bins]
    assert counts == [0, 0, 1, 0, 0, 0, 0, 0, 2, 1]
    assert (bins[8].mean_score, bins[8].precision) == (pytest.approx(0.84), 0.5)
    assert (bins[0].mean_score, bins[0].precision) == (None, None)
    # |1.68 - 1| + |0.25 - 1| + |1 - 1| over 4 detections.
    assert error == pytest.approx((0.68 + 0.75) / 4)
    assert calibration(np.zeros(0, np.int8), np.zeros(0))[1] is None


def confusion(one: Measurement, chosen=None):
    every = np.ones(len(one.collection.scores), bool)
    return confusion_matrix(
        one.collection, one.pairs, 0.5, every if chosen is None else np.array(chosen)
    ).tolist()


def test_confusion_by_hand():
    one = measured(
        (
            # A car found, a dog taken for a car, a dog on nothing; the car at FAR is missed.
            [(BOX, 0.9, CAR), (APART, 0.8, CAR), ([20, 20, 30, 30], 0.7, DOG)],
            [(BOX, CAR), (APART, DOG), (FAR, CAR)],
        )
    )
    # Rows: car, dog, background; columns the same.
    assert confusion(one) == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]
    # Without the second detection its dog is missed.
    assert confusion(one, [True, False, True]) == [[1, 0, 1], [0, 0, 1], [0, 1, 0]]


def test_the_right_class_comes_before_a_greater_overlap_in_the_confusion_matrix():
    # The dog fits the car's box better; the car that overlaps it with 9 / 11 is its match all the same.
    one = measured(([(BOX, 0.9, DOG), ([0, 1, 10, 11], 0.8, CAR)], [(BOX, CAR)]))
    assert confusion(one) == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_difficult_objects_and_ignored_regions_are_not_in_the_confusion_matrix():
    one = measured(
        (
            [(BOX, 0.9, CAR), (BOX, 0.8, CAR), (APART, 0.7, DOG)],
            [(BOX, CAR, "difficult"), ([40, 40, 70, 70], REGION)],
        )
    )
    assert confusion(one) == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_pairs_are_picked_greedily():
    # (0, 0) is first; (0, 1) and (1, 0) lose a side to it; (1, 1) is left.
    picked = one_to_one(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert picked.tolist() == [0, 3]
    # A chain, in which each pair but the first waits for the one before: (0, 0), then (1, 1), then (2, 2).
    picked = one_to_one(np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2]))
    assert picked.tolist() == [0, 2, 4]
    assert one_to_one(np.zeros(0, int), np.zeros(0, int)).tolist() == []


def errors(one: Measurement):
    costs = error_costs(
        one.collection, one.pairs, one.matches.outcomes[0], one.matches.truth[0], 0.5, one.protocol.method
    )
    assert [cost.type for cost in costs] == list(ERROR_TYPES)
    return {cost.type: (cost.count, cost.cost) for cost in costs if cost.count}


def test_a_wrong_class_at_the_right_place():
    # Corrected, the dog becomes the car: AP of car from 0 to 1. The car is not counted as missed.
    one = measured(([(BOX, 0.9, DOG)], [(BOX, CAR)]))
    assert errors(one) == {"class": (1, 1.0)}


def test_a_wrong_place_of_the_right_class():
    one = measured(([(HALF_OFF, 0.9, CAR)], [(BOX, CAR)]))
    assert errors(one) == {"place": (1, 1.0)}


def test_a_wrong_place_and_a_wrong_class():
    # The car itself is missed: an error of both kinds is not taken for an attempt at it.
    one = measured(([(HALF_OFF, 0.9, DOG)], [(BOX, CAR)]))
    assert errors(one) == {"both": (1, 0.0), "missed": (1, 1.0)}


def test_a_duplicate_that_ranks_first_costs_precision():
    # The better score has the smaller overlap of 9 / 11: VOC takes it, and the exact box is the duplicate.
    one = measured(
        (
            [([0, 1, 10, 11], 0.9, CAR), (BOX, 0.8, CAR), (APART, 0.7, CAR)],
            [(BOX, CAR), (APART, CAR)],
        )
    )
    # Precision 1, 1/2, 2/3; AP (1 + 2/3) / 2. Without the duplicate AP is 1.
    assert errors(one) == {"duplicate": (1, pytest.approx(1 - 5 / 6))}


def test_a_detection_on_nothing():
    one = measured(([(FAR, 0.9, CAR), (BOX, 0.8, CAR)], [(BOX, CAR)]))
    # AP 1/2; without the false positive 1.
    assert errors(one) == {"background": (1, pytest.approx(0.5))}


def test_a_missed_object():
    one = measured(([(BOX, 0.9, CAR)], [(BOX, CAR), (APART, CAR)]))
    assert errors(one) == {"missed": (1, pytest.approx(0.5))}
    assert errors(measured(([], [(BOX, CAR)]))) == {"missed": (1, 1.0)}


def test_of_two_wrong_places_of_one_object_one_is_corrected():
    # The better score becomes a true positive, the other one is removed: AP from 0 to 1.
    one = measured(([(HALF_OFF, 0.9, CAR), ([5, 0, 15, 10], 0.8, CAR)], [(BOX, CAR)]))
    assert errors(one) == {"place": (2, 1.0)}


def test_ignored_detections_are_no_errors():
    one = measured(([(BOX, 0.9, CAR), (APART, 0.8, CAR)], [(BOX, CAR, "difficult"), (APART, CAR)]))
    assert errors(one) == {}


def weighted_area(one: Measurement, weights):
    """AP of class 0 where each image stands as often in the data as its weight says."""
    copies = np.repeat(np.arange(len(one.collection.scores)), weights[one.collection.image])
    objects = weights[one.collection.true_image[one.collection.counted]].sum()
    outcomes, scores = one.matches.outcomes[0][copies], one.collection.scores[copies]
    return average_precision(outcomes, scores, int(objects), "area")


def scenes(seed, images=30, quality=2.0):
    draws = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        shift = np.abs(draws.normal(0, quality, 3))
        # Without ties: of equal scores a copy of an image would rank elsewhere.
        scores = draws.random(3)
        truth = [([20 * k, 0, 20 * k + 10, 10], CAR) for k in range(3)]
        made.append(
            (
                [([20 * k, shift[k], 20 * k + 10, 10 + shift[k]], scores[k], CAR) for k in range(3)],
                truth,
            )
        )
    return made


def test_resampled_ap_is_that_of_a_data_set_with_copies_of_the_images():
    one = measured(*scenes(1), names=["car"])
    assert one.scored is not None
    # 90 detections in at most 64 cuts: near, and exact where every true positive has a cut of its own.
    few = measured(*scenes(1, images=15), names=["car"])
    for measurement, tolerance in ((few, 1e-6), (one, 0.02)):
        count = measurement.collection.images
        generator = np.random.default_rng(0)
        resampled = [
            weighted_area(measurement, np.bincount(generator.integers(0, count, count), minlength=count))
            for _ in range(40)
        ]
        interval = mean_interval(measurement.scored, confidence=0.9, resamples=40)
        low, high = np.quantile(resampled, [0.05, 0.95])
        assert (interval.low, interval.high) == (
            pytest.approx(low, abs=tolerance),
            pytest.approx(high, abs=tolerance),
        )


def test_a_model_does_not_differ_from_itself():
    scored = measured(*scenes(1), names=["car"]).scored
    assert scored is not None
    interval = difference_interval(scored, scored)
    assert (interval.value, interval.low, interval.high, interval.significant) == (0.0, 0.0, 0.0, False)
    assert interval.difference_text() == "0.0 points, 95 % interval 0.0 to 0.0: not significant"


def test_a_much_better_model_differs_significantly():
    left = measured(*scenes(1, quality=1.0), names=["car"]).scored
    right = measured(*scenes(1, quality=8.0), names=["car"]).scored
    assert left is not None and right is not None
    interval = difference_interval(left, right)
    assert interval.significant and 0 < interval.low < interval.value < interval.high < 1
    assert interval.difference_text().endswith(": significant")


def test_pairing_takes_out_what_is_hard_for_both():
    # Each model finds the objects of the same images, but for one image of 30.
    hard = [([], [(BOX, CAR)])] * 10
    easy = [([(BOX, 0.9, CAR)], [(BOX, CAR)])] * 19
    left = measured(*hard, *easy, easy[0], names=["car"]).scored
    right = measured(*hard, *easy, hard[0], names=["car"]).scored
    assert left is not None and right is not None
    alone, paired = mean_interval(left), difference_interval(left, right)
    # 20 and 19 of 30: the difference is 1/30, and each resample has it 0, 1, 2 ... times.
    assert paired.value == pytest.approx(1 / 30)
    assert paired.low == pytest.approx(0, abs=1e-6) and paired.high <= 4 / 30 + 1e-6
    assert alone.high - alone.low > 0.25


def test_evaluations_of_different_images_are_not_compared():
    left, right = (measured(*scenes(1, images), names=["car"]).scored for images in (4, 5))
    assert left is not None and right is not None
    with pytest.raises(ValueError, match="the same images, got 4 and 5"):
        difference_interval(left, right)


def test_one_image_has_no_interval():
    one = measured(([(BOX, 0.9, CAR)], [(BOX, CAR)]))
    assert (one.metrics.m_ap, one.metrics.interval) == (1.0, None)


def test_an_interval_is_rounded_as_people_read_it():
    assert Interval(0.003, -0.001, 0.007, 0.95).difference_text() == (
        "0.3 points, 95 % interval -0.1 to 0.7: not significant"
    )


@pytest.mark.parametrize("protocol", [Protocol("area"), Protocol("coco", (0.5, 0.75))])
def test_details_are_json_and_describe_every_class(protocol, tmp_path):
    one = measured(([(BOX, 0.9, CAR), (APART, 0.8, CAR)], [(BOX, CAR), (FAR, CAR)]), protocol=protocol)
    report.write(one, one.metrics.model_copy(update={"epoch": 3}), tmp_path / "metrics.json")
    data = json.loads((tmp_path / "metrics.json").read_text())
    assert data["headline"]["epoch"] == 3
    car, dog = data["perClass"]
    # Half of the objects with precision 1: 51 of the 101 recalls, from 0 to 0.5.
    assert (sum(car["precisionAtRecall"]), dog["objects"]) == (51.0, 0)
    assert data["confusion"]["matrix"] == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert {item["type"]: item["count"] for item in data["errors"] if item["count"]} == {
        "background": 1,
        "missed": 1,
    }
    assert ("averagePrecisionBySize" in car) == (protocol.method == "coco")


def test_no_detections_and_no_objects_have_details_too(tmp_path):
    for images in ((), (([], []),), (([(BOX, 0.9, CAR)], []),), (([], [(BOX, CAR)]),)):
        for protocol in (Protocol("area"), Protocol("voc07"), Protocol("coco", (0.5, 0.75))):
            one = measured(*images, protocol=protocol)
            report.write(one, one.metrics, tmp_path / "metrics.json")
