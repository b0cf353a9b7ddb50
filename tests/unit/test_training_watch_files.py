"""The log file of a training, its upload, and the averages in it, with a clock that the test sets."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.status import ClassMetric, Metrics
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage, StoredFile
from tlt_runner.training.callbacks.aggregate import Aggregate, Sums
from tlt_runner.training.callbacks.base import CallbackList, Step
from tlt_runner.training.callbacks.log_file import LogFile
from tlt_runner.training.callbacks.uploader import Uploader

STEPS = 2


class Full(Storage):
    """A storage whose volume is full at times."""

    full = True
    tried = 0

    def publish(self, local: Path, uri: str) -> StoredFile:
        self.tried += 1
        if self.full:
            raise RunnerError(Reason.STORAGE_FULL, "no space left")
        return super().publish(local, uri)


class Unreadable(Storage):
    """A storage that cannot be read now."""

    def fetch(self, uri: str, sha256: str | None = None) -> Path:
        raise RunnerError(Reason.STORAGE_UNAVAILABLE, "no route to it")


class Log:
    """The log of one attempt, in a time that the test sets."""

    def __init__(self, folder: Path, attempt: int = 1, storage: Storage | None = None) -> None:
        self.now = 0.0
        self.scratch = folder / f"scratch-{attempt}"
        self.scratch.mkdir()
        self.storage = storage or Storage(scratch=self.scratch)
        self.uploader = Uploader(self.storage, f"file://{folder}/out", lambda: self.now)
        run = {
            "owner": {"kind": "TrainingJob", "namespace": "default", "name": "tiny", "uid": "some-uid"},
            "attempt": attempt,
            "spec": {
                "dataset": {
                    "uri": "file:///data",
                    "targetClassMapping": {"a": "a"},
                    "imageSize": {"width": 96, "height": 96},
                },
                "output": {"uri": f"file://{folder}/out"},
            },
        }
        aggregate = Aggregate(4, lambda: self.now, STEPS)
        log_file = LogFile(
            self.uploader,
            aggregate,
            scratch=self.scratch,
            run=RunSpec.model_validate(run),
            epochs=3,
            steps=STEPS,
            images_per_step=4,
            now=lambda: 1.7e9 + self.now,
        )
        self.lines = CallbackList([aggregate, log_file])

    def epoch(self, finished: int, losses: list[float]) -> None:
        self.lines.on_epoch_begin(finished, STEPS - len(losses))
        for index, loss in enumerate(losses, STEPS - len(losses)):
            self.now += 2
            figures = {"total": loss, "gradient_norm": 1.0}
            self.lines.on_step_end(Step(finished * STEPS + index, index + 1, 1e-3, figures))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/log.jsonl").read_text().splitlines()]


def test_every_line_names_its_run_and_attempt(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.epoch(0, [3.0, 1.0])
    log.lines.on_evaluation_end(
        Metrics(m_ap=0.25, per_class=[ClassMetric(name="a", average_precision=0.25)]), 2
    )
    log.lines.on_train_end(1)
    log.lines.close(None)
    lines = lines_of(tmp_path)
    assert [line["event"] for line in lines] == ["start", "epoch", "evaluation", "end"]
    assert {(line["schema"], line["run"], line["attempt"]) for line in lines} == {(1, "some-uid", 1)}
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (1, 2), (1, 2), (1, 2)]
    assert lines[0]["time"] == "2023-11-14T22:13:20.000Z"
    assert lines[1]["figures"] == {"total": 2.0, "gradientNorm": 1.0}
    # The first step compiles, the last one of an epoch is timed with the first one of the next.
    assert lines[1]["imagesPerSecond"] is None
    assert lines[2]["mAP"] == 0.25
    assert lines[2]["perClass"] == [{"name": "a", "averagePrecision": 0.25}]


def test_an_epoch_has_the_throughput_of_the_steps_timed_since_the_one_before(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.epoch(0, [3.0, 1.0])
    log.epoch(1, [3.0, 1.0])
    log.lines.close(None)
    # Four images in two seconds.
    assert [line["imagesPerSecond"] for line in lines_of(tmp_path)[1:]] == [None, 2.0]


def test_another_attempt_appends_to_the_same_file(tmp_path: Path) -> None:
    first = Log(tmp_path, 1)
    first.epoch(0, [1.0, 1.0])
    first.lines.close(RunnerError(Reason.INTERRUPTED, "stopped", "wait"))
    second = Log(tmp_path, 2)
    second.epoch(1, [1.0])
    second.lines.on_train_end(2)
    second.lines.close(None)
    lines = lines_of(tmp_path)
    assert [(line["attempt"], line["event"], line["step"]) for line in lines] == [
        (1, "start", 0),
        (1, "epoch", 2),
        (1, "failure", 2),
        (2, "start", 3),
        (2, "epoch", 4),
        (2, "end", 4),
    ]
    assert (lines[2]["reason"], lines[2]["message"], lines[2]["hint"]) == ("Interrupted", "stopped", "wait")
    assert lines[4]["stepsOfThisAttempt"] == 1


def test_lines_that_could_not_be_written_are_written_later_and_do_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Full(scratch=tmp_path)
    log = Log(tmp_path, storage=storage)
    with caplog.at_level(logging.ERROR):
        log.epoch(0, [1.0, 1.0])
    assert log.uploader.failures == 1
    storage.full = False
    log.lines.on_train_end(1)
    log.lines.close(None)
    assert [line["event"] for line in lines_of(tmp_path)] == ["start", "epoch", "end"]


def test_the_last_lines_are_tried_again_at_the_end(tmp_path: Path) -> None:
    storage = Full(scratch=tmp_path)
    storage.full = False
    log = Log(tmp_path, storage=storage)
    log.epoch(0, [1.0, 1.0])
    log.now += 1000
    storage.full = True
    log.lines.on_train_end(1)
    assert storage.tried == 2  # at the start, and the one with the end, which did not succeed
    storage.full = False
    log.lines.close(None)
    assert [line["event"] for line in lines_of(tmp_path)] == ["start", "epoch", "end"]
    log.lines.close(None)
    assert storage.tried == 3


def test_a_failure_is_logged_as_in_the_termination_message(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for attempt, error in enumerate([full, KeyboardInterrupt(), ZeroDivisionError("by zero")], 1):
        Log(tmp_path, attempt).lines.close(error)
    lines = lines_of(tmp_path)
    assert [line["reason"] for line in lines] == ["StorageFull", "Interrupted", "Internal"]
    assert lines[2]["message"] == "ZeroDivisionError: by zero"
    assert all(line["hint"] for line in lines)


def test_lines_of_earlier_attempts_are_not_overwritten_while_they_cannot_be_read(tmp_path: Path) -> None:
    first = Log(tmp_path, 1)
    first.lines.on_train_end(1)
    first.lines.close(None)
    second = Log(tmp_path, 2, Unreadable(scratch=tmp_path))
    second.lines.on_train_end(1)
    second.lines.close(None)
    assert [line["attempt"] for line in lines_of(tmp_path)] == [1, 1]


def test_uploads_become_rarer_with_elapsed_time(tmp_path: Path) -> None:
    now, times = 0.0, []
    uploader = Uploader(Storage(scratch=tmp_path), f"file://{tmp_path}/out", lambda: now)
    (tmp_path / "file").write_text("text")
    for second in range(0, 20001, 10):
        now = float(second)
        if uploader.due():
            assert uploader.publish(tmp_path / "file", "file")
            times.append(second)
    assert times[:3] == [0, 60, 120]
    assert times[-1] - times[-2] == 200  # a hundredth of 20000 seconds, in steps of 10
    assert len(times) < 250


def test_failures_double_the_interval_between_uploads(tmp_path: Path) -> None:
    now = 0.0
    storage = Full(scratch=tmp_path)
    uploader = Uploader(storage, f"file://{tmp_path}/out", lambda: now)
    (tmp_path / "file").write_text("text")
    for second in range(0, 1000, 10):
        now = float(second)
        if uploader.due():
            assert not uploader.publish(tmp_path / "file", "file")
    assert storage.tried == 4  # at 0, then after 2, 4 and 8 minutes
    assert uploader.failures == 4


def steps(aggregate: Aggregate, *figures: dict[str, float]) -> Sums:
    for number, values in enumerate(figures):
        aggregate.on_step_end(Step(number, number + 1, 1e-3, values))
    return aggregate.sums


def test_means_cover_the_steps_since_earlier_sums() -> None:
    aggregate = Aggregate(4, lambda: 0.0, 100)
    first = steps(aggregate, {"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 0.0})
    assert first.means_since(Sums()) == {"a": 2.0, "b": 2.0}
    second = steps(aggregate, {"a": 5.0, "b": 5.0})
    assert second.means_since(first) == {"a": 5.0, "b": 5.0}
    assert second.means_since(Sums()) == {"a": 3.0, "b": 3.0}


def test_a_mean_covers_only_the_steps_that_have_the_figure() -> None:
    sums = steps(Aggregate(4, lambda: 0.0, 100), {"a": 1.0, "b": 4.0}, {"a": 3.0})
    assert sums.means_since(Sums()) == {"a": 2.0, "b": 4.0}


def test_means_of_late_steps_do_not_depend_on_earlier_ones() -> None:
    aggregate = Aggregate(4, lambda: 0.0, 100)
    early = steps(aggregate, *({"a": 1e6 / (1 + number)} for number in range(20_000)))
    assert steps(aggregate, {"a": 0.125}, {"a": 0.25}).means_since(early)["a"] == pytest.approx(
        0.1875, rel=1e-7
    )


def test_the_last_step_of_an_epoch_is_timed_with_the_first_of_the_next() -> None:
    now = 0.0
    aggregate = Aggregate(4, lambda: now, steps=3)

    def epoch(finished: int, *durations: float) -> None:
        nonlocal now
        aggregate.on_epoch_begin(finished, 0)
        for number, seconds in enumerate(durations):
            now += seconds
            aggregate.on_step_end(Step(3 * finished + number, number + 1, 1e-3, {}))

    epoch(0, 60.0, 2.0, 0.0)  # the first step compiles
    assert aggregate.timed == (1, 2.0)
    now += 1000.0  # evaluation and checkpoint
    before = aggregate.sums
    epoch(1, 4.0, 2.0, 0.0)
    assert aggregate.timed == (4, 8.0)
    assert aggregate.images_per_second_since(before) == 2.0
    assert aggregate.images_per_second_since(aggregate.sums) is None
