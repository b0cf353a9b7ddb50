"""``tlt infer``: whatever lies in the folder of images, and whatever lies in the output folder."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import patience
from fakes import RecordingReporter
from tiny_detector import settled, tiny_config
from tlt_api.failures import CLASSES, Reason
from tlt_api.status import Progress
from tlt_runner.cancel import Stop
from tlt_runner.context import Reporter
from tlt_runner.data.images import geometry
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.files import sha256_of
from tlt_runner.inference import request, run
from tlt_runner.inference.report import InferenceReport
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage
from torture import chunk

SIZE = 96
SCORE = 0.3


def picture(seed: int, height: int = 80, width: int = 160) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(folder: Path, name: str, image: np.ndarray) -> bytes:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path.read_bytes()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    batch = np.stack([cv2.resize(picture(seed), (SIZE, SIZE)) for seed in range(4)]).astype(np.float32)
    config = tiny_config(class_names=["bus", "fire truck"]).model_copy(update={"mode": "letterbox"})
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    detector.save(settled(config, batch), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


class Run:
    def __init__(self, model: Path, images: Path, output: Path) -> None:
        self.request = request.Request(str(model), images, output, SCORE)
        self.scratch = output.parent / "scratch"
        self.scratch.mkdir(exist_ok=True)

    def __call__(self, stop: Stop | None = None, reporter: Reporter | None = None) -> InferenceReport:
        storage = Storage(scratch=self.scratch)
        inputs = request.check(self.request, storage)
        return run.run(self.request, inputs, reporter or LocalReporter(None), stop or Stop())


def stored(output: Path) -> dict[str, object]:
    report: dict[str, object] = json.loads((output / "inference-report.json").read_text())
    return report


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_labels_hold_the_detections_in_pixels_of_the_stored_image(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    image = picture(1)
    save(images, "a.png", image)
    report = Run(model_file, images, tmp_path / "out")()
    model = detector.load(model_file)
    where = geometry.placement(80, 160, SIZE, SIZE, "letterbox")
    network = geometry.place_image(image, where)[..., ::-1].astype(np.float32)
    detections = keras_detector(model)(np.stack([network] * run.BATCH))
    rows = [line.split() for line in (tmp_path / "out/labels/a.txt").read_text().splitlines()]
    expected = []
    for box, score, class_id in zip(
        detections["boxes"][0], detections["scores"][0], detections["classes"][0], strict=True
    ):
        # 160 x 80 in 96 x 96: scale 0.6, 24 rows of padding above.
        y1, x1, y2, x2 = (box - [24, 0, 24, 0]) / 0.6
        y1, y2 = np.clip([y1, y2], 0, 80)
        if class_id >= 0 and score >= SCORE and y2 > y1:
            name = ("bus", "fire_truck")[int(class_id)]
            expected.append((name, [x1, y1, x2, y2], float(score)))
    assert len(rows) == len(expected) > 0
    for row, (name, xyxy, score) in zip(rows, expected, strict=True):
        assert len(row) == 16
        assert row[0] == name
        np.testing.assert_allclose([float(edge) for edge in row[4:8]], xyxy, atol=0.006)
        assert float(row[15]) == pytest.approx(score, abs=1e-4)
        assert {float(value) for value in (*row[1:4], *row[8:15])} == {0.0}
    assert report.label_names == {"fire truck": "fire_truck"}
    assert sum(report.detections.values()) == len(rows)


def test_a_grayscale_model_detects_in_the_luma_of_a_colour_image(images: Path, tmp_path: Path) -> None:
    image = picture(1, SIZE, SIZE)
    save(images, "a.png", image)
    # OpenCV's pixels are BGR.
    luma = np.round(image @ np.array([0.114, 0.587, 0.299]))[..., None].astype(np.float32)
    model = settled(tiny_config().model_copy(update={"color_mode": "grayscale"}), luma[None])
    detector.save(model, tmp_path / "grey.keras")
    Run(tmp_path / "grey.keras", images, tmp_path / "out")()
    expected = keras_detector(model)(luma[None])
    scores = [float(line.split()[15]) for line in (tmp_path / "out/labels/a.txt").read_text().splitlines()]
    confident = expected["scores"][0][expected["scores"][0] >= SCORE]
    assert len(scores) > 0
    # cv2 rounds a luma of .5 to the even number.
    np.testing.assert_allclose(scores, confident, atol=0.02)


def test_sub_folders_and_names_are_kept_and_boxes_are_drawn(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    save(images, "day one/häuser.jpg", picture(2))
    save(images, "a.b/c.d.PNG", picture(3, 200, 120))
    out = tmp_path / "out"
    report = Run(model_file, images, out)()
    assert sorted(report.files) == [
        "images/a.b/c.d.PNG",
        "images/day one/häuser.jpg",
        "labels/a.b/c.d.txt",
        "labels/day one/häuser.txt",
    ]
    assert set(tree(out)) == {*report.files, "inference-report.json"}
    for name, digest in report.files.items():
        assert sha256_of(out / name) == digest
    drawn = cv2.imread(str(out / "images/a.b/c.d.PNG"))
    assert drawn.shape == (200, 120, 3)
    assert (drawn != picture(3, 200, 120)).any()
    assert InferenceReport.model_validate(stored(out)) == report
    assert (report.whole, report.images, report.inferred_images) == (True, 2, 2)


def test_every_unused_entry_is_reported_and_none_is_fatal(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    data = save(images, "good.jpg", picture(4))
    save(images, "good.png", picture(5))
    (images / "cut.jpg").write_bytes(data[: len(data) // 2])
    (images / "empty.png").touch()
    (images / "text.jpg").write_text("no image")
    (images / "old.gif").write_bytes(b"GIF89a")
    (images / "notes.txt").write_text("keep me")
    (images / ".hidden").mkdir()
    (images / "gone.jpg").symlink_to(images / "nothing")
    before = tree(images)
    report = Run(model_file, images, tmp_path / "out")()
    assert {item.file: item.problem for item in report.skipped} == {
        "cut.jpg": "TruncatedImage",
        "empty.png": "EmptyFile",
        "gone.jpg": "UnreadableImage",
        "good.png": "DuplicateName",
        "old.gif": "UnsupportedImage",
        "text.jpg": "UnreadableImage",
    }
    assert report.skipped_by_problem == {
        "DuplicateName": 1,
        "EmptyFile": 1,
        "TruncatedImage": 1,
        "UnreadableImage": 2,
        "UnsupportedImage": 1,
    }
    assert all(item.message for item in report.skipped)
    assert report.other_files == [".hidden", "notes.txt"]
    assert (report.images, report.inferred_images) == (7, 1)
    assert sorted(report.files) == ["images/good.jpg", "labels/good.txt"]
    assert tree(images) == before


def test_unusual_images_are_used_and_counted(model_file: Path, images: Path, tmp_path: Path) -> None:
    png = save(images, "gray.png", picture(4)[..., 0])
    (images / "named.jpg").write_bytes(png)
    report = Run(model_file, images, tmp_path / "out")()
    assert report.odd_images == {"Grayscale": 2, "WrongExtension": 1}
    assert (report.inferred_images, report.skipped) == (2, [])
    assert (tmp_path / "out/images/named.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_an_image_without_detections_gets_an_empty_label_file(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    save(images, "a.jpg", picture(6))
    inference = Run(model_file, images, tmp_path / "out")
    inference.request = request.Request(str(model_file), images, tmp_path / "out", score=1.0)
    report = inference()
    assert (tmp_path / "out/labels/a.txt").read_bytes() == b""
    assert report.images_without_detections == report.inferred_images == 1
    assert report.detections == {"bus": 0, "fire truck": 0}


def test_results_do_not_depend_on_the_batch_an_image_is_in(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    for index in range(run.BATCH + 2):
        save(images, f"{index}.png", picture(10 + index))
    Run(model_file, images, tmp_path / "together")()
    alone = tmp_path / "alone"
    alone.mkdir()
    last = f"{run.BATCH + 1}.png"
    save(alone / "images", last, picture(10 + run.BATCH + 1))
    Run(model_file, alone / "images", alone / "out")()
    together, single = (
        [line.split() for line in (folder / "labels" / last).with_suffix(".txt").read_text().splitlines()]
        for folder in (tmp_path / "together", alone / "out")
    )
    assert [row[0] for row in together] == [row[0] for row in single]
    np.testing.assert_allclose(
        [[float(value) for value in row[1:]] for row in together],
        [[float(value) for value in row[1:]] for row in single],
        atol=0.02,
    )


def test_a_folder_of_the_user_is_refused_and_untouched(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    save(images, "a.jpg", picture(7))
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images" / "a.jpg").write_text("mine")
    with pytest.raises(RunnerError, match="expected a new or empty folder") as caught:
        Run(model_file, images, out)()
    assert caught.value.reason == Reason.INVALID_SPEC
    assert tree(out) == {"images/a.jpg": b"mine"}


def test_a_second_inference_replaces_only_files_of_the_first(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        save(images, name, picture(8))
    out = tmp_path / "out"
    Run(model_file, images, out)()
    (out / "labels" / "a.txt").write_text("corrected by hand")
    (out / "notes.txt").write_text("mine")
    save(images, "a.jpg", picture(9))
    save(images, "b.jpg", picture(9))
    (images / "c.jpg").unlink()
    before = tree(out)
    report = Run(model_file, images, out)()
    after = tree(out)
    assert report.left_alone == ["labels/a.txt"]
    assert report.leftover == ["images/c.jpg", "labels/c.txt"]
    kept = ("labels/a.txt", "notes.txt", "images/c.jpg", "labels/c.txt")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert after["images/b.jpg"] == after["images/a.jpg"] != before["images/b.jpg"]
    assert "labels/a.txt" not in report.files
    third = Run(model_file, images, out)()
    assert (third.left_alone, third.leftover) == (report.left_alone, report.leftover)


@pytest.mark.parametrize("output", [".", "results", "..", "../images/results"])
def test_output_among_the_images_is_refused(
    model_file: Path, images: Path, tmp_path: Path, output: str
) -> None:
    save(images, "a.jpg", picture(7))
    before = tree(tmp_path)
    with pytest.raises(RunnerError, match="expected an output folder apart from the images"):
        Run(model_file, images, images / output)()
    assert tree(tmp_path) == before


def test_a_folder_without_images_says_what_it_holds(model_file: Path, images: Path, tmp_path: Path) -> None:
    (images / "a.xml").touch()
    with pytest.raises(RunnerError, match=r"got none: it holds 1 \.xml file") as caught:
        Run(model_file, images, tmp_path / "out")()
    assert caught.value.reason == Reason.DATASET_NOT_FOUND
    assert not (tmp_path / "out").exists()


def test_an_inference_without_usable_images_fails_and_leaves_a_report(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    (images / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(RunnerError, match=r"got none among 1: a\.jpg: TruncatedImage: ") as caught:
        Run(model_file, images, tmp_path / "out")()
    assert caught.value.reason == Reason.BAD_SAMPLES
    assert [item["file"] for item in stored(tmp_path / "out")["skipped"]] == ["a.jpg"]  # type: ignore[attr-defined]


def test_files_written_before_an_interruption_stay_and_the_next_run_completes_them(
    model_file: Path, images: Path, tmp_path: Path
) -> None:
    for index in range(run.BATCH + 1):
        save(images, f"{index}.jpg", picture(20 + index))
    out, stop = tmp_path / "out", Stop()

    def stop_after_one_batch(progress: Progress) -> None:
        if progress.step == run.BATCH:
            stop.request()

    with pytest.raises(RunnerError, match="stopped at image 4 of 5; 8 files are in") as caught:
        Run(model_file, images, out)(stop, RecordingReporter(stop_after_one_batch))
    assert caught.value.reason == Reason.INTERRUPTED
    assert (stored(out)["whole"], stored(out)["inferredImages"]) == (False, 4)
    report = Run(model_file, images, out)()
    assert (report.whole, report.left_alone, report.leftover) == (True, [], [])
    assert len(report.files) == 10


def command(model: Path) -> list[str]:
    arguments = ["--model", str(model), "--images", "images", "--output", "out", "--score", "0.3"]
    return [sys.executable, "-m", "tlt_runner", "infer", *arguments]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_a_report_of_what_is_done(
    model_file: Path, images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    first = images / "0000.jpg"
    save(images, first.name, picture(4))
    for index in range(1, 2000):
        os.link(first, images / f"{index:04d}.jpg")
    process = subprocess.Popen(
        command(model_file), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None and not any((tmp_path / "out" / "labels").glob("*")):
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=patience.MINUTES)
    assert process.returncode == CLASSES[Reason.INTERRUPTED].exit_code, output[-2000:]
    report = stored(tmp_path / "out")
    assert not report["whole"]
    assert 0 < report["inferredImages"] < 2000


def test_the_command_prints_a_summary(model_file: Path, images: Path, tmp_path: Path) -> None:
    save(images, "a.jpg", picture(4))
    (images / "b.jpg").write_text("no image")
    done = subprocess.run(
        command(model_file),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patience.MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("1 of 2 images, ") for line in lines)
    assert any(line.startswith("images left out: 1 (b.jpg: UnreadableImage: ") for line in lines)
    assert lines[-1] == "report: out/inference-report.json"


@pytest.mark.parametrize(
    "address",
    [
        "pvc://data/{folder}/m.keras",
        "pvc://data/../../m.keras",
        "pvc://data/./m.keras",
        "pvc://data/far.keras",
        "pvc://data/far/m.keras",
        "file:///{folder}/m.keras",
        "s3://bucket/{folder}/m.keras",
    ],
)
def test_a_model_address_that_leaves_its_root_is_refused(
    model_file: Path, images: Path, tmp_path: Path, address: str
) -> None:
    save(images, "a.png", picture(1))
    (tmp_path / "m.keras").write_bytes(model_file.read_bytes())
    claim = tmp_path / "volumes" / "data"
    claim.mkdir(parents=True)
    (claim / "far").symlink_to(tmp_path)
    (claim / "far.keras").symlink_to(tmp_path / "m.keras")
    refused = request.Request(address.format(folder=tmp_path), images, tmp_path / "out", SCORE)
    storage = Storage(scratch=tmp_path / "scratch", volumes_root=tmp_path / "volumes")
    with pytest.raises(RunnerError) as caught:
        request.check(refused, storage)
    assert caught.value.reason == Reason.INVALID_SPEC
    assert "without empty ('//')" in caught.value.message or "leads out of it" in caught.value.message
    assert not (tmp_path / "out").exists()


def test_local_paths_may_climb_and_links_within_a_claim_are_followed(
    model_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(images, "a.png", picture(1))
    claim = tmp_path / "volumes" / "data"
    (claim / "%2e%2e").mkdir(parents=True)
    (claim / "%2e%2e" / "m.keras").write_bytes(model_file.read_bytes())
    (claim / "near.keras").symlink_to("%2e%2e/m.keras")
    monkeypatch.chdir(images)
    storage = Storage(scratch=tmp_path / "scratch", volumes_root=tmp_path / "volumes")
    models = ["pvc://data/near.keras", "pvc://data/%2e%2e/m.keras", "../volumes/data/near.keras"]
    for number, model in enumerate(models):
        accepted = request.Request(model, Path("../images"), Path(f"../out-{number}"), SCORE)
        run.run(accepted, request.check(accepted, storage), LocalReporter(None), Stop())
    labels = {(tmp_path / f"out-{number}/labels/a.txt").read_text() for number in range(len(models))}
    assert len(labels) == 1


def test_a_model_of_turned_photos_sees_photos_turned(images: Path, tmp_path: Path) -> None:
    batch = np.stack([cv2.resize(picture(seed), (SIZE, SIZE)) for seed in range(4)]).astype(np.float32)
    config = tiny_config(class_names=["bus", "fire truck"]).model_copy(update={"mode": "letterbox"})
    stored_view = settled(config, batch)
    detector.save(stored_view, tmp_path / "stored.keras")
    detector.save(
        detector.with_config(stored_view, config.model_copy(update={"orientation": "exif"})),
        tmp_path / "exif.keras",
    )
    photo, upright = tmp_path / "photo", tmp_path / "upright"
    image = picture(1)
    save(photo, "a.png", image)
    data = (photo / "a.png").read_bytes()
    # eXIf with an orientation of 6, a quarter turn clockwise, behind the header's 33 bytes.
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    (photo / "a.png").write_bytes(data[:33] + chunk(b"eXIf", tiff) + data[33:])
    save(upright, "a.png", cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE))
    expected = Run(tmp_path / "stored.keras", upright, tmp_path / "expected")()
    report = Run(tmp_path / "exif.keras", photo, tmp_path / "out")()
    label = (tmp_path / "out/labels/a.txt").read_text()
    assert label
    assert label == (tmp_path / "expected/labels/a.txt").read_text()
    drawn = cv2.imread(str(tmp_path / "out/images/a.png"))
    assert np.array_equal(drawn, cv2.imread(str(tmp_path / "expected/images/a.png")))
    assert (expected.odd_images, report.odd_images) == ({}, {"TurnedUpright": 1})
    # A model of photos as stored sees them as before.
    as_stored = Run(tmp_path / "stored.keras", photo, tmp_path / "stored")()
    assert as_stored.odd_images == {"Turned": 1}
    assert (tmp_path / "stored/labels/a.txt").read_text() != label
