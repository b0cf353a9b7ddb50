"""Exports that annotation tools wrote themselves, read by nothing but the folder's name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner import cli
from tlt_runner.data.preparation.export_folder import export_folder
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.errors import RunnerError
from tlt_runner.local import data_folder
from tlt_runner.storage import Storage

TOOLS = Path(__file__).parents[1] / "fixtures" / "annotation-tools"
Objects = list[tuple[str, tuple[float, float, float, float]]]
# As in write.py of the fixtures: x1, y1, x2, y2 as edges from 0.
SCENE: dict[str, Objects] = {
    "a": [("car", (0, 10, 30, 40)), ("traffic light", (12, 5, 20, 30))],
    "b": [("car", (20, 30, 80, 60))],
    "c": [("traffic light", (7, 0, 17, 25))],
}


def _folder(root: Path, export: str, images: str, stems: str = "abc") -> Path:
    """Copy an export and put the images where its tool puts them."""
    shutil.copytree(TOOLS / export, root / "set")
    folder = root / "set" / images
    folder.mkdir(parents=True, exist_ok=True)
    for number, stem in enumerate(stems):
        Image.new("RGB", (80, 60), (number * 40, 90, 120)).save(folder / f"{stem}.jpg")
    return root / "set"


def _read(folder: Path, tmp_path: Path, **changes: Any) -> tuple[dict[str, Objects], DatasetReport]:
    """Read a folder by its name alone; objects by image, through the whole way of reading and mapping."""
    block = {
        "uri": f"file://{folder}",
        "layout": "auto",
        "targetClassMapping": {"car": "car"},
        "imageSize": {"width": 64, "height": 64},
        "validation": {"fraction": 0.5},
    }
    out = tmp_path / "coco"
    dataset = Dataset.model_validate({**block, **changes})
    report = export_folder(dataset, Storage(scratch=tmp_path), "coco", out, resize=False).report
    objects: dict[str, Objects] = {}
    for file in sorted((out / "annotations").iterdir()):
        document = json.loads(file.read_text())
        names = {item["id"]: item["name"] for item in document["categories"]}
        stems = {item["id"]: Path(item["file_name"]).stem for item in document["images"]}
        for item in document["annotations"]:
            x, y, width, height = item["bbox"]
            box = (x, y, x + width, y + height)
            objects.setdefault(stems[item["image_id"]], []).append((names[item["category_id"]], box))
    return objects, report


@pytest.mark.parametrize(
    ("export", "images"),
    [
        ("datumaro-voc", "JPEGImages"),
        ("datumaro-kitti", "default/image_2"),
        ("datumaro-coco_instances", "images/default"),
    ],
)
def test_an_export_of_datumaro_and_cvat_has_the_boxes_that_were_drawn(
    tmp_path: Path, export: str, images: str
) -> None:
    objects, report = _read(_folder(tmp_path, export, images), tmp_path)
    assert objects == SCENE
    assert (report.skipped, report.dropped, report.label_findings) == ([], [], [])


def test_voc_of_label_studio_counts_from_0_and_cuts_fractions_off(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "label-studio-voc", "images")
    objects, report = _read(folder, tmp_path)
    # 9.99999 becomes 9 in the tool's own file: edges may be up to a pixel too low there, and are read as they
    # are.
    assert objects == {
        "a": [("car", (0, 9, 30, 39)), ("traffic light", (12, 4, 20, 29))],
        "b": [("car", (20, 30, 80, 60))],
        "c": [("traffic light", (7, 0, 17, 25))],
    }
    assert report.coordinates is not None
    assert report.coordinates.value == "zeroBased"


def test_voc_of_labelimg_has_1_for_0_and_follows_the_spec(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "labelimg-voc", ".")
    objects, report = _read(folder, tmp_path, format="voc", coordinates="zeroBased")
    assert objects == {
        **SCENE,
        "a": [("car", (1, 10, 30, 40)), SCENE["a"][1]],
        "c": [("traffic light", (7, 1, 17, 25))],
    }
    assert report.coordinates is not None
    assert report.coordinates.decided_by == "spec"


def test_voc_of_labelimg_is_read_as_voc_defines_it_without_a_word_of_the_spec(tmp_path: Path) -> None:
    objects, report = _read(_folder(tmp_path, "labelimg-voc", "."), tmp_path)
    assert objects["b"] == [("car", (19, 29, 80, 60))]
    assert report.coordinates is not None
    assert report.coordinates.evidence == (
        "boxes: 4; beginning at 0: 0, at 1: 2 (as in a.xml); ending at the width or height: 1"
    )


TOOL_FILES = [
    ("datumaro-cvat", "CVAT for images XML, which is not read: export the task as COCO 1.0 from CVAT"),
    ("datumaro-datumaro", "Datumaro JSON, which is not read"),
    ("datumaro-label_me", "LabelMe (MIT) XML, which is not read"),
    ("label-studio-json", "Label Studio JSON, which is not read: export as COCO or YOLO with images"),
    ("label-studio-json-min", "Label Studio JSON, which is not read"),
    ("label-studio-csv", "Label Studio CSV, which is not read"),
]


@pytest.mark.parametrize(("export", "said"), TOOL_FILES)
def test_an_export_that_is_not_read_is_named_with_the_one_to_choose(
    tmp_path: Path, export: str, said: str
) -> None:
    folder = _folder(tmp_path, export, "images")
    with pytest.raises(RunnerError) as of_job:
        _read(folder, tmp_path)
    with pytest.raises(RunnerError) as of_data:
        data_folder.describe(folder, tmp_path / "volumes")
    for caught in (of_job, of_data):
        assert caught.value.reason == Reason.NO_LABELS
        assert said in caught.value.message


def test_tlt_data_prints_what_a_folder_is_and_the_block_that_reads_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "datumaro-voc", "JPEGImages", "abcd")
    result = CliRunner().invoke(cli.tlt, ["data", str(folder)])
    assert result.exit_code == 0
    comments = [line[2:] for line in result.output.splitlines() if line.startswith("# ")]
    assert comments == [
        f"{folder}: VOC",
        "images: 4, of which 3 have a label; 80 x 60 pixels",
        "objects: 4 (car 2, traffic light 2)",
        "split: none found; by default a fifth is held out at random: 2 images to train on, 1 to validate on",
        "coordinates: zeroBased, by evidence (boxes: 4; beginning at 0: 2 (as in Annotations/a.xml), at 1: "
        "0; ending at the width or height: 0)",
        "images that are not used, NoLabel: 1 (as JPEGImages/d.jpg: expected Annotations/d.xml, which does "
        "not exist)",
    ]
    # The output as a whole is YAML.
    assert yaml.safe_load(result.output) == {
        "dataset": {
            "uri": f"file://{folder}",
            "format": "voc",
            "targetClassMapping": {"car": "car", "traffic light": "traffic light"},
            "imageSize": {"width": 80, "height": 64},
        }
    }


def test_the_printed_block_reads_the_folder(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "datumaro-kitti", "default/image_2")
    block = data_folder.describe(folder, tmp_path / "volumes").block
    objects, _ = _read(folder, tmp_path, **{**block, "layout": "fields"})
    assert objects == SCENE


def test_a_folder_of_a_claim_gets_the_address_of_the_claim(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "volumes" / "tlt-data", "datumaro-voc", "JPEGImages")
    assert data_folder.describe(folder, tmp_path / "volumes").block["uri"] == "pvc://tlt-data/set"


@pytest.mark.parametrize(
    ("sizes", "proposed"),
    [
        ([(640, 480)], {"width": 640, "height": 480}),
        ([(1920, 1080)], {"width": 1280, "height": 720}),
        ([(4000, 3000)], {"width": 1280, "height": 960}),
        ([(40, 30)], {"width": 64, "height": 64}),
        ([(640, 480), (640, 480), (480, 640)], {"width": 640, "height": 480, "mode": "letterbox"}),
        ([(640, 480), (1280, 960)], {"width": 640, "height": 480}),
    ],
)
def test_a_size_of_the_network_is_proposed(
    tmp_path: Path, sizes: list[tuple[int, int]], proposed: dict[str, Any]
) -> None:
    for number, size in enumerate([*sizes, sizes[0]]):
        Image.new("L", size).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("car 0 0 0 1 2 30 40 0 0 0 0 0 0 0\n")
    assert data_folder.describe(tmp_path, tmp_path / "volumes").block["imageSize"] == proposed


@pytest.mark.parametrize("name", ["missing", "file.txt"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(RunnerError, match="expected a folder"):
        data_folder.describe(tmp_path / name, tmp_path)


def test_labelme_files_beside_the_images_are_read_polygons_and_turned_photos_too(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "labelme-json", ".")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60), (200, 90, 120)).save(folder / "turned.jpg", exif=exif)
    objects, report = _read(folder, tmp_path)
    # c has a polygon around the box of the scene; labelme shows turned.jpg as 60 x 80.
    assert objects == {**SCENE, "turned": [("car", (10, 65, 30, 79))]}
    assert (report.outlines, report.odd_images) == (1, {"TurnedUpright": 1})
    assert report.orientation is not None
    assert (report.orientation.value, report.orientation.decided_by) == ("exif", "evidence")
    assert (report.skipped, report.dropped, report.label_findings) == ([], [], [])


def test_yolo_labels_without_names_say_what_is_missing(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(2):
        Image.new("RGB", (80, 60)).save(tmp_path / "images" / f"{number}.jpg")
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(RunnerError, match="expected yolo's classes in dataset.classNames"):
        data_folder.describe(tmp_path, tmp_path / "volumes")
    (tmp_path / "labels" / "classes.txt").write_text("car\n")
    block = data_folder.describe(tmp_path, tmp_path / "volumes").block
    # The job reads them from the same file.
    assert "classNames" not in block
    assert block["targetClassMapping"] == {"car": "car"}


def test_photos_that_nothing_tells_about_are_said_with_the_field_to_set(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "datumaro-kitti", "default/image_2")
    exif = Image.Exif()
    exif[0x0112] = 6
    for stem in "abc":
        Image.new("RGB", (80, 80)).save(folder / "default/image_2" / f"{stem}.jpg", exif=exif)
    lines = data_folder.describe(folder, tmp_path / "volumes").lines
    assert (
        "orientation: stored, by default (images with an EXIF orientation: 3; labels of the turned view: 0, "
        "of the pixels as stored: 0, that do not tell: 3)"
    ) in lines
    assert any("set spec.dataset.orientation: exif" in line for line in lines)


def _yolo(root: Path, *lines: str) -> Path:
    """One image a line; None for an image without a label file."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("car\n")
    for number, line in enumerate(lines):
        Image.new("RGB", (80, 60)).save(root / "images" / f"{number}.jpg")
        if line:
            (root / "labels" / f"{number}.txt").write_text(f"{line}\n")
    return root


def test_outlines_are_counted_and_the_block_asks_for_their_boxes(tmp_path: Path) -> None:
    polygon = "0 0.2 0.2 0.6 0.2 0.4 0.8"
    described = data_folder.describe(_yolo(tmp_path / "set", polygon, "0 0.5 0.5 0.2 0.2"), tmp_path)
    assert described.block["shapes"] == "boundingBox"
    assert described.block["targetClassMapping"] == {"car": "car"}
    assert "objects: 2 (car 2)" in described.lines
    assert "objects drawn as polygons or rotated boxes, which get the box around them: 1" in described.lines


def test_images_without_a_label_are_not_counted_as_labelled(tmp_path: Path) -> None:
    described = data_folder.describe(_yolo(tmp_path / "set", "0 0.5 0.5 0.2 0.2", "", ""), tmp_path)
    assert "images: 3, of which 1 have a label; 80 x 60 pixels" in described.lines
    assert "class names are those of classes.txt" in described.lines


def test_a_folder_without_an_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="no object that could be learnt: objects: 0"):
        data_folder.describe(_yolo(tmp_path / "set", "9 0.5 0.5 0.2 0.2", "9 0.5 0.5 0.2 0.2"), tmp_path)
