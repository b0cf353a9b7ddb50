"""Progress of a training in its status: loss, throughput and time to the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tlt_api.status import Progress
from tlt_runner.training.callbacks.aggregate import Aggregate, Sums
from tlt_runner.training.callbacks.base import Callback, Step

INTERVAL_SECONDS = 2.0
"""Least time between two reports of steps of one epoch."""
LOSS_STEPS = 50
"""Steps averaged for the reported loss."""
STEPS_REMEMBERED, EVALUATIONS_REMEMBERED = 100, 3
"""Steps and evaluations over which durations are smoothed."""


class Smoothed:
    """The mean of the first ``remembered`` values, from then on their exponential moving average.

    Args:
        remembered: The newest value weighs at least ``1 / remembered``.
    """

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._count = 0
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Add the newest value."""
        self._count = min(self._count + 1, self._remembered)
        # The n-th value weighs 1 / n, which makes a mean; n ends at `remembered`.
        previous = self.value or 0.0
        self.value = previous + (value - previous) / self._count


class ProgressReport(Callback):
    """Turns steps into :class:`~tlt_api.status.Progress`.

    Time to the end: the steps still to take at the smoothed duration of a step, and the evaluations still
    to come at the smoothed duration of one, from its beginning until training goes on, and so with the
    checkpoint after it. The first step of an attempt, which compiles, is not counted; evaluations count
    nothing before there was one.

    Args:
        report: Takes the progress.
        aggregate: Sums of the steps, up to date when this callback is called.
        epochs: Epochs of the run.
        steps: Steps of an epoch.
        clock: Monotonic seconds.
        evaluation_interval: Epochs between evaluations.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        aggregate: Aggregate,
        *,
        epochs: int,
        steps: int,
        clock: Callable[[], float],
        evaluation_interval: int = 1,
    ) -> None:
        self._report, self._aggregate = report, aggregate
        self._epochs, self._steps, self._evaluation_interval = epochs, steps, evaluation_interval
        self._clock = clock
        self._progress = Progress(stage="train", epochs=epochs, steps=steps)
        self._epochs_finished, self._steps_finished = 0, 0
        self._last_step: float | None = None
        self._compiled = False
        # Sum and number of losses before each of the last steps; sums and time at the last report.
        self._losses_before: deque[tuple[float, int]] = deque(maxlen=LOSS_STEPS)
        self._losses = (0.0, 0)
        self._reported: tuple[Sums, float] | None = None
        self._step_seconds = Smoothed(STEPS_REMEMBERED)
        self._evaluation_seconds = Smoothed(EVALUATIONS_REMEMBERED)
        self._evaluation_began: float | None = None

    def on_epoch_begin(self, finished: int, step: int) -> None:
        """Report the epoch."""
        now = self._clock()
        # From its beginning until the next epoch: with the checkpoint, and with what the callbacks do.
        if self._evaluation_began is not None:
            self._evaluation_seconds.add(now - self._evaluation_began)
            self._evaluation_began = None
        self._epochs_finished, self._steps_finished = finished, finished * self._steps + step
        self._last_step, self._reported = now, None
        self._tell(stage="train", epoch=finished, step=step, eta_seconds=self._eta())

    def on_step_end(self, step: Step) -> None:
        """Report the step where the last report is old enough, or the epoch ends."""
        now = self._clock()
        # The deque drops what is older than LOSS_STEPS: its first entry is where the mean begins.
        self._losses_before.append(self._losses)
        self._losses = total, count = self._aggregate.sum_of("total")
        self._steps_finished = step.number + 1
        # The first step of an attempt compiles: it says nothing about the others.
        if self._compiled and self._last_step is not None:
            self._step_seconds.add(now - self._last_step)
        self._compiled, self._last_step = True, now
        # The first step of an epoch begins the interval: its own duration is that of loading data.
        interval_began = self._reported or (self._aggregate.sums, now)
        if now - interval_began[1] < INTERVAL_SECONDS and step.in_epoch < self._steps:
            self._reported = interval_began
            return
        self._reported = (self._aggregate.sums, now)
        total_before, count_before = self._losses_before[0]
        # None without a timed step since then: the throughput of the last report stays.
        throughput = self._aggregate.images_per_second_since(interval_began[0])
        self._tell(
            step=step.in_epoch,
            loss=round((total - total_before) / (count - count_before), 6),
            learning_rate=step.learning_rate,
            images_per_second=self._progress.images_per_second
            if throughput is None
            else round(throughput, 2),
            eta_seconds=self._eta(),
        )

    def on_evaluation_begin(self) -> None:
        """Report the stage."""
        self._evaluation_began = self._clock()
        self._tell(stage="evaluate", eta_seconds=self._eta())

    def on_train_end(self, epochs: int) -> None:
        """Report that no time is left."""
        self._tell(stage="train", epoch=epochs, eta_seconds=0)

    def _eta(self) -> int | None:
        """Seconds to the end; None before the second step of this attempt."""
        if self._step_seconds.value is None:
            return None
        steps_left = self._epochs * self._steps - self._steps_finished
        evaluation_seconds = self._evaluation_seconds.value or 0.0
        return round(steps_left * self._step_seconds.value + self._evaluations_left() * evaluation_seconds)

    def _evaluations_left(self) -> int:
        """Evaluations to come, with that of the current epoch; the last epoch always has one."""
        regular = (
            self._epochs // self._evaluation_interval - self._epochs_finished // self._evaluation_interval
        )
        return regular + (self._epochs % self._evaluation_interval != 0)

    def _tell(self, **changes: object) -> None:
        self._progress = self._progress.model_copy(update=changes)
        self._report(self._progress)
