"""Preparation of real files: exact reports, exact records, reuse, and recovery from a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from fakes import RecordingReporter, run_task
from tlt_api.dataset import Dataset
from tlt_api.failures import CLASSES, Reason
from tlt_api.status import DatasetStatus, Progress
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.data import sample_digits
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.records import load_records
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage
from tlt_runner.tasks import convert

HEIGHT, WIDTH = 100, 200
REST = "0 0 0 0 0 0 0"


class Folder:
    """A data set in the making."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "training" / "image_2"
        self.labels = root / "training" / "label_2"
        self.images.mkdir(parents=True)
        self.labels.mkdir(parents=True)
        self.random = np.random.default_rng(0)

    def image(self, name: str) -> Path:
        pixels = self.random.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        cv2.imwrite(str(self.images / name), pixels)
        return self.images / name

    def label(self, stem: str, *lines: str) -> None:
        (self.labels / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))

    def dataset(self, **changes: Any) -> Dataset:
        return Dataset.model_validate(
            {
                "uri": f"file://{self.root}",
                "targetClassMapping": {"car": "vehicle", "van": "vehicle", "pedestrian": "person"},
                "imageSize": {"width": 64, "height": 64},
                **changes,
            }
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "set")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(scratch=tmp_path / "scratch")


@pytest.fixture
def output(tmp_path: Path) -> str:
    return f"file://{tmp_path}/out"


def _car(x1: float, y1: float, x2: float, y2: float, name: str = "Car") -> str:
    return f"{name} 0.1 0 0 {x1} {y1} {x2} {y2} {REST}"


def _good(folder: Folder, count: int) -> None:
    for number in range(count):
        folder.image(f"good{number:03d}.jpg")
        folder.label(f"good{number:03d}", _car(20, 10, 100, 50))


def _examples(path: Path) -> list[Any]:
    raw = tf.data.TFRecordDataset(sorted(str(file) for file in path.glob("*.tfrecord")))
    return [tf.train.Example.FromString(item.numpy()).features.feature for item in raw]


def _torture(folder: Folder) -> None:
    _good(folder, 6)
    (folder.images / "zero.jpg").touch()
    folder.label("zero", _car(1, 1, 9, 9))
    whole = folder.image("cut.jpg").read_bytes()
    (folder.images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    folder.label("cut", _car(1, 1, 9, 9))
    (folder.images / "text.jpg").write_text("this is a text with the name of an image")
    folder.label("text", _car(1, 1, 9, 9))
    folder.image("alone.jpg")
    folder.label("orphan", _car(1, 1, 9, 9))
    folder.image("lines.png")
    folder.label(
        "lines",
        _car(20, 10, 100, 50),
        "Car 0 0 0 1 2 3",
        _car(20, 10, 100, float("nan")),
        _car(100, 10, 20, 50),
        _car(300, 10, 400, 50),
        _car(-50, -50, 20, 10),
        _car(20, 10, 21, 50),
        _car(0, 0, 10, 10, "Tram"),
        f"DontCare -1 -1 -10 0 0 10 10 {REST}",
    )
    folder.image("empty.jpg")
    folder.label("empty")
    (folder.images / "notes.md").touch()


def test_status_and_progress_report_the_data_set(folder: Folder, storage: Storage, output: str) -> None:
    _torture(folder)
    reporter = RecordingReporter()
    dataset = folder.dataset(badSamples={"maxFraction": 0.5})
    records = prepare(dataset, storage, output, reporter)
    status = reporter.last(DatasetStatus)
    assert (status.images, status.objects, status.skipped, status.dropped_objects) == (8, 8, 4, 6)
    assert [(item.name, item.objects) for item in status.classes or ()] == [("person", 0), ("vehicle", 8)]
    assert (status.digest, status.records_uri) == (records.digest, records.uri)
    # Three bad images are only found out when they are opened: 11 have a label, 8 + 3 are offered.
    assert [(step.stage, step.step) for step in reporter.progresses] == [
        (stage, step) for stage in ("survey", "convert") for step in range(1, 12)
    ]
    assert [step.eta_seconds for step in reporter.progresses if step.step == 11] == [0, 0]


def test_a_record_holds_the_resized_image_and_its_boxes(
    folder: Folder, storage: Storage, output: str
) -> None:
    _good(folder, 2)
    records = prepare(folder.dataset(), storage, output)
    feature = _examples(records.folder)[0]
    assert feature["frame/id"].bytes_list.value[0].startswith(b"training/image_2/good00")
    assert feature["frame/height"].int64_list.value[:] == [64]
    assert feature["frame/original_width"].int64_list.value[:] == [200]
    # x * 64 / 200, y * 64 / 100
    edges = [feature[f"target/coordinates_{edge}"].float_list.value[0] for edge in ("y1", "x1", "y2", "x2")]
    assert edges == pytest.approx([6.4, 6.4, 32.0, 32.0])
    assert feature["target/object_class"].bytes_list.value[:] == [b"vehicle"]
    assert feature["target/object_class_id"].int64_list.value[:] == [1]
    assert feature["target/occlusion"].int64_list.value[:] == [0]
    assert feature["target/truncation"].float_list.value[0] == pytest.approx(0.1)
    pixels = cv2.imdecode(
        np.frombuffer(feature["frame/encoded"].bytes_list.value[0], np.uint8), cv2.IMREAD_COLOR
    )
    assert pixels.shape == (64, 64, 3)


def test_a_record_is_as_tensorflow_would_encode_it(folder: Folder, storage: Storage, output: str) -> None:
    _good(folder, 3)
    folder.image("crowd.jpg")
    folder.label("crowd", *[_car(k, 10, k + 90, 50 + k % 9) for k in range(100)])
    folder.image("empty.jpg")
    folder.label("empty")
    records = prepare(folder.dataset(), storage, output)
    files = [str(path) for subset in ("training", "validation") for path in records.files(subset)]  # type: ignore[arg-type]
    raw = [item.numpy() for item in tf.data.TFRecordDataset(files)]
    assert len(raw) == 5
    for item in raw:
        example = tf.train.Example.FromString(item)
        assert example.ByteSize() == len(item)
        assert len(example.features.feature) == 19


def test_an_image_of_the_right_size_keeps_its_bytes(folder: Folder, storage: Storage, output: str) -> None:
    for stem in ("a", "b"):
        cv2.imwrite(str(folder.images / f"{stem}.jpg"), np.full((64, 64, 3), 90, np.uint8))
        folder.label(stem, _car(1, 2, 30, 40))
    records = prepare(folder.dataset(), storage, output)
    for feature in _examples(records.folder):
        stem = Path(feature["frame/id"].bytes_list.value[0].decode()).name
        original = (folder.images / f"{stem}.jpg").read_bytes()
        assert feature["frame/encoded"].bytes_list.value[0] == original


def test_separate_validation_folders_are_used(folder: Folder, storage: Storage, output: str) -> None:
    _good(folder, 3)
    (folder.root / "testing").mkdir()
    for name in ("images", "labels"):
        (folder.root / "testing" / name).mkdir()
    (folder.root / "testing/images/x.jpg").write_bytes((folder.images / "good000.jpg").read_bytes())
    (folder.root / "testing/labels/x.txt").write_text(_car(1, 1, 99, 99, "Pedestrian"))
    dataset = folder.dataset(validation={"images": "testing/images", "labels": "testing/labels"})
    records = prepare(dataset, storage, output)
    manifest = records.manifest
    assert (manifest.training_images, manifest.validation_images) == (3, 1)
    assert (manifest.training_objects, manifest.validation_objects) == ([0, 3], [1, 0])
    # It is a copy of a training image, and the report says so.
    report = json.loads((records.folder / "dataset-report.json").read_text())
    assert report["leakedImages"] == 1
    assert "testing/images/x" in report["warnings"][-1]


def test_objects_beyond_the_network_room_are_counted(folder: Folder, storage: Storage, output: str) -> None:
    _good(folder, 3)
    folder.image("crowd.jpg")
    folder.label("crowd", *[_car(10 * k, 10, 10 * k + 9, 50) for k in range(7)])
    manifest = prepare(folder.dataset(), storage, output).manifest
    assert manifest.objects_per_image == {1: 3, 7: 1}
    assert [manifest.objects_beyond(room) for room in (7, 5, 1)] == [0, 2, 6]


def test_records_are_made_once_and_again_when_anything_changes(
    folder: Folder, storage: Storage, output: str, tmp_path: Path
) -> None:
    _good(folder, 5)
    first = prepare(folder.dataset(), storage, output)
    written = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = prepare(folder.dataset(), storage, output)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in again.folder.iterdir()} == written
    digests = {first.digest}
    digests.add(prepare(folder.dataset(validation={"fraction": 0.5}), storage, output).digest)
    digests.add(prepare(folder.dataset(imageSize={"width": 80, "height": 64}), storage, output).digest)
    digests.add(prepare(folder.dataset(targetClassMapping={"car": "car"}), storage, output).digest)
    folder.label("good001", _car(20, 10, 101, 50))
    digests.add(prepare(folder.dataset(), storage, output).digest)
    assert len(digests) == 5
    moved = Folder(tmp_path / "copy")
    for part in ("image_2", "label_2"):
        for path in (folder.root / "training" / part).iterdir():
            (moved.root / "training" / part / path.name).write_bytes(path.read_bytes())
    assert prepare(moved.dataset(), storage, output).digest in digests


def test_the_policy_is_applied_to_existing_records(folder: Folder, storage: Storage, output: str) -> None:
    _good(folder, 5)
    folder.image("alone.jpg")
    prepare(folder.dataset(badSamples={"maxFraction": 0.5}), storage, output)
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(badSamples={"policy": "Fail"}), storage, output)
    assert caught.value.reason == Reason.BAD_SAMPLES


def test_refused_data_leave_a_report_and_no_records(
    folder: Folder, storage: Storage, output: str, tmp_path: Path
) -> None:
    _torture(folder)
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output)
    assert caught.value.reason == Reason.BAD_SAMPLES
    assert "training/image_2/cut.jpg: TruncatedImage" in caught.value.message
    assert "training/label_2/lines.txt: lines 2, 3, 4, 5: WrongColumns" in caught.value.message
    assert json.loads((tmp_path / "out/dataset-report.json").read_text())["badImages"] == 5
    assert list((tmp_path / "out/tfrecords").iterdir()) == []


def test_damaged_records_are_made_again(folder: Folder, storage: Storage, output: str) -> None:
    _good(folder, 3)
    first = prepare(folder.dataset(), storage, output)
    shard = first.files("training")[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunnerError) as caught:
        load_records(storage, first.uri, first.digest)
    assert caught.value.reason == Reason.CHECKSUM_MISMATCH
    assert prepare(folder.dataset(), storage, output) == first
    assert shard.read_bytes() == content
    (first.folder / "dataset-report.json").unlink()
    assert prepare(folder.dataset(), storage, output) == first
    assert (first.folder / "dataset-report.json").is_file()


def test_records_without_their_manifest_or_of_another_digest_are_refused(
    folder: Folder, storage: Storage, output: str
) -> None:
    _good(folder, 3)
    records = prepare(folder.dataset(), storage, output)
    assert load_records(storage, records.uri, records.digest) == records
    with pytest.raises(RunnerError) as caught:
        load_records(storage, records.uri, "sha256:other")
    assert caught.value.reason == Reason.CHECKSUM_MISMATCH
    (records.folder / "dataset.json").unlink()
    for uri in (records.uri, f"{output}/nowhere"):
        with pytest.raises(RunnerError) as caught:
            load_records(storage, uri)
        assert caught.value.reason == Reason.DATASET_NOT_FOUND


def test_a_missing_folder_is_reported_with_the_existing_ones(
    folder: Folder, storage: Storage, output: str
) -> None:
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(images="training/images"), storage, output)
    assert caught.value.reason == Reason.DATASET_NOT_FOUND
    assert f"file://{folder.root}/training/images" in caught.value.message
    assert "image_2/, label_2/" in caught.value.message


def test_a_folder_without_images_is_not_found(folder: Folder, storage: Storage, output: str) -> None:
    (folder.images / "scan.tiff").touch()
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output)
    assert caught.value.reason == Reason.DATASET_NOT_FOUND
    assert "UnsupportedImage" in caught.value.message


def test_labels_without_a_single_object_are_refused(folder: Folder, storage: Storage, output: str) -> None:
    for number in range(20):
        folder.image(f"{number}.jpg")
        folder.label(str(number))
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output)
    assert caught.value.reason in (Reason.NO_LABELS, Reason.UNKNOWN_CLASS)
    assert "none for training and validation" in caught.value.message


def test_images_without_any_label_fail_with_no_labels(folder: Folder, storage: Storage, output: str) -> None:
    folder.image("a.jpg")
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output)
    assert caught.value.reason == Reason.NO_LABELS
    folder.label("b", _car(1, 1, 9, 9))
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output)
    assert caught.value.reason == Reason.NO_LABELS
    assert "1 .txt file" in caught.value.message


def test_a_mapping_that_matches_nothing_lists_both_sides(
    folder: Folder, storage: Storage, output: str
) -> None:
    _good(folder, 3)
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(targetClassMapping={"automobile": "car", "bike": "bike"}), storage, output)
    assert caught.value.reason == Reason.UNKNOWN_CLASS
    assert "the labels have Car (3)" in caught.value.message
    assert "automobile, bike" in caught.value.message


def test_the_report_is_written_also_for_refused_data(
    folder: Folder, storage: Storage, output: str, tmp_path: Path
) -> None:
    _good(folder, 3)
    files = [tmp_path / "out" / name for name in ("dataset-report.json", "dataset-report.html")]

    def written() -> list[bool]:
        are_written = [path.exists() for path in files]
        for path in files:
            path.unlink(missing_ok=True)
        return are_written

    with pytest.raises(RunnerError):
        prepare(folder.dataset(targetClassMapping={"bike": "bike"}), storage, output)
    assert json.loads(files[0].read_text())["sourceClasses"] == {"Car": 3}
    assert written() == [True, True]
    for _ in ("made", "found"):
        prepare(folder.dataset(), storage, output)
        assert written() == [True, True]
    folder.image("alone.jpg")
    with pytest.raises(RunnerError):
        prepare(folder.dataset(), storage, output)
    assert written() == [True, True]


@pytest.mark.parametrize("part", ["image_2/good003.jpg", "label_2/good003.txt"])
@pytest.mark.parametrize("removed", [False, True])
def test_a_file_that_changes_while_it_is_read_ends_the_run_and_makes_no_record(
    folder: Folder, storage: Storage, output: str, tmp_path: Path, part: str, removed: bool
) -> None:
    _good(folder, 10)
    file = folder.root / "training" / part

    def change_after_the_survey(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("survey", 10):
            file.unlink() if removed else file.write_bytes(file.read_bytes() + b"\n")

    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output, RecordingReporter(change_after_the_survey))
    assert CLASSES[caught.value.reason].retryable
    assert f"training/{part}" in caught.value.message
    # good003 is for training: neither its shard nor a manifest is there; the other shard may be whole.
    assert not list(tmp_path.glob("out/tfrecords/*/dataset.json"))
    assert not list(tmp_path.glob("out/tfrecords/*/training*"))


def test_one_usable_image_is_not_enough(folder: Folder, storage: Storage, output: str) -> None:
    _good(folder, 1)
    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output)
    assert caught.value.reason == Reason.BAD_SAMPLES
    assert "got none for" in caught.value.message


def test_a_stopped_run_leaves_finished_shards_to_the_next(
    folder: Folder, storage: Storage, output: str, tmp_path: Path
) -> None:
    _good(folder, 100)
    stop = Stop()

    def stop_at_forty(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("convert", 40):
            stop.request()

    with pytest.raises(RunnerError) as caught:
        prepare(folder.dataset(), storage, output, RecordingReporter(stop_at_forty), stop)
    assert caught.value.reason == Reason.INTERRUPTED
    (left,) = (tmp_path / "out/tfrecords").iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in left.iterdir()}
    whole = sorted(name for name in written if name.endswith(".tfrecord"))
    # About 80 training images in 8 shards: three or four are full after 40 images.
    assert whole in ([f"training-{number:05d}-of-00008.tfrecord" for number in range(n)] for n in (3, 4))
    reporter = RecordingReporter()
    records = prepare(folder.dataset(), storage, output, reporter)
    assert {name: (left / name).stat().st_mtime_ns for name in written} == written
    taken_over = sum(shard.images for shard in records.manifest.shards if shard.name in whole)
    steps = [step.step for step in reporter.progresses if step.stage == "convert"]
    assert steps == list(range(taken_over + 1, 101))


def test_the_convert_task_prepares_and_reports(
    folder: Folder, storage: Storage, output: str, tmp_path: Path
) -> None:
    _good(folder, 3)
    reporter = RecordingReporter()
    spec = TrainingJobSpec.model_validate({"dataset": folder.dataset().to_wire(), "output": {"uri": output}})
    run_task(convert, spec, Context(storage, reporter, tmp_path / "scratch", Stop()))
    assert reporter.last(DatasetStatus).images == 3


_RUN = """
import os, signal, sys
from pathlib import Path
from tlt_api.dataset import Dataset
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.storage import Storage

class Killed:
    def progress(self, progress):
        if progress.stage == "convert" and progress.step == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
    def report(self, section):
        pass

dataset = Dataset.model_validate_json(sys.argv[1])
prepare(dataset, Storage(scratch=Path(sys.argv[3])), sys.argv[2], Killed())
"""


def _start(dataset: Dataset, output: str, scratch: Path, killed_at: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _RUN, dataset.model_dump_json(), output, str(scratch), str(killed_at)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_loses_no_whole_shard_and_ends_with_the_same_bytes(
    folder: Folder, storage: Storage, output: str, tmp_path: Path
) -> None:
    _good(folder, 100)
    undisturbed = prepare(folder.dataset(), storage, f"file://{tmp_path}/undisturbed")
    killed_at = int(np.random.default_rng().integers(1, 101))
    assert _start(folder.dataset(), output, tmp_path / "s", killed_at).wait() == -signal.SIGKILL
    left = tmp_path / "out/tfrecords" / undisturbed.folder.name
    assert not (left / "dataset.json").exists()
    shards = {path: path.stat().st_mtime_ns for path in left.glob("[!.]*.tfrecord")}
    sidecars = {path for path in shards if path.with_suffix(".json").exists()}
    partial = list(left.glob(".*.partial"))
    for path in partial:
        os.utime(path, (1, 1))
    records = prepare(folder.dataset(), storage, output)
    assert records.manifest == undisturbed.manifest
    assert _content(left) == _content(undisturbed.folder), f"killed at image {killed_at}"
    assert {path: path.stat().st_mtime_ns for path in sidecars} == {path: shards[path] for path in sidecars}


def test_two_processes_at_once_end_with_the_same_bytes(
    folder: Folder, storage: Storage, output: str, tmp_path: Path
) -> None:
    _good(folder, 100)
    undisturbed = prepare(folder.dataset(), storage, f"file://{tmp_path}/undisturbed")
    runs = [_start(folder.dataset(), output, tmp_path / f"s{number}", 0) for number in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    (made,) = (tmp_path / "out/tfrecords").iterdir()
    assert _content(made) == _content(undisturbed.folder)


def test_sample_digits_are_reproducible_and_convert_without_a_finding(
    storage: Storage, output: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        sample_digits.generate(tmp_path / name, images=12, width=192, height=160, seed=3, classes=[1, 7])
    sample_digits.generate(tmp_path / "more", images=14, width=192, height=160, seed=3, classes=[1, 7])
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 24
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "more" / file).read_bytes()
    dataset = Dataset.model_validate(
        {
            "uri": f"file://{tmp_path}/one",
            "targetClassMapping": {"one": "one", "seven": "seven"},
            "imageSize": {"width": 192, "height": 160},
            "badSamples": {"policy": "Fail"},
        }
    )
    records = prepare(dataset, storage, output)
    report = json.loads((records.folder / "dataset-report.json").read_text())
    assert (report["usableImages"], report["warnings"], report["clippedBoxes"]) == (12, [], 0)
    assert set(report["sourceClasses"]) == {"one", "seven"}


def test_even_and_odd_glyphs_make_other_scenes(tmp_path: Path) -> None:
    sample_digits.generate(tmp_path, images=4, width=128, height=128, seed=1, part="training", glyphs="even")
    sample_digits.generate(tmp_path, images=4, width=128, height=128, seed=1, part="testing", glyphs="odd")
    assert (tmp_path / "training/image_2/000000.jpg").read_bytes() != (
        tmp_path / "testing/image_2/000000.jpg"
    ).read_bytes()


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"width": 8}, {"classes": []}, {"classes": [11]}], ids=lambda wrong: str(wrong)
)
def test_impossible_digits_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    arguments = {"images": 1, "width": 64, "height": 64, "seed": 0, "classes": None, **wrong}
    with pytest.raises(RunnerError) as caught:
        sample_digits.generate(tmp_path, **arguments)
    assert caught.value.reason == Reason.INVALID_SPEC


def test_an_image_that_is_a_link_out_of_the_claim_is_reported_and_nothing_of_it_is_shown(
    folder: Folder, tmp_path: Path
) -> None:
    _good(folder, 8)
    (folder.images / "good000.jpg").rename(tmp_path / "secret.jpg")
    (folder.images / "good000.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder.labels / "good001.txt").rename(tmp_path / "secret.txt")
    (folder.labels / "good001.txt").symlink_to(tmp_path / "secret.txt")
    dataset = folder.dataset(uri="pvc://set", badSamples={"maxFraction": 0.9})
    storage = Storage(scratch=tmp_path / "scratch", volumes_root=tmp_path)
    (tmp_path / "out").mkdir()
    prepare(dataset, storage, "pvc://out")
    report = json.loads((tmp_path / "out" / "dataset-report.json").read_text())
    skipped = {item["file"]: item["problem"] for item in report["skipped"]}
    assert skipped["training/image_2/good000.jpg"] == "UnreadableImage"
    page = (tmp_path / "out" / "dataset-report.html").read_text()
    assert "got a link out of the claim, which is not followed: copy the file" in page


def _occluded(name: str, occlusion: int) -> str:
    return f"{name} 0 {occlusion} 0 20 10 100 50 {REST}"


@pytest.mark.parametrize("occlusion", [1, 2, 3])
def test_labels_whose_objects_are_all_occluded_are_refused_because_map_would_be_empty(
    folder: Folder, storage: Storage, output: str, occlusion: int
) -> None:
    for number in range(4):
        folder.image(f"{number}.png")
        folder.label(str(number), _occluded("Car", occlusion))
    reporter = RecordingReporter()
    held_out = {"validation": {"fraction": 0.5}}
    with pytest.raises(RunnerError, match="got 2 that are all difficult") as caught:
        prepare(folder.dataset(**held_out), storage, output, reporter)
    assert caught.value.reason == Reason.NO_LABELS
    status = reporter.last(DatasetStatus)
    assert "2 of 2 validation objects; of 'vehicle' all are" in "".join(status.first_warnings or ())


def test_voc_labels_that_are_all_difficult_are_refused_because_map_would_be_empty(
    folder: Folder, storage: Storage, output: str
) -> None:
    box = "<bndbox><xmin>20</xmin><ymin>10</ymin><xmax>100</xmax><ymax>50</ymax></bndbox>"
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    for number in range(4):
        folder.image(f"{number}.png")
        label = f"<object><name>car</name><difficult>1</difficult>{box}</object>"
        (folder.labels / f"{number}.xml").write_text(f"<annotation>{size}{label}</annotation>")
    data = folder.dataset(
        format="voc", images="training/image_2", labels="training/label_2", validation={"fraction": 0.5}
    )
    with pytest.raises(RunnerError, match="got 2 that are all difficult") as caught:
        prepare(data, storage, output)
    assert caught.value.reason == Reason.NO_LABELS


def test_a_class_that_is_difficult_everywhere_is_a_warning_in_the_status(
    folder: Folder, storage: Storage, output: str
) -> None:
    for number in range(4):
        folder.image(f"{number}.png")
        folder.label(
            str(number), _occluded("Car", 0), _occluded("Pedestrian", 3), f"DontCare -1 -1 -10 1 1 9 9 {REST}"
        )
    reporter = RecordingReporter()
    prepare(folder.dataset(validation={"fraction": 0.5}), storage, output, reporter)
    status = reporter.last(DatasetStatus)
    assert status.first_warnings is not None
    assert [text for text in status.first_warnings if not text.startswith("objects of")] == [
        "targetClassMapping: no label uses 'van'; the labels' classes are: Car, Pedestrian",
        "ignored regions (DontCare, iscrowd), which are neither objects nor background: 4",
        "difficult objects (VOC difficult, KITTI occlusion of at least 1), which evaluation leaves out of "
        "account: 2 of 4 validation objects; of 'person' all are, and nothing of it is measured",
    ]
    report = json.loads((Path(output.removeprefix("file://")) / "dataset-report.json").read_text())
    assert report["warnings"][: len(status.first_warnings)] == status.first_warnings


def test_objects_of_twelve_pixels_without_an_anchor_are_a_warning_in_the_status(
    folder: Folder, storage: Storage, output: str
) -> None:
    for number in range(4):
        folder.image(f"{number}.png")
        # 38 x 19 of 200 x 100 pixels are 12 x 12 of 64 x 64.
        folder.label(str(number), _car(20, 10, 58, 29))
    reporter = RecordingReporter()
    prepare(folder.dataset(validation={"fraction": 0.5}), storage, output, reporter)
    (warning,) = [
        text for text in reporter.last(DatasetStatus).first_warnings or () if text.startswith("objects of")
    ]
    assert warning.startswith(
        "objects of 8 to 16 pixels have no anchor that overlaps them by IoU 0.5 (vehicle 4"
    )


def test_labels_drawn_on_the_turned_view_of_an_image_are_a_warning_in_the_status(
    folder: Folder, storage: Storage, output: str
) -> None:
    for number in range(4):
        folder.image(f"{number}.png")
        folder.label(str(number), _car(20, 10, 100, 50))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = folder.random.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder.images / "turned.jpg", exif=exif)
    # On a view of 100 x 200 pixels; the stored pixels are 200 x 100.
    folder.label("turned", _car(10, 120, 90, 180))
    reporter = RecordingReporter()
    options = {"validation": {"fraction": 0.5}, "badSamples": {"maxFraction": 0.5}}
    prepare(folder.dataset(**options, orientation="stored"), storage, output, reporter)
    status = reporter.last(DatasetStatus)
    first, *_ = status.first_warnings or ()
    assert first.startswith("spec.dataset.orientation is stored, which labels contradict: ")
    assert any(text.endswith(": 1 (training/image_2/turned.jpg)") for text in status.first_warnings or ())
    assert status.dropped_objects == 1
    # By default the photo is turned as its label says.
    prepare(folder.dataset(**options), storage, output, reporter)
    status = reporter.last(DatasetStatus)
    assert status.orientation is not None
    assert (status.orientation.value, status.dropped_objects or 0) == ("exif", 0)
