"""YOLO labels: shares become pixels, numbers become class names, and a bad line becomes a finding."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from line_formats import HEIGHT, WIDTH, YOLO, YOLO_NAMES, sample_in
from tlt_api.failures import Reason
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.yolo import YoloReader
from tlt_runner.data.formats.yolo_names import read_class_names
from tlt_runner.data.sample import LabelledBox, Labels, Problem
from tlt_runner.errors import RunnerError

GOOD = YOLO.line
_read = YOLO.read


def test_shares_become_pixels_of_the_image(tmp_path: Path) -> None:
    # Centre 200, 100; 100 wide and 100 high.
    assert _read(tmp_path, GOOD.encode()).boxes == (
        LabelledBox("motorbike", (50.0, 150.0, 150.0, 250.0), line=1),
    )


def test_a_class_number_may_be_written_with_a_point(tmp_path: Path) -> None:
    assert _read(tmp_path, b"0.000000 0.5 0.5 0.25 0.5").boxes[0].class_name == "bicycle"


def test_a_box_outside_by_the_rounding_of_six_decimals_moves_to_the_edge(tmp_path: Path) -> None:
    # 0.333333 - 0.666667 / 2 is -0.0000005; 0.666667 + 0.666667 / 2 is 1.0000005.
    boxes = _read(tmp_path, b"0 0.333333 0.5 0.666667 1\n0 0.666667 0.5 0.666667 1.000001").boxes
    assert (boxes[0].yxyx[1], boxes[1].yxyx[3]) == (0.0, WIDTH)
    assert (boxes[1].yxyx[0], boxes[1].yxyx[2]) == (0.0, HEIGHT)


def test_a_box_that_reaches_out_of_the_image_keeps_its_size(tmp_path: Path) -> None:
    # Centre 40, width 200: from -60 to 140. Conversion cuts and counts it.
    assert _read(tmp_path, b"0 0.1 0.5 0.5 0.5").boxes[0].yxyx == (50.0, -60.0, 150.0, 140.0)


def test_classes_are_counted_without_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{GOOD}\n0 .5 .5 .1 .1\n{GOOD}\n9 .5 .5 .1 .1\n")
    assert YOLO.reader_of(tmp_path).classes(sample_in(tmp_path)) == {"bicycle": 1, "motorbike": 2}


def _outlined(folder: Path, content: str, **fields: Any) -> Labels:
    (folder / "a.txt").write_text(content)
    source = SourceFolder(folder, "images"), SourceFolder(folder, "labels")
    reader = YoloReader(*source, YOLO_NAMES, **{"shapes": "boundingBox", **fields})
    return reader.read(sample_in(folder), (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("line", "yxyx"),
    [
        # A triangle; a rotated box that stands on its corner; one whose corner is outside of the image.
        ("0 0.1 0.5 0.3 0.25 0.2 0.75", (50.0, 40.0, 150.0, 120.0)),
        ("0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5", (50.0, 100.0, 150.0, 300.0)),
        ("0 -0.05 0.1 0.2 0.1 0.2 1.1 0 1", (20.0, -20.0, 220.0, 80.0)),
    ],
)
def test_an_outline_becomes_the_smallest_upright_box_around_it(
    tmp_path: Path, line: str, yxyx: tuple[float, ...]
) -> None:
    labels = _outlined(tmp_path, f"{GOOD}\n{line}\n")
    assert (labels.findings, labels.outlines) == ((), 1)
    assert [box.class_name for box in labels.boxes] == ["motorbike", "bicycle"]
    assert labels.boxes[1].yxyx == pytest.approx(yxyx)


@pytest.mark.parametrize(
    ("line", "problem", "message"),
    [
        (
            "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7",
            Problem.NOT_A_BOX,
            "got 8: keypoints, of which data.yaml must give",
        ),
        (
            "0 10 20 30 20 30 40",
            Problem.OUTSIDE_IMAGE,
            "column 2: expected a share of the image's width, -1 to 2",
        ),
        (
            "0 .1 20 .3 .2 .3 .4",
            Problem.OUTSIDE_IMAGE,
            "column 3: expected a share of the image's height, -1 to",
        ),
        ("0 .1 .1 .1 .2 .1 .3", Problem.INVERTED_BOX, "expected points that leave an area: 0 .1 .1"),
        ("7 .1 .1 .1 .2 .2 .3", Problem.UNKNOWN_CLASS, "class (column 1): expected one of the 2 classes"),
        ("car 0 0 0 1 1 9 9 0 0 0 0 0 0 0", Problem.WRONG_COLUMNS, "or 6 (with a score), got 15: car 0 0"),
        ("0 .1 .1 nan .2 .2 .3", Problem.WRONG_COLUMNS, "or 6 (with a score), got 7: 0 .1 .1 nan"),
    ],
)
def test_an_outline_that_makes_no_box_is_a_finding(
    tmp_path: Path, line: str, problem: Problem, message: str
) -> None:
    labels = _outlined(tmp_path, f"{GOOD}\n{line}\n")
    (finding,) = labels.findings
    assert (finding.line, finding.problem, labels.outlines, len(labels.boxes)) == (2, problem, 0, 1)
    assert message in finding.message


def test_the_box_of_keypoints_stands_in_the_line(tmp_path: Path) -> None:
    # Two keypoints of three numbers behind the box: eleven columns, which could be a polygon, too.
    line = "0 0.5 0.5 0.25 0.5 0.1 0.9 2 0.8 0.1 1"
    for shapes in ("refuse", "boundingBox"):
        labels = _outlined(tmp_path, line, keypoint_numbers=6, shapes=shapes)
        assert labels == Labels((LabelledBox("bicycle", (50.0, 150.0, 150.0, 250.0), line=1),))
    refused = _outlined(tmp_path, line, keypoint_numbers=8, shapes="refuse")
    assert [finding.problem for finding in refused.findings] == [Problem.NOT_A_BOX]


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [("[17, 3]", 51), ("[4, 2]", 8), ("[4, 4]", None), ("17", None), ("[a, 3]", None), ("[0, 3]", None)],
)
def test_data_yaml_says_how_many_numbers_keypoints_have(
    tmp_path: Path, shape: str, numbers: int | None
) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(f"names: [a]\nkpt_shape: {shape}\n")
    assert read_class_names(path).keypoint_numbers == numbers


def _load(folder: Path, content: str | bytes) -> dict[int, str]:
    path = folder / "data.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return dict(read_class_names(path).names)


@pytest.mark.parametrize(
    "content",
    [
        "names: [bicycle, motorbike]",
        "nc: 2\nnames:\n- bicycle\n- motorbike\n",
        "path: ../data\nnames:\n  1: motorbike\n  0: bicycle\n",
        '{"names": ["bicycle", "motorbike"]}',
        b"\xef\xbb\xbfnames:\r\n  0: 'bicycle'\r\n  1: motorbike # both\r\n",
    ],
)
def test_classes_are_a_list_or_numbered(tmp_path: Path, content: str | bytes) -> None:
    assert _load(tmp_path, content) == YOLO_NAMES


def test_class_numbers_may_have_gaps(tmp_path: Path) -> None:
    assert _load(tmp_path, "names: {3: car, 7: van}") == {3: "car", 7: "van"}


def test_a_class_called_no_or_1_keeps_its_name(tmp_path: Path) -> None:
    assert _load(tmp_path, "names: [no, yes, 1, null, 1.0]") == {
        0: "no",
        1: "yes",
        2: "1",
        3: "null",
        4: "1.0",
    }


NONSENSE = [
    ("", "expected fields, among them names"),
    ("- a\n- b", "expected fields, among them names"),
    ("classes: [a]\nnc: 1", "expected the field names, got classes, nc"),
    ('"\\uD800": 1', r"expected the field names, got \ud800"),
    ('names: ["\\uD800"]', "data.yaml:1: names: expected a name of 1 to 128 characters for class 0"),
    ("names: bicycle", "data.yaml:1: names: expected a list, or number: name"),
    ("nc: 0\nnames: []", "data.yaml:2: names: expected at least one class"),
    ("names: [a, [b]]", "data.yaml:1: names: expected a name of 1 to 128 characters for class 1"),
    ("names: ['']", "data.yaml:1: names: expected a name of 1 to 128 characters for class 0"),
    ('names:\n- "a\\nb"', "data.yaml:2: names: expected a name of 1 to 128 characters for class 0"),
    ("names: {car: 0}", "data.yaml:1: names: expected class numbers from 0, got 'car'"),
    ("names: {-1: car}", "data.yaml:1: names: expected class numbers from 0, got '-1'"),
    ("names: {0: a, 00: b}", "data.yaml:1: names: expected every number once, got 0 twice"),
    ("nc: 3\nnames: [a]", "expected as many names as nc says, '3', got 1"),
    ("names: [a", "expected YAML: while parsing"),
    ("- " * 20_000, "expected YAML, got lists in lists without end"),
    (b"names: [\xff]", "expected UTF-8 text"),
    ("names: [a] #" + "x" * (256 << 10), "expected at most 0.25 MiB"),
]


@pytest.mark.parametrize(("content", "message"), NONSENSE)
def test_an_invalid_data_yaml_is_refused_with_the_field(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(RunnerError) as caught:
        _load(tmp_path, content)
    assert caught.value.reason == Reason.INVALID_SPEC
    assert caught.value.message.startswith("data.yaml")
    assert message in caught.value.message


def test_yaml_tags_create_no_objects(tmp_path: Path) -> None:
    target = tmp_path / "made"
    content = f"names: !!python/object/apply:os.mkdir ['{target}']"
    assert _load(tmp_path, content) == {0: str(target)}
    assert not target.exists()


def test_yaml_aliases_and_merge_keys_are_not_expanded(tmp_path: Path) -> None:
    levels = ["a0: &a0 {x: 1, y: 2}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60)]
    assert yaml.compose("\n".join(levels))
    assert _load(tmp_path, "\n".join([*levels, "names: [a]", "other: *a59"])) == {0: "a"}
