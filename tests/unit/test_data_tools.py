"""Exports of annotation tools, YOLO and COCO: every box is read, as the tools' own writers left them.

The fixtures are the same boxes, written by datumaro (CVAT's formats), label-studio-converter, labelImg and
pylabel; see tests/fixtures/README.md. Roboflow and darknet have no writer on PyPI: theirs are made here.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.preparation import sources
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.sample import Problem
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

FIXTURES = Path(__file__).parents[1] / "fixtures"
HEIGHT, WIDTH = 24, 32
Boxes = list[tuple[str, float, float, float, float]]


def _find(root: Path, tmp_path: Path, **fields: Any) -> list[Source]:
    dataset = Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
            **fields,
        }
    )
    return sources.find(dataset, Storage(scratch=tmp_path / ".scratch"))


def _failure(root: Path, tmp_path: Path, **fields: Any) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        _find(root, tmp_path, **fields)
    return caught.value


def _boxes(source: Source) -> dict[int, Boxes]:
    """Number of the image -> class, left, top, width and height of its boxes; nothing else is found."""
    boxes = {}
    listing = source.listing
    assert (listing.skipped, listing.orphans, listing.findings) == ([], [], [])
    for sample in listing.samples:
        labels = source.reader.read(sample, (HEIGHT, WIDTH))
        assert labels.findings == ()
        boxes[int(sample.stem[-1])] = [
            (box.class_name, box.yxyx[1], box.yxyx[0], box.yxyx[3] - box.yxyx[1], box.yxyx[2] - box.yxyx[0])
            for box in labels.boxes
        ]
    return boxes


def _drawn(*numbers: int, step: int = 1) -> dict[int, Boxes]:
    """What the fixtures show, by the number of the image; Label Studio's lights do not move (step 0)."""
    return {
        number: []
        if number in (2, 6)
        else [
            ("car", 2.0 + number, 3.0, 10.0, 8.0),
            ("traffic light", 14.0, 10.0 + step * (number % 3), 12.0, 9.0),
        ]
        for number in numbers
    }


def _assert_equal(boxes: dict[int, Boxes], expected: dict[int, Boxes], pixels: float = 1e-9) -> None:
    assert {number: [box[0] for box in items] for number, items in boxes.items()} == {
        number: [box[0] for box in items] for number, items in expected.items()
    }
    for number, items in boxes.items():
        for box, drawn in zip(items, expected[number], strict=True):
            assert box[1:] == pytest.approx(drawn[1:], abs=pixels)


SIX_DECIMALS = 1.5e-6 * WIDTH
FOUR_DECIMALS = 1.5e-4 * WIDTH


def test_cvats_yolo_export_is_read_by_its_lists(tmp_path: Path) -> None:
    root = FIXTURES / "datumaro/yolo"
    training, validation = _find(
        root,
        tmp_path,
        format="yolo",
        images="obj_train_data",
        labels="obj_train_data",
        imageSet="train.txt",
        validation={"images": "obj_valid_data", "labels": "obj_valid_data"},
    )
    _assert_equal(_boxes(training), _drawn(0, 1, 2, 3, 4), SIX_DECIMALS)
    _assert_equal(_boxes(validation), _drawn(5, 6), SIX_DECIMALS)
    assert training.listing.notes == ["class names are those of obj.data and obj.names"]
    assert {name for name, _ in training.listing.label_files} >= {"obj.data", "obj.names"}


def test_darknet_lists_divide_a_folder_with_labels_beside_the_images(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "datumaro/yolo", tmp_path / "set")
    (tmp_path / "set/train.txt").write_text("".join(f"data/obj_train_data/{n:02}.jpg\n" for n in (0, 1)))
    (tmp_path / "set/val.txt").write_text("/home/me/darknet/data/obj_train_data/04.jpg\n")
    training, validation = _find(
        tmp_path / "set",
        tmp_path,
        format="yolo",
        images="obj_train_data",
        labels="obj_train_data",
        imageSet="train.txt",
        validation={"imageSet": "val.txt"},
    )
    _assert_equal(_boxes(training), _drawn(0, 1), SIX_DECIMALS)
    _assert_equal(_boxes(validation), _drawn(4), SIX_DECIMALS)
    assert training.listing.unlisted == 2


def test_ultralytics_folders_are_read_as_one_or_as_two(tmp_path: Path) -> None:
    root = FIXTURES / "datumaro/ultralytics"
    (whole,) = _find(root, tmp_path, format="yolo")
    _assert_equal(_boxes(whole), _drawn(0, 1, 2, 3, 4, 5, 6), SIX_DECIMALS)
    parts = _find(
        root,
        tmp_path,
        format="yolo",
        images="images/train",
        labels="labels/train",
        validation={"images": "images/val", "labels": "labels/val"},
    )
    _assert_equal(_boxes(parts[0]), _drawn(0, 1, 2, 3, 4), SIX_DECIMALS)
    _assert_equal(_boxes(parts[1]), _drawn(5, 6), SIX_DECIMALS)
    assert [part.listing.notes for part in parts] == [["class names are those of data.yaml"]] * 2


def test_label_studios_yolo_export_is_read(tmp_path: Path) -> None:
    (source,) = _find(FIXTURES / "label-studio", tmp_path, format="yolo")
    _assert_equal(_boxes(source), _drawn(0, 1, 2, 3, 4, step=0))
    assert source.listing.notes == ["class names are those of classes.txt"]


@pytest.mark.parametrize("beside", [True, False])
def test_labelimgs_labels_are_read_with_the_image_that_has_none(beside: bool, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "label-studio/images", tmp_path / "images")
    labels = tmp_path / ("images" if beside else "labels")
    shutil.copytree(FIXTURES / "labelimg", labels, dirs_exist_ok=True)
    for number, image in enumerate(sorted((tmp_path / "images").glob("*.jpg"))):
        image.rename(tmp_path / f"images/{number:02}.jpg")
    (source,) = _find(tmp_path, tmp_path, format="yolo", labels=labels.name)
    _assert_equal(_boxes(source), _drawn(0, 1, 2, 3, 4), SIX_DECIMALS)
    assert source.listing.unlabelled == ["images/02.jpg"]
    assert source.listing.notes == [f"class names are those of {labels.name}/classes.txt"]


def test_pylabels_yolo_export_is_read_with_classes_written_as_fractions(tmp_path: Path) -> None:
    (source,) = _find(FIXTURES / "pylabel", tmp_path, format="yolo")
    _assert_equal(_boxes(source), _drawn(0, 1, 2, 3, 4), FOUR_DECIMALS)
    assert source.listing.notes == ["class names are those of dataset.yaml"]


def test_datumaros_coco_export_is_read(tmp_path: Path) -> None:
    training, validation = _find(
        FIXTURES / "datumaro/coco",
        tmp_path,
        format="coco",
        images="images/train",
        labels="annotations",
        validation={"images": "images/valid", "labels": "annotations"},
    )
    _assert_equal(_boxes(training), _drawn(0, 1, 2, 3, 4))
    _assert_equal(_boxes(validation), _drawn(5, 6))
    assert [part.listing.warnings for part in (training, validation)] == [[], []]


def test_label_studios_coco_export_is_read(tmp_path: Path) -> None:
    (source,) = _find(FIXTURES / "label-studio", tmp_path, format="coco", labels="result.json")
    _assert_equal(_boxes(source), _drawn(0, 1, 2, 3, 4, step=0))
    assert source.listing.notes == []


def test_images_that_a_coco_file_does_not_list_are_no_part(tmp_path: Path) -> None:
    labels = "annotations/instances_train.json"
    (source,) = _find(FIXTURES / "datumaro/coco", tmp_path, format="coco", labels=labels)
    _assert_equal(_boxes(source), _drawn(0, 1, 2, 3, 4))
    assert source.listing.outside == ["images/valid/05.jpg", "images/valid/06.jpg"]
    assert source.listing.images == 5


OUTLINE = "expected 5 columns (class cx cy w h) or 6 (with a score), got 9: a rotated box or a polygon; "


def test_polygons_become_boxes_where_asked(tmp_path: Path) -> None:
    fields = {"format": "yolo", "labels": "polygons"}
    (source,) = _find(FIXTURES / "label-studio", tmp_path, **fields, shapes="boundingBox")
    _assert_equal(_boxes(source), _drawn(0, 1, 2, 3, 4, step=0))
    outlines = [source.reader.read(sample, (HEIGHT, WIDTH)).outlines for sample in source.listing.samples]
    assert outlines == [2, 2, 0, 2, 2]
    (refusing,) = _find(FIXTURES / "label-studio", tmp_path, **fields)
    labels = refusing.reader.read(refusing.listing.samples[0], (HEIGHT, WIDTH))
    assert [(finding.problem, finding.line) for finding in labels.findings] == [
        (Problem.NOT_A_BOX, n) for n in (1, 2)
    ]
    assert labels.findings[0].message.startswith(
        f"{OUTLINE}dataset.shapes: boundingBox takes the box around it: 0 0.06"
    )


@pytest.mark.parametrize(("file", "counts"), [("mask", "all 8"), ("half", "4 of 8")])
def test_masks_that_datumaro_writes_as_crowds_are_named(file: str, counts: str, tmp_path: Path) -> None:
    labels = f"{file}/instances_train.json"
    (source,) = _find(
        FIXTURES / "datumaro/coco", tmp_path, format="coco", images="images/train", labels=labels
    )
    (warning,) = source.listing.warnings
    assert warning.startswith(f"{labels}: {counts} annotations have iscrowd: 1 (")


def _write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode())


LINE = "1 0.5 0.5 0.25 0.5"


@pytest.mark.parametrize(
    ("files", "used"),
    [
        ({"data.yaml": "names: [bus, car]"}, "data.yaml"),
        ({"classes.txt": "bus\r\ncar\r\n\r\n"}, "classes.txt"),
        ({"labels/classes.txt": "bus\ncar"}, "labels/classes.txt"),
        ({"labels/t/classes.txt": "bus\ncar\n"}, "labels/t/classes.txt"),
        ({"images/t/_darknet.labels": "bus\ncar\n"}, "images/t/_darknet.labels"),
        ({"obj.names": "\ufeffbus\n car \n"}, "obj.names"),
        (
            {"obj.data": "classes= 2\nnames =cfg/my.names", "cfg/my.names": "bus\ncar"},
            "obj.data and cfg/my.names",
        ),
        ({"obj.data": "names = ..\\data\\my.names\n", "my.names": "bus\ncar"}, "obj.data and my.names"),
        ({"classes.txt": "bus\ncar", "data.yaml": "names: {0: bus, 1: car}"}, "data.yaml"),
    ],
)
def test_class_names_are_found_where_tools_leave_them(
    files: dict[str, str], used: str, tmp_path: Path
) -> None:
    _write(tmp_path, {"images/t/a.jpg": "", "labels/t/a.txt": LINE, **files})
    (source,) = _find(tmp_path, tmp_path, format="yolo", images="images/t", labels="labels/t")
    assert source.reader.classes(source.listing.samples[0]) == {"car": 1}
    assert source.listing.notes == [f"class names are those of {used}"]
    assert (source.listing.orphans, source.listing.side_files) == ([], [])
    assert {name for name, _ in source.listing.label_files} >= set(used.split(" and "))
    assert source.listing.other_files == source.listing.read_files


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"obj.names": "bus\ncar", "labels/classes.txt": "car\nbus\nvan"},
            "expected one list of classes, got two that differ: obj.names has 2 classes (0 bus, 1 car); "
            "labels/classes.txt has 3 classes (0 car, 1 bus, 2 van)",
        ),
        (
            {"obj.data": "classes = 3\nnames = data/obj.names", "obj.names": "bus\ncar"},
            "obj.data: expected as many names as classes says, '3', got 2 in obj.names",
        ),
        (
            {"obj.data": "names = x/y.names"},
            "obj.data: expected the list of classes at names = x/y.names, which",
        ),
        ({"obj.data": "classes = 1"}, "obj.data: expected a line names = ..., with the list of classes"),
        (
            {"obj.data": "names = ../../etc/passwd"},
            "obj.data: expected the list of classes at names = ../../etc/p",
        ),
        (
            {"classes.txt": "bus\n\ncar"},
            "classes.txt:2: expected a name of 1 to 128 characters for class 1, got an",
        ),
        ({"classes.txt": "a\0"}, "classes.txt:1: expected a name of 1 to 128 characters for class 0"),
        ({"classes.txt": "\n"}, "classes.txt: expected at least one class, one name a line"),
        (
            {"_darknet.labels": "x" * 129},
            "_darknet.labels:1: expected a name of 1 to 128 characters for class 0",
        ),
    ],
)
def test_class_names_that_contradict_or_cannot_be_read_are_refused(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    _write(tmp_path, {"images/a.jpg": "", "labels/a.txt": LINE, **files})
    failure = _failure(tmp_path, tmp_path, format="yolo")
    assert (failure.reason, failure.message[: len(message)]) == (Reason.INVALID_SPEC, message)
    assert "spec.dataset.classNames" in failure.hint


def test_a_list_beside_data_yaml_does_not_count_and_is_named(tmp_path: Path) -> None:
    names = {"data.yaml": "names: [bus, car]", "labels/classes.txt": "car\nbus\nvan"}
    _write(tmp_path, {"images/a.jpg": "", "labels/a.txt": LINE, **names})
    (source,) = _find(tmp_path, tmp_path, format="yolo")
    assert source.listing.notes == ["class names are those of data.yaml"]
    assert source.listing.warnings == [
        "labels/classes.txt has other class names than data.yaml, whose names are used"
    ]


def test_each_folder_of_roboflows_darknet_export_has_its_own_names(tmp_path: Path) -> None:
    for part, names in {"train": "bus\ncar", "valid": "car\nbus"}.items():
        _write(
            tmp_path, {f"{part}/{part}.jpg": "", f"{part}/{part}.txt": LINE, f"{part}/_darknet.labels": names}
        )
    training, validation = _find(
        tmp_path,
        tmp_path,
        format="yolo",
        images="train",
        labels="train",
        validation={"images": "valid", "labels": "valid"},
    )
    assert training.reader.classes(training.listing.samples[0]) == {"car": 1}
    assert validation.reader.classes(validation.listing.samples[0]) == {"bus": 1}
    assert training.listing.other_files == training.listing.read_files == 1


def test_roboflows_yolo_export_is_read_whatever_its_paths_say(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {"data.yaml": "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['bus', 'car']\n"},
    )
    for part in ("train", "valid"):
        _write(
            tmp_path,
            {f"{part}/images/{part}_jpg.rf.0a1b.jpg": "", f"{part}/labels/{part}_jpg.rf.0a1b.txt": LINE},
        )
    training, validation = _find(
        tmp_path,
        tmp_path,
        format="yolo",
        images="train/images",
        labels="train/labels",
        validation={"images": "valid/images", "labels": "valid/labels"},
    )
    for source in (training, validation):
        assert source.reader.classes(source.listing.samples[0]) == {"car": 1}


def test_roboflows_coco_export_has_its_file_beside_the_images(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        document = {
            "images": [{"id": 0, "file_name": f"{part}_jpg.rf.0a1b.jpg", "width": WIDTH, "height": HEIGHT}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4.5], "iscrowd": 0}],
            "categories": [{"id": 0, "name": "street", "supercategory": "none"}, {"id": 1, "name": "car"}],
        }
        files = {f"{part}/{part}_jpg.rf.0a1b.jpg": "", f"{part}/_annotations.coco.json": json.dumps(document)}
        _write(tmp_path, files)
    training, validation = _find(
        tmp_path,
        tmp_path,
        format="coco",
        images="train",
        labels="train",
        validation={"images": "valid", "labels": "valid/_annotations.coco.json"},
    )
    for source in (training, validation):
        assert source.reader.classes(source.listing.samples[0]) == {"car": 1}
        assert (source.listing.findings, source.listing.orphans) == ([], [])
        # The file beside the images is no file that was not read.
        assert source.listing.other_files == source.listing.read_files == 1
