"""Images without a label: background, bad, or no part of the data set; and never background by mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.preparation import sources
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.report.report import to_status
from tlt_runner.data.report.statistics import DatasetStatistics
from tlt_runner.data.sample import Labels, Problem, SampleOutcome
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

LINE = "0 0.5 0.5 0.25 0.5\n"
KITTI = "car 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n"
VOC = "<annotation></annotation>"
FORMATS = {"yolo": (".txt", LINE), "kitti": (".txt", KITTI), "voc": (".xml", VOC)}


def _make(root: Path, images: str, labels: str, form: str = "yolo", part: str = "") -> None:
    """Make images and labels of these names, separated by spaces."""
    suffix, content = FORMATS[form]
    for folder, names, ending in (("i", images, ".jpg"), ("l", labels, suffix)):
        for name in names.split():
            path = root / folder / part / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if folder == "l" else "")


def _find(root: Path, form: str = "yolo", **fields: Any) -> list[Source]:
    dataset = Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "format": form,
            "images": "i",
            "labels": "l",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
            **({"classNames": ["car"]} if form == "yolo" else {}),
            **fields,
        }
    )
    return sources.find(dataset, Storage(scratch=root / ".scratch"))


def _stems(source: Source) -> str:
    return " ".join(sample.stem for sample in source.listing.samples)


def test_an_image_without_a_label_file_has_no_objects_in_yolo(tmp_path: Path) -> None:
    _make(tmp_path, "a b c", "a")
    (source,) = _find(tmp_path)
    listing = source.listing
    assert (_stems(source), listing.images, listing.skipped) == ("a b c", 3, [])
    assert listing.unlabelled == ["i/b.jpg", "i/c.jpg"]
    assert [len(source.reader.read(sample, (9, 9)).boxes) for sample in listing.samples] == [1, 0, 0]
    assert source.reader.read(listing.samples[1], (9, 9)) == Labels()
    assert source.reader.classes(listing.samples[1]).total() == 0
    assert [name for name, _ in listing.label_files] == ["l/a.txt"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("unlabelled", "used", "bad"), [("background", "a b c", 0), ("bad", "a", 2)])
def test_every_format_takes_images_without_a_label_as_the_data_set_says(
    form: str, unlabelled: str, used: str, bad: int, tmp_path: Path
) -> None:
    _make(tmp_path, "a b c", "a", form)
    (source,) = _find(tmp_path, form, unlabelled=unlabelled)
    assert (_stems(source), source.listing.images) == (used, 3)
    assert [finding.problem for finding in source.listing.skipped] == [Problem.NO_LABEL] * bad


@pytest.mark.parametrize("form", ["kitti", "voc"])
def test_an_image_without_a_label_is_bad_in_formats_whose_tools_write_one_for_each(
    form: str, tmp_path: Path
) -> None:
    _make(tmp_path, "a b", "a", form)
    (source,) = _find(tmp_path, form)
    assert (_stems(source), len(source.listing.skipped)) == ("a", 1)


def test_without_any_label_nothing_is_background(tmp_path: Path) -> None:
    _make(tmp_path, "a b", "")
    (tmp_path / "l").mkdir()
    for fields in ({}, {"unlabelled": "background"}):
        with pytest.raises(RunnerError) as caught:
            _find(tmp_path, **fields)
        assert caught.value.reason == Reason.NO_LABELS
        assert caught.value.message.endswith(
            "there is: no file; i/a.jpg: expected l/a.txt, which does not exist"
        )


def test_labels_of_other_names_do_not_make_their_images_background(tmp_path: Path) -> None:
    _make(tmp_path, "a b c d", "a b c_jpg d_jpg")
    (source,) = _find(tmp_path)
    assert _stems(source) == "a b"
    assert [str(finding) for finding in source.listing.skipped] == [
        f"i/{name}.jpg: NoLabel: expected l/{name}.txt, which does not exist; labels without an image: 2, so "
        "the names may not match"
        for name in "cd"
    ]
    # The data set may say that it knows.
    (source,) = _find(tmp_path, unlabelled="background")
    assert _stems(source) == "a b c d"


def test_fewer_strange_labels_than_images_without_label_are_only_reported(tmp_path: Path) -> None:
    _make(tmp_path, "a b c d", "a x y")
    (source,) = _find(tmp_path)
    assert (_stems(source), len(source.listing.orphans)) == ("a b c d", 2)


def test_the_failure_shows_labels_that_lead_to_no_image(tmp_path: Path) -> None:
    _make(tmp_path, "a b", " ".join(f"{name}_jpg" for name in "abcdefgh"))
    with pytest.raises(RunnerError) as caught:
        _find(tmp_path)
    assert caught.value.message.endswith(
        "there is: 8 .txt files; i/a.jpg: expected l/a.txt, which does not exist; labels without an image: "
        "8, so the names may not match; labels that lead to no image: "
        + "; ".join(
            f"l/{name}_jpg.txt: LabelWithoutImage: expected i/{name}_jpg with one of .jpg, .jpeg, .png"
            for name in "abcdefg"
        )
        + "; and 1 more"
    )


def test_a_label_that_cannot_be_opened_makes_its_image_bad_and_not_background(tmp_path: Path) -> None:
    _make(tmp_path, "a b c s/d", "a")
    (tmp_path / "l/b.txt").symlink_to("nowhere")
    (tmp_path / "l/d.txt").symlink_to("nowhere")
    (source,) = _find(tmp_path)
    assert (_stems(source), source.listing.unlabelled) == ("a c", ["i/c.jpg"])
    assert [finding.file for finding in source.listing.skipped] == ["i/b.jpg", "i/s/d.jpg"]


def test_a_folder_of_labels_that_is_not_followed_makes_all_images_without_label_bad(tmp_path: Path) -> None:
    _make(tmp_path, "a b", "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "l/more").symlink_to(tmp_path / "elsewhere")
    (source,) = _find(tmp_path)
    assert (_stems(source), [finding.file for finding in source.listing.skipped]) == ("a", ["i/b.jpg"])


def test_a_folder_within_the_images_keeps_its_own_images_without_label(tmp_path: Path) -> None:
    _make(tmp_path, "a b", "a")
    _make(tmp_path, "c d", "c", part="val")
    parts = _find(tmp_path, validation={"images": "i/val", "labels": "l/val"})
    assert [_stems(part) for part in parts] == ["a b", "c d"]
    assert [part.listing.images for part in parts] == [2, 2]


def test_two_folders_of_labels_divide_one_of_images_and_what_has_none_is_trained_on(tmp_path: Path) -> None:
    _make(tmp_path, "a b c", "")
    for folder, name in (("lt", "a"), ("lv", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.txt").write_text(LINE)
    parts = _find(tmp_path, labels="lt", validation={"images": "i", "labels": "lv"})
    assert [_stems(part) for part in parts] == ["a c", "b"]
    assert [part.listing.images for part in parts] == [2, 1]


def test_the_same_images_and_labels_for_both_are_refused_with_images_without_label(tmp_path: Path) -> None:
    _make(tmp_path, "a b", "a")
    with pytest.raises(RunnerError) as caught:
        _find(tmp_path, validation={"images": "i", "labels": "l"})
    assert caught.value.reason == Reason.INVALID_SPEC


def _coco(root: Path, file: str, *names: str) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    boxes = [{"image_id": number, "category_id": 1, "bbox": [0, 0, 9, 9]} for number in range(len(names))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
    (root / file).write_text(json.dumps(content))


def test_images_that_no_coco_file_lists_are_selected_and_counted_with_the_others(tmp_path: Path) -> None:
    _make(tmp_path, "a b c d", "")
    _coco(tmp_path, "all.json", "a.jpg", "b.jpg")
    (tmp_path / "train.txt").write_text("a\nc\n")
    (source,) = _find(tmp_path, "coco", labels="all.json", imageSet="train.txt")
    assert (_stems(source), source.listing.outside, source.listing.unlisted) == ("a", ["i/c.jpg"], 2)
    (tmp_path / "val.txt").write_text("b\nd\n")
    parts = _find(tmp_path, "coco", labels="all.json", validation={"imageSet": "val.txt"})
    assert [(_stems(part), part.listing.outside) for part in parts] == [
        ("a", ["i/c.jpg"]),
        ("b", ["i/d.jpg"]),
    ]


def test_two_coco_files_divide_one_folder_and_what_neither_lists_counts_once(tmp_path: Path) -> None:
    _make(tmp_path, "a b c", "")
    _coco(tmp_path, "t.json", "a.jpg")
    _coco(tmp_path, "v.json", "b.jpg")
    parts = _find(tmp_path, "coco", labels="t.json", validation={"images": "i", "labels": "v.json"})
    assert [(_stems(part), part.listing.outside) for part in parts] == [("a", []), ("b", ["i/c.jpg"])]
    assert [part.listing.images for part in parts] == [1, 1]


def test_images_not_listed_are_bad_where_as_many_entries_have_no_image(tmp_path: Path) -> None:
    _make(tmp_path, "a b", "")
    _coco(tmp_path, "all.json", "a.jpg", "x.jpg")
    (source,) = _find(tmp_path, "coco", labels="all.json")
    assert (source.listing.outside, source.listing.images) == ([], 2)
    assert [str(finding) for finding in source.listing.skipped] == [
        "i/b.jpg: NoLabel: expected an entry of a label file, got none; labels without an image: 1, so the "
        "names may not match"
    ]


def test_a_coco_file_of_other_images_is_refused_with_its_exact_finding(tmp_path: Path) -> None:
    _make(tmp_path, "a b", "")
    _coco(tmp_path, "all.json", "x.jpg", "y.jpg", "z.jpg", "w.jpg")
    with pytest.raises(RunnerError) as caught:
        _find(tmp_path, "coco", labels="all.json")
    assert caught.value.reason == Reason.NO_LABELS
    assert (
        "labels that lead to no image: all.json: LabelWithoutImage: images[0] (id 0): expected i/x.jpg, "
        "which does not exist, nor does an image of that name or stem in another folder or with another "
        "extension; annotations that go with it: 1; all.json: "
    ) in caught.value.message
    assert caught.value.message.endswith("annotations that go with it: 1; and 2 more")
    assert "file_name" in caught.value.hint


def test_images_without_label_and_images_not_listed_reach_report_and_status(tmp_path: Path) -> None:
    _make(tmp_path, "a b c", "a")
    (source,) = _find(tmp_path)
    statistics = DatasetStatistics()
    statistics.add_listings([source.listing])
    for sample in source.listing.samples:
        statistics.add(sample, SampleOutcome(example=b"x"), "training")
    report = statistics.to_report(ClassMapping({"car": "car"}))
    assert (report.unlabelled_images, report.unlabelled) == (2, ["i/b.jpg", "i/c.jpg"])
    sentence = (
        "images without a label, taken as images without objects (dataset.unlabelled): 2 (i/b.jpg, i/c.jpg)"
    )
    assert sentence in report.warnings
    status = to_status(report, "file:///r.html")
    assert (status.images, status.unlabelled_images, status.unlisted_images) == (3, 2, 0)
