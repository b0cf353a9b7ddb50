"""Conventions of labels, decided over a whole data set: VOC's first pixel, and the view of turned photos."""

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tlt_api.dataset import Coordinates, Dataset
from tlt_runner.data.formats.format import EdgeEvidence
from tlt_runner.data.formats.voc import edge_evidence
from tlt_runner.data.images import orientation
from tlt_runner.data.parallel import StageProgress
from tlt_runner.data.preparation import conventions, sources
from tlt_runner.data.preparation.export_folder import export_folder
from tlt_runner.data.preparation.fingerprint import Fingerprint, fingerprint
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.storage import Storage

Box = tuple[float, float, float, float]
WIDTH, HEIGHT = 80, 60
STORED, TURNED = (WIDTH, HEIGHT), (HEIGHT, WIDTH)


def _photo(seed: int, exif_orientation: int = 1, size: tuple[int, int] = STORED, kind: str = "JPEG") -> bytes:
    """A photo of flat tiles, which JPEG keeps almost exactly; ``size`` is width and height as stored."""
    width, height = size
    tiles = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    image = Image.fromarray(tiles.repeat(20, 0).repeat(20, 1))
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return stream.getvalue()


def _xml(*boxes: Box, size: tuple[int, int] | None = STORED) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    objects = "".join(
        f"<object><name>car</name><bndbox><xmin>{x1:g}</xmin><ymin>{y1:g}</ymin><xmax>{x2:g}</xmax>"
        f"<ymax>{y2:g}</ymax></bndbox></object>"
        for x1, y1, x2, y2 in boxes
    )
    return f"<annotation>{stated}{objects}</annotation>"


class Voc:
    """A VOC data set in the making."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "JPEGImages").mkdir(parents=True)
        (root / "Annotations").mkdir()

    def add(self, stem: str, xml: str, photo: bytes | None = None) -> None:
        data = photo or _photo(len(list((self.root / "JPEGImages").iterdir())))
        (self.root / "JPEGImages" / f"{stem}.{'png' if data[1:4] == b'PNG' else 'jpg'}").write_bytes(data)
        (self.root / "Annotations" / f"{stem}.xml").write_text(xml)

    def dataset(self, **changes: Any) -> Dataset:
        return _dataset(self.root, format="voc", **changes)


def _dataset(root: Path, **changes: Any) -> Dataset:
    block = {
        "uri": f"file://{root}",
        "targetClassMapping": {"car": "car"},
        "imageSize": {"width": 64, "height": 64},
        "validation": {"fraction": 0.5},
        "badSamples": {"maxFraction": 1},
    }
    return Dataset.model_validate({**block, **changes})


def _survey(dataset: Dataset, scratch: Path) -> Fingerprint:
    storage = Storage(scratch=scratch)
    folders = sources.find(dataset, storage)
    return fingerprint(dataset, storage, folders, StageProgress("survey", 0))


def _exported(dataset: Dataset, tmp_path: Path) -> tuple[dict[str, list[Box]], DatasetReport, Path]:
    """Boxes as x1, y1, x2, y2 by image, as the whole way of reading and mapping gives them."""
    out = tmp_path / f"coco-{len(list(tmp_path.iterdir()))}"
    report = export_folder(dataset, Storage(scratch=tmp_path), "coco", out, resize=False).report
    boxes: dict[str, list[Box]] = {}
    for file in (out / "annotations").iterdir():
        document = json.loads(file.read_text())
        names = {item["id"]: Path(item["file_name"]).stem for item in document["images"]}
        for item in document["annotations"]:
            x, y, width, height = item["bbox"]
            boxes.setdefault(names[item["image_id"]], []).append((x, y, x + width, y + height))
    return boxes, report, out


# --- the first pixel of VOC ---


def test_boxes_at_0_move_no_edge_and_boxes_at_1_move_the_left_and_top_edges(tmp_path: Path) -> None:
    zero, one = Voc(tmp_path / "zero"), Voc(tmp_path / "one")
    zero.add("a", _xml((0, 10, 30, 40)))
    zero.add("b", _xml((20, 30, 80, 60)))
    one.add("a", _xml((1, 11, 30, 40)))
    one.add("b", _xml((21, 31, 80, 60)))
    expected = {"a": [(0, 10, 30, 40)], "b": [(20, 30, 80, 60)]}
    for folder, value in ((zero, "zeroBased"), (one, "oneBased")):
        boxes, report, _ = _exported(folder.dataset(), tmp_path)
        assert boxes == expected
        assert report.coordinates is not None
        assert (report.coordinates.value, report.coordinates.decided_by) == (value, "evidence")


def test_one_box_at_0_in_one_file_decides_for_all_files(tmp_path: Path) -> None:
    folder = Voc(tmp_path / "set")
    for number in range(20):
        folder.add(f"{number:02d}", _xml((7, 8, 30, 40)))
    folder.add("edge", _xml((0, 5, 30, 40)))
    decided = _survey(folder.dataset(), tmp_path).conventions
    assert decided.zero_based
    assert decided.warnings == []
    assert decided.coordinates is not None
    assert decided.coordinates.evidence == (
        "boxes: 21; beginning at 0: 1 (as in Annotations/edge.xml), at 1: 0; ending at the width or height: 0"
    )
    boxes, _, _ = _exported(folder.dataset(), tmp_path)
    assert boxes["00"] == [(7, 8, 30, 40)]


EVIDENCE = [
    # boxes at 0, at 1, at the end, with fractions -> decision, what decided, warnings
    (0, 0, 0, 0, "oneBased", "default", 0),
    (0, 0, 0, 5, "oneBased", "default", 1),  # tools that write fractions mostly count from 0
    (0, 3, 0, 0, "oneBased", "evidence", 0),
    (0, 0, 3, 0, "oneBased", "evidence", 0),
    (0, 0, 3, 5, "oneBased", "evidence", 0),
    (3, 0, 0, 0, "zeroBased", "evidence", 0),
    (3, 0, 3, 5, "zeroBased", "evidence", 0),  # edges counted from 0 end at the width, too
    (3, 2, 0, 0, "zeroBased", "evidence", 1),
    (3, 3, 0, 0, "zeroBased", "evidence", 1),
    (2, 3, 4, 0, "oneBased", "evidence", 1),
]


@pytest.mark.parametrize(("zero", "one", "end", "fractions", "value", "by", "warnings"), EVIDENCE)
def test_the_boxes_at_the_edges_decide(
    zero: int, one: int, end: int, fractions: int, value: str, by: str, warnings: int
) -> None:
    evidence = EdgeEvidence(9, zero, one, end, fractions)
    decided, said = conventions.decide_coordinates("auto", evidence)
    assert (decided.value, decided.decided_by, len(said)) == (value, by, warnings)


@pytest.mark.parametrize(
    ("setting", "zero", "one", "warnings"),
    [("zeroBased", 0, 0, 0), ("zeroBased", 0, 5, 1), ("oneBased", 5, 0, 1), ("oneBased", 5, 9, 0)],
)
def test_the_spec_decides_and_a_contradiction_is_said(
    setting: Coordinates, zero: int, one: int, warnings: int
) -> None:
    decided, said = conventions.decide_coordinates(setting, EdgeEvidence(20, zero, one))
    assert (decided.value, decided.decided_by, len(said)) == (setting, "spec", warnings)


@pytest.mark.parametrize(
    ("box", "at_zero", "at_one", "at_end", "fractions"),
    [
        ((0, 5, 9, 9), 1, 0, 0, 0),
        ((5, 0.4, 9, 9), 1, 0, 0, 1),
        ((1, 5, 9, 9), 0, 1, 0, 0),
        ((0, 1, 80, 60), 1, 0, 1, 0),
        ((1.5, 5, 9, 60), 0, 0, 1, 1),
        ((-1, 5, 9, 9), 0, 0, 0, 0),  # outside by either count
        ((5, 5, 81, 9), 0, 0, 0, 0),
    ],
)
def test_a_box_counts_by_its_edges(box: Box, at_zero: int, at_one: int, at_end: int, fractions: int) -> None:
    counted = edge_evidence(_xml(box).encode(), "a.xml")
    assert counted == EdgeEvidence(
        1, at_zero, at_one, at_end, fractions, "a.xml" if at_zero else "", "a.xml" if at_one else ""
    )


def test_boxes_that_make_no_sense_tell_nothing() -> None:
    text = (
        "<annotation><xmin>0</xmin><object><bndbox><xmin>0</xmin><ymin>x</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "<bndbox><xmin>0</xmin></bndbox></object></annotation>"
    )
    assert edge_evidence(text.encode(), "a.xml") == EdgeEvidence()
    assert edge_evidence(_xml((9, 9, 0, 0)).encode(), "a.xml") == EdgeEvidence()
    assert edge_evidence(b"<bndbox>" * 1000 + b"\xff\xfe<xmin", "a.xml") == EdgeEvidence()


def test_the_digest_changes_only_where_a_box_moves(tmp_path: Path) -> None:
    one, zero = Voc(tmp_path / "one"), Voc(tmp_path / "zero")
    for number in range(3):
        one.add(str(number), _xml((1, 1, 30, 40)))
        zero.add(str(number), _xml((0, 0, 30, 40)))

    def digest(folder: Voc, coordinates: str) -> str:
        return _survey(folder.dataset(coordinates=coordinates), tmp_path).digest

    assert digest(one, "auto") == digest(one, "oneBased") != digest(one, "zeroBased")
    assert digest(zero, "auto") == digest(zero, "zeroBased") != digest(zero, "oneBased")


def test_a_pixel_of_which_minimum_and_maximum_are_one_number_is_no_box_when_edges_count_from_0(
    tmp_path: Path,
) -> None:
    folder = Voc(tmp_path / "set")
    folder.add("a", _xml((5, 5, 5, 9), (10, 10, 20, 20)))
    folder.add("b", _xml((10, 10, 20, 20)))
    from_one, _, _ = _exported(folder.dataset(coordinates="oneBased"), tmp_path)
    assert from_one["a"] == [(4, 4, 5, 9), (9, 9, 20, 20)]
    from_zero, report, _ = _exported(folder.dataset(coordinates="zeroBased"), tmp_path)
    assert from_zero["a"] == [(10, 10, 20, 20)]
    assert [item.message for item in report.dropped] == ["expected xmin < xmax, got xmin 5 and xmax 5"]


# --- EXIF orientation ---


@pytest.mark.parametrize("how", range(1, 9))
def test_pixels_are_turned_as_pillow_and_opencv_turn_them(how: int) -> None:
    data = _photo(3, how, kind="PNG")
    stored = np.asarray(Image.open(io.BytesIO(data)))
    upright = orientation.upright(stored, how)
    assert np.array_equal(upright, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert orientation.upright_size(*stored.shape[:2], how) == upright.shape[:2]
    jpeg = np.frombuffer(_photo(3, how), np.uint8)
    raw = cv2.imdecode(jpeg, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    turned = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    assert np.array_equal(orientation.upright(raw.astype(np.uint8), how), turned)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("how", range(1, 9))
def test_an_orientation_is_found_in_the_first_block(tmp_path: Path, kind: str, how: int) -> None:
    (tmp_path / "a").write_bytes(_photo(0, how, kind=kind))
    assert orientation.of_file(tmp_path / "a") == how
    assert orientation.digest_and_orientation(tmp_path / "a")[1] == how


def test_a_png_may_have_its_orientation_behind_the_pixels(tmp_path: Path) -> None:
    data = _photo(0, 6, kind="PNG")
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end_chunk = data[-12:]
    # Blocks of any length in front of it: the tag lies across the border of two blocks, too.
    for padding in (0, orientation.BLOCK - 70, orientation.BLOCK - 64, 3 * orientation.BLOCK):
        filler = padding.to_bytes(4, "big") + b"zzZz" + bytes(padding) + bytes(4)
        content = data[:start] + data[end:-12] + filler + data[start:end] + end_chunk
        (tmp_path / "a.png").write_bytes(content)
        assert orientation.of_file(tmp_path / "a.png") == 6, padding


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"\xff\xd8Exif\0\0", b"\xff\xd8\xff\xe1\0\x08Exif\0\0MM", b"\x89PNGeXIf", b"GIF8"],
)
def test_a_damaged_head_has_no_orientation(data: bytes) -> None:
    assert orientation.of_block(data) == 1


# x1, y1, x2, y2 of one object on the turned view (60 x 80), and on the pixels as stored (80 x 60), with
# orientation 6: a quarter turn clockwise brings the left edge to the top.
ON_TURNED, ON_STORED = (10, 65, 30, 79), (65, 30, 79, 50)


def test_labels_that_state_the_turned_size_turn_their_images(tmp_path: Path) -> None:
    folder = Voc(tmp_path / "set")
    for number in range(4):
        folder.add(str(number), _xml((11, 66, 30, 79), size=TURNED), _photo(number, 6))
    folder.add("upright", _xml((11, 11, 30, 40)), _photo(9))
    boxes, report, out = _exported(folder.dataset(), tmp_path)
    assert boxes == {**{str(n): [ON_TURNED] for n in range(4)}, "upright": [(10, 10, 30, 40)]}
    assert report.skipped == []
    assert report.orientation is not None
    assert (report.orientation.value, report.orientation.decided_by) == ("exif", "evidence")
    assert report.orientation.evidence == (
        "images with an EXIF orientation: 4; labels of the turned view: 4 (as in Annotations/0.xml), "
        "of the pixels as stored: 0, that do not tell: 0"
    )
    assert report.odd_images == {"TurnedUpright": 4}
    # The written image is turned, and has no tag that would turn it once more.
    (file,) = (out / "images").rglob("2.jpg")
    written = Image.open(file)
    assert (written.size, written.getexif().get(0x0112)) == (TURNED, None)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(_photo(2, 6)))), np.float32)
    assert (
        np.abs(np.asarray(written, np.float32) - expected).mean() < 6
    )  # of 255; subsampled colours bleed at the borders of tiles


def test_labels_that_state_the_stored_size_leave_images_as_they_are(tmp_path: Path) -> None:
    folder = Voc(tmp_path / "set")
    for number in range(4):
        folder.add(str(number), _xml((66, 31, 79, 50)), _photo(number, 6))
    boxes, report, _ = _exported(folder.dataset(), tmp_path)
    assert boxes == {str(number): [ON_STORED] for number in range(4)}
    assert report.orientation is not None
    assert (report.orientation.value, report.orientation.decided_by) == ("stored", "evidence")
    assert report.odd_images == {"Turned": 4}
    assert not [warning for warning in report.warnings if "spec.dataset.orientation" in warning]


def _kitti(root: Path, photos: dict[str, tuple[bytes, Box]]) -> Dataset:
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    for stem, (photo, box) in photos.items():
        (root / "training/image_2" / f"{stem}.jpg").write_bytes(photo)
        edges = " ".join(map(str, box))
        (root / "training/label_2" / f"{stem}.txt").write_text(f"car 0 0 0 {edges} 0 0 0 0 0 0 0\n")
    return _dataset(root, format="kitti")


def test_boxes_outside_the_stored_image_turn_all_images_of_a_format_without_sizes(tmp_path: Path) -> None:
    # Only the first box is outside of 80 x 60; the tool that drew it has drawn the others, too, also those of
    # half turns and square images.
    inside = (5, 5, 25, 35)
    photos = {
        "tells": (_photo(0, 6), ON_TURNED),
        "inside": (_photo(1, 6), inside),
        "half": (_photo(2, 3), inside),
        "square": (_photo(3, 8, (60, 60)), inside),
        "upright": (_photo(4), inside),
    }
    dataset = _kitti(tmp_path / "set", photos)
    assert _survey(dataset, tmp_path).conventions.turned == {
        f"training/image_2/{stem}.jpg": how
        for stem, how in (("tells", 6), ("inside", 6), ("half", 3), ("square", 8))
    }
    boxes, report, _ = _exported(dataset, tmp_path)
    assert boxes == {**dict.fromkeys(photos, [inside]), "tells": [ON_TURNED]}
    assert report.dropped == []
    assert report.odd_images == {"TurnedUpright": 4}


def test_boxes_outside_the_turned_image_keep_the_pixels_as_stored(tmp_path: Path) -> None:
    photos = {str(number): (_photo(number, 6), ON_STORED) for number in range(3)}
    decided = _survey(_kitti(tmp_path / "set", photos), tmp_path).conventions
    assert (decided.turned, decided.view, decided.warnings) == ({}, "stored", [])


def test_without_evidence_the_pixels_stay_as_stored_and_the_report_names_the_field(tmp_path: Path) -> None:
    photos = {str(number): (_photo(number, 6), (5, 5, 25, 35)) for number in range(3)}
    dataset = _kitti(tmp_path / "set", photos)
    decided = _survey(dataset, tmp_path).conventions
    assert decided.turned == {}
    assert decided.orientation is not None
    assert decided.orientation.decided_by == "default"
    (warning,) = decided.warnings
    assert warning.startswith(
        "images with an EXIF orientation: 3; labels of the turned view: 0, of the pixels as stored: 0, that "
        "do not tell: 3. Square"
    )
    assert "set spec.dataset.orientation: exif" in warning
    told = _survey(dataset.model_copy(update={"orientation": "exif"}), tmp_path).conventions
    assert (len(told.turned), told.warnings) == (3, [])


def test_yolo_labels_are_shares_and_follow_the_spec(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for number in range(2):
        (tmp_path / "set/images" / f"{number}.jpg").write_bytes(_photo(number, 6))
        # In pixels as stored the box ends at 76 of 80, and the turned view is 60 wide: that proves nothing.
        (tmp_path / "set/labels" / f"{number}.txt").write_text("0 0.7 0.9 0.5 0.1\n")
    dataset = _dataset(tmp_path / "set", format="yolo", classNames=["car"])
    stored, report, _ = _exported(dataset, tmp_path)
    assert stored["0"] == [pytest.approx((36, 51, 76, 57))]
    assert any("set spec.dataset.orientation: exif" in warning for warning in report.warnings)
    turned, report, _ = _exported(dataset.model_copy(update={"orientation": "exif"}), tmp_path)
    assert turned["0"] == [pytest.approx((27, 68, 57, 76))]
    assert not any("spec.dataset.orientation" in warning for warning in report.warnings)


def _coco(root: Path, size: tuple[int, int], photos: list[bytes], box: Box) -> Dataset:
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, photo in enumerate(photos):
        (root / "images" / f"{number}.jpg").write_bytes(photo)
    x1, y1, x2, y2 = box
    entries = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": size[0], "height": size[1]}
            for n in range(len(photos))
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for n in range(len(photos))
        ],
        "categories": [{"id": 1, "name": "car"}],
    }
    (root / "annotations/all.json").write_text(json.dumps(entries))
    return _dataset(root, format="coco")


@pytest.mark.parametrize(
    ("size", "box", "view"), [(TURNED, ON_TURNED, "exif"), (STORED, ON_STORED, "stored")]
)
def test_coco_sizes_decide_as_those_of_voc(
    tmp_path: Path, size: tuple[int, int], box: Box, view: str
) -> None:
    dataset = _coco(tmp_path / "set", size, [_photo(0, 6), _photo(1, 6)], box)
    boxes, report, _ = _exported(dataset, tmp_path)
    assert boxes == {"0": [box], "1": [box]}
    assert report.orientation is not None
    assert report.orientation.value == view


def test_labels_of_both_views_are_each_read_as_they_say(tmp_path: Path) -> None:
    folder = Voc(tmp_path / "set")
    folder.add("a", _xml((11, 66, 30, 79), size=TURNED), _photo(0, 6))
    folder.add("b", _xml((11, 66, 30, 79), size=TURNED), _photo(1, 6))
    folder.add("c", _xml((66, 31, 79, 50), size=STORED), _photo(2, 6))
    folder.add("half", _xml((6, 6, 25, 35), size=STORED), _photo(3, 3))
    boxes, report, _ = _exported(folder.dataset(), tmp_path)
    assert boxes == {"a": [ON_TURNED], "b": [ON_TURNED], "c": [ON_STORED], "half": [(5, 5, 25, 35)]}
    assert report.odd_images == {"Turned": 1, "TurnedUpright": 3}
    (warning,) = [warning for warning in report.warnings if "read as they say" in warning]
    assert "all others as of the turned view" in warning


def test_an_orientation_of_the_spec_that_the_labels_contradict_leaves_the_image_out(tmp_path: Path) -> None:
    folder = Voc(tmp_path / "set")
    for number in range(6):
        folder.add(str(number), _xml((5, 5, 30, 40)), _photo(number))
    folder.add("turned", _xml((11, 66, 30, 79), size=TURNED), _photo(2, 6))
    _, report, _ = _exported(folder.dataset(orientation="stored"), tmp_path)
    (skipped,) = report.skipped
    assert skipped.message == (
        "expected 60 x 80 pixels as its label says, the image has 80 x 60: the label speaks of the image "
        "after its EXIF orientation is applied, but spec.dataset.orientation has the pixels taken as they "
        "are stored: leave it at auto"
    )


def test_upright_images_have_no_orientation_to_decide(tmp_path: Path) -> None:
    folder = Voc(tmp_path / "set")
    for number in range(2):
        folder.add(str(number), _xml((5, 5, 30, 40)), _photo(number))
    for setting in ("auto", "stored"):
        assert _survey(folder.dataset(orientation=setting), tmp_path).conventions.orientation is None
    # For the photos that the model is given later.
    told = _survey(folder.dataset(orientation="exif"), tmp_path).conventions.orientation
    assert told is not None
    assert (told.value, told.decided_by) == ("exif", "spec")


def test_the_digest_changes_only_where_an_image_is_turned(tmp_path: Path) -> None:
    photos = {str(number): (_photo(number, 6), (5, 5, 25, 35)) for number in range(3)}
    dataset = _kitti(tmp_path / "set", photos)

    def digest(setting: str) -> str:
        return _survey(dataset.model_copy(update={"orientation": setting}), tmp_path).digest

    assert digest("auto") == digest("stored") != digest("exif")
