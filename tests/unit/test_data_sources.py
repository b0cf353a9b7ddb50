"""Sources: the folders and lists of a data set, and the subset of each image."""

import json
from pathlib import Path
from typing import Any

import pytest

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data import formats
from tlt_runner.data.formats.coco import CocoReader
from tlt_runner.data.preparation import sources
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.sample import Problem
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

KITTI = "Car 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n"


def _write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode())


def _kitti(
    root: Path, *names: str, images: str = "training/image_2", labels: str = "training/label_2"
) -> None:
    for name in names:
        _write(root, {f"{images}/{name}.jpg": "", f"{labels}/{name}.txt": KITTI})


def _dataset(root: Path, **fields: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
            **fields,
        }
    )


def _find(root: Path, **fields: Any) -> list[Source]:
    return sources.find(_dataset(root, **fields), Storage(scratch=root / ".scratch"))


def _stems(source: Source) -> list[str]:
    return [sample.stem for sample in source.listing.samples]


def _failure(root: Path, **fields: Any) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        _find(root, **fields)
    return caught.value


def test_every_format_has_default_folders(tmp_path: Path) -> None:
    _kitti(tmp_path, "k")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    voc = f"<annotation><object><name>car</name>{box}</object></annotation>"
    coco = {
        "images": [{"id": 1, "file_name": "c.jpg", "width": 10, "height": 10}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9]}],
        "categories": [{"id": 3, "name": "car"}],
    }
    _write(tmp_path, {"JPEGImages/v.jpg": "", "Annotations/v.xml": voc})
    _write(tmp_path, {"images/c.jpg": "", "annotations/train.json": json.dumps(coco)})
    _write(tmp_path, {"labels/c.txt": "0 .5 .5 .1 .1", "data.yaml": "names: [car]"})
    by_format = {name: _find(tmp_path, format=name) for name in ("kitti", "voc", "coco", "yolo")}
    assert {name: _stems(source) for name, (source,) in by_format.items()} == {
        "kitti": ["k"],
        "voc": ["v"],
        "coco": ["c"],
        "yolo": ["c"],
    }
    for (source,) in by_format.values():
        (sample,) = source.listing.samples
        assert [name.lower() for name in source.reader.classes(sample)] == ["car"]


def test_the_root_itself_can_hold_images_and_labels(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", images=".", labels=".")
    (source,) = _find(tmp_path, images=".", labels="./")
    assert [(s.name, s.label_file) for s in source.listing.samples] == [("a", "a.txt")]


def test_names_in_the_spec_win_over_data_yaml(tmp_path: Path) -> None:
    _write(tmp_path, {"images/a.jpg": "", "labels/a.txt": "1 .5 .5 .1 .1", "data.yaml": "nonsense"})
    (source,) = _find(tmp_path, format="yolo", classNames=["bus", "car"])
    assert source.reader.classes(source.listing.samples[0]) == {"car": 1}
    assert [name for name, _ in source.listing.label_files] == ["labels/a.txt"]


def test_the_file_with_the_classes_counts_as_a_label_file(tmp_path: Path) -> None:
    for name in "ab":
        _write(tmp_path, {f"images/{name}.jpg": "", f"labels/{name}.txt": "1 .5 .5 .1 .1"})
    _write(tmp_path, {"data.yaml": "names: [bus, car]", "train.txt": "b"})
    (source,) = _find(tmp_path, format="yolo", imageSet="train.txt")
    assert source.listing.label_files == [
        ("labels/b.txt", tmp_path / "labels/b.txt"),
        ("data.yaml", tmp_path / "data.yaml"),
    ]


def test_yolo_without_class_names_is_refused_with_a_hint(tmp_path: Path) -> None:
    _write(tmp_path, {"images/a.jpg": "", "labels/t/a.txt": "", "names.txt": "car"})
    failure = _failure(tmp_path, format="yolo", labels="labels/t")
    assert failure.reason == Reason.INVALID_SPEC
    assert failure.message.startswith(
        "expected yolo's classes in dataset.classNames or in one of data.yaml, data.yml, dataset.yaml, "
        "obj.data, obj.names, classes.txt, _darknet.labels (in the root, images, labels, labels/t): "
    )
    assert failure.message.endswith("holds: images/, labels/, names.txt")


def test_coco_labels_are_a_file_or_a_folder_of_files(tmp_path: Path) -> None:
    storage = Storage(scratch=tmp_path / ".scratch")
    empty = json.dumps({"images": [], "annotations": [], "categories": []})
    _write(tmp_path, {"images/a.jpg": "", "a/2.json": empty, "a/1.JSON": empty, "a/readme.md": ""})
    dataset = _dataset(tmp_path, format="coco")
    folder = formats.open_reader(dataset, storage, "images", "a")
    file = formats.open_reader(dataset, storage, "images", "a/2.json")
    assert isinstance(folder, CocoReader)
    assert isinstance(file, CocoReader)
    assert folder.files == [("a/1.JSON", tmp_path / "a/1.JSON"), ("a/2.json", tmp_path / "a/2.json")]
    assert file.files == [("a/2.json", tmp_path / "a/2.json")]


def test_a_missing_folder_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    _kitti(tmp_path, "a")
    failure = _failure(tmp_path, images="training/image_3")
    assert failure.reason == Reason.DATASET_NOT_FOUND
    assert failure.message.endswith("holds: image_2/, label_2/")


def test_a_folder_without_images_is_reported_with_its_files(tmp_path: Path) -> None:
    _write(
        tmp_path, {"training/image_2/a.txt": "", "training/image_2/b.txt": "", "training/label_2/a.txt": ""}
    )
    failure = _failure(tmp_path)
    assert failure.reason == Reason.DATASET_NOT_FOUND
    assert failure.message.endswith("training/image_2, which has 2 .txt files")


def test_a_folder_of_unsupported_images_is_reported(tmp_path: Path) -> None:
    _write(tmp_path, {"training/image_2/a.bmp": "", "training/label_2/a.txt": KITTI})
    failure = _failure(tmp_path)
    assert failure.reason == Reason.DATASET_NOT_FOUND
    assert "training/image_2/a.bmp: UnsupportedImage: expected .jpg, .jpeg or .png" in failure.message


def test_labels_of_another_format_are_named(tmp_path: Path) -> None:
    _write(
        tmp_path, {"training/image_2/a.jpg": "", "training/label_2/a.xml": "", "training/label_2/b.xml": ""}
    )
    failure = _failure(tmp_path)
    assert failure.reason == Reason.NO_LABELS
    assert (
        "there is: 2 .xml files; training/image_2/a.jpg: expected training/label_2/a.txt" in failure.message
    )


def test_a_coco_folder_without_json_is_reported_with_its_files(tmp_path: Path) -> None:
    _write(tmp_path, {"images/a.jpg": "", "annotations/a.xml": ""})
    failure = _failure(tmp_path, format="coco")
    assert failure.reason == Reason.NO_LABELS
    assert failure.message.endswith("annotations, which has 1 .xml file")


def test_only_images_of_the_list_are_used_and_the_others_are_counted(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "b", "c", "d")
    _write(tmp_path, {"training/image_2/bare.jpg": "", "train.txt": "a\nc\nbare\n"})
    (source,) = _find(tmp_path, imageSet="train.txt")
    listing = source.listing
    assert (_stems(source), source.subset) == (["a", "c"], None)
    assert (listing.images, listing.unlisted) == (3, 2)
    assert [finding.problem for finding in listing.skipped] == [Problem.NO_LABEL]
    assert [name for name, _ in listing.label_files] == ["training/label_2/a.txt", "training/label_2/c.txt"]


def test_two_lists_divide_a_folder(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "b", "c", "d")
    _write(tmp_path, {"train.txt": "a\nb\n", "val.txt": "c\n", "training/label_2/z.txt": ""})
    training, validation = _find(tmp_path, imageSet="train.txt", validation={"imageSet": "val.txt"})
    assert (_stems(training), training.subset) == (["a", "b"], "training")
    assert (_stems(validation), validation.subset) == (["c"], "validation")
    assert (training.listing.unlisted, validation.listing.unlisted) == (1, 0)
    assert (len(training.listing.orphans), len(validation.listing.orphans)) == (1, 0)


def test_a_list_for_validation_alone_leaves_all_others_for_training(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "b", "c")
    _write(tmp_path, {"val.txt": "b\n"})
    training, validation = _find(tmp_path, validation={"imageSet": "val.txt"})
    assert (_stems(training), _stems(validation)) == (["a", "c"], ["b"])
    assert training.listing.unlisted == 0


def test_an_image_of_both_lists_is_held_out_and_reported(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "b")
    _write(tmp_path, {"train.txt": "a\nb\n", "val.txt": "b\n"})
    training, validation = _find(tmp_path, imageSet="train.txt", validation={"imageSet": "val.txt"})
    assert (_stems(training), _stems(validation)) == (["a"], ["b"])
    (finding,) = training.listing.findings
    assert (finding.file, finding.problem) == ("training/image_2/b.jpg", Problem.DUPLICATE_NAME)
    assert finding.message == "expected in one list, got it in train.txt, too: it is held out"


def test_voc_lists_exclude_images_marked_with_minus_one(tmp_path: Path) -> None:
    _kitti(tmp_path, "2008_000001", "2008_000002", "2008_000003")
    _write(
        tmp_path,
        {"car_train.txt": "\ufeff2008_000001 -1\r\n2008_000002  1\r\n2008_000003\t0\r\n\r\nx -1\r\n"},
    )
    (source,) = _find(tmp_path, imageSet="car_train.txt")
    assert _stems(source) == ["2008_000002", "2008_000003"]
    assert source.listing.findings == []


@pytest.mark.parametrize(
    "line",
    [
        "s/a 1",
        "s/a 1.jpg",
        "./images/s/a 1.jpg",
        "images/s/a 1.JPG",
        "/home/me/set/images/s/a 1.jpg",
        "images\\s\\a 1.jpg",
        "s/a 1 0",
    ],
)
def test_a_name_in_a_list_is_a_stem_or_a_path(tmp_path: Path, line: str) -> None:
    _kitti(tmp_path, "s/a 1", "a 1", images="images", labels="labels")
    _write(tmp_path, {"list.txt": line})
    (source,) = _find(tmp_path, images="images", labels="labels", imageSet="list.txt")
    assert _stems(source) == ["s/a 1"]


def test_a_name_in_a_list_matches_in_composed_and_decomposed_unicode(tmp_path: Path) -> None:
    _kitti(tmp_path, "cafe\u0301", "b")
    _write(tmp_path, {"list.txt": "caf\u00e9\n"})
    (source,) = _find(tmp_path, imageSet="list.txt")
    assert _stems(source) == ["cafe\u0301"]


def test_names_that_match_no_image_are_reported_by_line(tmp_path: Path) -> None:
    _kitti(tmp_path, "a")
    _write(tmp_path, {"lists/train.txt": "a\n\nb\n../../etc\n"})
    (source,) = _find(tmp_path, imageSet="lists/train.txt")
    assert [str(finding) for finding in source.listing.findings] == [
        "lists/train.txt:3: ListedWithoutImage: expected an image of training/image_2, got 'b'",
        "lists/train.txt:4: ListedWithoutImage: expected an image of training/image_2, got '../../etc'",
    ]


def test_a_list_that_names_no_image_at_all_is_refused(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "b")
    _write(tmp_path, {"train.txt": "x\ny\n"})
    failure = _failure(tmp_path, imageSet="train.txt")
    assert failure.reason == Reason.DATASET_NOT_FOUND
    assert "got 'x' in line 1; images are called a, b" in failure.message


def test_a_list_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    _kitti(tmp_path, "a")
    (tmp_path / "bin.txt").write_bytes(b"\xff\xfea\x00")
    assert _failure(tmp_path, imageSet="train.txt").reason == Reason.DATASET_NOT_FOUND
    failure = _failure(tmp_path, imageSet="bin.txt")
    assert failure.reason == Reason.INVALID_SPEC
    assert failure.message.startswith("bin.txt: expected UTF-8 text")


def test_validation_can_have_separate_folders(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "b")
    _kitti(tmp_path, "a", images="val/images", labels="val/labels")
    training, validation = _find(tmp_path, validation={"images": "val/images", "labels": "val/labels"})
    assert (_stems(training), training.subset) == (["a", "b"], "training")
    assert [(s.name, validation.subset) for s in validation.listing.samples] == [
        ("val/images/a", "validation")
    ]


def test_a_validation_folder_within_the_training_folder_is_not_trained_on(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "val/a", "val/b", images="images", labels="labels")
    _write(tmp_path, {"images/val/bare.jpg": "", "images/val/notes.md": "", "labels/val/lone.txt": ""})
    training, validation = _find(
        tmp_path,
        images="images",
        labels="labels",
        validation={"images": "images/val", "labels": "labels/val"},
    )
    assert (_stems(training), _stems(validation)) == (["a"], ["a", "b"])
    assert (training.listing.images, validation.listing.images) == (1, 3)
    assert (training.listing.other_files, validation.listing.other_files) == (0, 1)
    assert (len(training.listing.skipped), len(validation.listing.skipped)) == (0, 1)


def test_two_label_files_divide_one_folder_of_images(tmp_path: Path) -> None:
    for name in "abcd":
        _write(tmp_path, {f"images/{name}.jpg": ""})
    for name, stems in {"train": "abc", "val": "c"}.items():
        _kitti(tmp_path, *stems, images="images", labels=name)
    training, validation = _find(
        tmp_path, images="images", labels="train", validation={"images": "images", "labels": "val"}
    )
    assert (_stems(training), _stems(validation)) == (["a", "b"], ["c"])
    assert training.listing.images + validation.listing.images == 4
    assert [finding.file for finding in validation.listing.skipped] == ["images/d.jpg"]
    assert [(finding.file, finding.problem) for finding in training.listing.findings] == [
        ("images/c.jpg", Problem.DUPLICATE_NAME)
    ]


def test_the_same_images_and_labels_for_both_are_refused(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "b")
    same = {"images": "training/image_2", "labels": "training/label_2/"}
    assert _failure(tmp_path, validation=same).reason == Reason.INVALID_SPEC


def test_a_training_folder_within_the_validation_folder_is_refused(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", "train/b", images="images", labels="labels")
    failure = _failure(
        tmp_path,
        images="images/train",
        labels="labels/train",
        validation={"images": "images", "labels": "labels"},
    )
    assert failure.reason == Reason.INVALID_SPEC
    assert "outside of validation.images (images), got images: images/train" in failure.message


def _coco_file(*names: str) -> str:
    """One box in each image, ids from 1."""
    numbered = list(enumerate(names, start=1))
    return json.dumps(
        {
            "images": [{"id": number, "file_name": name} for number, name in numbered],
            "annotations": [
                {"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, 9, 9]}
                for number, _ in numbered
            ],
            "categories": [{"id": 1, "name": "car"}],
        }
    )


def test_the_standard_coco_layout_has_no_finding_and_names_the_captions_once(tmp_path: Path) -> None:
    _write(tmp_path, {f"{name}.jpg": "" for name in ("train2017/1", "train2017/2", "val2017/3")})
    captions = json.dumps({"images": [], "annotations": [{"image_id": 1, "caption": "a car"}]})
    _write(
        tmp_path,
        {
            "annotations/instances_train2017.json": _coco_file("1.jpg", "2.jpg"),
            "annotations/instances_val2017.json": _coco_file("3.jpg"),
            "annotations/captions_train2017.json": captions,
        },
    )
    places = {"images": "train2017", "labels": "annotations"}
    validation = {"images": "val2017", "labels": "annotations"}
    parts = _find(tmp_path, format="coco", **places, validation=validation)
    assert [_stems(source) for source in parts] == [["1", "2"], ["3"]]
    assert [(source.listing.orphans, source.listing.findings) for source in parts] == [([], []), ([], [])]
    side_files = [list(source.listing.side_files) for source in parts]
    assert side_files == [["annotations/captions_train2017.json"], []]


def test_an_orphan_in_shared_labels_is_reported_once(tmp_path: Path) -> None:
    _write(tmp_path, {"train/1.jpg": "", "val/2.jpg": "", "a.json": _coco_file("1.jpg", "2.jpg", "3.jpg")})
    _write(tmp_path, {"b.json": "{"})
    shared = {"labels": "a.json"}
    training, validation = _find(
        tmp_path, format="coco", images="train", **shared, validation={"images": "val", **shared}
    )
    assert [finding.entry for finding in training.listing.orphans] == ["images[2] (id 3)"]
    assert validation.listing.orphans == []
    training, validation = _find(
        tmp_path, format="coco", images="train", labels=".", validation={"images": "val", "labels": "."}
    )
    assert [finding.file for finding in training.listing.findings] == ["b.json"]
    assert validation.listing.findings == []


def test_one_folder_of_labels_serves_two_folders_of_images(tmp_path: Path) -> None:
    _kitti(tmp_path, "a", images="train", labels="labels")
    _kitti(tmp_path, "b", images="val", labels="labels")
    _write(tmp_path, {"labels/lone.txt": KITTI})
    training, validation = _find(
        tmp_path, images="train", labels="labels", validation={"images": "val", "labels": "labels"}
    )
    assert (_stems(training), _stems(validation)) == (["a"], ["b"])
    assert [finding.file for finding in training.listing.orphans] == ["labels/lone.txt"]
    assert validation.listing.orphans == []
