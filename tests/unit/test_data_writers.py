"""Writers: their files to the character, and the names of images."""

import json
from pathlib import Path

import pytest
import yaml

from tlt_api.dataset import Dataset
from tlt_runner import cli
from tlt_runner.data import formats
from tlt_runner.data.formats import FORMATS
from tlt_runner.data.formats.coco import CocoWriter
from tlt_runner.data.formats.format import ExportedImage, Writer, decimal
from tlt_runner.data.formats.kitti import KittiWriter
from tlt_runner.data.formats.names import LONGEST_PART, UniqueNames
from tlt_runner.data.formats.voc import VocWriter
from tlt_runner.data.formats.yolo import YoloWriter
from tlt_runner.data.sample import LabelledBox

CAR = LabelledBox("car", (10.0, 20.0, 30.5, 60.25))
HIDDEN = LabelledBox("traffic_light", (0.0, 0.0, 50.0, 100.0), truncation=0.3, occlusion=2, difficult=True)
CLASSES = ("car", "traffic_light")
TRAINING = ExportedImage("training", "street/0001", ".jpg", (50, 100), (CAR, HIDDEN))
EMPTY = ExportedImage("validation", "0002", ".png", (50, 100), ())


def _write(kind: type[Writer], root: Path, *entries: ExportedImage) -> None:
    writer = kind(root, CLASSES)
    for entry in entries:
        writer.add(entry)
    writer.close()


def test_the_command_line_offers_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    usage = capsys.readouterr().out
    assert all(name in usage for name in FORMATS)


@pytest.mark.parametrize("kind", [one.writer for one in FORMATS.values()])
def test_every_writer_has_a_valid_dataset_block(kind: type[Writer]) -> None:
    block = {
        "uri": "file:///data",
        "targetClassMapping": {"a": "a"},
        "imageSize": {"width": 64, "height": 64},
    }
    dataset = Dataset.model_validate({**block, **kind.dataset})
    images, _ = formats.image_and_label_paths(dataset)
    assert images == kind.image_folders["training"]
    assert (dataset.validation.images or images) == kind.image_folders["validation"]


def test_kitti_lines_have_fifteen_columns_with_the_box_in_the_middle(tmp_path: Path) -> None:
    _write(KittiWriter, tmp_path, TRAINING, EMPTY)
    assert (tmp_path / "training/label_2/street/0001.txt").read_text() == (
        "car 0.00 0 0.00 20.00 10.00 60.25 30.50 0 0 0 0 0 0 0\n"
        "traffic_light 0.30 2 0.00 0.00 0.00 100.00 50.00 0 0 0 0 0 0 0\n"
    )
    assert (tmp_path / "validation/label_2/0002.txt").read_text() == ""


def test_voc_counts_pixels_from_one_and_includes_the_last(tmp_path: Path) -> None:
    _write(VocWriter, tmp_path, ExportedImage("training", "0001", ".jpg", (50, 100), (CAR, HIDDEN)), EMPTY)
    assert (
        (tmp_path / "Annotations/0001.xml").read_text()
        == """\
<annotation>
  <folder>JPEGImages</folder>
  <filename>0001.jpg</filename>
  <size><width>100</width><height>50</height><depth>3</depth></size>
  <segmented>0</segmented>
  <object>
    <name>car</name>
    <pose>Unspecified</pose>
    <truncated>0</truncated>
    <occluded>0</occluded>
    <difficult>0</difficult>
    <bndbox><xmin>21</xmin><ymin>11</ymin><xmax>60.25</xmax><ymax>30.5</ymax></bndbox>
  </object>
  <object>
    <name>traffic_light</name>
    <pose>Unspecified</pose>
    <truncated>1</truncated>
    <occluded>1</occluded>
    <difficult>1</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>50</ymax></bndbox>
  </object>
</annotation>
"""
    )
    assert (tmp_path / "ImageSets/Main/train.txt").read_text() == "0001\n"
    assert (tmp_path / "ImageSets/Main/val.txt").read_text() == "0002\n"


def test_voc_escapes_markup_characters(tmp_path: Path) -> None:
    box = LabelledBox("a<b>&c", (0, 0, 5, 5))
    writer = VocWriter(tmp_path, ("a<b>&c",))
    writer.add(ExportedImage("training", "x&y", ".jpg", (9, 9), (box,)))
    text = (tmp_path / "Annotations/x&y.xml").read_text()
    assert "<name>a&lt;b&gt;&amp;c</name>" in text
    assert "<filename>x&amp;y.jpg</filename>" in text


def test_coco_counts_ids_from_one_and_gives_corner_and_size(tmp_path: Path) -> None:
    _write(CocoWriter, tmp_path, TRAINING, EMPTY)
    training = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    assert training["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "traffic_light"}]
    assert training["images"] == [{"id": 1, "file_name": "street/0001.jpg", "height": 50, "width": 100}]
    assert [item["bbox"] for item in training["annotations"]] == [[20, 10, 40.25, 20.5], [0, 0, 100, 50]]
    assert [(item["id"], item["image_id"], item["category_id"]) for item in training["annotations"]] == [
        (1, 1, 1),
        (2, 1, 2),
    ]
    assert training["annotations"][0]["area"] == 825.125
    held_out = json.loads((tmp_path / "annotations/instances_val.json").read_text())
    assert (len(held_out["images"]), held_out["annotations"]) == (1, [])
    assert sorted(path.name for path in (tmp_path / "annotations").iterdir()) == [
        "instances_train.json",
        "instances_val.json",
    ]


def test_yolo_gives_shares_of_the_image_and_the_classes_by_number(tmp_path: Path) -> None:
    _write(YoloWriter, tmp_path, TRAINING, EMPTY)
    assert (tmp_path / "labels/train/street/0001.txt").read_text() == (
        "0 0.4012500000 0.4050000000 0.4025000000 0.4100000000\n"
        "1 0.5000000000 0.5000000000 1.0000000000 1.0000000000\n"
    )
    assert (tmp_path / "labels/val/0002.txt").read_text() == ""
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        "nc": 2,
        "names": ["car", "traffic_light"],
    }


def test_a_coordinate_has_no_exponent_and_no_trailing_zeros() -> None:
    assert [decimal(value) for value in (12.0, 0.1, 1e-5, 100.0, 1 / 3)] == [
        "12",
        "0.1",
        "0.00001",
        "100",
        "0.333333",
    ]
    assert [decimal(value, 2) for value in (12.0, 0.125)] == ["12.00", "0.125"]


def test_each_format_names_the_attributes_it_loses() -> None:
    occluded = LabelledBox("car", (0, 0, 1, 1), occlusion=1)
    assert [FORMATS[name].writer.lost(HIDDEN) for name in ("kitti", "voc")] == [
        (),
        ("truncation", "occlusion"),
    ]
    assert CocoWriter.lost(HIDDEN) == YoloWriter.lost(HIDDEN) == ("truncation", "occlusion", "difficult")
    assert (KittiWriter.lost(occluded), VocWriter.lost(occluded)) == (("occlusion",), ())
    assert all(one.writer.lost(CAR) == () for one in FORMATS.values())


@pytest.mark.parametrize(
    ("occlusion", "difficult", "written"), [(0, False, 0), (2, True, 2), (0, True, 3), (1, False, 0)]
)
def test_kitti_keeps_difficult_before_it_keeps_occlusion(
    tmp_path: Path, occlusion: int, difficult: bool, written: int
) -> None:
    box = LabelledBox("car", (0, 0, 5, 5), occlusion=occlusion, difficult=difficult)
    _write(KittiWriter, tmp_path, ExportedImage("training", "a", ".jpg", (9, 9), (box,)))
    assert (tmp_path / "training/label_2/a.txt").read_text().split()[2] == str(written)


def test_class_names_are_changed_only_if_the_format_cannot_hold_them() -> None:
    assert KittiWriter.class_name("traffic light") == "traffic_light"
    assert KittiWriter.class_name("DontCare") == "DontCare_"
    for writer in (VocWriter, CocoWriter, YoloWriter):
        assert writer.class_name("traffic light") == "traffic light"
        assert writer.class_name("DontCare") == "DontCare"
        assert writer.class_name("fußgänger 🚶") == "fußgänger 🚶"
        assert writer.class_name("a\x07b\nc") == "a_b_c"
        assert len(writer.class_name("x" * 500)) == 128


def test_sub_folders_are_kept_if_the_format_has_them() -> None:
    assert UniqueNames(flat=False).give("images/train", "seq 1/Straße 7") == "seq 1/Straße 7"
    assert UniqueNames(flat=True).give("JPEGImages", "seq 1/Straße 7") == "seq_1__Straße_7"


def test_no_two_images_get_one_name() -> None:
    names = UniqueNames(flat=True)
    wanted = ["a/b", "a__b", "A__B", "a__b-2", "a/b"]
    given = [names.give("JPEGImages", stem) for stem in wanted]
    assert given == ["a__b", "a__b-2", "A__B-3", "a__b-2-2", "a__b-4"]
    assert len({name.casefold() for name in given}) == 5


def test_the_same_name_in_another_folder_is_free() -> None:
    names = UniqueNames(flat=False)
    assert [names.give(folder, "1") for folder in ("images/train", "images/val")] == ["1", "1"]


def test_a_folder_never_has_the_name_of_a_file() -> None:
    names = UniqueNames(flat=False)
    assert [names.give("i", "a"), names.give("i", "a.jpg/b"), names.give("i", "a.txt/b")] == [
        "a",
        "a.jpg_/b",
        "a.txt_/b",
    ]


def test_composed_and_decomposed_names_count_as_one() -> None:
    names = UniqueNames(flat=False)
    assert [names.give("i", "u\u0308"), names.give("i", "\u00fc")] == ["u\u0308", "\u00fc-2"]


def test_no_name_is_hidden_or_climbs_out() -> None:
    names = UniqueNames(flat=False)
    assert names.give("i", "../.x/..") == "_../_.x/_.."
    assert names.give("i", "a//b\n") == "a/_/b_"


def test_a_name_too_long_for_a_file_system_is_cut_with_a_digest() -> None:
    names = UniqueNames(flat=True)
    one, other = names.give("i", "ä" * 100 + "/" + "b" * 150), names.give("i", "ä" * 100 + "/" + "b" * 149)
    assert one != other
    assert all(len(name.encode()) <= LONGEST_PART for name in (one, other))


CROWD = LabelledBox("car", (0.0, 10.0, 20.0, 40.5))
ANYTHING = LabelledBox("", (5.0, 0.0, 9.0, 7.25))


def test_kitti_writes_every_region_as_dont_care(tmp_path: Path) -> None:
    _write(KittiWriter, tmp_path, ExportedImage("training", "a", ".jpg", (50, 100), (), (ANYTHING, CROWD)))
    assert (tmp_path / "training/label_2/a.txt").read_text() == (
        "DontCare -1 -1 -10 0.00 5.00 7.25 9.00 -1 -1 -1 -1000 -1000 -1000 -10\n"
        "DontCare -1 -1 -10 10.00 0.00 40.50 20.00 -1 -1 -1 -1000 -1000 -1000 -10\n"
    )
    assert KittiWriter.region_loss(ANYTHING) is None
    assert "every class" in str(KittiWriter.region_loss(CROWD))


def test_coco_writes_a_region_of_one_class_as_a_crowd(tmp_path: Path) -> None:
    image = ExportedImage("training", "a", ".jpg", (50, 100), (CAR,), (ANYTHING, CROWD))
    _write(CocoWriter, tmp_path, image)
    written = json.loads((tmp_path / "annotations/instances_train.json").read_text())["annotations"]
    assert [(item["id"], item["iscrowd"]) for item in written] == [(1, 0), (2, 1)]
    assert written[1]["bbox"] == [10, 0, 30.5, 20]
    assert (CocoWriter.region_loss(CROWD), CocoWriter.region_loss(ANYTHING)) == (None, "lost")
    assert VocWriter.region_loss(CROWD) == YoloWriter.region_loss(ANYTHING) == "lost"
