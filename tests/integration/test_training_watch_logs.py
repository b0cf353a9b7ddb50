"""TensorBoard's files, read back: curves, those of another attempt, images; and the list of callbacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from tlt_api.failures import Reason
from tlt_api.status import ClassMetric, Metrics
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage, StoredFile
from tlt_runner.training.callbacks.aggregate import Aggregate
from tlt_runner.training.callbacks.base import Callback, CallbackList, Step
from tlt_runner.training.callbacks.images import ValidationImages
from tlt_runner.training.callbacks.tensorboard import TensorBoard
from tlt_runner.training.callbacks.uploader import Uploader

STEPS = 10
Points = list[tuple[int, float]]


def detect_the_object(images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """One sure detection of class 1, one unsure one, and padding."""
    count = len(images)
    boxes = np.tile(np.float32([[4, 4, 20, 28], [0, 0, 8, 8], [0, 0, 0, 0]]), (count, 1, 1))
    scores = np.tile(np.float32([0.9, 0.3, 0.0]), (count, 1))
    return {"boxes": boxes, "scores": scores, "classes": np.tile(np.int32([1, 0, -1]), (count, 1))}


def batches() -> list[dict[str, Any]]:
    return [
        {
            "image": np.zeros((2, 32, 48, 3), np.uint8),
            "boxes": np.tile(np.float32([[[8, 8, 24, 24], [0, 0, 0, 0]]]), (2, 1, 1)),
            "classes": np.int32([[0, -1], [-1, -1]]),
            "valid": np.array([True, False]),
            "id": np.array([b"street/0001", b""], object),
        }
    ]


class Attempt:
    """TensorBoard's logs of one attempt, in a time that the test sets."""

    def __init__(self, folder: Path, attempt: int, storage: Storage | None = None) -> None:
        self.now = 0.0
        self.attempt = attempt
        self.folder = folder / "out/logs/tiny-uid"
        scratch = folder / f"scratch-{attempt}"
        scratch.mkdir()
        aggregate = Aggregate(4, lambda: self.now, STEPS)
        board = TensorBoard(
            Uploader(storage or Storage(scratch=scratch), f"file://{self.folder}", lambda: self.now),
            aggregate,
            scratch=scratch,
            attempt=attempt,
            steps=STEPS,
            images=ValidationImages(detect_the_object, batches, ["zero", "one"], 0.6),
            now=lambda: 1.7e9 + self.now,
        )
        self.board = CallbackList([aggregate, board])

    def epoch(self, finished: int, first: int, last: int, loss: float) -> None:
        """Take steps of an epoch, two seconds each."""
        self.board.on_epoch_begin(finished, first)
        for index in range(first, last):
            self.now += 2
            figures = {"total": loss, "gradient_norm": 7.0}
            self.board.on_step_end(Step(finished * STEPS + index, index + 1, 1e-3, figures))


def events(folder: Path) -> list[Any]:
    """All events of a folder, in TensorBoard's order."""
    read = []
    for path in sorted(folder.glob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event()
            event.ParseFromString(record.numpy())
            read.append(event)
    return read


def curves(read: Sequence[Any]) -> dict[str, Points]:
    """Points by tag; an attempt takes back what earlier ones tell of its own steps and later ones."""
    points_by_tag: dict[str, Points] = {}
    for event in read:
        if event.HasField("session_log"):
            for tag, points in points_by_tag.items():
                points_by_tag[tag] = [point for point in points if point[0] < event.step]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                points_by_tag.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points_by_tag


def drawn(read: Sequence[Any]) -> list[tuple[str, NDArray[Any]]]:
    """Pictures by tag."""
    return [
        (value.tag, cv2.imdecode(np.frombuffer(value.image.encoded_image_string, np.uint8), 1))
        for event in read
        for value in event.summary.value
        if value.HasField("image")
    ]


def test_curves_are_means_of_ten_steps_at_steps_that_evaluations_share(tmp_path: Path) -> None:
    one = Attempt(tmp_path, 1)
    one.epoch(0, 0, STEPS, 4.0)
    metrics = Metrics(m_ap=0.5, per_class=[ClassMetric(name="one", average_precision=0.5)])
    one.board.on_evaluation_end(metrics, STEPS)
    one.epoch(1, 0, STEPS, 2.0)
    one.board.close(None)
    points_by_tag = curves(events(one.folder))
    assert points_by_tag["loss/total"] == [(10, 4.0), (20, 2.0)]
    assert points_by_tag["gradient_norm"] == [(10, 7.0), (20, 7.0)]
    assert points_by_tag["images_per_second"] == [(10, 2.0), (20, 2.0)]
    assert points_by_tag["learning_rate"] == [(10, pytest.approx(1e-3)), (20, pytest.approx(1e-3))]
    assert points_by_tag["mAP"] == points_by_tag["AP/one"] == [(10, 0.5)]


def test_another_attempt_adds_no_doubled_points(tmp_path: Path) -> None:
    killed = Attempt(tmp_path, 1)
    killed.epoch(0, 0, STEPS, 4.0)
    killed.epoch(1, 0, STEPS, 3.0)  # after its last checkpoint, which was in the middle of the epoch
    killed.board.close(None)
    resumed = Attempt(tmp_path, 2)
    resumed.epoch(1, 5, STEPS, 3.0)
    resumed.epoch(2, 0, STEPS, 2.0)
    resumed.board.close(None)
    assert curves(events(resumed.folder))["loss/total"] == [(10, 4.0), (20, 3.0), (30, 2.0)]


def test_files_are_whole_and_never_change(tmp_path: Path) -> None:
    one = Attempt(tmp_path, 1)
    one.epoch(0, 0, STEPS, 4.0)
    before = {path.name: path.read_bytes() for path in one.folder.iterdir()}
    assert len(before) == 1
    one.now += 100
    one.epoch(1, 0, STEPS, 4.0)
    one.board.close(None)
    after = {path.name: path.read_bytes() for path in one.folder.iterdir()}
    assert len(after) == 2
    assert before.items() <= after.items()


def test_the_remaining_points_are_uploaded_when_a_training_fails(tmp_path: Path) -> None:
    one = Attempt(tmp_path, 1)
    one.epoch(0, 0, 3, 6.0)
    one.board.close(RunnerError(Reason.INTERRUPTED, "stopped"))
    assert curves(events(one.folder))["loss/total"] == [(3, 6.0)]


class Away(Storage):
    """A storage that is away at first."""

    away = True

    def publish(self, local: Path, uri: str) -> StoredFile:
        if self.away:
            raise RunnerError(Reason.STORAGE_UNAVAILABLE, "no route to it")
        return super().publish(local, uri)


def test_files_that_could_not_be_uploaded_are_uploaded_later_in_order(tmp_path: Path) -> None:
    storage = Away(scratch=tmp_path)
    one = Attempt(tmp_path, 1, storage)
    one.epoch(0, 0, STEPS, 4.0)
    one.now += 1000
    one.epoch(1, 0, STEPS, 3.0)
    storage.away = False
    one.board.close(None)
    assert curves(events(one.folder))["loss/total"] == [(10, 4.0), (20, 3.0)]


def test_an_image_shows_detections_above_the_threshold_and_the_labels_below_them(tmp_path: Path) -> None:
    one = Attempt(tmp_path, 1)
    one.board.on_evaluation_end(Metrics(m_ap=0.5), 0)
    one.board.close(None)
    ((tag, picture),) = drawn(events(one.folder))
    assert tag == "validation/street/0001"
    assert picture.shape == (64, 48, 3)
    bright = picture.max(axis=2) > 100
    assert bright[19, 10] and bright[12, 27]  # the lower and the right edge of the sure detection
    assert not bright[7, 1]  # the unsure one
    assert bright[32 + 23, 16] and not bright[32 + 19, 27]  # the object that is there


def test_large_images_are_reduced_with_their_boxes() -> None:
    large = batches()
    large[0]["image"] = np.zeros((2, 1280, 960, 3), np.uint8)
    large[0]["boxes"] = large[0]["boxes"] * 40
    (picture,) = ValidationImages(detect_the_object, lambda: large, ["zero", "one"], 0.6).draw(Metrics())
    assert picture.size == (640, 960)  # side by side, for it is higher than wide
    pixels = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), 1)
    assert pixels[478, 480 + 300].max() > 100  # the object's lower edge: 24 * 40 / 2


class Failing(Callback):
    """A callback of which every method fails."""

    def on_epoch_begin(self, finished: int, step: int) -> None:
        raise OSError("no space left on device")

    def on_step_end(self, step: Step) -> None:
        raise KeyError("total")

    def on_evaluation_begin(self) -> None:
        raise ValueError("evaluate")

    def on_evaluation_end(self, metrics: Metrics, number: int) -> None:
        raise RunnerError(Reason.STORAGE_FULL, "no space left")

    def on_train_end(self, epochs: int) -> None:
        raise ZeroDivisionError

    def close(self, failure: BaseException | None) -> None:
        raise AttributeError("nothing to close")


class Recording(Callback):
    """A callback that records epochs and how it was closed."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.failure: BaseException | None = None

    def on_epoch_begin(self, finished: int, step: int) -> None:
        self.epochs.append(finished)

    def close(self, failure: BaseException | None) -> None:
        self.failure = failure


def test_a_callback_that_always_fails_ends_nothing() -> None:
    callbacks = CallbackList([Failing()])
    callbacks.on_epoch_begin(0, 0)
    callbacks.on_step_end(Step(0, 1, 1e-3, {}))
    callbacks.on_evaluation_begin()
    callbacks.on_evaluation_end(Metrics(), 1)
    callbacks.on_train_end(1)
    callbacks.close(None)
    assert callbacks.failures == [6]


def test_a_failing_training_fails_by_its_own_reason() -> None:
    recording = Recording()
    failing = RunnerError(Reason.NAN_LOSS, "loss is not finite")
    with pytest.raises(RunnerError) as caught, CallbackList([Failing(), recording]) as callbacks:
        callbacks.on_epoch_begin(0, 0)
        raise failing
    assert caught.value is failing
    assert (recording.epochs, recording.failure) == ([0], failing)
