"""What a folder holds: layouts of tools and frameworks, found by names and the beginning of label files."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.formats import kinds
from tlt_runner.data.preparation import layout
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

TOOLS = Path(__file__).parents[1] / "fixtures" / "annotation-tools"
KITTI = "car 0 0 0 1 2 30 40 0 0 0 0 0 0 0\n"
YOLO = "0 0.5 0.5 0.2 0.2\n"
LABELME = json.dumps({"version": "5.5.0", "shapes": [], "imagePath": "1.jpg"})
VOC = "<annotation><object><name>car</name></object></annotation>"


def coco(*names: str) -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]})


def _make(root: Path, files: dict[str, str]) -> Path:
    """Make files; a name with a range "{1-3}" is three files."""
    for name, text in files.items():
        start, _, rest = name.partition("{")
        if rest:
            span, _, end = rest.partition("}")
            first, last = map(int, span.split("-"))
            names = [f"{start}{number}{end}" for number in range(first, last + 1)]
        else:
            names = [name]
        for each in names:
            (root / each).parent.mkdir(parents=True, exist_ok=True)
            (root / each).write_text(text)
    return root


LAYOUTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "TLT and KITTI": (
        {
            "training/image_2/{1-3}.png": "",
            "training/label_2/{1-3}.txt": KITTI,
            "testing/image_2/{1-2}.png": "",
        },
        {"format": "kitti"},
    ),
    "KITTI, both cameras": (
        {
            "training/image_2/{1-3}.png": "",
            "training/image_3/{1-3}.png": "",
            "training/label_2/{1-3}.txt": KITTI,
        },
        {"format": "kitti"},
    ),
    "KITTI, other names": (
        {"pictures/{1-3}.jpg": "", "truth/{1-3}.txt": KITTI},
        {"format": "kitti", "images": "pictures", "labels": "truth"},
    ),
    "VOC": (
        {"JPEGImages/{1-3}.jpg": "", "Annotations/{1-3}.xml": VOC, "ImageSets/Main/train.txt": "1\n"},
        {"format": "voc"},
    ),
    "VOC with its lists": (
        {
            "JPEGImages/{1-3}.jpg": "",
            "Annotations/{1-3}.xml": VOC,
            "ImageSets/Main/train.txt": "1\n2\n",
            "ImageSets/Main/val.txt": "3\n",
            "ImageSets/Main/trainval.txt": "1\n2\n3\n",
            "ImageSets/Main/car_train.txt": "1 1\n2 -1\n",
        },
        {
            "format": "voc",
            "imageSet": "ImageSets/Main/train.txt",
            "validation": {"imageSet": "ImageSets/Main/val.txt"},
        },
    ),
    "VOC devkit": (
        {"VOCdevkit/VOC2012/JPEGImages/{1-3}.jpg": "", "VOCdevkit/VOC2012/Annotations/{1-3}.xml": VOC},
        {
            "format": "voc",
            "images": "VOCdevkit/VOC2012/JPEGImages",
            "labels": "VOCdevkit/VOC2012/Annotations",
        },
    ),
    "labelImg, beside the images": (
        {"{1-3}.jpg": "", "{1-3}.xml": VOC},
        {"format": "voc", "images": ".", "labels": "."},
    ),
    "Roboflow VOC": (
        {
            "train/{1-4}.jpg": "",
            "train/{1-4}.xml": VOC,
            "valid/{5-6}.jpg": "",
            "valid/{5-6}.xml": VOC,
            "test/7.jpg": "",
            "test/7.xml": VOC,
            "README.dataset.txt": "A data set\n",
        },
        {
            "format": "voc",
            "images": "train",
            "labels": "train",
            "validation": {"images": "valid", "labels": "valid"},
        },
    ),
    "Roboflow COCO": (
        {
            "train/{1-4}.jpg": "",
            "train/_annotations.coco.json": coco("1.jpg", "2.jpg", "3.jpg", "4.jpg"),
            "valid/{1-2}.jpg": "",
            "valid/_annotations.coco.json": coco("1.jpg", "2.jpg"),
            "test/7.jpg": "",
            "test/_annotations.coco.json": coco("7.jpg"),
        },
        {
            "format": "coco",
            "images": "train",
            "labels": "train/_annotations.coco.json",
            "validation": {"images": "valid", "labels": "valid/_annotations.coco.json"},
        },
    ),
    "Roboflow YOLO": (
        {
            "train/images/{1-4}.jpg": "",
            "train/labels/{1-4}.txt": YOLO,
            "valid/images/{5-6}.jpg": "",
            "valid/labels/{5-6}.txt": YOLO,
            "test/images/7.jpg": "",
            "test/labels/7.txt": YOLO,
            "data.yaml": "names: [car]\n",
        },
        {
            "format": "yolo",
            "images": "train/images",
            "labels": "train/labels",
            "validation": {"images": "valid/images", "labels": "valid/labels"},
        },
    ),
    "Ultralytics": (
        {
            "images/train/{1-4}.jpg": "",
            "labels/train/{1-4}.txt": YOLO,
            "images/val/{5-6}.jpg": "",
            "labels/val/{5-6}.txt": YOLO,
            "data.yaml": "names: [car]\n",
        },
        {
            "format": "yolo",
            "images": "images/train",
            "labels": "labels/train",
            "validation": {"images": "images/val", "labels": "labels/val"},
        },
    ),
    "YOLO, masks under the names of images": (
        {
            "images/{1-3}.jpg": "",
            "masks/{1-3}.png": "",
            "depth/{1-3}.png": "",
            "labels/{1-3}.txt": YOLO,
            "data.yaml": "names: [car]\n",
        },
        {"format": "yolo"},
    ),
    "Roboflow YOLO Darknet": (
        {
            "train/{1-4}.jpg": "",
            "train/{1-4}.txt": YOLO,
            "train/_darknet.labels": "car\nboat\n",
            "valid/{5-6}.jpg": "",
            "valid/{5-6}.txt": YOLO,
            "valid/_darknet.labels": "car\nboat\n",
        },
        {
            "format": "yolo",
            "images": "train",
            "labels": "train",
            "validation": {"images": "valid", "labels": "valid"},
        },
    ),
    "YOLO, sub-folders": (
        {
            "images/a/{1-2}.jpg": "",
            "labels/a/{1-2}.txt": YOLO,
            "images/b/{1-2}.jpg": "",
            "labels/b/{1-2}.txt": YOLO,
            "labels/classes.txt": "car\ntraffic light\n",
        },
        {"format": "yolo"},
    ),
    "CVAT YOLO": (
        {
            "obj_train_data/{1-3}.jpg": "",
            "obj_train_data/{1-3}.txt": YOLO,
            "train.txt": "data/obj_train_data/1.jpg\n",
            "obj.names": "car\n",
            "obj.data": "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
        },
        {"format": "yolo", "images": "obj_train_data", "labels": "obj_train_data"},
    ),
    "darknet": (
        {
            "obj/{1-3}.jpg": "",
            "obj/{1-3}.txt": YOLO,
            "train.txt": "data/obj/1.jpg\n",
            "test.txt": "data/obj/2.jpg\n",
            "obj.names": "car\n",
            "obj.data": "classes= 1\ntrain  = data/train.txt\nvalid  = data/test.txt\n",
        },
        {
            "format": "yolo",
            "images": "obj",
            "labels": "obj",
            "imageSet": "train.txt",
            "validation": {"imageSet": "test.txt"},
        },
    ),
    "Label Studio YOLO": (
        {
            "images/{1-3}.jpg": "",
            "labels/{1-3}.txt": YOLO,
            "classes.txt": "car\n",
            "notes.json": json.dumps({"categories": [{"id": 0, "name": "car"}], "info": {}}),
        },
        {"format": "yolo"},
    ),
    "Label Studio COCO": (
        {"images/{1-3}.jpg": "", "result.json": coco("images/1.jpg", "images\\2.jpg", "3.jpg")},
        {"format": "coco", "images": "images", "labels": "result.json"},
    ),
    "COCO 2017": (
        {
            "train2017/{1-4}.jpg": "",
            "val2017/{1-2}.jpg": "",
            "annotations/instances_train2017.json": coco("1.jpg", "2.jpg", "3.jpg", "4.jpg"),
            "annotations/instances_val2017.json": coco("1.jpg", "2.jpg"),
            "annotations/person_keypoints_train2017.json": coco("1.jpg", "2.jpg", "3.jpg", "4.jpg"),
            "annotations/captions_val2017.json": coco("1.jpg", "2.jpg"),
        },
        {
            "format": "coco",
            "images": "train2017",
            "labels": "annotations/instances_train2017.json",
            "validation": {"images": "val2017", "labels": "annotations/instances_val2017.json"},
        },
    ),
    "CVAT COCO": (
        {"images/{1-3}.jpg": "", "annotations/instances_default.json": coco("1.jpg", "2.jpg", "3.jpg")},
        {"format": "coco", "images": "images", "labels": "annotations/instances_default.json"},
    ),
    "COCO in several files": (
        {
            "images/{1-4}.jpg": "",
            "annotations/first.json": coco("1.jpg", "2.jpg"),
            "annotations/second.json": coco("3.jpg", "4.jpg"),
        },
        {"format": "coco"},
    ),
    "labelme, beside the images": (
        {"{1-3}.jpg": "", "{1-3}.json": LABELME, "classes.txt": "car"},
        {"format": "labelme", "images": ".", "labels": "."},
    ),
    "FiftyOne COCO": (
        {"data/{1-3}.jpg": "", "labels.json": coco("1.jpg", "2.jpg", "3.jpg")},
        {"format": "coco", "images": "data", "labels": "labels.json"},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_found(tmp_path: Path, name: str) -> None:
    files, expected = LAYOUTS[name]
    assert layout.find(_make(tmp_path, files)).fields == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_found_one_folder_deeper(tmp_path: Path, name: str) -> None:
    files, expected = LAYOUTS[name]
    fields = layout.find(_make(tmp_path, {f"set/{path}": text for path, text in files.items()})).fields
    assert fields is not None
    assert fields["format"] == expected["format"]
    assert all(fields[key].startswith("set/") or fields[key] == "set" for key in ("images", "labels"))


def test_a_test_split_is_named_and_not_read(tmp_path: Path) -> None:
    found = layout.find(_make(tmp_path, LAYOUTS["Roboflow YOLO"][0]))
    assert found.notes == [
        "also there, and not read: yolo: 1 images of test/images with labels in test/labels (test)"
    ]


def test_of_two_formats_the_one_with_more_images_is_read_or_the_one_that_is_wanted(tmp_path: Path) -> None:
    files = {"images/{1-4}.jpg": "", "labels/{1-4}.txt": YOLO, "classes.txt": "car", "voc/{1-2}.xml": VOC}
    found = layout.find(_make(tmp_path, files))
    assert found.fields is not None
    assert found.fields["format"] == "yolo"
    assert found.notes == ["also there, and not read: voc: 2 images of images with labels in voc"]
    wanted = layout.find(tmp_path, wanted="voc").fields
    assert wanted == {"format": "voc", "images": "images", "labels": "voc"}


UNREADABLE: dict[str, tuple[dict[str, str], str]] = {
    "empty": ({"readme.md": ""}, "expected .jpg, .jpeg or .png images, found none"),
    "images alone": ({"{1-2}.jpg": ""}, "expected labels (kitti, voc, coco, yolo, labelme), found none"),
    "labels alone": ({"{1-2}.xml": VOC}, "expected .jpg, .jpeg or .png images, found none"),
    "labels of others": ({"{1-2}.jpg": "", "{3-4}.xml": VOC}, "found labels of other images"),
    "tiff": ({"{1-2}.tif": "", "{1-2}.xml": VOC}, "expected .jpg, .jpeg or .png images, found none"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_folder_that_cannot_be_read_says_what_is_missing(tmp_path: Path, name: str) -> None:
    files, missing = UNREADABLE[name]
    found = layout.find(_make(tmp_path, files))
    assert found.fields is None
    assert missing in found.missing


def test_a_folder_that_cannot_be_read_says_what_it_has(tmp_path: Path) -> None:
    files = {"{1-2}.tif": "", "a/{1-3}.png": "", "b/4.jpg": "", "a/{7-8}.xml": VOC, "notes.md": ""}
    found = layout.find(_make(tmp_path, files))
    assert found.seen == [
        "4 images in a, b",
        "2 .tif images, which are not read",
        "2 .xml files",
        "1 other files",
        "2 voc labels in a have no image of their name",
    ]


# --- files of tools ---

VOTT_CSV = '"image","xmin","ymin","xmax","ymax","label"\n"1.jpg",12.5,0,30.25,40,"car"\n'
OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded\n1,xclick,/m/0k4j,1,0,1,0,1,0\n"
)
SUPERVISELY = {"description": "", "tags": [], "size": {"height": 60, "width": 80}, "objects": []}
VIA = {"1.jpg123": {"filename": "1.jpg", "size": 123, "regions": [], "file_attributes": {}}}
VOTT = {"name": "p", "version": "2.2.0", "tags": [], "assets": {}}
CREATE_ML = [{"image": "1.jpg", "annotations": [{"label": "car", "coordinates": {"x": 1}}]}]
WRITTEN_BY_HAND = {
    "vott.csv": (VOTT_CSV, "vott-csv"),
    "train-annotations-bbox.csv": (OPEN_IMAGES, "openimages"),
    "ann/1.jpg.json": (json.dumps(SUPERVISELY), "supervisely"),
    "via_region_data.json": (json.dumps(VIA), "via"),
    "via_project.json": (json.dumps({"_via_settings": {}, "_via_img_metadata": VIA}), "via"),
    "export.json": (json.dumps(VOTT), "vott"),
    "createml.json": (json.dumps(CREATE_ML), "createml"),
    "via.csv": (
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes\n",
        "via-csv",
    ),
    "tf.csv": ("filename,width,height,class,xmin,ymin,xmax,ymax\n", "tensorflow-csv"),
    "cars.tfrecord": ("", "tfrecord"),
    "detections.json": (
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]),
        "coco-results",
    ),
    "video.xml": ('<?xml version="1.0"?><annotations><track id="0"></track></annotations>', "cvat-video"),
}
WRITTEN_BY_TOOLS = {
    "datumaro-coco_instances/annotations/instances_default.json": "coco",
    "datumaro-cvat/default.xml": "cvat-images",
    "datumaro-datumaro/annotations/default.json": "datumaro",
    "datumaro-kitti/default/label_2/a.txt": "kitti",
    "datumaro-label_me/Annotations/default/a.xml": "labelme-mit",
    "datumaro-voc/Annotations/a.xml": "voc",
    "label-studio-csv/result.csv": "label-studio-csv",
    "label-studio-json/project-1-at-2026-11-30.json": "label-studio",
    "label-studio-json-min/result.json": "label-studio",
    "label-studio-voc/Annotations/a.xml": "voc",
    "labelimg-voc/a.xml": "voc",
    "labelme-json/a.json": "labelme",
}


@pytest.mark.parametrize(("file", "kind"), WRITTEN_BY_TOOLS.items())
def test_a_file_of_a_tool_is_told_by_its_content(file: str, kind: str) -> None:
    assert kinds.kind_of(TOOLS / file) == kind


@pytest.mark.parametrize(("file", "content"), WRITTEN_BY_HAND.items())
def test_a_file_in_a_format_of_a_tool_is_told_by_its_content(
    tmp_path: Path, file: str, content: tuple[str, str]
) -> None:
    text, kind = content
    assert kinds.kind_of(_make(tmp_path, {file: text}) / file) == kind


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", ""),
        ("a.json", "[]"),
        ("a.json", "3"),
        ("a.json", "{"),
        ("a.json", "[" * 100_000),
        ("a.xml", ""),
        ("a.xml", "<html>"),
        ("a.csv", ""),
        ("a.csv", "\0"),
        ("a.txt", "1.jpg\n2.jpg\n"),
        ("a.txt", ""),
        ("a.md", "x"),
    ],
)
def test_any_other_file_is_nothing(tmp_path: Path, name: str, text: str) -> None:
    assert kinds.kind_of(_make(tmp_path, {name: text}) / name) is None


def test_a_file_that_does_not_exist_is_nothing(tmp_path: Path) -> None:
    assert kinds.kind_of(tmp_path / "a.json") is None


NAMED = [name for name, (_, kind) in WRITTEN_BY_HAND.items() if kind in kinds.TOOL_FILES]


@pytest.mark.parametrize("file", NAMED)
def test_a_folder_of_images_with_a_file_of_a_tool_names_the_export_to_choose(
    tmp_path: Path, file: str
) -> None:
    text, kind = WRITTEN_BY_HAND[file]
    found = layout.find(_make(tmp_path, {"images/{1-3}.jpg": "", file: text}))
    assert found.fields is None
    assert found.seen[-1].endswith(str(kinds.TOOL_FILES[kind]))
    assert found.missing.endswith("found those of a tool")


def _dataset(root: Path, **fields: Any) -> Dataset:
    block = {"targetClassMapping": {"car": "car"}, "imageSize": {"width": 64, "height": 64}, **fields}
    return Dataset.model_validate({"uri": f"file://{root}", **block})


@pytest.mark.parametrize("file", NAMED)
@pytest.mark.parametrize("label_format", ["kitti", "voc", "coco", "yolo", "labelme"])
def test_labels_that_are_a_file_of_a_tool_are_named_by_the_job(
    tmp_path: Path, file: str, label_format: str
) -> None:
    from tlt_runner.data.preparation import sources

    text, kind = WRITTEN_BY_HAND[file]
    _make(tmp_path, {"images/{1-3}.jpg": "", f"labels/{Path(file).name}": text})
    names = {"classNames": ["car"]} if label_format == "yolo" else {}
    at_file = _dataset(
        tmp_path, format=label_format, images="images", labels=f"labels/{Path(file).name}", **names
    )
    with pytest.raises(RunnerError) as caught:
        sources.find(at_file, Storage(scratch=tmp_path / "scratch"))
    assert caught.value.reason in (Reason.DATASET_NOT_FOUND, Reason.NO_LABELS)
    assert str(kinds.TOOL_FILES[kind]) in caught.value.message


# --- layout auto ---


def test_auto_fills_in_the_fields_and_nothing_else(tmp_path: Path) -> None:
    files, expected = LAYOUTS["Ultralytics"]
    _make(tmp_path, files)
    dataset = _dataset(tmp_path, layout="auto", badSamples={"maxFraction": 0.5})
    resolved, found = layout.resolve(dataset, Storage(scratch=tmp_path))
    assert resolved == _dataset(tmp_path, badSamples={"maxFraction": 0.5}, **expected)
    assert str(found) == (
        "format: yolo, images: images/train, labels: labels/train, validation: {images: images/val, labels: "
        "labels/val}"
    )


@pytest.mark.parametrize(
    ("layout_name", "field", "message"),
    [
        ("CVAT YOLO", {"coordinates": "zeroBased"}, "expected coordinates with format voc only"),
        ("TLT and KITTI", {"shapes": "boundingBox"}, "expected shapes with format coco or yolo only"),
        ("TLT and KITTI", {"classNames": ["car"]}, "expected classNames with format yolo only"),
    ],
)
def test_a_field_of_another_format_than_the_one_found_is_refused(
    tmp_path: Path, layout_name: str, field: dict[str, Any], message: str
) -> None:
    files, _ = LAYOUTS[layout_name]
    _make(tmp_path, files)
    dataset = _dataset(tmp_path, layout="auto", **field)
    with pytest.raises(RunnerError, match=message) as caught:
        layout.resolve(dataset, Storage(scratch=tmp_path))
    assert caught.value.reason == Reason.INVALID_SPEC
    assert "layout auto found format: " in caught.value.message


def test_fields_leave_the_data_set_as_it_is(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    assert layout.resolve(dataset, Storage(scratch=tmp_path)) == (dataset, None)


def test_a_split_and_class_names_of_the_spec_hold(tmp_path: Path) -> None:
    _make(tmp_path, {**LAYOUTS["Ultralytics"][0], "classes.txt": "boat\n"})
    (tmp_path / "data.yaml").unlink()
    dataset = _dataset(tmp_path, layout="auto", classNames=["car"], validation={"fraction": 0.3})
    resolved, _ = layout.resolve(dataset, Storage(scratch=tmp_path))
    assert (resolved.class_names, resolved.validation.fraction) == (["car"], 0.3)


def test_auto_refuses_what_it_cannot_read_with_what_it_saw(tmp_path: Path) -> None:
    _make(tmp_path, {"images/{1-3}.jpg": "", "vott.csv": VOTT_CSV})
    with pytest.raises(RunnerError) as caught:
        layout.resolve(_dataset(tmp_path, layout="auto"), Storage(scratch=tmp_path))
    assert caught.value.reason == Reason.NO_LABELS
    assert "3 images in images; 1 .csv file; 1 file of VoTT CSV, which is not read" in caught.value.message
    with pytest.raises(RunnerError) as missing:
        layout.resolve(_dataset(tmp_path / "nowhere", layout="auto"), Storage(scratch=tmp_path))
    assert missing.value.reason == Reason.DATASET_NOT_FOUND


@pytest.mark.parametrize("field", ["images", "labels", "imageSet"])
def test_auto_takes_no_places(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValidationError, match="which finds them"):
        _dataset(tmp_path, layout="auto", **{field: "a"})


def test_coordinates_go_with_voc_or_auto(tmp_path: Path) -> None:
    assert _dataset(tmp_path, layout="auto", coordinates="zeroBased").coordinates == "zeroBased"
    with pytest.raises(ValidationError, match="format voc only"):
        _dataset(tmp_path, format="coco", coordinates="zeroBased")
