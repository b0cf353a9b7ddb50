"""The log file of a training and its way to the output address, with a clock that is told the time."""

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
from tlt_runner.training.callbacks.aggregate import Means, Throughput
from tlt_runner.training.callbacks.base import Step
from tlt_runner.training.callbacks.log_file import JsonLines
from tlt_runner.training.callbacks.uploader import Shipping

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
        self.shipping = Shipping(self.storage, f"file://{folder}/out", lambda: self.now)
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
        self.lines = JsonLines(
            self.shipping,
            self.scratch,
            RunSpec.model_validate(run),
            3,
            STEPS,
            4,
            lambda: self.now,
            lambda: 1.7e9 + self.now,
        )

    def epoch(self, finished: int, losses: list[float]) -> None:
        self.lines.epoch(finished, STEPS - len(losses))
        for index, loss in enumerate(losses, STEPS - len(losses)):
            self.now += 2
            figures = {"total": loss, "gradient_norm": 1.0}
            self.lines.step(Step(finished * STEPS + index, index + 1, 1e-3, figures))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/log.jsonl").read_text().splitlines()]


def test_every_line_says_of_which_run_and_attempt_it_is(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.epoch(0, [3.0, 1.0])
    log.lines.evaluated(Metrics(m_ap=0.25, per_class=[ClassMetric(name="a", average_precision=0.25)]), 2)
    log.lines.finish(1)
    log.lines.close(None)
    lines = lines_of(tmp_path)
    assert [line["event"] for line in lines] == ["start", "epoch", "evaluation", "end"]
    assert {(line["schema"], line["run"], line["attempt"]) for line in lines} == {(1, "some-uid", 1)}
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (1, 2), (1, 2), (1, 2)]
    assert lines[0]["time"] == "2023-11-14T22:13:20.000Z"
    assert lines[1]["figures"] == {"total": 2.0, "gradientNorm": 1.0}
    assert lines[1]["imagesPerSecond"] == 2.0  # the first step waits for data: the second took two seconds
    assert lines[2]["mAP"] == 0.25
    assert lines[2]["perClass"] == [{"name": "a", "averagePrecision": 0.25}]


def test_another_attempt_goes_on_in_the_same_file(tmp_path: Path) -> None:
    first = Log(tmp_path, 1)
    first.epoch(0, [1.0, 1.0])
    first.lines.close(RunnerError(Reason.INTERRUPTED, "stopped", "wait"))
    second = Log(tmp_path, 2)
    second.epoch(1, [1.0])
    second.lines.finish(2)
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


def test_what_could_not_be_written_is_written_later_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Full(scratch=tmp_path)
    log = Log(tmp_path, storage=storage)
    with caplog.at_level(logging.ERROR):
        log.epoch(0, [1.0, 1.0])
    assert log.shipping.failures == 1
    storage.full = False
    log.lines.finish(1)
    log.lines.close(None)
    assert [line["event"] for line in lines_of(tmp_path)] == ["start", "epoch", "end"]


def test_the_last_lines_are_tried_again_at_the_end(tmp_path: Path) -> None:
    storage = Full(scratch=tmp_path)
    storage.full = False
    log = Log(tmp_path, storage=storage)
    log.epoch(0, [1.0, 1.0])
    log.now += 1000
    storage.full = True
    log.lines.finish(1)
    assert storage.tried == 2  # at the start, and the one with the end, which did not succeed
    storage.full = False
    log.lines.close(None)
    assert [line["event"] for line in lines_of(tmp_path)] == ["start", "epoch", "end"]
    log.lines.close(None)
    assert storage.tried == 3


def test_a_failure_is_told_as_in_the_termination_message(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for attempt, error in enumerate([full, KeyboardInterrupt(), ZeroDivisionError("by zero")], 1):
        Log(tmp_path, attempt).lines.close(error)
    lines = lines_of(tmp_path)
    assert [line["reason"] for line in lines] == ["StorageFull", "Interrupted", "Internal"]
    assert lines[2]["message"] == "ZeroDivisionError: by zero"
    assert all(line["hint"] for line in lines)


def test_lines_of_earlier_attempts_are_not_overwritten_while_they_cannot_be_read(tmp_path: Path) -> None:
    first = Log(tmp_path, 1)
    first.lines.finish(1)
    first.lines.close(None)
    second = Log(tmp_path, 2, Unreadable(scratch=tmp_path))
    second.lines.finish(1)
    second.lines.close(None)
    assert [line["attempt"] for line in lines_of(tmp_path)] == [1, 1]


def test_shipments_get_rarer_as_the_training_grows_older(tmp_path: Path) -> None:
    now, times = 0.0, []
    shipping = Shipping(Storage(scratch=tmp_path), f"file://{tmp_path}/out", lambda: now)
    (tmp_path / "file").write_text("text")
    for second in range(0, 20001, 10):
        now = float(second)
        if shipping.due():
            assert shipping.publish(tmp_path / "file", "file")
            times.append(second)
    assert times[:3] == [0, 60, 120]
    assert times[-1] - times[-2] == 200  # a hundredth of 20000 seconds, in steps of 10
    assert len(times) < 250


def test_a_storage_that_fails_is_asked_less_and_less(tmp_path: Path) -> None:
    now = 0.0
    storage = Full(scratch=tmp_path)
    shipping = Shipping(storage, f"file://{tmp_path}/out", lambda: now)
    (tmp_path / "file").write_text("text")
    for second in range(0, 1000, 10):
        now = float(second)
        if shipping.due():
            assert not shipping.publish(tmp_path / "file", "file")
    assert storage.tried == 4  # at 0, then after 2, 4 and 8 minutes
    assert shipping.failures == 4


def test_means_begin_anew_once_they_are_taken() -> None:
    means = Means()
    means.add({"a": 1.0, "b": 4.0})
    means.add({"a": 3.0, "b": 0.0})
    assert means.take() == {"a": 2.0, "b": 2.0}
    means.add({"a": 5.0, "b": 5.0})
    assert means.take() == {"a": 5.0, "b": 5.0}


def test_a_step_after_a_pause_is_not_timed() -> None:
    now = 0.0
    throughput = Throughput(4, lambda: now)
    for seconds in (60.0, 2.0, 2.0):
        now += seconds
        throughput.step()
    throughput.pause()
    now += 100.0
    throughput.step()
    assert throughput.take() == 2.0
    assert throughput.take() is None
