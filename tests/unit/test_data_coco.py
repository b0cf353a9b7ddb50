"""COCO labels: several files make one data set, and every entry that cannot be used gets a finding."""

import json
from pathlib import Path
from typing import Any

import pytest

from tlt_api.failures import Reason
from tlt_runner.data.formats.coco import CocoReader
from tlt_runner.data.formats.coco.merge import MAX_FINDINGS
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.sample import LabelledBox, Labels, Listing, Problem
from tlt_runner.errors import RunnerError

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}]


def _image(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 640, "height": 480, **more}


def _annotation(image: Any, category: Any, bbox: Any, **more: Any) -> dict[str, Any]:
    return {"id": 345, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


def _coco(images: list[Any], annotations: list[Any], categories: list[Any] = CATEGORIES) -> dict[str, Any]:
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _reader(folder: Path, images: list[str], *contents: object) -> CocoReader:
    """Make a data set of empty image files, and a JSON file for each content (0.json, 1.json, ...)."""
    for name in images:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).touch()
    files = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        files.append((f"annotations/{number}.json", path))
    return CocoReader(SourceFolder(folder / "images", "images"), files)


def _read(folder: Path, *contents: object, images: tuple[str, ...] = ("a.jpg",)) -> tuple[Listing, Labels]:
    """Return the listing, and the labels of the one image that has some."""
    reader = _reader(folder, list(images), *contents)
    listing = reader.listing()
    (sample,) = listing.samples
    labels = reader.read(sample, (480, 640))
    assert reader.classes(sample).total() == len(labels.boxes)
    return listing, labels


def test_a_box_is_left_top_width_height(tmp_path: Path) -> None:
    content = _coco([_image(5, "a.jpg")], [_annotation(5, 7, [10.5, 20, 30, 40.25])])
    listing, labels = _read(tmp_path, content)
    assert labels == Labels((LabelledBox("train", (20.0, 10.5, 60.25, 40.5)),), image_size=(480, 640))
    assert (listing.findings, listing.orphans, listing.skipped) == ([], [], [])
    (sample,) = listing.samples
    assert (sample.name, sample.stem, sample.image_file) == ("images/a", "a", "images/a.jpg")
    assert (sample.label_file, listing.label_files) == (
        "annotations/0.json",
        [("annotations/0.json", tmp_path / "0.json")],
    )


def test_ids_may_have_gaps_and_be_text(tmp_path: Path) -> None:
    categories = [{"id": "p", "name": "person"}, {"id": 90, "name": "toothbrush"}]
    annotations = [_annotation("x1", "p", [0, 0, 1, 1]), _annotation("x1", 90.0, [0, 0, 2, 2])]
    _, labels = _read(tmp_path, _coco([_image("x1", "a.jpg")], annotations, categories))  # type: ignore[arg-type]
    assert [box.class_name for box in labels.boxes] == ["person", "toothbrush"]


def test_a_crowd_is_a_region_to_leave_out_of_account(tmp_path: Path) -> None:
    crowd = {"id": 1, "image_id": 5, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}
    _, labels = _read(tmp_path, _coco([_image(5, "a.jpg")], [_annotation(5, 1, [0, 0, 1, 1]), crowd]))
    assert (len(labels.boxes), len(labels.ignored), labels.findings) == (1, 1, ())


def test_an_entry_without_annotations_is_background(tmp_path: Path) -> None:
    assert _read(tmp_path, _coco([_image(5, "a.jpg")], []))[1] == Labels(image_size=(480, 640))


def test_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": " person "}]
    annotations = [_annotation(5, 1, [0, 0, 1, 1]), _annotation(5, 2, [0, 0, 2, 2])]
    reader = _reader(tmp_path, ["a.jpg"], _coco([_image(5, "a.jpg")], annotations, categories))
    (sample,) = reader.listing().samples
    assert reader.classes(sample) == {"person": 2}


def test_ids_count_within_their_file_and_classes_join_by_name(tmp_path: Path) -> None:
    first = _coco([_image(1, "a.jpg")], [_annotation(1, 1, [0, 0, 1, 1])])
    categories = [{"id": 1, "name": "train"}, {"id": 2, "name": "person"}]
    second = _coco([_image(1, "b.jpg")], [_annotation(1, 1, [0, 0, 2, 2])], categories)
    reader = _reader(tmp_path, ["a.jpg", "b.jpg"], first, second)
    listing = reader.listing()
    assert [(s.stem, s.label_file, reader.classes(s)) for s in listing.samples] == [
        ("a", "annotations/0.json", {"person": 1}),
        ("b", "annotations/1.json", {"train": 1}),
    ]


def test_annotations_of_one_image_in_two_files_add_up_and_count_once(tmp_path: Path) -> None:
    person, train = _annotation(1, 1, [0, 0, 1, 1]), _annotation(1, 7, [0, 0, 1, 1])
    second = _coco([_image(2, "a.jpg")], [{**person, "image_id": 2}, {**train, "image_id": 2}])
    listing, labels = _read(tmp_path, _coco([_image(1, "a.jpg")], [person]), second)
    assert [box.class_name for box in labels.boxes] == ["person", "train"]
    assert [str(finding) for finding in listing.findings] == [
        "annotations/1.json: DuplicateName: "
        "annotations an earlier file has too (same class and box), counted once: 1"
    ]


def test_two_equal_annotations_in_one_file_are_two_objects(tmp_path: Path) -> None:
    twice = [_annotation(1, 1, [0, 0, 1, 1])] * 2
    assert len(_read(tmp_path, _coco([_image(1, "a.jpg")], twice))[1].boxes) == 2


def test_sizes_that_contradict_each_other_are_a_finding(tmp_path: Path) -> None:
    images = [_image(1, "a.jpg"), _image(2, "a.jpg", width=320)]
    _, labels = _read(tmp_path, _coco(images, []))
    assert labels.image_size == (480, 640)
    assert [(f.problem, f.message) for f in labels.findings] == [
        (
            Problem.SIZE_MISMATCH,
            "images[1] (id 2): expected 640 x 480 pixels as in an earlier entry, got 320 x 480 pixels",
        )
    ]


@pytest.mark.parametrize(
    "name", ["sub/a.jpg", "a.jpg", "./sub//a.jpg", "images/sub/a.jpg", "{folder}/images/sub/a.jpg"]
)
def test_a_file_name_may_start_with_folders_above_or_have_none(tmp_path: Path, name: str) -> None:
    written = name.format(folder=tmp_path.name)
    _, labels = _read(tmp_path, _coco([_image(1, written)], []), images=("sub/a.jpg",))
    assert labels.image_size == (480, 640)


TRIED = ", nor does an image of that name or stem in another folder or with another extension"


@pytest.mark.parametrize(
    "name", ["c.jpg", "sub/A.jpg", "sub", "C:/", "http://host/", "%2e%2e/", "/etc/passwd"]
)
def test_a_file_name_that_leads_to_no_image_is_reported_with_what_was_tried(
    tmp_path: Path, name: str
) -> None:
    entries = [_image(1, name), _image(2, "b.jpg")]
    listing, _ = _read(tmp_path, _coco(entries, []), images=("sub/a.jpg", "b.jpg"))
    assert (listing.skipped, listing.outside) == ([], ["images/sub/a.jpg"])
    assert [str(finding) for finding in listing.orphans] == [
        "annotations/0.json: LabelWithoutImage: "
        f"images[0] (id 1): expected images/{name}, which does not exist{TRIED}"
    ]


def test_a_file_name_too_long_for_a_file_system_is_found_by_its_base_name(tmp_path: Path) -> None:
    _, labels = _read(tmp_path, _coco([_image(1, "q" * 300 + "/a.jpg")], []), images=("sub/a.jpg",))
    assert labels.image_size == (480, 640)


def test_a_bare_file_name_in_two_sub_folders_is_ambiguous(tmp_path: Path) -> None:
    entries = [_image(1, "a.jpg"), _image(2, "b.jpg")]
    listing, _ = _read(tmp_path, _coco(entries, []), images=("train/a.jpg", "val/a.jpg", "b.jpg"))
    assert listing.outside == ["images/train/a.jpg", "images/val/a.jpg"]
    assert [finding.message for finding in listing.orphans] == [
        "images[0] (id 1): expected images/a.jpg, which does not exist; "
        "it could be train/a.jpg or val/a.jpg: write the folder into file_name"
    ]


def test_file_names_match_in_composed_and_decomposed_unicode(tmp_path: Path) -> None:
    _, labels = _read(tmp_path, _coco([_image(1, "mu\u0308ll 1.jpg")], []), images=("m\u00fcll 1.jpg",))
    assert labels.image_size == (480, 640)


@pytest.mark.parametrize("name", ["..", "/", "../..", "a.jpg\0.png", "a\n.jpg", "\ud800.jpg"])
def test_a_file_name_that_names_no_file_is_refused(tmp_path: Path, name: str) -> None:
    annotations = [_annotation(9, 1, [0, 0, 1, 1])] * 3
    listing, _ = _read(tmp_path, _coco([_image(5, "a.jpg"), _image(9, name)], annotations))
    (finding,) = listing.findings
    assert (finding.file, finding.problem) == ("annotations/0.json", Problem.UNSAFE_NAME)
    assert finding.message.startswith("images[1] (id 9): file_name: expected the path of an image, without")
    assert finding.message.endswith("; annotations that go with it: 3")
    str(finding).encode()


SPELLED = "has backslashes, URL escapes, '..' or the folders of another machine"
BY_BASE_NAME, BY_STEM = "is found by the end of its path", "is found with another extension"


@pytest.mark.parametrize(
    ("value", "how"),
    [
        ("s 1\\a b.jpg", SPELLED),
        ("images\\s 1\\a b.jpg", SPELLED),
        ("C:\\set\\images\\s 1\\a b.jpg", SPELLED),
        ("/home/me/set/images/s 1/a b.jpg", SPELLED),
        ("../../images/s 1/a b.jpg", SPELLED),
        ("../old/../images/s 1/a b.jpg", SPELLED),
        ("s%201/a%20b.jpg", SPELLED),
        ("http://localhost:8080/data/images/s%201/a%20b.jpg?token=1", SPELLED),
        ("/data/local-files/?d=images/s%201/a%20b.jpg", SPELLED),
        ("/home/me/a b.jpg", BY_BASE_NAME),
        ("../a b.jpg", BY_BASE_NAME),
        ("D:\\a b.jpg", BY_BASE_NAME),
        ("images/1/a b.jpg", BY_BASE_NAME),
        ("upload/7/a%20b.jpg", BY_BASE_NAME),
        ("other/s 1/a b.jpg", BY_BASE_NAME),
        ("s 1/a b.png", BY_STEM),
        ("a b.JPEG", BY_STEM),
        ("images/1/a b.tif", BY_STEM),
        ("a b", BY_STEM),
    ],
)
def test_a_file_name_as_tools_write_it_is_found_and_said(tmp_path: Path, value: str, how: str) -> None:
    content = _coco([_image(9, value)], [_annotation(9, 1, [0, 0, 1, 1])])
    listing, labels = _read(tmp_path, content, images=("s 1/a b.jpg",))
    assert (len(labels.boxes), listing.orphans, listing.findings, listing.outside) == (1, [], [], [])
    assert listing.notes == [
        f"annotations/0.json: the file_name of 1 images {how} (for example {value!r} is images/s 1/a b.jpg)"
    ]


def test_a_file_name_as_it_should_be_needs_no_word(tmp_path: Path) -> None:
    listing, _ = _read(tmp_path, _coco([_image(9, "images/a 100%.jpg")], []), images=("a 100%.jpg",))
    assert (listing.notes, listing.warnings) == ([], [])


@pytest.mark.parametrize(
    ("names", "values", "reason"),
    [
        # Another entry is that image for sure.
        (["a.jpg"], ["a.jpg", "/old/a.jpg"], "it could be images/a.jpg, which another entry names"),
        (["a.jpg"], ["a.jpg", "a.png"], "it could be images/a.jpg, which another entry names"),
        # Folders tell images apart.
        (
            ["t/a.jpg", "b.jpg"],
            ["t/a.jpg", "v/b.jpg"],
            "images/b.jpg is not taken for it, since the folders of other entries lead to images",
        ),
        # Two images, or two entries.
        (["s/a.jpg", "t/a.jpg", "b.jpg"], ["b.jpg", "u/a.jpg"], "it could be s/a.jpg or t/a.jpg: write the"),
        (
            ["s/a.png", "a.jpg", "b.jpg"],
            ["b.jpg", "/a.png"],
            "it could be images/a.jpg or images/s/a.png: correct file_name",
        ),
        # What is there, is meant.
        (
            ["a.jpg", "b.jpg"],
            ["b.jpg", "val/a.jpg"],
            "images/a.jpg is not taken for it, since there is val/a.jpg",
        ),
    ],
)
def test_a_guess_that_may_be_wrong_is_not_made(
    tmp_path: Path, names: list[str], values: list[str], reason: str
) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val/a.jpg").touch()
    entries = [_image(number, value) for number, value in enumerate(values)]
    lost = [_annotation(1, 1, [0, 0, 1, 1])] * 2
    reader = _reader(tmp_path, names, _coco(entries, lost))
    listing = reader.listing()
    (orphan,) = listing.orphans
    assert str(orphan).startswith("annotations/0.json: LabelWithoutImage: images[1] (id 1): expected images/")
    assert reason in orphan.message and orphan.message.endswith("; annotations that go with it: 2")
    assert [len(reader.read(sample, (1, 1)).boxes) for sample in listing.samples] == [0]
    assert len(listing.outside) == len(names) - 1


def test_the_likelier_of_two_guesses_has_the_image(tmp_path: Path) -> None:
    entries = [
        _image(1, "/home/me/images/val/a.jpg"),
        _image(2, "/home/me/images/train/a.jpg"),
        _image(3, "/home/me/images/train/b.png"),
        _image(4, "/home/me/images/train/b.jpg"),
        # Folders tell images apart.
        _image(5, "/home/me/images/val/c.jpg"),
    ]
    annotations = [_annotation(image, 1, [image, 0, 1, 1]) for image in range(1, 6)]
    (tmp_path / "images/train").mkdir(parents=True)
    files = _reader(
        tmp_path, ["train/a.jpg", "train/b.jpg", "train/c.jpg"], _coco(entries, annotations)
    ).files
    reader = CocoReader(SourceFolder(tmp_path / "images/train", "images/train"), files)
    listing = reader.listing()
    assert [finding.entry for finding in listing.orphans] == [f"images[{n}] (id {n + 1})" for n in (2, 0, 4)]
    boxes = {s.stem: [box.yxyx[1] for box in reader.read(s, (1, 1)).boxes] for s in listing.samples}
    assert (boxes, listing.outside) == ({"a": [2.0], "b": [4.0]}, ["images/train/c.jpg"])


def test_an_image_folder_of_another_part_is_no_reliable_place(tmp_path: Path) -> None:
    # val/images ends as images does.
    reader = _reader(tmp_path, ["a.jpg"], _coco([_image(1, "val/images/a.jpg")], []))
    assert [note.partition(" has ")[0] for note in reader.listing().notes] == [
        "annotations/0.json: the file_name of 1 images"
    ]
    (tmp_path / "val/images").mkdir(parents=True)
    (tmp_path / "val/images/a.jpg").touch()
    assert reader.listing().samples == []


def test_two_entries_that_could_be_one_image_are_neither(tmp_path: Path) -> None:
    entries = [_image(1, "/x/a.jpg"), _image(2, "/y/a.jpg"), _image(3, "b.jpg")]
    listing, _ = _read(tmp_path, _coco(entries, []), images=("a.jpg", "b.jpg"))
    assert [finding.entry for finding in listing.orphans] == ["images[0] (id 1)", "images[1] (id 2)"]
    assert {finding.message.partition("; ")[2] for finding in listing.orphans} == {
        "it could be images/a.jpg, and so could other entries: correct file_name"
    }


def test_a_guess_waits_for_the_files_that_name_the_image_itself(tmp_path: Path) -> None:
    other = _coco([_image(1, "/old/a.jpg")], [_annotation(1, 1, [0, 0, 1, 1])])
    itself = _coco([_image(1, "a.jpg")], [_annotation(1, 7, [0, 0, 1, 1])])
    listing, labels = _read(tmp_path, other, itself)
    assert [box.class_name for box in labels.boxes] == ["train"]
    assert [finding.file for finding in listing.orphans] == ["annotations/0.json"]


def test_one_name_in_two_files_is_one_guess(tmp_path: Path) -> None:
    first = _coco([_image(1, "/old/a.jpg")], [_annotation(1, 1, [0, 0, 1, 1])])
    second = _coco([_image(4, "/old/a.jpg")], [_annotation(4, 7, [0, 0, 1, 1])])
    listing, labels = _read(tmp_path, first, second)
    assert [box.class_name for box in labels.boxes] == ["person", "train"]
    assert len(listing.notes) == 2


def test_images_without_entry_are_no_part_and_entries_without_image_are_reported(tmp_path: Path) -> None:
    content = _coco([_image(1, "a.jpg"), _image(2, "gone.jpg")], [_annotation(2, 1, [0, 0, 1, 1])])
    names = ("a.jpg", "b.jpg", "a.png", "c.gif")
    listing, _ = _read(tmp_path, content, images=names)
    assert (listing.images, listing.other_files, listing.outside) == (2, 0, ["images/a.png", "images/b.jpg"])
    assert [(f.file, f.problem) for f in listing.skipped] == [("images/c.gif", Problem.UNSUPPORTED_IMAGE)]
    assert [str(finding) for finding in listing.orphans] == [
        "annotations/0.json: LabelWithoutImage: images[1] (id 2): expected images/gone.jpg, "
        f"which does not exist{TRIED}; annotations that go with it: 1"
    ]


@pytest.mark.parametrize(
    ("unlabelled", "samples", "skipped"),
    [("bad", ["a"], ["images/c.gif", "images/b.jpg"]), ("background", ["a", "b"], ["images/c.gif"])],
)
def test_images_without_entry_are_what_the_data_set_says(
    tmp_path: Path, unlabelled: Any, samples: list[str], skipped: list[str]
) -> None:
    files = _reader(tmp_path, ["a.jpg", "b.jpg", "c.gif"], _coco([_image(1, "a.jpg")], [])).files
    reader = CocoReader(SourceFolder(tmp_path / "images", "images"), files, unlabelled)
    listing = reader.listing()
    assert ([sample.stem for sample in listing.samples], listing.images) == (samples, 3)
    assert ([finding.file for finding in listing.skipped], listing.outside) == (skipped, [])
    assert [reader.read(sample, (1, 1)).boxes for sample in listing.samples] == [()] * len(samples)


TRIANGLE = [[10, 40, 30.5, 20, 50, 60]]


@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}])
def test_an_outline_without_a_box_becomes_one_where_asked(tmp_path: Path, bbox: dict[str, Any]) -> None:
    outline = {
        "id": 8,
        "image_id": 1,
        "category_id": 7,
        "segmentation": [*TRIANGLE, [0, 30, 5, 35, 0, 35]],
        **bbox,
    }
    content = _coco([_image(1, "a.jpg")], [outline, _annotation(1, 1, [0, 0, 1, 1], segmentation=TRIANGLE)])
    files = _reader(tmp_path, ["a.jpg"], content).files
    asked = CocoReader(SourceFolder(tmp_path / "images", "images"), files, shapes="boundingBox")
    (sample,) = asked.listing().samples
    boxes = (LabelledBox("train", (20.0, 0.0, 60.0, 50.0)), LabelledBox("person", (0.0, 0.0, 1.0, 1.0)))
    assert asked.read(sample, (480, 640)) == Labels(boxes, image_size=(480, 640), outlines=1)
    _, refused = _read(tmp_path, content)
    assert [(finding.problem, finding.message) for finding in refused.findings] == [
        (
            Problem.NOT_A_BOX,
            "annotations[0] (id 8): expected the field bbox, got an outline alone; dataset.shapes: "
            "boundingBox takes the box around its polygons",
        )
    ]


@pytest.mark.parametrize(
    ("outline", "problem", "message"),
    [
        (
            {"counts": [1, 2], "size": [9, 9]},
            Problem.NOT_A_BOX,
            "expected the field bbox, got a mask alone: export",
        ),
        (
            [[1, 2, 3, 4]],
            Problem.WRONG_COLUMNS,
            "segmentation: expected polygons of three points or more, got 4",
        ),
        (
            [[1, 2, 3, 4, 5, 6, 7]],
            Problem.WRONG_COLUMNS,
            "segmentation: expected polygons of three points or more",
        ),
        (
            [1, 2, 3, 4, 5, 6],
            Problem.WRONG_COLUMNS,
            "segmentation: expected polygons of three points or more, got",
        ),
        ([[1, 2, "3", 4, 5, 6]], Problem.NOT_A_NUMBER, "segmentation: expected finite numbers, got '3'"),
        ([[1, 2, 3e9, 4, 5, 6]], Problem.NOT_A_NUMBER, "segmentation: expected -1e+06 to 1e+06"),
        (
            [[1, 2, 1, 4, 1, 6]],
            Problem.INVERTED_BOX,
            "segmentation: expected points that leave an area, got 3",
        ),
    ],
)
def test_an_outline_that_makes_no_box_is_a_finding(
    tmp_path: Path, outline: object, problem: Problem, message: str
) -> None:
    annotations = [{"id": 8, "image_id": 1, "category_id": 7, "segmentation": outline}]
    files = _reader(tmp_path, ["a.jpg"], _coco([_image(1, "a.jpg")], annotations)).files
    reader = CocoReader(SourceFolder(tmp_path / "images", "images"), files, shapes="boundingBox")
    (sample,) = reader.listing().samples
    (finding,) = reader.read(sample, (480, 640)).findings
    assert (finding.problem, message in finding.message) == (problem, True)


CROWDS = (
    "they are regions to leave out of account, neither learnt nor judged. Tools (CVAT, datumaro) write masks "
    "drawn with a brush so: export boxes or polygons, or set iscrowd to 0 where one annotation marks one "
    "object"
)


@pytest.mark.parametrize(
    ("crowds", "objects", "counts"),
    [(4, 0, "all 4"), (2, 2, "2 of 4"), (1, 9, "1 of 10"), (1, 10, None), (0, 4, None)],
)
def test_a_file_with_many_crowds_is_named(
    tmp_path: Path, crowds: int, objects: int, counts: str | None
) -> None:
    annotations = [_annotation(1, 7, [n, 0, 1, 1], iscrowd=1) for n in range(crowds)]
    annotations += [_annotation(1, 1, [n, 0, 1, 1]) for n in range(objects)]
    listing, labels = _read(tmp_path, _coco([_image(1, "a.jpg")], annotations))
    assert (len(labels.ignored), len(labels.boxes)) == (crowds, objects)
    text = f"annotations/0.json: {counts} annotations have iscrowd: 1 (train {crowds}): {CROWDS}"
    assert listing.warnings == ([] if counts is None else [text])


def test_the_first_of_two_images_with_one_stem_is_used(tmp_path: Path) -> None:
    listing, _ = _read(
        tmp_path, _coco([_image(1, "a.jpg"), _image(2, "a.png")], []), images=("a.jpg", "a.png")
    )
    assert [(f.file, f.problem) for f in listing.skipped] == [("images/a.png", Problem.DUPLICATE_NAME)]


HUGE = 10**400
VERDICTS = [
    (_annotation(5, 8, [0, 0, 1, 1]), Problem.UNKNOWN_CLASS, "expected an id of categories[], got"),
    (_annotation(5, None, [0, 0, 1, 1]), Problem.MISSING_FIELD, "expected the field category_id"),
    (_annotation(5, [1], [0, 0, 1, 1]), Problem.NOT_A_NUMBER, "category_id: expected a whole number"),
    ({"id": 345, "image_id": 5, "category_id": 1}, Problem.MISSING_FIELD, "expected the field bbox"),
    (_annotation(5, 1, None), Problem.MISSING_FIELD, "expected the field bbox"),
    (_annotation(5, 1, []), Problem.WRONG_COLUMNS, "bbox: expected [x, y, width, height], got 0 values"),
    (_annotation(5, 1, "0 0 1 1"), Problem.WRONG_COLUMNS, "bbox: expected [x, y, width, height], got text"),
    (_annotation(5, 1, [0, 0, 1, "1"]), Problem.NOT_A_NUMBER, "bbox: expected finite numbers, got '1'"),
    (_annotation(5, 1, [0, 0, 1, True]), Problem.NOT_A_NUMBER, "bbox: expected finite numbers, got True"),
    (_annotation(5, 1, [0, 0, 1, None]), Problem.NOT_A_NUMBER, "bbox: expected finite numbers, got None"),
    (_annotation(5, 1, [0, 0, 1, float("nan")]), Problem.NOT_A_NUMBER, "bbox: expected finite numbers"),
    (_annotation(5, 1, [0, 0, 1, float("inf")]), Problem.NOT_A_NUMBER, "bbox: expected finite numbers"),
    (_annotation(5, 1, [0, 0, HUGE, 1]), Problem.NOT_A_NUMBER, "bbox: expected -1e+06 to 1e+06, got 1000"),
    (_annotation(5, 1, [0, 0, 1e7, 1]), Problem.NOT_A_NUMBER, "bbox: expected -1e+06 to 1e+06, got"),
    (_annotation(5, 1, [3, 3, 0, 1]), Problem.INVERTED_BOX, "bbox: expected a width and a height above 0"),
    (_annotation(5, 1, [3, 3, 1, -1]), Problem.INVERTED_BOX, "got 1 and -1"),
    (_annotation(5, 1, [3, 3, 1e-30, 1]), Problem.INVERTED_BOX, "got 1e-30 and 1"),
    (_annotation(5, 1, [0, 0, 1, 1], iscrowd="no"), Problem.NOT_A_NUMBER, "iscrowd: expected 0 or 1"),
]


@pytest.mark.parametrize(("entry", "problem", "message"), VERDICTS)
def test_an_unusable_annotation_gets_a_finding_that_names_it(
    tmp_path: Path, entry: dict[str, Any], problem: Problem, message: str
) -> None:
    good = _annotation(5, 1, [0, 0, 1, 1])
    listing, labels = _read(tmp_path, _coco([_image(5, "a.jpg")], [good, entry, good]))
    (finding,) = labels.findings
    assert (finding.file, finding.problem, finding.line) == ("annotations/0.json", problem, None)
    assert finding.message.startswith("annotations[1] (id 345): ") and message in finding.message
    assert len(finding.message) < 200
    assert (len(labels.boxes), listing.findings) == (2, [])


@pytest.mark.parametrize(
    ("entry", "problem", "message"),
    [
        (
            _annotation(99, 1, [0, 0, 1, 1]),
            Problem.LABEL_WITHOUT_IMAGE,
            "annotations[0] (id 345): expected an id of images[], got image_id 99",
        ),
        (_annotation(None, 1, [0, 0, 1, 1]), Problem.MISSING_FIELD, "annotations[0] (id 345): expected the"),
        (_annotation({}, 1, [0, 0, 1, 1]), Problem.NOT_A_NUMBER, "annotations[0] (id 345): image_id: expect"),
        ("text", Problem.MISSING_FIELD, "annotations[0]: expected an object, got text"),
        (None, Problem.MISSING_FIELD, "annotations[0]: expected an object, got null"),
    ],
)
def test_an_annotation_of_no_image_is_a_finding_of_the_file(
    tmp_path: Path, entry: object, problem: Problem, message: str
) -> None:
    content = _coco([_image(5, "a.jpg")], [entry, _annotation(5, 1, [0, 0, 1, 1])])
    listing, labels = _read(tmp_path, content)
    (finding,) = listing.findings
    assert (finding.problem, finding.message[: len(message)], len(labels.boxes)) == (problem, message, 1)


@pytest.mark.parametrize(
    ("entry", "problem", "message"),
    [
        ({"file_name": "b.jpg"}, Problem.MISSING_FIELD, "images[1]: expected the field id"),
        (_image(5, "b.jpg"), Problem.DUPLICATE_NAME, "images[1] (id 5): an earlier entry has the same id"),
        ({"id": 6}, Problem.MISSING_FIELD, "images[1] (id 6): expected the field file_name"),
        (_image(6, ""), Problem.MISSING_FIELD, "images[1] (id 6): file_name: expected text, got ''"),
        (_image(6, 7), Problem.MISSING_FIELD, "images[1] (id 6): file_name: expected text, got 7"),  # type: ignore[arg-type]
        ([], Problem.MISSING_FIELD, "images[1]: expected an object, got a list"),
        (_image(True, "b.jpg"), Problem.NOT_A_NUMBER, "images[1]: id: expected a whole number, got True"),
        ({"id": 1.5, "file_name": "b.jpg"}, Problem.NOT_A_NUMBER, "images[1]: id: expected a whole number"),
    ],
)
def test_an_entry_of_images_that_cannot_be_used_is_a_finding_of_the_file(
    tmp_path: Path, entry: object, problem: Problem, message: str
) -> None:
    listing, _ = _read(tmp_path, _coco([_image(5, "a.jpg"), entry], []))
    (finding,) = listing.findings
    assert (finding.problem, finding.message[: len(message)]) == (problem, message)


@pytest.mark.parametrize(
    ("entry", "problem", "message"),
    [
        ({"id": 8}, Problem.MISSING_FIELD, "categories[3] (id 8): expected the field name"),
        ({"id": 8, "name": ""}, Problem.MISSING_FIELD, "categories[3] (id 8): name: expected text, got ''"),
        ({"id": 8, "name": "\ud800"}, Problem.MISSING_FIELD, "categories[3] (id 8): name: expected text"),
        ({"id": 8, "name": "d" * 129}, Problem.UNKNOWN_CLASS, "categories[3] (id 8): expected a class of at"),
        ({"name": "dog"}, Problem.MISSING_FIELD, "categories[3]: expected the field id"),
        ({"id": 7, "name": "dog"}, Problem.DUPLICATE_NAME, "categories[3] (id 7): an earlier entry has the"),
    ],
)
def test_a_category_that_cannot_be_used_is_a_finding_and_so_are_its_annotations(
    tmp_path: Path, entry: dict[str, Any], problem: Problem, message: str
) -> None:
    annotations = [_annotation(5, 8, [0, 0, 1, 1]), _annotation(5, 7, [0, 0, 1, 1])]
    content = _coco([_image(5, "a.jpg")], annotations, [*CATEGORIES, entry])
    listing, labels = _read(tmp_path, content)
    (finding,) = listing.findings
    assert (finding.problem, finding.message[: len(message)]) == (problem, message)
    assert [finding.problem for finding in labels.findings] == [Problem.UNKNOWN_CLASS]
    assert [box.class_name for box in labels.boxes] == ["train"]
    str(finding).encode()


@pytest.mark.parametrize("size", [{"width": 0}, {"width": None}, {"height": 0.0}])
def test_a_size_of_zero_or_null_counts_as_unknown(tmp_path: Path, size: dict[str, Any]) -> None:
    assert _read(tmp_path, _coco([_image(5, "a.jpg", **size)], []))[1] == Labels()


@pytest.mark.parametrize("width", ["640", -1, 640.5, float("nan"), HUGE, [640]])
def test_an_invalid_size_is_a_finding(tmp_path: Path, width: object) -> None:
    _, labels = _read(tmp_path, _coco([_image(5, "a.jpg", width=width)], []))
    assert labels.image_size is None
    assert [finding.problem for finding in labels.findings] == [Problem.NOT_A_NUMBER]


GOOD = json.dumps(_coco([_image(5, "a.jpg")], [_annotation(5, 1, [0, 0, 1, 1])])).encode()
CAPTIONS = {"images": [_image(5, "a.jpg")], "annotations": [{"image_id": 5, "id": 1, "caption": "a dog"}]}
UNUSABLE = [
    (b"", 1, "expected JSON, column 1: Expecting value"),
    (b'{"images": [],\n  "annotations": [}', 2, "expected JSON, column 19: Expecting value"),
    (GOOD[: len(GOOD) // 2], 1, "expected JSON, column "),
    (b"[" * 100_000, None, "expected JSON that is not nested as deeply"),
    (b'{"a":' * 100_000, None, "expected JSON that is not nested as deeply"),
    (b'{"images": [' + b"9" * 5000 + b"]}", None, "expected numbers of a usual size"),
    (b'\n{"images": "\xff"}', 2, "expected UTF-8 text, got byte 0xff"),
    (GOOD.decode().encode("utf-16"), 1, "expected UTF-8 text, got byte 0xff"),
    (b"[]", None, "expected an object at the top, got a list"),
    (b"NaN", None, "expected an object at the top, got a number"),
    ({"images": {}, "annotations": [], "categories": []}, None, "expected a list images, got an object"),
]
OTHER_KINDS = [
    ({}, "expected a list images, got none"),
    (CAPTIONS, "expected a list categories, got none"),
    ({**CAPTIONS, "categories": CATEGORIES}, "expected annotations with a bbox, got 1 without"),
    ({"images": [], "categories": []}, "expected a list annotations, got none"),
]


@pytest.mark.parametrize(("content", "line", "message"), UNUSABLE)
def test_a_file_that_is_no_coco_file_is_left_out_and_reported(
    tmp_path: Path, content: object, line: int | None, message: str
) -> None:
    listing, labels = _read(tmp_path, content, GOOD)
    (finding,) = listing.findings
    assert (finding.file, finding.problem, finding.line) == (
        "annotations/0.json",
        Problem.UNREADABLE_LABEL,
        line,
    )
    assert message in finding.message
    assert (len(labels.boxes), listing.label_files) == (1, [("annotations/1.json", tmp_path / "1.json")])


@pytest.mark.parametrize(("content", "message"), OTHER_KINDS)
def test_a_file_without_boxes_is_a_side_file_and_no_problem(
    tmp_path: Path, content: object, message: str
) -> None:
    listing, labels = _read(tmp_path, content, GOOD)
    assert (listing.findings, listing.side_files) == ([], ["annotations/0.json"])
    assert (len(labels.boxes), listing.label_files) == (1, [("annotations/1.json", tmp_path / "1.json")])
    with pytest.raises(RunnerError, match=message) as failure:
        _reader(tmp_path, ["a.jpg"], content).listing()
    assert failure.value.reason == Reason.NO_LABELS


def test_too_many_entries_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    annotations = [_annotation(5, 1, [0, 0, 0, 0])] * (MAX_FINDINGS + 5) + [
        {},
        _annotation(5, 1, [0, 0, 1, 1]),
    ]
    listing, labels = _read(tmp_path, _coco([_image(5, "a.jpg")], annotations))
    assert (len(labels.findings), len(labels.boxes)) == (MAX_FINDINGS, 1)
    assert [str(finding) for finding in listing.findings] == [
        "annotations/0.json: InvertedBox: entries beyond the first 10000 that cannot be used: 5",
        "annotations/0.json: MissingField: entries beyond the first 10000 that cannot be used: 1",
    ]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert len(_read(tmp_path, b"\xef\xbb\xbf" + GOOD)[1].boxes) == 1


def test_the_failure_names_the_files_if_none_is_usable(tmp_path: Path) -> None:
    reader = _reader(tmp_path, ["a.jpg"], b"", CAPTIONS)
    with pytest.raises(RunnerError) as failure:
        reader.listing()
    assert failure.value.reason == Reason.NO_LABELS
    assert "annotations/0.json:1: UnreadableLabel: " in failure.value.message
    assert "annotations/1.json: UnreadableLabel: " in failure.value.message


def test_without_any_file_there_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="got no .json file") as failure:
        _reader(tmp_path, ["a.jpg"]).listing()
    assert failure.value.reason == Reason.NO_LABELS


def test_a_removed_file_is_a_finding(tmp_path: Path) -> None:
    reader = _reader(tmp_path, ["a.jpg"], GOOD, GOOD)
    (tmp_path / "1.json").unlink()
    assert [finding.problem for finding in reader.listing().findings] == [Problem.UNREADABLE_LABEL]
