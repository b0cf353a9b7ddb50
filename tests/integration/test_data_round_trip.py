"""``tlt convert --to`` on real folders: any format to any, and other libraries read the same boxes."""

import contextlib
import hashlib
import io
import json
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_api.dataset import Dataset, LabelFormat
from tlt_api.failures import Reason
from tlt_api.status import Progress
from tlt_runner import cli
from tlt_runner.cancel import Stop
from tlt_runner.data.preparation import planning, sources
from tlt_runner.data.preparation.export_folder import export_folder
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

REST = "0 0 0 0 0 0 0"
FORMATS: tuple[LabelFormat, ...] = get_args(LabelFormat)
SIZE = {"width": 64, "height": 64}
HELD_OUT = {"images": "held/out/image_2", "labels": "held/out/label_2"}
Box = tuple[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Picture:
    """An image to make: name below the image folder, width and height, objects as xmin, ymin, xmax, ymax."""

    name: str
    size: tuple[int, int]
    boxes: Sequence[Box]


STREETS = (
    Picture("0001.jpg", (80, 60), [("car", (10, 20, 30.5, 40.25)), ("person", (0, 0, 80, 60))]),
    Picture("seq 1/0001.jpg", (64, 48), [("Fußgänger", (1.125, 2.5, 7.75, 47.999))]),
    Picture("seq 1/Straße 7.png", (50, 70), [("a&b<c>", (3, 3, 4, 4)), ("car", (3, 3, 4, 4))]),
    Picture("leer 1.jpg", (40, 40), []),
    Picture("img.v2.jpg", (33, 31), [("no", (0.001, 0.001, 32.999, 30.999)), ("1", (5, 6, 7, 8))]),
    Picture("交通/灯.png", (90, 20), [("信号", (89, 0, 90, 20))]),
)


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _make_kitti(root: Path, pictures: Sequence[Picture], part: str = "training") -> dict[str, Any]:
    """A KITTI folder, and the dataset block that reads it."""
    random = np.random.default_rng([len(pictures), part == "training"])
    for picture in pictures:
        image = root / part / "image_2" / picture.name
        label = (root / part / "label_2" / picture.name).with_suffix(".txt")
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        width, height = picture.size
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        image.write_bytes(cv2.imencode(image.suffix, pixels)[1].tobytes())
        lines = (f"{name} 0 0 0 {' '.join(map(repr, box))} {REST}\n" for name, box in picture.boxes)
        label.write_text("".join(lines))
    return {
        "uri": f"file://{root}",
        "targetClassMapping": {"car": "car"},
        "imageSize": SIZE,
        "validation": {"fraction": 0.3},
    }


def _tlt(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error output of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def _manifest(root: Path, block: Mapping[str, Any]) -> Path:
    file = root / "trainingjob.yaml"
    body = {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "street"},
        "spec": {"dataset": block, "output": {"uri": "file:///nowhere"}},
    }
    file.write_text(yaml.safe_dump(body, allow_unicode=True), encoding="utf-8")
    return file


def _convert(
    root: Path, block: Mapping[str, Any], target: LabelFormat, out: Path, *more: str
) -> dict[str, Any]:
    """The printed dataset block of a conversion that succeeds."""
    manifest = str(_manifest(root, block))
    code, printed, errors = _tlt("convert", "-f", manifest, "--to", target, "--out", str(out), *more)
    assert code == 0, errors
    result: dict[str, Any] = yaml.safe_load(printed)["dataset"]
    return result


def _read(block: Mapping[str, Any], scratch: Path) -> dict[str, tuple[str, list[Box]]]:
    """Digest of each image -> subset and its objects as xmin, ymin, xmax, ymax, in order."""
    dataset = Dataset.model_validate(block)
    storage = Storage(scratch=scratch)
    folders = sources.find(dataset, storage)
    assert not any(source.listing.skipped or source.listing.orphans for source in folders)
    content = {}
    for item in planning.plan(folders, dataset, storage).items:
        height, width = cv2.imread(str(item.sample.image)).shape[:2]
        labels = item.reader.read(item.sample, (height, width))
        assert not labels.findings
        boxes = [(box.class_name, _xyxy(box.yxyx)) for box in labels.boxes]
        digest = hashlib.sha256(item.sample.image.read_bytes()).hexdigest()
        content[digest] = (item.subset, boxes)
    return content


def _xyxy(yxyx: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    y1, x1, y2, x2 = yxyx
    return x1, y1, x2, y2


def _assert_same(
    before: Mapping[str, tuple[str, list[Box]]], after: Mapping[str, tuple[str, list[Box]]], pixels: float
) -> None:
    assert after.keys() == before.keys()
    for digest, (subset, boxes) in before.items():
        assert after[digest][0] == subset
        assert [name for name, _ in after[digest][1]] == [name for name, _ in boxes]
        for (_, got), (_, expected) in zip(after[digest][1], boxes, strict=True):
            assert got == pytest.approx(expected, abs=pixels)


NAMES = ("0.jpg", "1.png", "seq 1/0.jpg", "Straße/ü 1.png", "x.jpg/0.jpg", "a__0.png", "a/0.jpg")
CLASSES = ("car", "Car", "Fußgänger", "a&b<c>", "no", "1", "信号")


@st.composite
def _pictures(draw: st.DrawFn) -> list[Picture]:
    pictures = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
        width, height = draw(st.integers(8, 90)), draw(st.integers(8, 90))
        boxes = []
        for _ in range(draw(st.integers(0 if pictures else 1, 3))):
            x1, x2 = _edges(draw, width)
            y1, y2 = _edges(draw, height)
            boxes.append((draw(st.sampled_from(CLASSES)), (x1, y1, x2, y2)))
        pictures.append(Picture(name, (width, height), boxes))
    return pictures


def _edges(draw: st.DrawFn, side: int) -> tuple[float, float]:
    low = draw(st.floats(0, side - 1))
    return low, draw(st.floats(low + 1, side))


@settings(max_examples=20, deadline=None)
@given(pictures=_pictures(), held_out=_pictures())
def test_kitti_to_voc_to_coco_to_yolo_to_kitti_keeps_every_box_and_class(
    pictures: list[Picture], held_out: list[Picture]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _make_kitti(root / "start", held_out, part="held/out")
        block = _make_kitti(root / "start", pictures)
        block["validation"] = HELD_OUT
        before = _read(block, root)
        chain: tuple[LabelFormat, ...] = ("voc", "coco", "yolo", "kitti")
        for target in chain:
            block = _convert(root, block, target, root / f"as {target}")
        _assert_same(before, _read(block, root), 1e-3)


@pytest.fixture(scope="module")
def every_format(tmp_path_factory: pytest.TempPathFactory) -> dict[LabelFormat, dict[str, Any]]:
    root = tmp_path_factory.mktemp("streets")
    start = _make_kitti(root / "start", STREETS)
    return {target: _convert(root, start, target, root / target) for target in FORMATS}


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_any_format_converts_to_any_other(
    every_format: dict[LabelFormat, dict[str, Any]], tmp_path: Path, source: LabelFormat, target: LabelFormat
) -> None:
    block = _convert(tmp_path, every_format[source], target, tmp_path / "out")
    before = _read(every_format["kitti"], tmp_path)
    assert sum(len(boxes) for _, boxes in before.values()) == 8
    _assert_same(before, _read(block, tmp_path), 1e-5)


def test_images_are_copied_byte_for_byte_into_sub_folders_or_flat(
    every_format: dict[LabelFormat, dict[str, Any]],
) -> None:
    names = {}
    for target, block in every_format.items():
        root = Path(block["uri"].removeprefix("file://"))
        depth = 1 if target == "voc" else 2
        files = (path.relative_to(root) for path in root.rglob("*") if path.suffix in (".jpg", ".png"))
        names[target] = sorted("/".join(file.parts[depth:]) for file in files)
    flat = ["0001.jpg", "img.v2.jpg", "leer_1.jpg", "seq_1__0001.jpg", "seq_1__Straße_7.png", "交通__灯.png"]
    assert names["voc"] == flat
    deep = sorted(picture.name for picture in STREETS)
    assert names["kitti"] == names["coco"] == names["yolo"] == deep


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pycocotools_reads_the_same_boxes(every_format: dict[LabelFormat, dict[str, Any]]) -> None:
    from pycocotools.coco import COCO

    root = Path(every_format["coco"]["uri"].removeprefix("file://"))
    boxes_read = {}
    for part in ("train", "val"):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(root / f"annotations/instances_{part}.json"))
        for image in coco.loadImgs(coco.getImgIds()):
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
            boxes = []
            for annotation in annotations:
                x, y, width, height = annotation["bbox"]
                name = coco.loadCats([annotation["category_id"]])[0]["name"]
                boxes.append((name, (x, y, x + width, y + height)))
            assert cv2.imread(str(root / "images" / part / image["file_name"])).shape[:2] == (
                image["height"],
                image["width"],
            )
            boxes_read[image["file_name"]] = boxes
    _assert_as_made(boxes_read, STREETS)


def test_supervision_reads_the_same_boxes_from_a_voc_folder(
    every_format: dict[LabelFormat, dict[str, Any]],
) -> None:
    import supervision

    root = Path(every_format["voc"]["uri"].removeprefix("file://"))
    loaded = supervision.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    renamed = [
        Picture(picture.name.replace("/", "__").replace(" ", "_"), picture.size, picture.boxes)
        for picture in STREETS
    ]
    _assert_as_made(_of_supervision(loaded), renamed)


def test_supervision_reads_the_same_boxes_from_a_yolo_folder(tmp_path: Path) -> None:
    import supervision

    flat = [picture for picture in STREETS if "/" not in picture.name]
    block = _convert(tmp_path, _make_kitti(tmp_path / "start", flat), "yolo", tmp_path / "yolo")
    root = Path(block["uri"].removeprefix("file://"))
    boxes_read: dict[str, list[Box]] = {}
    for part in ("train", "val"):
        loaded = supervision.DetectionDataset.from_yolo(
            str(root / "images" / part), str(root / "labels" / part), str(root / "data.yaml")
        )
        boxes_read |= _of_supervision(loaded)
    _assert_as_made(boxes_read, flat)


def _of_supervision(loaded: Any) -> dict[str, list[Box]]:
    return {
        Path(path).name: [
            (loaded.classes[class_id], tuple(map(float, box)))
            for box, class_id in zip(
                detections.xyxy, detections.class_id if len(detections) else (), strict=True
            )
        ]
        for path, _, detections in loaded
    }


def _assert_as_made(boxes_read: Mapping[str, Sequence[Box]], pictures: Sequence[Picture]) -> None:
    assert boxes_read.keys() == {picture.name for picture in pictures}
    for picture in pictures:
        got = boxes_read[picture.name]
        assert [name for name, _ in got] == [name for name, _ in picture.boxes]
        for (_, box), (_, expected) in zip(got, picture.boxes, strict=True):
            assert box == pytest.approx(expected, abs=1e-4)


BLOCK = (20, 10, 100, 50)
"""A box on an image of 200 x 100 pixels, as xmin, ymin, xmax, ymax."""


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # 200 x 100 to 64 x 128: times 0.32 and 1.28.
        ("stretch", (6.4, 12.8, 32, 64)),
        # Times 0.32 both; 32 rows of image between 48 rows of black above and below.
        ("letterbox", (6.4, 51.2, 32, 64)),
    ],
)
def test_resized_boxes_enclose_the_resized_drawing(
    tmp_path: Path, target: LabelFormat, mode: str, expected: tuple[float, float, float, float]
) -> None:
    start = _make_kitti(
        tmp_path / "start", [Picture(f"{number}.png", (200, 100), [("car", BLOCK)]) for number in (1, 2)]
    )
    for image in (tmp_path / "start/training/image_2").iterdir():
        pixels = np.zeros((100, 200, 3), np.uint8)
        pixels[10:50, 20:100] = 255 - int(image.stem)
        cv2.imwrite(str(image), pixels)
    start["imageSize"] = {"width": 64, "height": 128, "mode": mode}
    block = _convert(tmp_path, start, target, tmp_path / "out", "--resize")
    assert block["imageSize"] == start["imageSize"]
    content = _read(block, tmp_path)
    assert len(content) == 2
    for _, boxes in content.values():
        assert boxes == [("car", pytest.approx(expected, abs=1e-5))]
    for file in (tmp_path / "out").rglob("*.jpg"):
        pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        assert pixels.shape == (128, 64)
        rows, columns = np.flatnonzero((pixels > 128).any(1)), np.flatnonzero((pixels > 128).any(0))
        drawn = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert drawn == pytest.approx(expected, abs=1)


def test_an_image_of_the_target_size_keeps_its_bytes(tmp_path: Path) -> None:
    pictures = [Picture(f"{number}.png", (64, 64), [("car", (1, 2, 3, 4))]) for number in range(3)]
    start = _make_kitti(tmp_path / "start", pictures)
    block = _convert(tmp_path, start, "yolo", tmp_path / "out", "--resize")
    _assert_same(_read(start, tmp_path), _read(block, tmp_path), 1e-5)


def test_images_left_out_and_attributes_lost_are_reported(tmp_path: Path) -> None:
    start = _make_kitti(tmp_path / "start", STREETS)
    labels, images = tmp_path / "start/training/label_2", tmp_path / "start/training/image_2"
    whole = (images / "0001.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (labels / "cut.txt").write_text(f"car 0 0 0 1 1 5 5 {REST}\n")
    (labels / "leer 1.txt").write_text(
        f"car 0.4 1 0 1 1 20 20 {REST}\n"
        f"car 0 0 0 9 9 3 3 {REST}\n"
        f"car 0 0 0 50 50 60 60 {REST}\n"
        f"car 0 0 0 30 30 60 60 {REST}\n"
        f"DontCare -1 -1 -10 1 1 5 5 {REST}\n"
    )
    (labels / "alone.txt").write_text("")
    (images / "twin.jpg").write_bytes(whole)
    (labels / "twin.txt").write_text("")
    start["badSamples"] = {"maxFraction": 1}
    arguments = ("-f", str(_manifest(tmp_path, start)), "--to", "yolo", "--out", str(tmp_path / "out"))
    code, printed, errors = _tlt("convert", *arguments)
    assert code == 0
    assert yaml.safe_load(printed)["dataset"]["badSamples"] == {"maxFraction": 1}
    report = json.loads((tmp_path / "out/dataset-report.json").read_text())
    assert report["skippedByProblem"] == {"TruncatedImage": 1}
    assert report["droppedByProblem"] == {"InvertedBox": 1, "OutsideImage": 1}
    assert (report["images"], report["usableImages"], report["objects"]) == (8, 7, 10)
    assert report["duplicateImages"] + report["leakedImages"] == 1
    assert (report["clippedBoxes"], report["ignoredRegions"], report["labelsWithoutImage"]) == (1, 1, 1)
    assert "left out: 1 images, 2 label lines, 1 labels without image" in errors
    for warning in (
        "1 regions to leave out of account (DontCare, iscrowd) are lost",
        "yolo cannot say the truncation of 1 objects: it is lost",
        "yolo cannot say the occlusion of 1 objects: it is lost",
        "yolo cannot say whether 1 objects are difficult: it is lost",
    ):
        assert warning in report["warnings"]
        assert warning in errors
    written = (tmp_path / "out/images").rglob("*")
    assert "cut.jpg" not in {path.name for path in written}


def test_more_bad_samples_than_the_manifest_allows_leave_nothing_behind(tmp_path: Path) -> None:
    start = _make_kitti(tmp_path / "start", STREETS)
    (tmp_path / "start/training/image_2/0001.jpg").write_bytes(b"")
    with pytest.raises(RunnerError, match="EmptyFile") as failure:
        _export(tmp_path, start, tmp_path / "out")
    assert failure.value.reason == Reason.BAD_SAMPLES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start"]


def test_a_class_with_a_space_is_renamed_for_kitti_and_reported(tmp_path: Path) -> None:
    block = _voc_with_classes(tmp_path, "traffic light", "car")
    code, printed, errors = _tlt(
        "convert", "-f", str(_manifest(tmp_path, block)), "--to", "kitti", "--out", str(tmp_path / "out")
    )
    assert code == 0
    assert set(yaml.safe_load(printed)["dataset"]["targetClassMapping"]) == {"car", "traffic_light"}
    assert "class 'traffic light' is written as 'traffic_light'" in errors


def test_classes_that_would_get_one_name_are_refused(tmp_path: Path) -> None:
    block = _voc_with_classes(tmp_path, "traffic light", "traffic_light")
    with pytest.raises(RunnerError, match="cannot tell classes 'traffic light' and 'traffic_light' apart"):
        _export(tmp_path, block, tmp_path / "out", "kitti")
    assert not (tmp_path / "out").exists()


def _voc_with_classes(root: Path, *classes: str) -> dict[str, Any]:
    """A VOC folder in which these classes take the places of "car" and "van"."""
    boxes = [("car", (1.0, 1.0, 5.0, 5.0)), ("van", (1.0, 1.0, 5.0, 5.0))]
    pictures = [Picture(f"{number}.jpg", (9, 9), boxes) for number in (1, 2)]
    block = _convert(root, _make_kitti(root / "start", pictures), "voc", root / "voc")
    for file in (root / "voc/Annotations").iterdir():
        text = file.read_text()
        for old, new in zip(("car", "van"), classes, strict=True):
            text = text.replace(f"<name>{old}<", f"<name>{new}<")
        file.write_text(text)
    return block


def test_one_name_in_both_folders_stays_two_images(tmp_path: Path) -> None:
    start = _make_kitti(tmp_path / "start", [Picture("1.jpg", (20, 20), [("car", (1, 1, 5, 5))])])
    both = [Picture("1.jpg", (30, 20), [("car", (2, 2, 5, 5))]), Picture("2.jpg", (30, 20), [])]
    _make_kitti(tmp_path / "start", both, part="held/out")
    start["validation"] = HELD_OUT
    block = _convert(tmp_path, start, "voc", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out/JPEGImages").iterdir())
    assert names == ["1-2.jpg", "1.jpg", "2.jpg"]
    _assert_same(_read(start, tmp_path), _read(block, tmp_path), 1e-5)


def test_files_of_the_user_are_not_overwritten(tmp_path: Path) -> None:
    start = _make_kitti(tmp_path / "start", STREETS)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(RunnerError, match="which holds mine.txt") as failure:
        _export(tmp_path, start, out)
    assert failure.value.reason == Reason.INVALID_SPEC
    with pytest.raises(RunnerError, match="which holds a file"):
        _export(tmp_path, start, out / "mine.txt")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_an_empty_output_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _export(tmp_path, _make_kitti(tmp_path / "start", STREETS), tmp_path / "out")
    assert (tmp_path / "out/data.yaml").is_file()


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    start = _make_kitti(tmp_path / "start", STREETS)
    stop = Stop()
    with pytest.raises(RunnerError) as failure:
        _export(tmp_path, start, tmp_path / "new/out", reporter_for=lambda _: _At(1, stop.request), stop=stop)
    assert failure.value.reason == Reason.INTERRUPTED
    assert list((tmp_path / "new").iterdir()) == []


def test_an_output_folder_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    start, out = _make_kitti(tmp_path / "start", STREETS), tmp_path / "out"

    def fill() -> None:
        out.mkdir(exist_ok=True)
        (out / "mine.txt").touch()

    with pytest.raises(RunnerError, match="holds something now"):
        _export(tmp_path, start, out, reporter_for=lambda _: _At(1, fill))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


class _At:
    """A reporter that does something when an image is done."""

    def __init__(self, image: int, action: Callable[[], None]) -> None:
        self._image = image
        self._action = action

    def progress(self, progress: Progress) -> None:
        if progress.step == self._image:
            self._action()


def _export(
    root: Path, block: Mapping[str, Any], out: Path, target: LabelFormat = "yolo", **more: Any
) -> None:
    storage = Storage(scratch=root / "scratch")
    export_folder(Dataset.model_validate(block), storage, target, out, resize=False, **more)


@pytest.mark.parametrize(
    "arguments",
    [("--to", "yolo"), ("--out", "x"), ("--resize",), ("--to", "yolo", "--out", "x", "--report", "y")],
)
def test_incompatible_options_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    manifest = _manifest(tmp_path, _make_kitti(tmp_path / "start", STREETS))
    code, _, errors = _tlt("convert", "-f", str(manifest), *arguments)
    assert (code, "--to" in errors) == (2, True)


def test_a_folder_within_the_data_set_is_refused(tmp_path: Path) -> None:
    start = _make_kitti(tmp_path / "start", STREETS)
    with pytest.raises(RunnerError, match="expected a folder for --out apart from the data set's") as caught:
        _export(tmp_path, start, tmp_path / "start/training/image_2/new")
    assert caught.value.reason == Reason.INVALID_SPEC
