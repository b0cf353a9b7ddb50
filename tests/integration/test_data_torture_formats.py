"""Problems that KITTI labels cannot have: the exact findings of YOLO, COCO and VOC."""

import json
from pathlib import Path
from typing import Any

import pytest

from tlt_runner.storage import Storage
from torture import HEIGHT, WIDTH, Folder, dataset, findings, jpeg, report_of


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(scratch=tmp_path / "scratch")


def test_a_class_number_without_a_name_is_an_unknown_class_of_yolo(storage: Storage, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set")
    lines = ["0 0.5 0.5 0.2 0.2", "2 0.5 0.5 0.2 0.2", "x 0.5 0.5 0.2 0.2", "1 0.5 0.5 0.2 0.2"]
    for number in range(4):
        folder.put(f"images/{number}.jpg", jpeg(number))
        folder.put(f"labels/{number}.txt", "\n".join(lines if number == 1 else lines[:1]).encode())
    data = dataset(tmp_path / "set", format="yolo", classNames=["car", "boat"])
    report = report_of(data, storage, tmp_path / "out")
    assert findings(report["dropped"]) == {
        ("labels/1.txt", 2): (
            "UnknownClass",
            "class (column 1): expected one of the 2 classes, 0 to 1, got '2'",
        ),
        ("labels/1.txt", 3): ("NotANumber", "class (column 1): expected a whole number, got 'x'"),
    }
    assert (report["lines"], report["objects"], report["unmappedClasses"]) == (7, 4, {"boat": 1})


def test_a_coco_file_with_every_mistake_has_a_finding_for_each(storage: Storage, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set")
    for number in range(4):
        folder.put(f"images/{number}.jpg", jpeg(number))
    folder.put("secret.jpg", jpeg(9))
    box = [20, 10, 80, 40]
    wrong: list[dict[str, Any]] = [
        {"category_id": 9, "bbox": box},  # no such category
        {"category_id": 1},  # no box
        {"category_id": 1, "bbox": [20, 10, "wide", 40]},
        {"category_id": 1, "bbox": [20, 10, -80, 40]},
        {"category_id": 1, "bbox": [300, 10, 80, 40]},
        {"category_id": 1, "bbox": box, "iscrowd": 1},
        {"category_id": 3, "bbox": box},  # "boat": not mapped
    ]
    annotations = [{"id": number, "image_id": 1, **item} for number, item in enumerate(wrong)]
    annotations += [{"id": 100 + n, "image_id": n, "category_id": 1, "bbox": box} for n in range(4)]
    annotations.append({"id": 200, "image_id": 77, "category_id": 1, "bbox": box})
    images = [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(4)]
    images[2]["width"] = 100
    images.append({"id": 8, "file_name": "../secret.jpg", "width": WIDTH, "height": HEIGHT})
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "car"}, {"id": 3, "name": "boat"}],
    }
    folder.put("annotations/all.json", json.dumps(document).encode())
    report = report_of(dataset(tmp_path / "set", format="coco"), storage, tmp_path / "out")
    assert [(item["problem"], item["message"]) for item in report["dropped"]] == [
        ("UnknownClass", "annotations[0] (id 0): expected an id of categories[], got category_id 9"),
        ("MissingField", "annotations[1] (id 1): expected the field bbox"),
        ("NotANumber", "annotations[2] (id 2): bbox: expected finite numbers, got 'wide'"),
        (
            "InvertedBox",
            "annotations[3] (id 3): bbox: expected a width and a height above 0, got -80 and 40",
        ),
        (
            "OutsideImage",
            "expected a box that overlaps the image of 200 x 100 pixels, "
            "got xmin 300, ymin 10, xmax 380, ymax 50",
        ),
    ]
    places = {(item["file"], item["image"]) for item in report["dropped"]}
    assert places == {("annotations/all.json", "images/1.jpg")}
    assert findings(report["skipped"]) == {
        ("images/2.jpg", None): (
            "SizeMismatch",
            "expected 100 x 100 pixels as its label says, the image has 200 x 100",
        )
    }
    assert [(item["problem"], item["message"]) for item in report["labelFindings"]] == [
        ("LabelWithoutImage", "annotations[11] (id 200): expected an id of images[], got image_id 77"),
    ]
    # Above the image folder nothing is looked for.
    assert findings(report["orphans"]) == {
        ("annotations/all.json", None): (
            "LabelWithoutImage",
            "images[4] (id 8): expected images/../secret.jpg, which does not exist, nor does an image of "
            "that name or stem in another folder or with another extension",
        )
    }
    assert (report["ignoredRegions"], report["unmappedClasses"]) == (1, {"boat": 1})
    assert (report["lines"], report["objects"]) == (10, 3)


def test_a_voc_label_of_another_size_or_with_entities_leaves_its_image_out(
    storage: Storage, tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "set")
    for number in range(4):
        folder.put(f"JPEGImages/{number}.jpg", jpeg(number))
        width = WIDTH // 2 if number == 1 else WIDTH
        folder.put(
            f"Annotations/{number}.xml",
            f"<annotation><size><width>{width}</width><height>{HEIGHT}</height></size><object><name>car</name>"
            "<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>90</xmax><ymax>50</ymax></bndbox></object>"
            "</annotation>".encode(),
        )
    folder.put("JPEGImages/bomb.jpg", jpeg(5))
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x"}">' for n in range(12))
    folder.put(
        "Annotations/bomb.xml",
        f"<!DOCTYPE a [{entities}]><annotation><object><name>&e11;</name></object></annotation>".encode(),
    )
    folder.put("ImageSets/Main/val.txt", b"\xef\xbb\xbf0\r\n9\r\n")
    data = dataset(tmp_path / "set", format="voc", validation={"imageSet": "ImageSets/Main/val.txt"})
    report = report_of(data, storage, tmp_path / "out")
    assert findings(report["skipped"]) == {
        ("JPEGImages/1.jpg", None): (
            "SizeMismatch",
            "expected 100 x 100 pixels as its label says, the image has 200 x 100",
        ),
        ("JPEGImages/bomb.jpg", None): (
            "UnreadableLabel",
            "Annotations/bomb.xml:1: expected no DTD and no entities (DTDForbidden)",
        ),
    }
    assert findings(report["labelFindings"]) == {
        ("ImageSets/Main/val.txt", 2): ("ListedWithoutImage", "expected an image of JPEGImages, got '9'")
    }
    assert (report["trainingImages"], report["validationImages"], report["objects"]) == (2, 1, 3)
