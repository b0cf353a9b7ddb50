"""KITTI labels: lines become objects, and a bad line becomes a finding."""

from pathlib import Path

import pytest

from line_formats import KITTI, sample_in
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.kitti import KittiReader
from tlt_runner.data.sample import Problem

GOOD = KITTI.line
_read = KITTI.read


def test_a_line_is_an_object(tmp_path: Path) -> None:
    (box,) = _read(tmp_path, GOOD.encode()).boxes
    assert box.class_name == "Car"
    assert box.yxyx == (20.0, 10.5, 40.0, 30.25)
    assert (box.truncation, box.occlusion, box.line) == (0.5, 2, 1)


def test_dont_care_regions_are_counted_and_are_no_objects(tmp_path: Path) -> None:
    line = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
    labels = _read(tmp_path, f"{GOOD}\n{line}\n{line}\n".encode())
    assert (len(labels.boxes), len(labels.ignored), labels.findings) == (1, 2, ())


def test_line_ends_of_old_macs_are_accepted(tmp_path: Path) -> None:
    assert [box.line for box in _read(tmp_path, f"{GOOD}\r{GOOD}\r".encode()).boxes] == [1, 2]


def test_columns_are_separated_by_tabs_or_spaces(tmp_path: Path) -> None:
    assert _read(tmp_path, GOOD.replace(" ", "  \t").encode()).boxes[0].yxyx == (20.0, 10.5, 40.0, 30.25)


@pytest.mark.parametrize(
    ("occlusion", "difficult"), [(-1, False), (0, False), (1, True), (2, True), (3, True)]
)
def test_an_occluded_object_is_difficult(tmp_path: Path, occlusion: int, difficult: bool) -> None:
    (box,) = _read(tmp_path, GOOD.replace(" 2 ", f" {occlusion} ").encode()).boxes
    assert (box.occlusion, box.difficult) == (occlusion, difficult)


def test_a_class_keeps_letters_of_any_language(tmp_path: Path) -> None:
    assert _read(tmp_path, GOOD.replace("Car", "自転車").encode()).boxes[0].class_name == "自転車"


@pytest.mark.parametrize("name", ["traffic light", "Fußgänger mit  Rad", "2 wheeler", "a - b"])
@pytest.mark.parametrize("score", ["", " 0.75"])
def test_a_class_with_spaces_is_read_where_the_rest_are_numbers(
    tmp_path: Path, name: str, score: str
) -> None:
    labels = _read(tmp_path, (GOOD.replace("Car", name) + score).encode())
    (box,) = labels.boxes
    assert (box.class_name, box.yxyx) == (" ".join(name.split()), (20.0, 10.5, 40.0, 30.25))
    assert (box.truncation, box.occlusion, labels.findings) == (0.5, 2, ())


def test_a_region_with_a_space_in_its_name_is_an_object_of_that_class(tmp_path: Path) -> None:
    (box,) = _read(tmp_path, GOOD.replace("Car", "DontCare 1x").encode()).boxes
    assert box.class_name == "DontCare 1x"


@pytest.mark.parametrize("name", ["type 2", "Car nan", "Car inf", "Car 1_0"])
def test_a_line_that_can_be_read_in_two_ways_is_a_finding(tmp_path: Path, name: str) -> None:
    (finding,) = _read(tmp_path, GOOD.replace("Car", name).encode()).findings
    assert finding.message.startswith(("truncation (column 2)", "occlusion (column 3)"))


def test_a_class_with_spaces_and_a_bad_column_is_a_finding(tmp_path: Path) -> None:
    (finding,) = _read(tmp_path, GOOD.replace("Car", "traffic light").replace("20", "x").encode()).findings
    assert finding.problem in (Problem.WRONG_COLUMNS, Problem.NOT_A_NUMBER)


@pytest.mark.parametrize(
    "content", [GOOD.encode("utf-16"), GOOD.replace("Car", "Stra\xdfe").encode("latin-1")]
)
def test_a_label_in_another_encoding_gets_one_finding(tmp_path: Path, content: bytes) -> None:
    (finding,) = _read(tmp_path, content).findings
    assert finding.problem == Problem.UNREADABLE_LABEL
    assert finding.message.startswith("expected UTF-8 text")


def test_a_label_of_too_many_lines_has_one_finding_and_no_objects(tmp_path: Path) -> None:
    labels = _read(tmp_path, b"x\n" * 10_001)
    assert [finding.message for finding in labels.findings] == ["expected at most 10,000 lines, got 10,001"]


def test_a_huge_label_is_not_read(tmp_path: Path) -> None:
    labels = _read(tmp_path, b"\0" * ((16 << 20) + 1))
    assert [(finding.problem, finding.message) for finding in labels.findings] == [
        (Problem.UNREADABLE_LABEL, "expected at most 16 MiB")
    ]


def test_a_line_that_is_too_long_is_not_split_into_columns(tmp_path: Path) -> None:
    labels = _read(tmp_path, f"{GOOD}\n{'1 ' * 60_000}\n{GOOD}".encode())
    assert [(f.problem, f.line, f.message) for f in labels.findings] == [
        (Problem.WRONG_COLUMNS, 2, "expected a line of at most 100,000 characters, got 120,000")
    ]
    assert [box.line for box in labels.boxes] == [1, 3]


def test_a_removed_label_is_a_finding(tmp_path: Path) -> None:
    (finding,) = KITTI.reader_of(tmp_path).read(sample_in(tmp_path), (1, 1)).findings
    assert str(finding) == (
        "labels/a.txt: UnreadableLabel: expected a file that can be read: No such file or directory"
    )


def test_classes_are_counted_without_the_image(tmp_path: Path) -> None:
    reader = KITTI.reader_of(tmp_path)
    (tmp_path / "a.txt").write_text(f"{GOOD}\n{GOOD.replace('Car', 'Van')}\n{GOOD}\nCar 1\n")
    assert reader.classes(sample_in(tmp_path)) == {"Car": 2, "Van": 1}


def test_images_and_labels_are_paired_by_stem(tmp_path: Path) -> None:
    images, labels = tmp_path / "i", tmp_path / "l"
    (images / "folder.jpg").mkdir(parents=True)
    labels.mkdir()
    for name in ("b.JPG", "a.png", "a.jpg", "c.jpeg", "notes.md", "._b.jpg"):
        (images / name).touch()
    (images / "broken.jpg").symlink_to("nowhere")
    for name in ("a.txt", "b.txt", "z.txt", "readme.md"):
        (labels / name).touch()
    listing = KittiReader(SourceFolder(images, "i"), SourceFolder(labels, "l")).listing()
    assert [(sample.name, sample.image.name) for sample in listing.samples] == [
        ("i/a", "a.jpg"),
        ("i/b", "b.JPG"),
    ]
    assert listing.images == 5
    assert listing.other_files == 2  # a note, a hidden file
    assert [(finding.file, finding.problem) for finding in listing.skipped] == [
        ("i/a.png", Problem.DUPLICATE_NAME),
        ("i/broken.jpg", Problem.UNREADABLE_IMAGE),
        ("i/c.jpeg", Problem.NO_LABEL),
    ]
    assert [(finding.file, finding.problem) for finding in listing.orphans] == [
        ("l/z.txt", Problem.LABEL_WITHOUT_IMAGE)
    ]
