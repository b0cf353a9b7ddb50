"""KITTI labels: lines become objects, and a bad line becomes a finding."""

from pathlib import Path

import pytest

from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.kitti import KittiReader
from tlt_runner.data.sample import Labels, Problem, Sample

GOOD = "Car 0.50 2 -1.57 10.5 20 30.25 40 1.5 1.6 4.0 1.0 1.7 46.7 -1.6"


def _read(folder: Path, content: bytes) -> Labels:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    label = folder / "labels" / "a.txt"
    label.write_bytes(content)
    reader = KittiReader(
        SourceFolder(folder / "images", "training/images"), SourceFolder(folder / "labels", "training/labels")
    )
    return reader.read(
        Sample(
            "training/images/a",
            "a",
            folder / "images/a.jpg",
            "training/images/a.jpg",
            "training/labels/a.txt",
            label,
        ),
        (100, 100),
    )


def test_a_line_is_an_object(tmp_path: Path) -> None:
    (box,) = _read(tmp_path, GOOD.encode()).boxes
    assert box.class_name == "Car"
    assert box.yxyx == (20.0, 10.5, 40.0, 30.25)
    assert (box.truncation, box.occlusion, box.line) == (0.5, 2, 1)


def test_a_score_in_column_16_is_allowed(tmp_path: Path) -> None:
    assert len(_read(tmp_path, f"{GOOD} 0.9\n".encode()).boxes) == 1


def test_dont_care_regions_are_counted_and_are_no_objects(tmp_path: Path) -> None:
    line = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
    labels = _read(tmp_path, f"{GOOD}\n{line}\n{line}\n".encode())
    assert (len(labels.boxes), labels.ignored, labels.findings) == (1, 2, ())


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n"])
def test_an_empty_label_is_an_image_without_objects(tmp_path: Path, content: bytes) -> None:
    assert _read(tmp_path, content) == Labels()


def test_windows_line_ends_and_a_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    labels = _read(tmp_path, b"\xef\xbb\xbf" + f"{GOOD}\r\n{GOOD}\r\n".encode())
    assert [box.class_name for box in labels.boxes] == ["Car", "Car"]
    assert [box.line for box in labels.boxes] == [1, 2]


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
    reader = KittiReader(SourceFolder(tmp_path, "i"), SourceFolder(tmp_path, "l"))
    sample = Sample("i/a", "a", tmp_path / "a.jpg", "i/a.jpg", "l/a.txt", tmp_path / "a.txt")
    (finding,) = reader.read(sample, (1, 1)).findings
    assert str(finding) == (
        "l/a.txt: UnreadableLabel: expected a file that can be read: No such file or directory"
    )


def test_classes_are_counted_without_the_image(tmp_path: Path) -> None:
    reader = KittiReader(SourceFolder(tmp_path, "i"), SourceFolder(tmp_path, "l"))
    (tmp_path / "a.txt").write_text(f"{GOOD}\n{GOOD.replace('Car', 'Van')}\n{GOOD}\nCar 1\n")
    sample = Sample("i/a", "a", tmp_path / "a.jpg", "i/a.jpg", "l/a.txt", tmp_path / "a.txt")
    assert reader.classes(sample) == {"Car": 2, "Van": 1}


VERDICTS = [
    ("Car 0 0 0 1 2 3 4", Problem.WRONG_COLUMNS, "expected 15 or 16 columns, got 8: Car 0 0 0 1 2 3 4"),
    (f"{GOOD} 1 2", Problem.WRONG_COLUMNS, "expected 15 or 16 columns, got 17"),
    (
        GOOD.replace(" 10.5 ", " ten "),
        Problem.NOT_A_NUMBER,
        "xmin (column 5): expected a finite number, got 'ten'",
    ),
    (
        GOOD.replace(" 40 ", " nan "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected a finite number, got 'nan'",
    ),
    (
        GOOD.replace(" 40 ", " inf "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected a finite number, got 'inf'",
    ),
    (
        GOOD.replace(" 2 ", " 1.5 "),
        Problem.NOT_A_NUMBER,
        "occlusion (column 3): expected a whole number, got '1.5'",
    ),
    (
        GOOD.replace(" 2 ", " 1e300 "),
        Problem.NOT_A_NUMBER,
        "occlusion (column 3): expected -1 to 3, got '1e300'",
    ),
    (
        GOOD.replace("0.50", "-7"),
        Problem.NOT_A_NUMBER,
        "truncation (column 2): expected -1 to 1, got '-7'",
    ),
    (
        GOOD.replace("0.50", "half"),
        Problem.NOT_A_NUMBER,
        "truncation (column 2): expected a finite number, got 'half'",
    ),
    (
        GOOD.replace(" 30.25 ", " 5 "),
        Problem.INVERTED_BOX,
        "expected xmin < xmax, got xmin 10.5 and xmax 5",
    ),
    (GOOD.replace(" 40 ", " 20 "), Problem.INVERTED_BOX, "expected ymin < ymax, got ymin 20 and ymax 20"),
    (
        GOOD.replace(" 40 ", " 4_0 "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected a finite number, got '4_0'",
    ),
    (
        GOOD.replace(" 40 ", " 1e9 "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected -1e+06 to 1e+06, got '1e9'",
    ),
    (GOOD.replace("Car", "C" * 129), Problem.UNKNOWN_CLASS, "expected a class of at most 128 characters"),
    (
        f"traffic light {GOOD.split(' ', 1)[1]}",
        Problem.NOT_A_NUMBER,
        "truncation (column 2): expected a finite number, got 'light'",
    ),
]


@pytest.mark.parametrize(("line", "problem", "message"), VERDICTS)
def test_a_bad_line_is_a_finding_with_file_line_and_field(
    tmp_path: Path, line: str, problem: Problem, message: str
) -> None:
    labels = _read(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}\n".encode())
    assert [box.line for box in labels.boxes] == [1, 4]
    (finding,) = labels.findings
    assert (finding.file, finding.line, finding.problem) == ("training/labels/a.txt", 3, problem)
    assert finding.message.startswith(message)


def test_a_label_that_is_no_text_gets_one_finding(tmp_path: Path) -> None:
    labels = _read(tmp_path, b"\x89PNG\xff\xfe\x00")
    assert labels.boxes == ()
    assert [(finding.problem, finding.line) for finding in labels.findings] == [
        (Problem.UNREADABLE_LABEL, None)
    ]


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
