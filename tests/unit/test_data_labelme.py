"""labelme's JSON: shapes become objects, and a bad shape or file becomes a finding."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.labelme import MAX_SHAPES, LabelmeReader
from tlt_runner.data.sample import LabelledBox, Labels, Problem

CAR = {"label": "car", "points": [[10, 20.5], [30, 40]], "shape_type": "rectangle"}
BOX = LabelledBox("car", (20.5, 10.0, 40.0, 30.0))


def _read(folder: Path, content: str | bytes) -> Labels:
    (folder / "a.jpg").touch()
    (folder / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    place = SourceFolder(folder, "train")
    reader = LabelmeReader(place, place)
    listing = reader.listing()
    assert (listing.images, listing.other_files) == (1, 0)
    (sample,) = listing.samples
    labels = reader.read(sample, (100, 100))
    assert all(finding.file == "train/a.json" for finding in labels.findings)
    return labels


def _file(*shapes: Any, **fields: Any) -> str:
    return json.dumps({"shapes": list(shapes), "imagePath": "a.jpg", **fields})


def test_a_rectangle_is_an_object_whatever_its_first_corner(tmp_path: Path) -> None:
    other = {**CAR, "points": [[30, 20.5], [10, 40]], "label": " car "}
    assert _read(tmp_path, _file(CAR, other)) == Labels((BOX, BOX))


def test_the_image_size_is_read_where_it_is_stated(tmp_path: Path) -> None:
    assert _read(tmp_path, _file(CAR, imageHeight=60, imageWidth=80)).image_size == (60, 80)
    assert _read(tmp_path, _file(CAR, imageHeight=None, imageWidth=80)).image_size is None


@pytest.mark.parametrize(
    ("kind", "points", "edges", "outlines"),
    [
        ("polygon", [[10, 20], [30, 25], [15, 40]], (20, 10, 40, 30), 1),
        (None, [[10, 20], [30, 25], [15, 40]], (20, 10, 40, 30), 1),
        ("circle", [[50, 50], [53, 54]], (45, 45, 55, 55), 0),
        ("mask", [[10, 20], [30, 40]], (20, 10, 40, 30), 1),
        ("rotation", [[10, 20], [20, 10], [30, 20], [20, 30]], (10, 10, 30, 30), 1),
    ],
)
def test_any_other_shape_has_the_box_around_it(
    tmp_path: Path, kind: str | None, points: list[list[float]], edges: Any, outlines: int
) -> None:
    labels = _read(tmp_path, _file({"label": "car", "points": points, "shape_type": kind}))
    assert labels == Labels((LabelledBox("car", edges),), outlines=outlines)


def test_shapes_of_one_group_are_one_object(tmp_path: Path) -> None:
    part = {**CAR, "points": [[50, 60], [70, 80]], "group_id": 1}
    labels = _read(tmp_path, _file({**CAR, "group_id": 1}, part, {**part, "label": "person"}, CAR))
    assert labels == Labels(
        (
            LabelledBox("car", (20.5, 10.0, 80.0, 70.0)),
            LabelledBox("person", (60.0, 50.0, 80.0, 70.0)),
            BOX,
        ),
        outlines=1,
    )


def test_the_flag_difficult_is_read(tmp_path: Path) -> None:
    (box, plain) = _read(tmp_path, _file({**CAR, "flags": {"difficult": True}}, {**CAR, "flags": {}})).boxes
    assert (box.difficult, plain.difficult) == (True, False)


@pytest.mark.parametrize(
    ("shape", "problem", "message"),
    [
        (3, Problem.MISSING_FIELD, "expected an object with label and points"),
        ({**CAR, "label": " "}, Problem.MISSING_FIELD, "expected the field label, with the class"),
        ({**CAR, "label": 7}, Problem.MISSING_FIELD, "expected the field label, with the class"),
        ({**CAR, "label": "c" * 129}, Problem.UNKNOWN_CLASS, "expected a class of at most 128 characters"),
        ({"label": "car"}, Problem.MISSING_FIELD, "expected the field points, with pairs of numbers"),
        (
            {**CAR, "points": [[1, 2], [3, None]]},
            Problem.NOT_A_NUMBER,
            "points: expected pairs of finite numbers, got [3, null]",
        ),
        (
            {**CAR, "points": [[1, 2], [3, True]]},
            Problem.NOT_A_NUMBER,
            "points: expected pairs of finite numbers, got [3, true]",
        ),
        ({**CAR, "points": [[1, 2], [1e9, 3]]}, Problem.NOT_A_NUMBER, "points: expected pairs of finite"),
        (
            {**CAR, "points": [[1, 2]], "shape_type": "point"},
            Problem.INVERTED_BOX,
            "expected a shape with an area, got a point",
        ),
        (
            {**CAR, "shape_type": "line"},
            Problem.INVERTED_BOX,
            "expected a shape with an area, got a line",
        ),
        (
            {**CAR, "points": [[1, 2], [1, 9]]},
            Problem.INVERTED_BOX,
            "expected a shape with an area, got a rectangle",
        ),
    ],
)
def test_a_bad_shape_is_a_finding_beside_the_others(
    tmp_path: Path, shape: Any, problem: Problem, message: str
) -> None:
    labels = _read(tmp_path, _file(CAR, shape))
    assert labels.boxes == (BOX,)
    (finding,) = labels.findings
    assert finding.problem == problem
    assert finding.message.startswith(f"shapes[1]: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON"),
        ("[]", "expected the JSON of labelme, with shapes"),
        ('{"images": []}', "expected the JSON of labelme, with shapes"),
        ('{"shapes": [', "expected JSON"),
        (_file(CAR)[:-1], "expected JSON"),
        (_file(CAR).encode("utf-16"), "expected JSON: expected UTF-8 text"),
        ("[" * 100_000, "expected JSON"),
        (_file(*[CAR] * (MAX_SHAPES + 1)), "expected at most 10,000 shapes, got 10,001"),
    ],
)
def test_a_bad_file_is_one_finding(tmp_path: Path, content: str | bytes, message: str) -> None:
    labels = _read(tmp_path, content)
    (finding,) = labels.findings
    assert (labels.boxes, finding.problem) == ((), Problem.UNREADABLE_LABEL)
    assert finding.message.startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SHAPE = st.fixed_dictionaries(
    {},
    optional={
        "label": JSON,
        "points": JSON | st.lists(st.lists(st.floats() | st.integers(), max_size=3), max_size=4),
        "shape_type": JSON | st.sampled_from(["rectangle", "polygon", "circle", "line"]),
        "group_id": JSON,
        "flags": JSON,
    },
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(shapes=st.lists(SHAPE | JSON, max_size=5), size=JSON)
def test_every_shape_is_an_object_or_a_finding_or_part_of_one(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[Any], size: Any
) -> None:
    path = tmp_path_factory.mktemp("labelme") / "a.json"
    path.write_text(_file(*shapes, imageHeight=size, imageWidth=size))
    place = SourceFolder(path.parent, "train")
    labels = LabelmeReader(place, place).read_file(path, "train/a.json", (100, 100))
    assert len(labels.boxes) + len(labels.findings) <= len(shapes)
    # Only shapes of a group may share an object.
    if not any(isinstance(shape, dict) and shape.get("group_id") is not None for shape in shapes):
        assert len(labels.boxes) + len(labels.findings) == len(shapes)
    for box in labels.boxes:
        y1, x1, y2, x2 = box.yxyx
        assert y1 < y2
        assert x1 < x2
