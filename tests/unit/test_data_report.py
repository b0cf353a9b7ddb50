"""Statistics and report of a preparation, and the policy by which bad samples fail the job."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_api.dataset import BadSamples
from tlt_api.failures import Reason
from tlt_api.runreport import RunReport, to_termination_message
from tlt_api.status import Failure
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.report import statistics as statistics_module
from tlt_runner.data.report.report import DatasetReport, enforce_policy, to_status
from tlt_runner.data.report.statistics import DatasetStatistics
from tlt_runner.data.sample import Finding, Listing, Oddity, Problem, Sample, SampleOutcome
from tlt_runner.errors import RunnerError

MAPPING = ClassMapping({"car": "vehicle", "van": "vehicle", "man": "person"})


def _sample(stem: str = "1", folder: str = "i") -> Sample:
    from pathlib import Path

    image = f"{folder}/{stem}.jpg"
    return Sample(f"{folder}/{stem}", stem, Path(image), image, f"l/{stem}.txt", stem)


def _listing(
    samples: list[Sample],
    images: int = 0,
    skipped: list[Finding] | None = None,
    orphans: list[Finding] | None = None,
    findings: list[Finding] | None = None,
) -> Listing:
    return Listing(samples, images, skipped or [], orphans or [], findings or [], 0, [])


def _report(images: int, bad: int, lines: int = 0, orphans: int = 0, entries: int = 0) -> DatasetReport:
    statistics = DatasetStatistics()
    skipped = [Finding(f"i/{number:02d}.jpg", Problem.TRUNCATED_IMAGE, "cut off") for number in range(bad)]
    lonely = [
        Finding(f"l/{number:02d}.txt", Problem.LABEL_WITHOUT_IMAGE, "alone") for number in range(orphans)
    ]
    broken = [Finding("a.json", Problem.MISSING_FIELD, "no image_id") for _ in range(entries)]
    statistics.add_listings([_listing([], images, skipped, lonely, broken)])
    for number in range(lines):
        stem = f"{number:02d}"
        dropped = [
            Finding(f"l/{stem}.txt", Problem.INVERTED_BOX, f"inverted {line}", line=line) for line in (7, 9)
        ]
        statistics.add(_sample(stem), SampleOutcome(example=b"x", dropped=dropped), "training")
    return statistics.to_report(MAPPING)


@pytest.mark.parametrize(
    ("report", "policy"),
    [
        (_report(100, 0), BadSamples(policy="Fail")),
        (_report(100, 1), BadSamples(max_fraction=0.01)),
        (_report(100, 0, lines=1), BadSamples(max_fraction=0.01)),
        (_report(100, 0, orphans=50), BadSamples(max_fraction=0.01)),
        (_report(100, 0, entries=50), BadSamples(max_fraction=0.01)),
        (_report(100, 100), BadSamples(max_fraction=1.0)),
    ],
)
def test_bad_samples_within_the_policy_pass(report: DatasetReport, policy: BadSamples) -> None:
    enforce_policy(report, policy)


@pytest.mark.parametrize(
    ("report", "policy"),
    [
        (_report(100, 1), BadSamples(policy="Fail")),
        (_report(100, 0, lines=1), BadSamples(policy="Fail")),
        (_report(100, 0, orphans=1), BadSamples(policy="Fail")),
        (_report(100, 0, entries=1), BadSamples(policy="Fail")),
        (_report(100, 2), BadSamples(max_fraction=0.01)),
        (_report(100, 1, lines=1), BadSamples(max_fraction=0.01)),
        (_report(100, 1), BadSamples(max_fraction=0.0)),
    ],
)
def test_bad_samples_beyond_the_policy_fail(report: DatasetReport, policy: BadSamples) -> None:
    with pytest.raises(RunnerError) as caught:
        enforce_policy(report, policy)
    assert caught.value.reason == Reason.BAD_SAMPLES


def test_the_failure_names_the_first_ten_files_with_their_lines_and_counts_the_rest() -> None:
    with pytest.raises(RunnerError) as caught:
        enforce_policy(_report(100, 0, lines=13), BadSamples())
    message = caught.value.message
    assert "13 of 100 images (13.00%) are bad" in message
    assert "l/00.txt: lines 7, 9: InvertedBox: inverted 7; l/01.txt: lines 7, 9" in message
    assert message.count("l/") == 10
    assert message.endswith("l/09.txt: lines 7, 9: InvertedBox: inverted 7; and 3 more files")


def test_the_failure_names_a_file_of_many_bad_lines_once() -> None:
    statistics = DatasetStatistics()
    statistics.add_listings([_listing([], images=1)])
    dropped = [Finding("l/1.txt", Problem.WRONG_COLUMNS, "seven", line) for line in range(1, 26)]
    statistics.add(_sample(), SampleOutcome(example=b"x", dropped=dropped), "training")
    with pytest.raises(RunnerError) as caught:
        enforce_policy(statistics.to_report(MAPPING), BadSamples())
    expected = "l/1.txt: lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 15 more: WrongColumns: seven"
    assert caught.value.message.endswith(expected)


def test_the_failure_names_a_file_of_each_problem_first_and_cuts_no_finding() -> None:
    statistics = DatasetStatistics()
    long = "expected boxes, got outlines " * 12
    skipped = [Finding(f"i/{number:02}.jpg", Problem.TRUNCATED_IMAGE, "cut off") for number in range(12)]
    skipped.append(Finding("i/99.jpg", Problem.NOT_A_BOX, long))
    statistics.add_listings([_listing([], images=20, skipped=skipped)])
    with pytest.raises(RunnerError) as caught:
        enforce_policy(statistics.to_report(MAPPING), BadSamples())
    named = caught.value.message.partition("allows 0.01: ")[2].split("; ")
    assert named[:3] == [
        "i/00.jpg: TruncatedImage: cut off",
        f"i/99.jpg: NotABox: {long}",
        "i/01.jpg: TruncatedImage: cut off",
    ]
    assert (len(named), named[-1]) == (11, "and 3 more files")


def test_a_finding_that_is_longer_than_there_is_room_is_not_cut_either() -> None:
    statistics = DatasetStatistics()
    skipped = [Finding(f"i/{number}.jpg", Problem.NOT_A_BOX, f"{number}" * 1500) for number in range(3)]
    statistics.add_listings([_listing([], images=3, skipped=skipped)])
    with pytest.raises(RunnerError) as caught:
        enforce_policy(statistics.to_report(MAPPING), BadSamples())
    assert caught.value.message.endswith(f": i/0.jpg: NotABox: {'0' * 1500}; and 2 more files")


@pytest.mark.parametrize(
    ("skipped", "dropped", "said", "unsaid"),
    [
        (
            [Problem.TRUNCATED_IMAGE],
            [],
            "a larger badSamples.maxFraction the images named are left out",
            "raise",
        ),
        (
            [],
            [Problem.WRONG_COLUMNS],
            "Do not raise badSamples.maxFraction for label lines that are wrong",
            "With a larger",
        ),
        ([Problem.NOT_A_BOX], [Problem.NOT_A_NUMBER], "set dataset.shapes: boundingBox", "With a larger"),
        ([Problem.NO_LABEL], [], "set dataset.unlabelled: background", "raise"),
    ],
)
def test_the_hint_never_leads_to_objects_that_become_background(
    skipped: list[Problem], dropped: list[Problem], said: str, unsaid: str
) -> None:
    statistics = DatasetStatistics()
    left_out = [Finding("i/0.jpg", problem, "wrong") for problem in skipped]
    statistics.add_listings([_listing([_sample()], images=1 + len(skipped), skipped=left_out)])
    lines = [Finding("l/1.txt", problem, "wrong", 1) for problem in dropped]
    statistics.add(_sample(), SampleOutcome(example=b"x", dropped=lines), "training")
    with pytest.raises(RunnerError) as caught:
        enforce_policy(statistics.to_report(MAPPING), BadSamples())
    assert said in caught.value.hint
    assert unsaid not in caught.value.hint


def test_a_failure_with_ten_files_fits_into_a_pods_termination_message() -> None:
    statistics = DatasetStatistics()
    statistics.add_listings([_listing([], images=20)])
    for number in range(20):
        file = f"training/label_2/sequence_0001/{number:06}.txt"
        dropped = [Finding(file, Problem.WRONG_COLUMNS, "seven " * 40, line) for line in range(100, 130)]
        statistics.add(_sample(str(number)), SampleOutcome(example=b"x", dropped=dropped), "training")
    report = statistics.to_report(MAPPING)
    with pytest.raises(RunnerError) as caught:
        enforce_policy(report, BadSamples())
    failure = Failure(reason="BadSamples", message=caught.value.message, hint="h" * 300)
    status = to_status(report, "pvc://claim/runs/first/dataset-report.html")
    assert failure.message in to_termination_message(RunReport(failure=failure, dataset=status))


def test_an_object_that_became_too_small_does_not_make_its_image_bad() -> None:
    statistics = DatasetStatistics()
    small = Finding("l/1.txt", Problem.TOO_SMALL, "small", 1)
    statistics.add(_sample(), SampleOutcome(example=b"x", dropped=[small]), "training")
    report = statistics.to_report(MAPPING)
    assert (report.bad_images, report.dropped_objects) == (0, 1)


def test_every_image_and_every_label_line_is_accounted_for() -> None:
    statistics = DatasetStatistics()
    cut = Finding("i/0.jpg", Problem.NO_LABEL, "no label")
    statistics.add_listings([_listing([_sample("1"), _sample("2"), _sample("3")], images=4, skipped=[cut])])
    unread = Finding("l/1.txt", Problem.WRONG_COLUMNS, "seven", 1)
    outside = Finding("l/1.txt", Problem.OUTSIDE_IMAGE, "outside", 3)
    # Eight lines: one that cannot be read, two cars, one car outside, one dog, three regions.
    converted = SampleOutcome(
        example=b"x",
        dropped=[unread, outside],
        objects=[1, 1],
        sizes=[(10.0, 20.0), (10.0, 20.0)],
        source_classes=["Car", "Car", "Car", "dog"],
        ignored=3,
    )
    statistics.add(_sample("1"), converted, "training")
    broken = SampleOutcome(skipped=Finding("i/2.jpg", Problem.EMPTY_FILE, "0 bytes"))
    statistics.add(_sample("2"), broken, "training")
    person = SampleOutcome(example=b"y", objects=[0], sizes=[(9.0, 9.0)], source_classes=["man"])
    statistics.add(_sample("3"), person, "validation")
    report = statistics.to_report(MAPPING)
    assert (report.lines, report.objects, report.ignored_regions) == (9, 3, 3)
    assert report.unmapped_classes == {"dog": 1}
    assert report.dropped_by_problem == {Problem.OUTSIDE_IMAGE: 1, Problem.WRONG_COLUMNS: 1}
    assert (report.images, report.usable_images, report.bad_images) == (4, 2, 3)
    assert report.skipped_by_problem == {Problem.EMPTY_FILE: 1, Problem.NO_LABEL: 1}
    assert [(item.name, item.training, item.validation) for item in report.classes] == [
        ("person", 0, 1),
        ("vehicle", 2, 0),
    ]
    assert [item.image for item in report.dropped] == ["i/1.jpg", "i/1.jpg"]
    # 2 ** (13 / 4) = 9.5 <= 10 < 11.3 and 2 ** (17 / 4) = 19.0 <= 20 < 22.6; 8 <= 9 < 9.5.
    assert [(item.width, item.height, item.objects) for item in report.box_sizes] == [
        (8.72, 8.72, 1),
        (20.75, 10.37, 2),
    ]


def test_unusual_images_are_named_with_their_treatment() -> None:
    statistics = DatasetStatistics()
    for stem in ("2", "1"):
        converted = SampleOutcome(example=b"x", objects=[1], oddities=(Oddity.CMYK,))
        statistics.add(_sample(stem), converted, "training")
    report = statistics.to_report(MAPPING)
    assert report.odd == {Oddity.CMYK: ["i/1.jpg", "i/2.jpg"]}
    assert report.warnings[-1] == (
        "images that are CMYK, and become RGB without a colour profile: colours may be off: "
        "2 (i/1.jpg, i/2.jpg)"
    )


def test_every_kind_of_unusual_image_has_a_sentence() -> None:
    statistics = DatasetStatistics()
    statistics.add(_sample(), SampleOutcome(example=b"x", oddities=tuple(Oddity)), "training")
    report = statistics.to_report(MAPPING)
    # Of turned photos, dataset.orientation and its evidence tell.
    said = len(set(Oddity) - {Oddity.TURNED, Oddity.TURNED_UPRIGHT})
    assert sum(warning.endswith(": 1 (i/1.jpg)") for warning in report.warnings) == said


def test_leaks_duplicates_and_repeated_names_are_warnings() -> None:
    statistics = DatasetStatistics()
    statistics.add_listings([_listing([_sample("1", "a"), _sample("2", "a")]), _listing([_sample("1", "b")])])
    statistics.add_duplicates(leaked=["b/1.jpg"], duplicates=["a/2.jpg", "a/3.jpg"])
    report = statistics.to_report(MAPPING)
    assert (report.leaked_images, report.duplicate_images, report.repeated_names) == (1, 2, 1)
    assert (report.leaked, report.duplicates) == (["b/1.jpg"], ["a/2.jpg", "a/3.jpg"])
    ends = [warning.rpartition(": ")[2] for warning in report.warnings[-3:]]
    assert ends == ["1 (b/1.jpg)", "2 (a/2.jpg, a/3.jpg)", "1"]


def test_a_class_without_training_or_validation_objects_is_a_warning() -> None:
    statistics = DatasetStatistics()
    seen = SampleOutcome(example=b"x", objects=[1], source_classes=["car", "man"])
    statistics.add(_sample(), seen, "training")
    mapping = ClassMapping({"car": "vehicle", "man": "person"})
    assert statistics.to_report(mapping).warnings == [
        "class 'person' has no object for training: it cannot be learnt",
        "classes 'person', 'vehicle' have no object for validation: each of them is not measured",
    ]


def test_fifty_mapping_keys_without_objects_are_one_warning_that_lists_them() -> None:
    keys = [f"class{number:02}" for number in range(50)]
    mapping = ClassMapping({"car": "vehicle", **{key: key for key in keys}})
    statistics = DatasetStatistics()
    vehicle = SampleOutcome(example=b"x", objects=[50], source_classes=["car"])
    statistics.add(_sample("1"), vehicle, "training")
    statistics.add(_sample("2"), vehicle, "validation")
    (warning,) = statistics.to_report(mapping).warnings
    listed = ", ".join(map(repr, keys))
    assert warning == (
        f"targetClassMapping: no label uses {listed}, so that nothing of {listed} is learnt or measured; the "
        "labels' classes are: car"
    )


def test_an_unused_key_of_a_class_that_another_key_fills_loses_no_class() -> None:
    statistics = DatasetStatistics()
    for stem, subset in (("1", "training"), ("2", "validation")):
        seen = SampleOutcome(example=b"x", objects=[0, 1], source_classes=["man", "car"])
        statistics.add(_sample(stem), seen, "training" if subset == "training" else "validation")
    assert statistics.to_report(MAPPING).warnings == [
        "targetClassMapping: no label uses 'van'; the labels' classes are: car, man"
    ]


def test_ignored_regions_are_a_warning_with_those_that_are_not_used() -> None:
    statistics = DatasetStatistics()
    used = SampleOutcome(
        example=b"x", objects=[0, 1], source_classes=["man", "car", "van"], ignored=5, regions=3
    )
    statistics.add(_sample("1"), used, "training")
    statistics.add(_sample("2"), replace(used, ignored=2, regions=2), "validation")
    report = statistics.to_report(MAPPING)
    assert (report.ignored_regions, report.unused_regions) == (7, 2)
    assert report.warnings == [
        "ignored regions (DontCare, iscrowd), which are neither objects nor background: 7; 2 of them lie "
        "outside of the image or are of a class that is not learnt, and what they show is background"
    ]


def test_difficult_validation_objects_are_a_warning_with_the_classes_that_have_no_others() -> None:
    statistics = DatasetStatistics()
    seen = SampleOutcome(
        example=b"x", objects=[0, 0, 1], difficult=[0, 0], source_classes=["man", "car", "van"]
    )
    # Difficult objects are trained on as others: those of the training images are no warning.
    statistics.add(_sample("1"), replace(seen, difficult=[0, 0, 1]), "training")
    statistics.add(_sample("2"), seen, "validation")
    report = statistics.to_report(MAPPING)
    assert [(item.name, item.validation, item.difficult) for item in report.classes] == [
        ("person", 2, 2),
        ("vehicle", 1, 0),
    ]
    assert report.warnings == [
        "difficult objects (VOC difficult, KITTI occlusion of at least 1), which evaluation leaves out of "
        "account: 2 of 3 validation objects; of 'person' all are, and nothing of it is measured"
    ]


@pytest.mark.parametrize(
    ("dropped", "reaching_out", "images"),
    [([Problem.OUTSIDE_IMAGE], 0, 1), ([], 2, 1), ([Problem.TOO_SMALL], 0, 0), ([], 0, 0)],
)
def test_turned_images_with_labels_out_of_the_stored_pixels_are_a_warning(
    dropped: list[Problem], reaching_out: int, images: int
) -> None:
    statistics = DatasetStatistics()
    findings = [Finding("l/1.txt", problem, "x", 1) for problem in dropped]
    turned = SampleOutcome(
        example=b"x", dropped=findings, clipped=2, reaching_out=reaching_out, oddities=(Oddity.TURNED,)
    )
    statistics.add(_sample("1"), turned, "training")
    # The same labels of an image that is stored upright are no sign of a turned view.
    statistics.add(_sample("2"), replace(turned, oddities=()), "training")
    report = statistics.to_report(MAPPING)
    assert report.turned_images == images
    named = [warning for warning in report.warnings if "as if they had been drawn" in warning]
    assert [warning.endswith(": 1 (i/1.jpg)") for warning in named] == [True] * images


def test_the_status_has_the_first_five_warnings_of_at_most_300_characters() -> None:
    report = _report(1, 0).model_copy(update={"warnings": ["a" * 300, "b" * 301, *"cdefg"]})
    status = to_status(report, "file:///out/dataset-report.html")
    assert status.warnings == 7
    assert status.first_warnings == ["a" * 300, f"{'b' * 297}...", "c", "d", "e"]


def test_a_report_of_an_earlier_release_is_still_read() -> None:
    stored = _report(3, 1).model_dump(mode="json", by_alias=True)
    for name in ("unusedRegions", "turnedImages"):
        del stored[name]
    for item in stored["classes"]:
        del item["difficult"]
    assert DatasetReport.model_validate(stored).unused_regions == 0


def test_a_warning_about_the_mapping_names_ten_classes_of_many() -> None:
    statistics = DatasetStatistics()
    names = [f"c{number:02}" for number in range(30)]
    statistics.add(_sample(), SampleOutcome(example=b"x", source_classes=names), "training")
    first = statistics.to_report(MAPPING).warnings[0]
    assert first == (
        "targetClassMapping: no label uses 'car', 'man', 'van', so that nothing of 'person', 'vehicle' is "
        "learnt or measured; the labels' classes are: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, ..."
    )


def test_a_rare_class_is_a_warning() -> None:
    statistics = DatasetStatistics()
    statistics.add(_sample(), SampleOutcome(example=b"x", objects=[0] + [1] * 101), "training")
    warned = [warning for warning in statistics.to_report(MAPPING).warnings if "hardly" in warning]
    assert warned == [
        "classes are far from balanced: 1 training objects of 'person', 101 of 'vehicle'; the rare one will "
        "hardly be learnt"
    ]


def test_the_status_summarises_the_report_of_refused_data_too() -> None:
    statistics = DatasetStatistics()
    cut = Finding("i/0.jpg", Problem.TRUNCATED_IMAGE, "cut off")
    statistics.add_listings([_listing([_sample()], images=2, skipped=[cut])])
    unread = Finding("l/1.txt", Problem.WRONG_COLUMNS, "seven", 1)
    converted = SampleOutcome(
        example=b"x", dropped=[unread], objects=[1, 1], source_classes=["car", "van", "dog"]
    )
    statistics.add(_sample(), converted, "training")
    report = statistics.to_report(MAPPING)
    status = to_status(report, "file:///out/dataset-report.html")
    assert (status.images, status.training_images, status.validation_images) == (1, 1, 0)
    # The unmapped dog and the line that cannot be read.
    assert (status.objects, status.skipped, status.dropped_objects) == (2, 1, 2)
    assert [(item.name, item.objects) for item in status.classes or ()] == [("person", 0), ("vehicle", 2)]
    # No man in the labels, and so no person; no vehicle in validation; an image left out; a line that is
    # background.
    assert (status.warnings, status.digest, status.records_uri) == (4, None, None)
    assert status.report_uri == "file:///out/dataset-report.html"


_problems = st.sampled_from([Problem.INVERTED_BOX, Problem.TOO_SMALL, Problem.WRONG_COLUMNS])
_skipped = st.builds(
    SampleOutcome, skipped=st.builds(Finding, st.text(), st.just(Problem.EMPTY_FILE), st.text())
)
_used = st.builds(
    SampleOutcome,
    example=st.just(b"x"),
    dropped=st.lists(st.builds(Finding, st.text(), _problems, st.text(), st.integers(1, 9)), max_size=3),
    objects=st.lists(st.integers(0, 1), max_size=3),
    sizes=st.lists(st.tuples(st.floats(1, 4096), st.floats(1, 4096)), max_size=3),
    source_classes=st.lists(st.sampled_from(["car", "man", "dog", "N/A"]), max_size=3),
    clipped=st.integers(0, 2),
    ignored=st.integers(0, 2),
    oddities=st.lists(st.sampled_from(list(Oddity)), max_size=2, unique=True).map(tuple),
)
_added = st.lists(st.tuples(_skipped | _used, st.sampled_from(["training", "validation"])), max_size=3)


def _tally(added: list[tuple[SampleOutcome, str]]) -> DatasetStatistics:
    statistics = DatasetStatistics()
    for number, (converted, subset) in enumerate(added):
        statistics.add(_sample(str(number)), converted, "training" if subset == "training" else "validation")
    return statistics


def _merged(*tallies: DatasetStatistics) -> DatasetStatistics:
    result = DatasetStatistics()
    for statistics in tallies:
        result.merge(statistics)
    return result


@settings(max_examples=60, deadline=None)
@given(_added, _added, _added)
def test_merging_statistics_is_associative_and_equal_to_counting_at_once(
    first: list[tuple[SampleOutcome, str]],
    second: list[tuple[SampleOutcome, str]],
    third: list[tuple[SampleOutcome, str]],
) -> None:
    one, two, three = _tally(first), _tally(second), _tally(third)
    left = _merged(_merged(one, two), three)
    assert left == _merged(one, _merged(two, three))
    assert left.to_report(MAPPING).lines == sum(item.to_report(MAPPING).lines for item in (one, two, three))


@settings(max_examples=60, deadline=None)
@given(_added)
def test_statistics_are_unchanged_after_writing_and_reading(added: list[tuple[SampleOutcome, str]]) -> None:
    statistics = _tally(added)
    statistics.add_listings(
        [_listing([_sample()], 3, orphans=[Finding("l/9", Problem.LABEL_WITHOUT_IMAGE, "x")])]
    )
    statistics.add_duplicates(["a"], ["b"])
    back = DatasetStatistics.model_validate_json(statistics.model_dump_json())
    assert back == statistics
    back.merge(statistics)
    assert back.usable_images.total() == 2 * statistics.usable_images.total()


def test_lists_end_at_the_limit_and_counts_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "LISTED", 3)
    one, two = DatasetStatistics(), DatasetStatistics()
    for number in range(2):
        dropped = [Finding(f"l/{number}", Problem.INVERTED_BOX, "x", line) for line in range(2)]
        one.add(_sample(str(number)), SampleOutcome(example=b"x", dropped=dropped), "training")
        two.add(_sample(str(number)), SampleOutcome(example=b"x", dropped=dropped), "training")
    one.merge(two)
    report = one.to_report(MAPPING)
    assert len(report.dropped) == 3
    assert report.dropped_by_problem == {Problem.INVERTED_BOX: 8}


def test_images_that_no_list_names_are_counted_and_reported() -> None:
    statistics = DatasetStatistics()
    statistics.add_listings([replace(_listing([]), unlisted=3)])
    report = statistics.to_report(MAPPING)
    assert (report.images, report.unlisted_images) == (0, 3)
    assert "images are in none of the lists (imageSet) and were not used: 3" in report.warnings
