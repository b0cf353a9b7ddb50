"""Folder with every problem that data can have, and its exact report."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import RecordingReporter
from tlt_api.failures import Reason
from tlt_api.status import DatasetStatus
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage
from torture import CAR, IMAGES, LABELS, Folder, dataset, findings, jpeg, report_of, tortured


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(scratch=tmp_path / "scratch")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tortured data set (``set``) and what preparation wrote (``out``)."""
    root = tmp_path_factory.mktemp("torture")
    prepare(tortured(root / "set"), Storage(scratch=root / "scratch"), f"file://{root}/out")
    return root


@pytest.fixture
def report(root: Path) -> dict[str, Any]:
    return json.loads((root / "out/dataset-report.json").read_text())


def test_every_bad_image_of_the_torture_folder_is_named_with_its_problem(
    report: dict[str, Any],
) -> None:
    half = len(jpeg(20)) // 2
    flat = (
        f"{LABELS}/flat.txt could belong to names/a/flat.jpg or names/b/flat.jpg: "
        "put labels into the same sub-folders"
    )
    rename = "expected a name in UTF-8 without control characters: rename it, and its label"
    skipped = findings(report["skipped"])
    # What follows are the decoders' own words.
    begins = {
        "bad/grey_half.jpg": "the data between start and end do not decode: ",
        "labels/latin.jpg": f"{LABELS}/labels/latin.txt: expected UTF-8 text: 'utf-8' codec",
        "labels/utf16.jpg": f"{LABELS}/labels/utf16.txt: expected UTF-8 text: 'utf-8' codec",
    }
    for name, begin in begins.items():
        assert skipped.pop((f"{IMAGES}/{name}", None))[1].startswith(begin)
    assert skipped == {
        (f"{IMAGES}/{name}", None): (problem, message)
        for name, problem, message in (
            ("bad/zero.jpg", "EmptyFile", "expected an image, got 0 bytes"),
            (
                "bad/text.jpg",
                "UnreadableImage",
                "expected a JPEG or PNG image, got a file that begins with b'this is '",
            ),
            ("bad/gif.jpg", "UnreadableImage", "expected a JPEG or PNG image, got a GIF image"),
            (
                "bad/cut.jpg",
                "TruncatedImage",
                f"the JPEG ends after {half} bytes without its end-of-image marker",
            ),
            ("bad/cut.v2.png", "TruncatedImage", "the PNG ends after 5000 bytes without its IEND chunk"),
            ("bad/flipped.png", "CorruptImage", "checksum of PNG chunk b'IDAT' at byte 33 is wrong"),
            (
                "bad/bomb.png",
                "HugeImage",
                "expected at most 100 million pixels and 65500 a side, got 60000 x 60000",
            ),
            ("bad/moving.gif", "UnsupportedImage", "expected .jpg, .jpeg or .png, got .gif: convert it"),
            ("bad/scan.tiff", "UnsupportedImage", "expected .jpg, .jpeg or .png, got .tiff: convert it"),
            ("bad/link.jpg", "UnreadableImage", "expected a file, got a link to nothing or a special file"),
            ("names/latin\\udce9.jpg", "UnsafeName", rename),
            ("names/two\\nlines.jpg", "UnsafeName", rename),
            ("names/twin.png", "DuplicateName", "twin.jpg has the same stem and is used"),
            ("names/a/flat.jpg", "DuplicateName", flat),
            ("names/b/flat.jpg", "DuplicateName", flat),
            ("labels/alone.jpg", "NoLabel", f"expected {LABELS}/labels/alone.txt, which does not exist"),
        )
    }
    assert report["skippedByProblem"] == {
        "CorruptImage": 2,
        "DuplicateName": 3,
        "EmptyFile": 1,
        "HugeImage": 1,
        "NoLabel": 1,
        "TruncatedImage": 2,
        "UnreadableImage": 3,
        "UnreadableLabel": 2,
        "UnsafeName": 2,
        "UnsupportedImage": 2,
    }


def test_every_bad_label_of_the_torture_folder_is_named_with_its_line(
    report: dict[str, Any],
) -> None:
    overlaps = "expected a box that overlaps the image of 200 x 100 pixels"
    file = f"{LABELS}/labels/lines.txt"
    assert findings(report["dropped"]) == {
        (file, line): (problem, message)
        for line, problem, message in (
            (2, "WrongColumns", "expected 15 or 16 columns, got 7: Car 0 0 0 1 2 3"),
            (3, "NotANumber", "ymax (column 8): expected a finite number, got 'nan'"),
            (4, "NotANumber", "xmax (column 7): expected a finite number, got 'wide'"),
            (5, "InvertedBox", "expected xmin < xmax, got xmin 100 and xmax 20"),
            (6, "InvertedBox", "expected xmin < xmax, got xmin 20 and xmax 20"),
            (7, "OutsideImage", f"{overlaps}, got xmin 300, ymin 10, xmax 400, ymax 50"),
            (
                9,
                "TooSmall",
                "expected a box of at least 1 pixel a side after resizing, "
                "got xmin 20, ymin 10, xmax 21, ymax 50",
            ),
            (13, "NotANumber", "occlusion (column 3): expected -1 to 3, got '7'"),
            (14, "NotANumber", "ymin (column 6): expected a finite number, got '-inf'"),
            (15, "NotANumber", "occlusion (column 3): expected a whole number, got '0.5'"),
            (16, "NotANumber", "xmax (column 7): expected -1e+06 to 1e+06, got '1e9'"),
            (17, "UnknownClass", "expected a class of at most 128 characters"),
        )
    }
    assert {item["image"] for item in report["dropped"]} == {f"{IMAGES}/labels/lines.jpg"}
    assert findings(report["orphans"]) == {
        (f"{LABELS}/labels/orphan.txt", None): (
            "LabelWithoutImage",
            f"expected {IMAGES}/labels/orphan with one of .jpg, .jpeg, .png",
        )
    }
    assert findings(report["labelFindings"]) == {
        (f"{LABELS}/labels/twice.txt", None): (
            "DuplicateName",
            "labels/twice.TXT has the same stem and is used",
        )
    }


def test_the_counts_of_the_torture_folder_are_exact(report: dict[str, Any]) -> None:
    left_out = [item["file"] for item in report["skipped"]]
    for name in ("skipped", "skippedByProblem", "dropped", "orphans", "labelFindings", "boxSizes"):
        del report[name]
    odd = {
        "Alpha": "odd/alpha.png",
        "Animated": "odd/animated.png",
        "Cmyk": "odd/cmyk.jpg",
        "Grayscale": "odd/grey.jpg",
        "SixteenBit": "odd/deep.png",
        "Turned": "odd/turned.jpg",
        "WrongExtension": "odd/extension.jpg",
    }
    warnings = report.pop("warnings")
    sizes = report.pop("sizesByClass")
    turned = (
        "images with an EXIF orientation: 1; labels of the turned view: 0, of the pixels as stored: 0, that "
        "do not tell: 1"
    )
    assert {name: [size["objects"] for size in of_class] for name, of_class in sizes.items()} == {
        "person": [1],
        "vehicle": [1, 23],
    }
    assert report == {
        # 3 + 7 + 11 + 11 + 8 in training, 2 in validation; 19 of them are left out.
        "images": 42,
        "usableImages": 23,
        "trainingImages": 21,
        "validationImages": 2,
        "imagesWithoutObjects": 1,
        "oddImages": dict.fromkeys(odd, 1),
        "odd": {oddity: [f"{IMAGES}/{name}"] for oddity, name in odd.items()},
        # With lines.jpg.
        "badImages": 20,
        # 17 of lines.txt, 2 of crlf.txt, none of empty.txt, 1 of each of 20 other labels.
        "lines": 39,
        "objects": 25,
        "clippedBoxes": 1,
        "ignoredRegions": 1,
        "unusedRegions": 0,
        "turnedImages": 0,
        "otherFiles": 2,
        "unlistedImages": 0,
        "outsideImages": 0,
        "outside": [],
        "unlabelledImages": 0,
        "unlabelled": [],
        "outlines": 0,
        "notes": [],
        "classes": [
            {"name": "person", "training": 0, "validation": 1, "difficult": 0},
            {"name": "vehicle", "training": 23, "validation": 1, "difficult": 0},
        ],
        # Lines 7 and 9 of lines.txt can be read.
        "sourceClasses": {"CAR": 1, "Car": 25, "Pedestrian": 1, "Tram": 1},
        "unmappedClasses": {"Tram": 1},
        "unusedMappingKeys": ["van"],
        "leakedImages": 1,
        "leaked": ["testing/image_2/leak.jpg"],
        "duplicateImages": 1,
        "duplicates": [f"{IMAGES}/good.jpg"],
        # good (training and testing) and same.
        "repeatedNames": 2,
        "droppedByProblem": {
            "InvertedBox": 2,
            "NotANumber": 6,
            "OutsideImage": 1,
            "TooSmall": 1,
            "UnknownClass": 1,
            "WrongColumns": 1,
        },
        "labelsWithoutImage": 1,
        "sideFiles": 0,
        "namedSideFiles": [],
        "labelProblems": {"DuplicateName": 1},
        "orientation": {"value": "stored", "decidedBy": "default", "evidence": turned},
    }
    *others, tiny, small = warnings
    # The default anchors are of 64 to 256 pixels.
    assert tiny.startswith(
        "objects of 4 to 8 pixels have no anchor that overlaps them by IoU 0.5 (vehicle 1 of 1)"
    )
    assert small.startswith("objects of 16 to 32 pixels have no anchor that overlaps them by IoU 0.5 (")
    assert others == [
        f"{turned}. Square images, half turns and coordinates that are shares of the size tell nothing. The "
        "labels are taken to be of the pixels as stored; if they were drawn on the turned view, as most "
        "annotation tools show it, set spec.dataset.orientation: exif",
        "targetClassMapping: no label uses 'van'; the labels' classes are: CAR, Car, Pedestrian, Tram",
        "class 'person' has no object for training: it cannot be learnt",
        "ignored regions (DontCare, iscrowd), which are neither objects nor background: 1",
        "images left out, whose objects are not learnt (the reasons are in the report): 19 "
        f"({', '.join([*left_out[:10], '...'])})",
        "label lines dropped as wrong, whose objects are background in the images that are used: 11 "
        f"({LABELS}/labels/lines.txt)",
        "images without an object, which train background only: 1",
        "validation images that are also training images, byte for byte, which makes metrics too good: "
        "1 (testing/image_2/leak.jpg)",
        "training images that are another training image once more, byte for byte, and weigh double: "
        f"1 ({IMAGES}/good.jpg)",
        "file names in several folders, each an image of its own with its own label: 2",
        *(
            f"images that {what}: 1 ({IMAGES}/{odd[oddity]})"
            for oddity, what in (
                ("Alpha", "have transparency, which is dropped: the colours stored below it count"),
                ("Animated", "are animated, of which the still picture is used"),
                ("Cmyk", "are CMYK, and become RGB without a colour profile: colours may be off"),
                (
                    "Grayscale",
                    "are grayscale; with dataset.colorMode rgb they get three equal channels",
                ),
                ("SixteenBit", "have 16 bits a channel, of which the upper 8 are kept"),
                ("WrongExtension", "have the extension of another format, and are read by their content"),
            )
        ),
        "entries of the image folders that are no .jpg, .jpeg or .png files and were not read: 2",
        f"labels without an image: 1 ({LABELS}/labels/orphan.txt)",
        "label files or entries that cannot be used: 1",
    ]


def test_every_label_line_of_a_usable_image_is_accounted_for(root: Path, report: dict[str, Any]) -> None:
    left_out = {item["file"] for item in report["skipped"]}
    lines = 0
    for part in ("training", "testing"):
        folder = root / "set" / part / "image_2"
        for image in (path for path in folder.rglob("*.*g") if path.name.isprintable()):
            if str(image.relative_to(root / "set")) not in left_out and not image.name.startswith("."):
                label = root / "set" / part / "label_2" / image.relative_to(folder).with_suffix(".txt")
                if not label.exists():
                    label = label.with_name("cafe\u0301.txt")
                lines += sum(bool(line.strip()) for line in label.read_text("utf-8-sig").split("\n"))
    dropped = sum(report["droppedByProblem"].values()) + sum(report["unmappedClasses"].values())
    assert report["lines"] == lines == report["objects"] + dropped + report["ignoredRegions"]


def test_the_torture_folder_has_an_html_page(root: Path) -> None:
    text = (root / "out/dataset-report.html").read_text("utf-8")
    assert len(text) < 500_000
    assert text.count("<img ") >= 5
    assert f"{IMAGES}/names/two\\nlines.jpg" in text


@pytest.mark.parametrize("policy", [{"policy": "Fail"}, {"policy": "Skip", "maxFraction": 0.4}])
def test_the_refused_torture_folder_leaves_a_report_a_page_and_a_summary(
    policy: dict[str, Any], root: Path, storage: Storage, tmp_path: Path
) -> None:
    held_out = {"images": "testing/image_2", "labels": "testing/label_2"}
    reporter = RecordingReporter()
    with pytest.raises(RunnerError) as caught:
        data = dataset(root / "set", validation=held_out, badSamples=policy)
        prepare(data, storage, f"file://{tmp_path}/out", reporter)
    assert caught.value.reason == Reason.BAD_SAMPLES
    assert "20 of 42 images (47.62%) are bad, 1 labels have no image and 1 label" in caught.value.message
    assert "bad/bomb.png: HugeImage: expected at most" in caught.value.message
    assert (tmp_path / "out/dataset-report.json").is_file()
    assert (tmp_path / "out/dataset-report.html").is_file()
    status = reporter.last(DatasetStatus)
    assert (status.images, status.objects, status.skipped, status.dropped_objects) == (23, 25, 19, 13)
    # Two of them are of sizes that the anchors do not fit.
    assert (status.warnings, status.digest, status.records_uri) == (21, None, None)
    assert status.report_uri == f"file://{tmp_path}/out/dataset-report.html"


def test_the_failure_names_the_lines_of_each_bad_label(storage: Storage, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set")
    for number in range(12):
        folder.sample(f"{number:02}.jpg", jpeg(number), f"{CAR}\nCar 0\n{CAR}\nCar 1")
    data = dataset(tmp_path / "set", badSamples={"policy": "Fail"})
    with pytest.raises(RunnerError) as caught:
        prepare(data, storage, f"file://{tmp_path}/out")
    first = f"{LABELS}/00.txt: lines 2, 4: WrongColumns: expected 15 or 16 columns, got 2: Car 0; "
    assert first in caught.value.message
    assert f"{LABELS}/09.txt: lines 2, 4" in caught.value.message
    assert caught.value.message.endswith("and 2 more files")


def test_a_mapping_that_matches_no_label_is_refused(storage: Storage, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set")
    for number in range(3):
        folder.sample(f"{number}.jpg", jpeg(number))
    with pytest.raises(RunnerError) as caught:
        report_of(dataset(tmp_path / "set", targetClassMapping={"bike": "bike"}), storage, tmp_path / "out")
    assert caught.value.reason == Reason.UNKNOWN_CLASS
    assert "Car (3)" in caught.value.message
