"""The mapping of classes, and when bad samples end the job."""

import pytest

from tlt_api.failures import Reason
from tlt_api.trainingjob import BadSamples
from tlt_runner.data.classes import ClassMapping
from tlt_runner.data.report import DatasetReport, Tally, judge
from tlt_runner.data.sample import Converted, Finding, Listing, Problem
from tlt_runner.errors import RunnerError


def test_classes_have_the_ids_of_their_sorted_names() -> None:
    mapping = ClassMapping({"van": "vehicle", "car": "vehicle", "cyclist": "bicycle"})
    assert mapping.class_names == ("bicycle", "vehicle")


def test_an_exact_name_wins_over_one_in_another_case() -> None:
    mapping = ClassMapping({"car": "small", "CAR": "large"})
    assert [mapping.target(name) for name in ("car", "CAR", "Truck")] == ["small", "large", None]
    assert ClassMapping({"car": "vehicle"}).target("Car") == "vehicle"


def test_keys_that_match_nothing_are_found() -> None:
    mapping = ClassMapping({"car": "vehicle", "bus": "vehicle", "tram": "vehicle"})
    assert mapping.unused_keys(["Car", "person"]) == ["bus", "tram"]


def _report(images: int, bad: int, lines: int = 0, orphans: int = 0) -> DatasetReport:
    tally = Tally()
    skipped = [Finding(f"i/{number}.jpg", Problem.TRUNCATED_IMAGE, "cut off") for number in range(bad)]
    lonely = [Finding(f"l/{number}.txt", Problem.LABEL_WITHOUT_IMAGE, "alone") for number in range(orphans)]
    tally.add_listing(Listing([], images, skipped, lonely, [], 0, []))
    for number in range(lines):
        dropped = [Finding(f"l/{number}.txt", Problem.INVERTED_BOX, "inverted", line=7)]
        tally.add(Converted(example=b"x", dropped=dropped))
    return tally.to_report(0, {}, [])


@pytest.mark.parametrize(
    ("report", "policy"),
    [
        (_report(100, 0), BadSamples(policy="Fail")),
        (_report(100, 1), BadSamples(max_fraction=0.01)),
        (_report(100, 0, lines=1), BadSamples(max_fraction=0.01)),
        (_report(100, 0, orphans=50), BadSamples(max_fraction=0.01)),
        (_report(100, 100), BadSamples(max_fraction=1.0)),
    ],
)
def test_what_the_policy_allows_passes(report: DatasetReport, policy: BadSamples) -> None:
    judge(report, policy)


@pytest.mark.parametrize(
    ("report", "policy"),
    [
        (_report(100, 1), BadSamples(policy="Fail")),
        (_report(100, 0, lines=1), BadSamples(policy="Fail")),
        (_report(100, 0, orphans=1), BadSamples(policy="Fail")),
        (_report(100, 2), BadSamples(max_fraction=0.01)),
        (_report(100, 1, lines=1), BadSamples(max_fraction=0.01)),
        (_report(100, 1), BadSamples(max_fraction=0.0)),
    ],
)
def test_what_the_policy_forbids_fails(report: DatasetReport, policy: BadSamples) -> None:
    with pytest.raises(RunnerError) as caught:
        judge(report, policy)
    assert caught.value.reason == Reason.BAD_SAMPLES


def test_the_failure_names_the_first_ten_with_their_lines_and_counts_the_rest() -> None:
    with pytest.raises(RunnerError) as caught:
        judge(_report(100, 0, lines=13), BadSamples())
    message = caught.value.message
    assert "13 of 100 images (13.00%)" in message
    assert "l/0.txt:7: InvertedBox: inverted" in message
    assert message.count("InvertedBox") == 10
    assert message.endswith("and 3 more")


def test_an_object_that_became_too_small_says_nothing_against_its_image() -> None:
    tally = Tally()
    tally.add(Converted(example=b"x", dropped=[Finding("l/1.txt", Problem.TOO_SMALL, "small", 1)]))
    report = tally.to_report(0, {}, [])
    assert (report.bad_images, report.dropped_objects) == (0, 1)


def test_every_label_line_is_accounted_for() -> None:
    tally = Tally()
    outside = Finding("l/1.txt", Problem.OUTSIDE_IMAGE, "outside", 3)
    tally.add(Converted(example=b"x", dropped=[outside], objects=[0], source_classes=["car", "car", "dog"]))
    report = tally.to_report(1, {"car": "car", "dog": None}, [])
    assert report.unmapped_classes == {"dog": 1}
    assert report.objects + report.dropped_objects == 3
