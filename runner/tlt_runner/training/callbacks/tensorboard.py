"""TensorBoard's logs: ``tensorboard --logdir <output>/logs`` shows the training.

A folder a run, ``logs/<name>-<first part of the uid>``; in it files that never change, each a piece of the
time: one every minute or hundredth part of the time so far, whichever is longer. What another attempt does
anew, TensorBoard forgets (see :class:`EventFile`): curves go on without doubled points.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tlt_api.runspec import RunSpec
from tlt_api.status import Metrics
from tlt_runner.training.callbacks.aggregate import Means, Throughput
from tlt_runner.training.callbacks.base import Step
from tlt_runner.training.callbacks.event_file import EventFile
from tlt_runner.training.callbacks.images import Pictures
from tlt_runner.training.callbacks.uploader import Shipping

FOLDER = "logs"
STEPS_A_POINT = 10
"""Steps of which a point of a curve is the mean; the last point of an epoch may be of fewer."""
_NOT_A_LOSS = "gradient_norm"


def folder_of(run: RunSpec) -> str:
    """Where the logs of a run are, below its output address."""
    return f"{FOLDER}/{run.owner.name}-{run.owner.uid[:8]}"


class TensorBoard:
    """Writes event files and ships them.

    Args:
        shipping: To the run's folder of logs.
        scratch: A folder for files that are not shipped yet.
        attempt: Of the run.
        steps: Of an epoch.
        images: Of a step.
        pictures: Draws validation images; None draws none.
        clock: Monotonic seconds.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        shipping: Shipping,
        scratch: Path,
        attempt: int,
        steps: int,
        images: int,
        pictures: Pictures | None,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._shipping, self._scratch = shipping, scratch
        self._steps, self._pictures, self._now = steps, pictures, now
        self._prefix = f"events.out.tfevents.{attempt:04d}.{int(now()):010d}"
        self._pieces = 0
        self._start: int | None = None
        self._open: EventFile | None = None
        self._closed: list[Path] = []
        self._means = Means()
        self._throughput = Throughput(images, clock)
        self._last: Step | None = None

    def stage(self, stage: str) -> None:
        """Nothing that is drawn."""

    def epoch(self, finished: int, step: int) -> None:
        """An epoch begins."""
        self._begin(finished * self._steps + step)
        self._throughput.pause()

    def step(self, step: Step) -> None:
        """A step is done."""
        self._last = step
        self._means.add(step.figures)
        self._throughput.step()
        if (step.number + 1) % STEPS_A_POINT == 0 or step.in_epoch == self._steps:
            self._point(step)
            if self._shipping.due():
                self._ship()

    def evaluated(self, metrics: Metrics, number: int) -> None:
        """The model was judged."""
        self._begin(number)
        scores = {"mAP": metrics.m_ap}
        scores |= {f"AP/{item.name}": item.average_precision for item in metrics.per_class or ()}
        known = {tag: value for tag, value in scores.items() if value is not None}
        self._file().scalars(known, number, self._now())
        for picture in self._pictures.draw() if self._pictures else ():
            tag = f"validation/{picture.id}"
            self._file().image(tag, picture.jpeg, picture.size, number, self._now())
        if self._shipping.due():
            self._ship()

    def finish(self, epochs: int) -> None:
        """Nothing that is drawn."""

    def close(self, failure: BaseException | None) -> None:
        """Ship what is left."""
        if self._last is not None and self._means.count:
            self._point(self._last)
        self._ship()

    def _begin(self, number: int) -> None:
        """The attempt goes on after so many steps; only the first call counts."""
        if self._start is None:
            self._start = number

    def _point(self, step: Step) -> None:
        figures = self._means.take()
        values = {name if name == _NOT_A_LOSS else f"loss/{name}": value for name, value in figures.items()}
        values["learning_rate"] = step.learning_rate
        rate = self._throughput.take()
        if rate is not None:
            values["images_per_second"] = rate
        self._file().scalars(values, step.number + 1, self._now())

    def _file(self) -> EventFile:
        if self._open is None:
            first = (self._start or 0) + 1 if self._pieces == 0 else None
            path = self._scratch / f"{self._prefix}.{self._pieces:06d}"
            self._open = EventFile(path, self._now(), first)
            self._pieces += 1
        return self._open

    def _ship(self) -> None:
        """Publish what there is, in order; what could not be published waits for the next time."""
        if self._open is not None:
            self._open.close()
            self._closed.append(self._open.path)
            self._open = None
        while self._closed and self._shipping.publish(self._closed[0], self._closed[0].name):
            self._closed.pop(0).unlink()
