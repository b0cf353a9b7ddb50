"""Where a training is, for people: loss, throughput and the time that is left. The watcher behind status."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tlt_api.status import Metrics, Progress
from tlt_runner.training.callbacks.base import Step

INTERVAL_SECONDS = 2.0
WINDOW = 50
"""Steps that the reported loss is the mean of."""
STEPS_REMEMBERED, EVALUATIONS_REMEMBERED = 100, 3
"""The newest step (evaluation) weighs at least one in so many."""


class Smoothed:
    """The mean of the first ``remembered`` values, from there on their exponential average.

    Args:
        remembered: The newest value weighs at least ``1 / remembered``.
    """

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._count = 0
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Take in another one."""
        self._count = min(self._count + 1, self._remembered)
        before = self.value or 0.0
        self.value = before + (value - before) / self._count


class Meter:
    """Turns steps into :class:`~tlt_api.status.Progress`.

    Time to the end: the steps still to take at the smoothed seconds of a step, and the evaluations still to
    come at the smoothed seconds of one (from its beginning until training goes on, so with the checkpoints
    after it). The first step of an attempt, which compiles, is not counted; an evaluation counts nothing
    before there was one.

    Args:
        report: Takes the progress.
        epochs: Epochs of the run.
        steps: Steps of an epoch.
        images: Images of a step.
        clock: Monotonic seconds.
        interval: Epochs between evaluations.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        epochs: int,
        steps: int,
        images: int,
        clock: Callable[[], float],
        interval: int = 1,
    ) -> None:
        self._report = report
        self._epochs, self._interval = epochs, interval
        self._steps, self._images = steps, images
        self._clock = clock
        self._now = Progress(stage="train", epochs=self._epochs, steps=steps)
        self._finished, self._done = 0, 0
        self._last_step: float | None = None
        self._compiled = False
        self._mark: tuple[int, float] | None = None
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._step_seconds = Smoothed(STEPS_REMEMBERED)
        self._evaluation_seconds = Smoothed(EVALUATIONS_REMEMBERED)
        self._evaluating_since: float | None = None

    def stage(self, stage: str) -> None:
        """Another stage has begun."""
        if stage == "evaluate":
            self._evaluating_since = self._clock()
        self._tell(stage=stage, eta_seconds=self._eta())

    def epoch(self, finished: int, step: int) -> None:
        """An epoch begins, after so many."""
        now = self._clock()
        if self._evaluating_since is not None:
            self._evaluation_seconds.add(now - self._evaluating_since)
            self._evaluating_since = None
        self._finished, self._done = finished, finished * self._steps + step
        self._last_step, self._mark = now, None
        self._tell(stage="train", epoch=finished, step=step, eta_seconds=self._eta())

    def step(self, step: Step) -> None:
        """A step is done."""
        now = self._clock()
        self._done = step.number + 1
        self._losses.append(step.figures["total"])
        if self._compiled and self._last_step is not None:
            self._step_seconds.add(now - self._last_step)
        self._compiled, self._last_step = True, now
        # The first step of an epoch waits for data, the very first compiles.
        seconds, steps = (now - self._mark[1], step.in_epoch - self._mark[0]) if self._mark else (0.0, 0)
        if seconds < INTERVAL_SECONDS and step.in_epoch < self._steps:
            self._mark = self._mark or (step.in_epoch, now)
            return
        self._mark = (step.in_epoch, now)
        self._tell(
            step=step.in_epoch,
            loss=round(sum(self._losses) / len(self._losses), 6),
            learning_rate=step.learning_rate,
            images_per_second=round(steps * self._images / max(seconds, 1e-9), 2)
            if steps
            else self._now.images_per_second,
            eta_seconds=self._eta(),
        )

    def evaluated(self, metrics: Metrics, number: int) -> None:
        """Nothing that progress says."""

    def finish(self, epochs: int) -> None:
        """The run is over, after so many epochs."""
        self._tell(stage="train", epoch=epochs, eta_seconds=0)

    def _eta(self) -> int | None:
        """Seconds to the end; None before the second step of this attempt."""
        if self._step_seconds.value is None:
            return None
        left = self._epochs * self._steps - self._done
        ahead = left * self._step_seconds.value
        return round(ahead + self._evaluations_left() * (self._evaluation_seconds.value or 0.0))

    def _evaluations_left(self) -> int:
        """Evaluations after the epoch in which this is, its own included; the last epoch always has one."""
        within = self._epochs // self._interval - self._finished // self._interval
        return within + (self._epochs % self._interval != 0)

    def _tell(self, **changes: object) -> None:
        self._now = self._now.model_copy(update=changes)
        self._report(self._now)
