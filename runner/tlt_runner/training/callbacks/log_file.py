"""The log file of a run, for programs: ``<output>/log.jsonl``, one JSON object a line.

TLT's status.json with its faults removed: numbers are numbers, times are UTC, every line names run and
attempt, and the file is replaced as a whole, so that a reader never meets half a line. Later attempts
append to the same file. docs/watching.md lists the events.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlt_api.runspec import RunSpec
from tlt_api.status import Metrics
from tlt_runner import exits
from tlt_runner.training.callbacks.aggregate import Aggregate, Interval
from tlt_runner.training.callbacks.base import Callback, Step
from tlt_runner.training.callbacks.uploader import Uploader

NAME = "log.jsonl"
SCHEMA = 1
"""Raised when a field changes its meaning or is dropped; not for new fields and events."""


class LogFile(Callback):
    """Writes the log file and uploads it.

    Args:
        uploader: Publishes below the output address.
        aggregate: Sums of the steps, up to date when this callback is called.
        scratch: A folder for the file.
        run: The run.
        epochs: Epochs of the run.
        steps: Steps of an epoch.
        images_per_step: Images of a step, over all replicas.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        uploader: Uploader,
        aggregate: Aggregate,
        *,
        scratch: Path,
        run: RunSpec,
        epochs: int,
        steps: int,
        images_per_step: int,
        now: Callable[[], float],
    ) -> None:
        self._uploader, self._file, self._now = uploader, scratch / NAME, now
        self._interval = Interval(aggregate)
        self._run, self._epochs, self._steps, self._images_per_step = run, epochs, steps, images_per_step
        self._has_earlier_lines = False
        self._new_lines: list[str] = []
        self._unpublished = False
        self._steps_finished = 0
        self._started = False

    def on_epoch_begin(self, finished: int, step: int) -> None:
        """Write the start of the attempt, if this is its first epoch."""
        self._start(finished * self._steps + step)

    def on_step_end(self, step: Step) -> None:
        """Write the epoch after its last step."""
        self._steps_finished = step.number + 1
        # One line an epoch: the curves of single steps are TensorBoard's.
        if step.in_epoch < self._steps:
            return
        means = self._interval.end()
        throughput = means.images_per_second
        self._add(
            "epoch",
            stepsOfThisAttempt=means.steps,
            learningRate=step.learning_rate,
            imagesPerSecond=None if throughput is None else round(throughput, 3),
            figures={_camel_case(name): value for name, value in means.figures.items()},
        )

    def on_evaluation_end(self, metrics: Metrics, number: int) -> None:
        """Write the evaluation."""
        # An attempt may begin with the evaluation that the one before did not finish.
        self._start(number)
        # An unknown mAP is null, not absent; the epoch is among the fields of every line.
        fields = {"mAP": None, **metrics.to_wire()}
        fields.pop("epoch", None)
        self._add("evaluation", **fields)

    def on_train_end(self, epochs: int) -> None:
        """Write the end."""
        # A finished training that is started again takes no step and evaluates nothing.
        self._start(epochs * self._steps)
        self._add("end")

    def close(self, failure: BaseException | None) -> None:
        """Write a failure in the words of the termination message, and upload what is left."""
        if failure is not None:
            described = exits.failure_of(failure)
            self._add("failure", reason=described.reason, message=described.message, hint=described.hint)
        self._upload()

    def _start(self, number: int) -> None:
        """Write the start of the attempt, after ``number`` steps, at the first call."""
        if self._started:
            return
        self._started, self._steps_finished = True, number
        owner = self._run.owner
        self._add(
            "start",
            kind=owner.kind,
            namespace=owner.namespace,
            name=owner.name,
            epochs=self._epochs,
            stepsPerEpoch=self._steps,
            imagesPerStep=self._images_per_step,
        )

    def _add(self, event: str, **fields: Any) -> None:
        """Add a line with an event, and upload the file if that is due."""
        # RFC 3339 with Z, as Kubernetes writes times.
        time = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        common = {
            "schema": SCHEMA,
            "time": time.replace("+00:00", "Z"),
            "run": self._run.owner.uid,
            "attempt": self._run.attempt,
            "event": event,
            "epoch": self._steps_finished // self._steps,
            "step": self._steps_finished,
        }
        # NaN is no JSON: better an exception here, which is logged, than a file that no parser reads.
        self._new_lines.append(json.dumps({**common, **fields}, allow_nan=False))
        if self._uploader.due():
            self._upload()

    def _upload(self) -> None:
        """Publish the file with all lines so far, after those of earlier attempts."""
        # Earlier attempts' lines are never overwritten: nothing is published before they could be read.
        if not self._has_earlier_lines:
            earlier = self._uploader.read(NAME)
            if earlier is None:
                return
            self._file.write_bytes(earlier)
            self._has_earlier_lines = True
        # Appended to the local copy, then the whole file is replaced: an object store cannot append.
        if self._new_lines:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._new_lines)
            self._new_lines.clear()
            self._unpublished = True
        if self._unpublished:
            self._unpublished = not self._uploader.publish(self._file, NAME)


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
