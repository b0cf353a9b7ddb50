"""A folder with everything that is wrong with people's data, and the exact report that it must give."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg

from tlt_api.failures import Reason
from tlt_api.status import DatasetStatus, Progress
from tlt_api.trainingjob import Dataset
from tlt_runner.data.prepare import prepare
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

HEIGHT, WIDTH = 100, 200
SIZE = {"width": 64, "height": 64}
REST = "0 0 0 0 0 0 0"
CAR = f"Car 0 0 0 20 10 100 50 {REST}"
IMAGES, LABELS = "training/image_2", "training/label_2"


def pixels(seed: int, channels: int = 3) -> np.ndarray:
    """A smooth picture with some noise: compresses like a photograph, and no two are the same."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 10, channels)).astype(np.uint8)
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return (
        smooth.reshape(HEIGHT, WIDTH, channels) // 2 + random.integers(0, 64, (HEIGHT, WIDTH, channels))
    ).astype(np.uint8)


def jpeg(seed: int) -> bytes:
    return cv2.imencode(".jpg", pixels(seed))[1].tobytes()


def png(seed: int, channels: int = 3) -> bytes:
    return cv2.imencode(".png", pixels(seed, channels))[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def turned(data: bytes) -> bytes:
    """The JPEG with an EXIF orientation of 6: a viewer turns it by 90 degrees."""
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def animated(data: bytes) -> bytes:
    """The PNG as an animation of one frame: an acTL chunk behind the header's 33 bytes."""
    return data[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)) + data[33:]


def bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    """The PNG with one bit of its picture changed, and the old checksum."""
    place = data.index(b"IDAT") + 100
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


LINES = [
    CAR,  # 1: an object
    "Car 0 0 0 1 2 3",  # 2
    f"Car 0 0 0 20 10 100 nan {REST}",  # 3
    f"Car 0 0 0 20 10 wide 50 {REST}",  # 4
    f"Car 0 0 0 100 10 20 50 {REST}",  # 5: inverted
    f"Car 0 0 0 20 10 20 50 {REST}",  # 6: no area
    f"Car 0 0 0 300 10 400 50 {REST}",  # 7: outside
    f"Car 0 0 0 -50 -50 20 10 {REST}",  # 8: an object, cut at the edge
    f"Car 0 0 0 20 10 21 50 {REST}",  # 9: 1 * 64 / 200 = 0.32 pixels wide
    f"Tram 0 0 0 20 10 100 50 {REST}",  # 10: not mapped
    f"DontCare -1 -1 -10 0 0 10 10 {REST}",  # 11: ignored
    "",  # 12: no line
    f"Car 0 7 0 20 10 100 50 {REST}",  # 13
    f"Car 0 0 0 20 -inf 100 50 {REST}",  # 14
    f"Car 0 0.5 0 20 10 100 50 {REST}",  # 15
    f"Car 0 0 0 20 10 1e9 50 {REST}",  # 16
    f"{'x' * 129} 0 0 0 20 10 100 50 {REST}",  # 17
    f"CAR 0 0 0 20 10 100 50 {REST}",  # 18: an object
]


class Folder:
    """The data set."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, place: str | bytes, content: bytes) -> None:
        path = os.fsencode(self.root) + b"/" + os.fsencode(place)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)

    def sample(self, name: str | bytes, image: bytes, label: str | bytes = CAR) -> None:
        """An image with its label."""
        raw = os.fsencode(name)
        self.put(os.fsencode(f"{IMAGES}/") + raw, image)
        stem = os.path.splitext(raw)[0]
        text = label if isinstance(label, bytes) else f"{label}\n".encode()
        self.put(os.fsencode(f"{LABELS}/") + stem + b".txt", text)

    def torture(self) -> None:
        self._sound()
        self._unusual()
        self._broken_images()
        self._names()
        self._labels()

    def _sound(self) -> None:
        self.sample("good.jpg", jpeg(1))
        self.sample("score.jpg", jpeg(2), f"{CAR} 0.9")
        self.sample("copy.jpg", jpeg(1))
        self.put("testing/image_2/good.jpg", jpeg(3))
        self.put("testing/label_2/good.txt", f"Pedestrian 0 0 0 20 10 100 50 {REST}\n".encode())
        self.put("testing/image_2/leak.jpg", jpeg(2))
        self.put("testing/label_2/leak.txt", f"{CAR}\n".encode())

    def _unusual(self) -> None:
        self.sample("odd/extension.jpg", png(10))
        ink = np.ascontiguousarray(pixels(11, 4))
        self.sample("odd/cmyk.jpg", simplejpeg.encode_jpeg(ink, colorspace="CMYK"))
        self.sample("odd/deep.png", cv2.imencode(".png", pixels(12).astype(np.uint16) * 257)[1].tobytes())
        self.sample("odd/grey.jpg", cv2.imencode(".jpg", pixels(13, 1))[1].tobytes())
        self.sample("odd/alpha.png", png(14, 4))
        self.sample("odd/turned.jpg", turned(jpeg(15)))
        self.sample("odd/animated.png", animated(png(16)))

    def _broken_images(self) -> None:
        self.sample("bad/zero.jpg", b"")
        self.sample("bad/text.jpg", b"this is a text with the name of an image")
        self.sample("bad/gif.jpg", b"GIF89a" + bytes(40))
        whole = jpeg(20)
        self.sample("bad/cut.jpg", whole[: len(whole) // 2])
        self.sample("bad/grey_half.jpg", whole[: len(whole) // 2] + b"\xff\xd9")
        self.sample("bad/cut.v2.png", png(21)[:5000])
        self.sample("bad/flipped.png", flipped(png(22)))
        self.sample("bad/bomb.png", bomb(60_000))
        self.sample("bad/moving.gif", b"GIF89a" + bytes(40))
        self.sample("bad/scan.tiff", b"II*\0" + bytes(40))
        (self.root / IMAGES / "bad/link.jpg").symlink_to("nowhere.jpg")

    def _names(self) -> None:
        self.sample("names/with space.jpg", jpeg(30))
        self.sample("names/größe 图 😀.jpg", jpeg(31))
        self.put(f"{IMAGES}/names/caf\u00e9.jpg", jpeg(32))
        self.put(f"{LABELS}/names/cafe\u0301.txt", f"{CAR}\n".encode())
        self.sample(b"names/latin\xe9.jpg", jpeg(33))
        self.sample("names/two\nlines.jpg", jpeg(34))
        self.sample("names/twin.jpg", jpeg(35))
        self.put(f"{IMAGES}/names/twin.png", png(36))
        self.sample("names/a/same.jpg", jpeg(37))
        self.sample("names/b/same.jpg", jpeg(38))
        self.put(f"{IMAGES}/names/a/flat.jpg", jpeg(39))
        self.put(f"{IMAGES}/names/b/flat.jpg", jpeg(40))
        self.put(f"{LABELS}/flat.txt", f"{CAR}\n".encode())
        self.put(f"{IMAGES}/notes.md", b"not an image")
        self.put(f"{IMAGES}/.hidden.jpg", jpeg(41))

    def _labels(self) -> None:
        self.sample("labels/lines.jpg", jpeg(50), "\n".join(LINES))
        self.sample("labels/crlf.jpg", jpeg(51), f"{CAR}\r\n{CAR}\r\n".encode())
        self.sample("labels/bom.jpg", jpeg(52), b"\xef\xbb\xbf" + CAR.encode())
        self.sample("labels/latin.jpg", jpeg(53), f"Fußgänger 0 0 0 20 10 100 50 {REST}".encode("latin-1"))
        self.sample("labels/utf16.jpg", jpeg(54), CAR.encode("utf-16"))
        self.sample("labels/empty.jpg", jpeg(55), b"")
        self.put(f"{IMAGES}/labels/alone.jpg", jpeg(56))
        self.put(f"{LABELS}/labels/orphan.txt", f"{CAR}\n".encode())
        self.sample("labels/twice.jpg", jpeg(57))
        self.put(f"{LABELS}/labels/twice.TXT", f"{CAR}\n".encode())


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(scratch=tmp_path / "scratch")


def dataset(root: Path, **changes: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "vehicle", "van": "vehicle", "pedestrian": "person"},
            "imageSize": SIZE,
            "badSamples": {"maxFraction": 1.0},
            **changes,
        }
    )


def tortured(root: Path, **changes: Any) -> Dataset:
    Folder(root).torture()
    held_out = {"images": "testing/image_2", "labels": "testing/label_2"}
    return dataset(root, validation=held_out, **changes)


class Heard:
    """A reporter that remembers the summary."""

    found: DatasetStatus | None = None

    def progress(self, progress: Progress) -> None:
        pass

    def dataset(self, dataset: DatasetStatus) -> None:
        self.found = dataset


def report_of(data: Dataset, storage: Storage, folder: Path) -> dict[str, Any]:
    prepare(data, storage, f"file://{folder}")
    return json.loads((folder / "dataset-report.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tortured data set (``set``) and what preparation wrote (``out``)."""
    place = tmp_path_factory.mktemp("torture")
    prepare(tortured(place / "set"), Storage(scratch=place / "scratch"), f"file://{place}/out")
    return place


@pytest.fixture
def report(place: Path) -> dict[str, Any]:
    return json.loads((place / "out/dataset-report.json").read_text())


def findings(listed: list[dict[str, Any]]) -> dict[tuple[str, int | None], tuple[str, str]]:
    """File and line -> problem and message."""
    found = {(item["file"], item.get("line")): (item["problem"], item["message"]) for item in listed}
    assert len(found) == len(listed)
    return found


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
        "otherFiles": 2,
        "unlistedImages": 0,
        "classes": [
            {"name": "person", "training": 0, "validation": 1},
            {"name": "vehicle", "training": 23, "validation": 1},
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
        "labelProblems": {"DuplicateName": 1},
    }
    assert warnings == [
        "targetClassMapping: no label uses class 'van'; the labels' classes are: CAR, Car, Pedestrian, Tram",
        "class 'person' has no object for training: it cannot be learnt",
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
                ("Grayscale", "are grayscale, and get three equal channels"),
                ("SixteenBit", "have 16 bits a channel, of which the upper 8 are kept"),
                (
                    "Turned",
                    "have an EXIF orientation, which is not applied: labels are taken to speak of the pixels "
                    "as stored",
                ),
                ("WrongExtension", "have the extension of another format, and are read by their content"),
            )
        ),
        "entries of the image folders that are no .jpg, .jpeg or .png files and were not read: 2",
    ]


def test_every_label_line_of_a_usable_image_has_a_verdict(place: Path, report: dict[str, Any]) -> None:
    left_out = {item["file"] for item in report["skipped"]}
    lines = 0
    for part in ("training", "testing"):
        folder = place / "set" / part / "image_2"
        for image in (path for path in folder.rglob("*.*g") if path.name.isprintable()):
            if str(image.relative_to(place / "set")) not in left_out and not image.name.startswith("."):
                label = place / "set" / part / "label_2" / image.relative_to(folder).with_suffix(".txt")
                if not label.exists():
                    label = label.with_name("cafe\u0301.txt")
                lines += sum(bool(line.strip()) for line in label.read_text("utf-8-sig").split("\n"))
    dropped = sum(report["droppedByProblem"].values()) + sum(report["unmappedClasses"].values())
    assert report["lines"] == lines == report["objects"] + dropped + report["ignoredRegions"]


def test_the_torture_folder_has_a_page_for_people(place: Path) -> None:
    text = (place / "out/dataset-report.html").read_text("utf-8")
    assert len(text) < 500_000
    assert text.count("<img ") >= 5
    assert f"{IMAGES}/names/two\\nlines.jpg" in text


@pytest.mark.parametrize("policy", [{"policy": "Fail"}, {"policy": "Skip", "maxFraction": 0.4}])
def test_the_refused_torture_folder_leaves_a_report_a_page_and_a_summary(
    policy: dict[str, Any], place: Path, storage: Storage, tmp_path: Path
) -> None:
    held_out = {"images": "testing/image_2", "labels": "testing/label_2"}
    heard = Heard()
    with pytest.raises(RunnerError) as caught:
        data = dataset(place / "set", validation=held_out, badSamples=policy)
        prepare(data, storage, f"file://{tmp_path}/out", heard)  # type: ignore[arg-type]
    assert caught.value.reason == Reason.BAD_SAMPLES
    assert "20 of 42 images (47.62%) are bad, 1 labels have no image and 1 label" in caught.value.message
    assert "bad/bomb.png: HugeImage: expected at most" in caught.value.message
    assert (tmp_path / "out/dataset-report.json").is_file()
    assert (tmp_path / "out/dataset-report.html").is_file()
    found = heard.found
    assert found is not None
    assert (found.images, found.objects, found.skipped, found.dropped_objects) == (23, 25, 19, 13)
    assert (found.warnings, found.digest, found.records_uri) == (14, None, None)
    assert found.report_uri == f"file://{tmp_path}/out/dataset-report.html"


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


def test_a_coco_file_with_every_mistake_gives_a_verdict_for_each(storage: Storage, tmp_path: Path) -> None:
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
        (
            "UnsafeName",
            "images[4] (id 8): file_name: expected a name relative to the image folder, without '..', "
            "'\\' and control characters, got '../secret.jpg'",
        ),
    ]
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
