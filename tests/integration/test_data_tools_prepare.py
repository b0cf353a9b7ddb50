"""From a tool's export to records: what is refused says why in full, and no hint makes objects background."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fakes import RecordingReporter
from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_api.runreport import RunReport, to_termination_message
from tlt_api.status import DatasetStatus, Failure
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

FIXTURES = Path(__file__).parents[1] / "fixtures"


def _dataset(root: Path, **fields: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "car", "traffic light": "light"},
            "imageSize": {"width": 64, "height": 64},
            "validation": {"fraction": 0.4},
            **fields,
        }
    )


def _prepare(dataset: Dataset, tmp_path: Path) -> tuple[DatasetReport, DatasetStatus]:
    reporter = RecordingReporter()
    prepare(dataset, Storage(scratch=tmp_path / "scratch"), f"file://{tmp_path}/out", reporter)
    return _report(tmp_path), reporter.last(DatasetStatus)


def _report(tmp_path: Path) -> DatasetReport:
    return DatasetReport.model_validate_json((tmp_path / "out/dataset-report.json").read_bytes())


def _refused(dataset: Dataset, tmp_path: Path) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        _prepare(dataset, tmp_path)
    # The message reaches the pod's status whole.
    failure = Failure(reason=caught.value.reason, message=caught.value.message, hint=caught.value.hint)
    assert caught.value.message in to_termination_message(RunReport(failure=failure)).replace('\\"', '"')
    assert len(caught.value.message) <= 2000
    return caught.value


def _mixed(root: Path) -> Path:
    """Label Studio's export with a box for the first object of each image and a polygon for the second."""
    shutil.copytree(FIXTURES / "label-studio", root)
    for label in (root / "labels").iterdir():
        boxes, outlines = (
            (root / folder / label.name).read_text().splitlines() for folder in ("labels", "polygons")
        )
        if boxes:
            label.write_text(f"{boxes[0]}\n{outlines[1]}\n")
    return root


def test_outlines_are_refused_with_the_whole_reason_and_what_to_set(tmp_path: Path) -> None:
    data = _dataset(FIXTURES / "label-studio", format="yolo", labels="polygons")
    error = _refused(data, tmp_path)
    assert error.reason == Reason.BAD_SAMPLES
    assert (
        "images/8f1a2b30-street 0.jpg: NotABox: polygons/8f1a2b30-street 0.txt:1: expected 5 columns (class "
        "cx cy w h) or 6 (with a score), got 9: a rotated box or a polygon; dataset.shapes: boundingBox "
        "takes the box around it: 0 0.0625 0.125 0.375 0.125"
    ) in error.message
    assert "set dataset.shapes: boundingBox, or export boxes from the tool" in error.hint
    assert "relax" not in error.hint


def test_no_outline_is_background_however_many_bad_samples_are_allowed(tmp_path: Path) -> None:
    root = _mixed(tmp_path / "set")
    # An image whose labels are boxes only, so that something can be trained on.
    shutil.copy(FIXTURES / "label-studio/labels/8f1a2b30-street 0.txt", root / "labels")
    for name in ("1", "2"):
        cv2.imwrite(str(root / f"images/{name}.jpg"), np.full((24, 32, 3), int(name), np.uint8))
        (root / f"labels/{name}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    report, status = _prepare(_dataset(root, format="yolo", badSamples={"maxFraction": 1.0}), tmp_path)
    assert report.skipped_by_problem == {"NotABox": 3}
    # Two boxes of street 0, one of 1 and of 2; street 2 has none.
    assert (report.images, report.usable_images, report.objects, report.images_without_objects) == (
        7,
        4,
        4,
        1,
    )
    assert (report.dropped_by_problem, status.skipped) == ({}, 3)
    assert [warning for warning in report.warnings if warning.startswith("images left out")] == [
        "images left out, whose objects are not learnt (the reasons are in the report): 3 "
        "(images/8f1a2b31-street 1.jpg, images/8f1a2b33-street 3.jpg, images/8f1a2b34-street 4.jpg)"
    ]


@pytest.mark.parametrize("mixed", [True, False])
def test_outlines_are_trained_on_as_boxes_where_asked(mixed: bool, tmp_path: Path) -> None:
    root = _mixed(tmp_path / "set") if mixed else FIXTURES / "label-studio"
    fields = {} if mixed else {"labels": "polygons"}
    report, _ = _prepare(_dataset(root, format="yolo", shapes="boundingBox", **fields), tmp_path)
    assert (report.objects, report.bad_images, report.outlines) == (8, 0, 4 if mixed else 8)
    assert report.notes == [
        "class names are those of classes.txt",
        f"{4 if mixed else 8} objects have the bounding box of their polygon or rotated box",
    ]
    page = (tmp_path / "out/dataset-report.html").read_text()
    assert all(note in page for note in report.notes)


def test_records_of_outlines_are_not_those_without(tmp_path: Path) -> None:
    root = tmp_path / "set"
    _mixed(root)
    digests = []
    for shapes in ("refuse", "boundingBox"):
        data = _dataset(root, format="yolo", shapes=shapes, badSamples={"maxFraction": 1.0})
        data = data.model_copy(update={"class_names": ["car", "traffic light"]})
        shutil.copy(FIXTURES / "label-studio/labels/8f1a2b30-street 0.txt", root / "labels")
        shutil.copy(FIXTURES / "label-studio/labels/8f1a2b31-street 1.txt", root / "labels")
        digests.append(_prepare(data, tmp_path)[1].digest)
    assert digests[0] != digests[1]


def test_a_data_set_of_masks_that_are_crowds_says_so(tmp_path: Path) -> None:
    data = _dataset(
        FIXTURES / "datumaro/coco", format="coco", images="images/train", labels="mask/instances_train.json"
    )
    error = _refused(data, tmp_path)
    assert error.reason == Reason.NO_LABELS
    assert (
        "the labels have 8 ignored regions (iscrowd, DontCare); mask/instances_train.json: all 8"
        in error.message
    )
    assert error.message.endswith("or set iscrowd to 0 where one annotation marks one object")
    assert "labels is the folder" not in error.hint


def test_half_a_data_set_of_masks_is_a_warning_that_is_seen(tmp_path: Path) -> None:
    data = _dataset(
        FIXTURES / "datumaro/coco", format="coco", images="images/train", labels="half/instances_train.json"
    )
    report, status = _prepare(data, tmp_path)
    assert (report.objects, report.ignored_regions) == (4, 4)
    assert report.warnings[0].startswith("half/instances_train.json: 4 of 8 annotations have iscrowd: 1 (")
    assert status.warnings == len(report.warnings)


def test_images_without_a_label_reach_report_status_and_page(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(FIXTURES / "label-studio", root)
    (root / "labels/8f1a2b32-street 2.txt").unlink()
    report, status = _prepare(_dataset(root, format="yolo"), tmp_path)
    assert (report.images, report.usable_images, report.bad_images, report.objects) == (5, 5, 0, 8)
    assert (report.unlabelled, status.unlabelled_images) == (["images/8f1a2b32-street 2.jpg"], 1)
    error = _refused(_dataset(root, format="yolo", unlabelled="bad"), tmp_path)
    assert "images/8f1a2b32-street 2.jpg: NoLabel: expected labels/8f1a2b32-street 2.txt" in error.message
    assert "Images without a label: if they show no object, set dataset.unlabelled: background." in error.hint
    assert error.hint.endswith("the images named are left out, with all their objects.")


def test_images_that_no_coco_file_lists_reach_report_and_status(tmp_path: Path) -> None:
    data = _dataset(FIXTURES / "datumaro/coco", format="coco", labels="annotations/instances_train.json")
    report, status = _prepare(data, tmp_path)
    assert (report.images, report.bad_images, report.outside_images) == (5, 0, 2)
    assert (status.unlisted_images, status.skipped) == (2, 0)
    assert (
        "images that no label file lists, which are no part of the data set: 2 "
        "(images/valid/05.jpg, images/valid/06.jpg)"
    ) in report.warnings


def test_lines_that_are_wrong_are_a_warning_and_no_hint_to_allow_more(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(FIXTURES / "label-studio", root)
    label = root / "labels/8f1a2b33-street 3.txt"
    label.write_text(label.read_text() + "1 0.5 0.5 0.1\n1 1.5 0.5 0.1 0.1\n")
    error = _refused(_dataset(root, format="yolo"), tmp_path)
    assert "labels/8f1a2b33-street 3.txt: lines 3, 4: WrongColumns: expected 5 columns" in error.message
    assert "Do not raise badSamples.maxFraction for label lines that are wrong" in error.hint
    data = _dataset(root, format="yolo", badSamples={"maxFraction": 0.5})
    report, _ = _prepare(data, tmp_path)
    assert (
        "label lines dropped as wrong, whose objects are background in the images that are used: 2 "
        "(labels/8f1a2b33-street 3.txt)"
    ) in report.warnings


@pytest.mark.parametrize("broken", [0, 1])
def test_a_coco_file_that_cannot_be_read_makes_its_images_bad_and_not_absent(
    broken: int, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    shutil.copytree(FIXTURES / "datumaro/coco", root)
    name = ("instances_train.json", "instances_valid.json")[broken]
    path = root / "annotations" / name
    path.write_bytes(path.read_bytes()[:-20])
    error = _refused(_dataset(root, format="coco"), tmp_path)
    assert error.reason == Reason.BAD_SAMPLES
    assert f"{(5, 2)[broken]} of 7 images" in error.message
    assert f"annotations/{name}: line 1: UnreadableLabel: expected JSON, column" in error.message
    assert f", got none; annotations/{name} may have one and cannot be used" in error.message
    # Not even where the data set says so are they background.
    assert "unlabelled" not in error.hint
    error = _refused(_dataset(root, format="coco", unlabelled="background"), tmp_path)
    assert f"{(5, 2)[broken]} of 7 images" in error.message
