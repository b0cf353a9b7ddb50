"""The log file of a run, for programs: ``<output>/log.jsonl``, one JSON object a line.

What TLT's status.json is for, mended: numbers are numbers, times are UTC, every line says of which run and
attempt it is, and the file is replaced whole, so that a reader never meets half a line. Later attempts go on
in the same file. docs/watching.md lists the events.
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
from tlt_runner.training.callbacks.aggregate import Means, Throughput
from tlt_runner.training.callbacks.base import Step
from tlt_runner.training.callbacks.uploader import Shipping

NAME = "log.jsonl"
SCHEMA = 1
"""Grows when a field changes its meaning or goes; new fields and events do not change it."""


class JsonLines:
    """Writes the log file and ships it.

    Args:
        shipping: To the output address.
        scratch: A folder for the file.
        run: Whose log it is.
        epochs: Of the run.
        steps: Of an epoch.
        images: Of a step.
        clock: Monotonic seconds.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        shipping: Shipping,
        scratch: Path,
        run: RunSpec,
        epochs: int,
        steps: int,
        images: int,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._shipping, self._file, self._now = shipping, scratch / NAME, now
        self._run, self._epochs, self._steps, self._images = run, epochs, steps, images
        self._earlier_known = False
        self._new: list[str] = []
        self._unpublished = False
        self._number = 0
        self._begun = False
        self._means = Means()
        self._throughput = Throughput(images, clock)

    def stage(self, stage: str) -> None:
        """Nothing that the log tells."""

    def epoch(self, finished: int, step: int) -> None:
        """An epoch begins."""
        self._begin(finished * self._steps + step)
        self._throughput.pause()

    def step(self, step: Step) -> None:
        """A step is done; the last one of an epoch tells of the epoch."""
        self._number = step.number + 1
        self._means.add(step.figures)
        self._throughput.step()
        if step.in_epoch < self._steps:
            return
        rate = self._throughput.take()
        self._add(
            "epoch",
            stepsOfThisAttempt=self._means.count,
            learningRate=step.learning_rate,
            imagesPerSecond=None if rate is None else round(rate, 3),
            figures={_camel(name): value for name, value in self._means.take().items()},
        )

    def evaluated(self, metrics: Metrics, number: int) -> None:
        """The model was judged."""
        self._begin(number)
        found = {"mAP": None, **metrics.to_wire()}
        found.pop("epoch", None)
        self._add("evaluation", **found)

    def finish(self, epochs: int) -> None:
        """The training is over."""
        self._begin(epochs * self._steps)
        self._add("end")

    def close(self, failure: BaseException | None) -> None:
        """Tell of a failure, in the words of the termination message, and ship what is left."""
        if failure is not None:
            told = exits.failure_of(failure)
            self._add("failure", reason=told.reason, message=told.message, hint=told.hint)
        self._ship()

    def _begin(self, number: int) -> None:
        """The attempt goes on after so many steps; only the first call counts."""
        if self._begun:
            return
        self._begun, self._number = True, number
        owner = self._run.owner
        self._add(
            "start",
            kind=owner.kind,
            namespace=owner.namespace,
            name=owner.name,
            epochs=self._epochs,
            stepsPerEpoch=self._steps,
            imagesPerStep=self._images,
        )

    def _add(self, event: str, **fields: Any) -> None:
        time = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        common = {
            "schema": SCHEMA,
            "time": time.replace("+00:00", "Z"),
            "run": self._run.owner.uid,
            "attempt": self._run.attempt,
            "event": event,
            "epoch": self._number // self._steps,
            "step": self._number,
        }
        self._new.append(json.dumps({**common, **fields}, allow_nan=False))
        if self._shipping.due():
            self._ship()

    def _ship(self) -> None:
        """Publish the file with all lines so far, those of earlier attempts before ours."""
        if not self._earlier_known:
            earlier = self._shipping.read(NAME)
            if earlier is None:
                return
            self._file.write_bytes(earlier)
            self._earlier_known = True
        if self._new:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._new)
            self._new.clear()
            self._unpublished = True
        if self._unpublished:
            self._unpublished = not self._shipping.publish(self._file, NAME)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
