"""Labels of one line an object, KITTI and YOLO: what is no object, and a bad line becomes a finding."""

from pathlib import Path

import pytest

from line_formats import KITTI, LABEL, YOLO, LineFormat
from tlt_runner.data.sample import Labels, Problem

CAR, MOTORBIKE = KITTI.line, YOLO.line
both = pytest.mark.parametrize("form", [KITTI, YOLO], ids=["kitti", "yolo"])


@both
def test_a_score_in_one_more_column_is_allowed(tmp_path: Path, form: LineFormat) -> None:
    assert len(form.read(tmp_path, f"{form.line} 0.9\n".encode()).boxes) == 1


@both
@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n"])
def test_an_empty_label_is_an_image_without_objects(tmp_path: Path, form: LineFormat, content: bytes) -> None:
    assert form.read(tmp_path, content) == Labels()


@both
def test_windows_line_ends_and_a_byte_order_mark_are_accepted(tmp_path: Path, form: LineFormat) -> None:
    boxes = form.read(tmp_path, b"\xef\xbb\xbf" + f"{form.line}\r\n\r\n{form.line}\r\n".encode()).boxes
    assert len({box.class_name for box in boxes}) == 1
    assert boxes[0].class_name in ("Car", "motorbike")
    assert [box.line for box in boxes] == [1, 3]


@both
def test_a_label_that_is_no_text_gets_one_finding(tmp_path: Path, form: LineFormat) -> None:
    labels = form.read(tmp_path, b"\x89PNG\xff\xfe\x00")
    assert [(finding.problem, finding.line) for finding in labels.findings] == [
        (Problem.UNREADABLE_LABEL, None)
    ]


KITTI_FINDINGS = [
    ("Car 0 0 0 1 2 3 4", Problem.WRONG_COLUMNS, "expected 15 or 16 columns, got 8: Car 0 0 0 1 2 3 4"),
    (f"{CAR} 1 2", Problem.WRONG_COLUMNS, "expected 15 or 16 columns, got 17"),
    (
        CAR.replace(" 10.5 ", " ten "),
        Problem.NOT_A_NUMBER,
        "xmin (column 5): expected a finite number, got 'ten'",
    ),
    (
        CAR.replace(" 40 ", " nan "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected a finite number, got 'nan'",
    ),
    (
        CAR.replace(" 40 ", " inf "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected a finite number, got 'inf'",
    ),
    (
        CAR.replace(" 2 ", " 1.5 "),
        Problem.NOT_A_NUMBER,
        "occlusion (column 3): expected a whole number, got '1.5'",
    ),
    (
        CAR.replace(" 2 ", " 1e300 "),
        Problem.NOT_A_NUMBER,
        "occlusion (column 3): expected -1 to 3, got '1e300'",
    ),
    (
        CAR.replace("0.50", "-7"),
        Problem.NOT_A_NUMBER,
        "truncation (column 2): expected -1 to 1, got '-7'",
    ),
    (
        CAR.replace("0.50", "half"),
        Problem.NOT_A_NUMBER,
        "truncation (column 2): expected a finite number, got 'half'",
    ),
    (
        CAR.replace(" 30.25 ", " 5 "),
        Problem.INVERTED_BOX,
        "expected xmin < xmax, got xmin 10.5 and xmax 5",
    ),
    (CAR.replace(" 40 ", " 20 "), Problem.INVERTED_BOX, "expected ymin < ymax, got ymin 20 and ymax 20"),
    (
        CAR.replace(" 40 ", " 4_0 "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected a finite number, got '4_0'",
    ),
    (
        CAR.replace(" 40 ", " 1e9 "),
        Problem.NOT_A_NUMBER,
        "ymax (column 8): expected -1e+06 to 1e+06, got '1e9'",
    ),
    (CAR.replace("Car", "C" * 129), Problem.UNKNOWN_CLASS, "expected a class of at most 128 characters"),
]
YOLO_FINDINGS = [
    (
        "1 0.5 0.5 0.25",
        Problem.WRONG_COLUMNS,
        "expected 5 columns (class cx cy w h) or 6 (with a score), got 4:",
    ),
    (
        "1 0.1 0.1 0.9 0.1 0.5 0.9",
        Problem.NOT_A_BOX,
        "expected 5 columns (class cx cy w h) or 6 (with a score), got 7: a polygon; dataset.shapes: "
        "boundingBox takes the box around it: 1 0.1 0.1",
    ),
    ("car 0.5 0.5 0.2 0.2", Problem.NOT_A_NUMBER, "class (column 1): expected a whole number, got 'car'"),
    ("0.5 0.5 0.5 0.2 0.2", Problem.NOT_A_NUMBER, "class (column 1): expected a whole number, got '0.5'"),
    (
        "2 0.5 0.5 0.2 0.2",
        Problem.UNKNOWN_CLASS,
        "class (column 1): expected one of the 2 classes, 0 to 1, got '2'",
    ),
    (
        "-1 0.5 0.5 0.2 0.2",
        Problem.UNKNOWN_CLASS,
        "class (column 1): expected one of the 2 classes, 0 to 1, got '-1'",
    ),
    ("1 nan 0.5 0.2 0.2", Problem.NOT_A_NUMBER, "centre x (column 2): expected a finite number, got 'nan'"),
    ("1 0.5 x 0.2 0.2", Problem.NOT_A_NUMBER, "centre y (column 3): expected a finite number, got 'x'"),
    ("1 0.5 0.5 inf 0.2", Problem.NOT_A_NUMBER, "width (column 4): expected a finite number, got 'inf'"),
    ("1 0.5 0.5 -0.2 0.2", Problem.INVERTED_BOX, "width (column 4): expected more than 0, got '-0.2'"),
    ("1 0.5 0.5 0.2 0", Problem.INVERTED_BOX, "height (column 5): expected more than 0, got '0'"),
    (
        "1 320 240 64 48",
        Problem.OUTSIDE_IMAGE,
        "centre x (column 2): expected a share of the image's width, 0 to 1, got '320'",
    ),
    (
        "1 0.5 -0.1 0.2 0.2",
        Problem.OUTSIDE_IMAGE,
        "centre y (column 3): expected a share of the image's height, 0 to 1, got '-0.1'",
    ),
    (
        "1 0.5 0.5 0.2 1.5",
        Problem.OUTSIDE_IMAGE,
        "height (column 5): expected a share of the image's height, 0 to 1, got '1.5'",
    ),
]


@pytest.mark.parametrize(
    ("form", "line", "problem", "message"),
    [(KITTI, *case) for case in KITTI_FINDINGS] + [(YOLO, *case) for case in YOLO_FINDINGS],
)
def test_a_bad_line_is_a_finding_with_file_line_and_field(
    tmp_path: Path, form: LineFormat, line: str, problem: Problem, message: str
) -> None:
    labels = form.read(tmp_path, f"{form.line}\n\n{line}\n{form.line}\n".encode())
    assert [box.line for box in labels.boxes] == [1, 4]
    (finding,) = labels.findings
    assert (finding.file, finding.line, finding.problem) == (LABEL, 3, problem)
    assert finding.message.startswith(message)
