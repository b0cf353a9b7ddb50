"""Progress of a training in its status: loss, throughput and time to the end."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

from tlt_api.status import Progress
from tlt_runner.training.callbacks.aggregate import Aggregate
from tlt_runner.training.callbacks.base import Callback, Step

INTERVAL_SECONDS = 2.0
"""Least time between two reports of steps of one epoch."""
LOSS_STEPS = 50
"""Steps averaged for the reported loss."""
EVALUATIONS_REMEMBERED = 3
"""Evaluations over which the duration is smoothed."""
PACE_SECONDS, PACE_STEPS = 30.0, 20
"""The pace is that of the last steps: of so many seconds, but of no fewer steps."""
MOST_INTERVALS = 1000
"""Intervals of a pace at most: of very short steps they span less than :data:`PACE_SECONDS`."""
STALLED_STEPS, STALLED_SECONDS = 20, 300.0
"""A step is promised within the time of so many median ones, but not sooner than so many seconds."""
PAUSE_SECONDS = 1800.0
"""What a step may take that compiles, and what may lie between two steps or two batches of an evaluation: its
first batch, its end, drawing images, writing a checkpoint."""
STALLED_EVALUATIONS = 5
"""A pause between epochs may be as long as so many evaluations, with their checkpoints."""
OUTLIER = 10.0
"""A step counts as so many typical ones at most: one that compiles again, or waits for a volume, says nothing
about those to come."""


class Pace:
    """Duration of a step, from the last ones."""

    def __init__(self) -> None:
        # Steps and seconds of each interval, newest last.
        self._intervals: deque[tuple[int, float]] = deque(maxlen=MOST_INTERVALS)

    def add(self, steps: int, seconds: float) -> None:
        """Add the newest interval."""
        self._intervals.append((steps, seconds))

    def seconds_per_step(self) -> float | None:
        """Return the mean of the last steps, without outliers; None before two steps are timed."""
        newest = self._newest()
        steps = sum(count for count, _ in newest)
        if steps < 2:
            return None
        # The lower one of two: of an outlier and a typical step the typical one.
        most = OUTLIER * statistics.median_low(taken / count for count, taken in newest)
        return sum(min(taken, count * most) for count, taken in newest) / steps

    def median_seconds(self) -> float | None:
        """Return the median duration of the last steps; None before one is timed."""
        newest = self._newest()
        return statistics.median(taken / count for count, taken in newest) if newest else None

    def _newest(self) -> list[tuple[int, float]]:
        newest: list[tuple[int, float]] = []
        steps, seconds = 0, 0.0
        for interval in reversed(self._intervals):
            if seconds >= PACE_SECONDS and steps >= PACE_STEPS:
                break
            newest.append(interval)
            steps, seconds = steps + interval[0], seconds + interval[1]
        return newest


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

    Throughput and time to the end follow from one moving estimate of a step's duration (:class:`Pace`). Time
    to the end: the steps still to take at that duration, and the evaluations still to come at the smoothed
    duration of one, from its beginning until training goes on, and so with the checkpoint after it;
    evaluations count nothing before there was one.

    Each report promises when the next one is due, by the median duration of a step
    (:data:`STALLED_STEPS`), so that a run that hangs is told from one that is slow.

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
        # Sum and number of losses before each of the last steps.
        self._losses_before: deque[tuple[float, int]] = deque(maxlen=LOSS_STEPS)
        self._losses = (0.0, 0)
        # Time of the last report of a step of this epoch; None before its first step.
        self._reported: float | None = None
        self._pace = Pace()
        self._timed = (0, 0.0)
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
        self._reported = None
        # The first step of an attempt compiles, and the first batch of an epoch takes longer than others.
        self._tell(
            stage="train",
            epoch=finished,
            step=step,
            eta_seconds=self._eta(),
            next_within_seconds=self._pause_at_most(),
        )

    def on_step_end(self, step: Step) -> None:
        """Report the step where the last report is old enough, or the epoch ends."""
        now = self._clock()
        # The deque drops what is older than LOSS_STEPS: its first entry is where the mean begins.
        self._losses_before.append(self._losses)
        self._losses = total, count = self._aggregate.sum_of("total")
        self._steps_finished = step.number + 1
        timed = self._aggregate.timed
        if timed != self._timed:
            self._pace.add(timed[0] - self._timed[0], timed[1] - self._timed[1])
            self._timed = timed
        reported = now if self._reported is None else self._reported
        if now - reported < INTERVAL_SECONDS and step.in_epoch < self._steps:
            self._reported = reported
            return
        self._reported = now
        total_before, count_before = self._losses_before[0]
        seconds = self._pace.seconds_per_step()
        self._tell(
            step=step.in_epoch,
            loss=round((total - total_before) / (count - count_before), 6),
            learning_rate=step.learning_rate,
            images_per_second=round(self._aggregate.images_per_step / seconds, 2) if seconds else None,
            eta_seconds=self._eta(),
            # After the last step come an evaluation or a checkpoint, or both.
            next_within_seconds=(
                self._step_at_most() if step.in_epoch < self._steps else self._pause_at_most()
            ),
        )

    def on_evaluation_begin(self) -> None:
        """Report the stage."""
        self._evaluation_began = self._reported = self._clock()
        self._tell(stage="evaluate", eta_seconds=self._eta(), next_within_seconds=self._pause_at_most())

    def on_evaluation_batch_end(self) -> None:
        """Report that the evaluation goes on, where the last report is old enough."""
        now = self._clock()
        if self._reported is None or now - self._reported >= INTERVAL_SECONDS:
            self._reported = now
            self._tell()

    def on_train_end(self, epochs: int) -> None:
        """Report that no time is left."""
        # Nothing is promised any more: what is left is for logs and files.
        self._tell(stage="train", epoch=epochs, eta_seconds=0, next_within_seconds=None)

    def _eta(self) -> int | None:
        """Seconds to the end; None before two steps of this attempt are timed."""
        seconds = self._pace.seconds_per_step()
        if seconds is None:
            return None
        steps_left = self._epochs * self._steps - self._steps_finished
        evaluation_seconds = self._evaluation_seconds.value or 0.0
        return round(steps_left * seconds + self._evaluations_left() * evaluation_seconds)

    def _step_at_most(self) -> int:
        """Seconds within which another step must have come; longer before one is timed."""
        median = self._pace.median_seconds()
        if median is None:
            return self._pause_at_most()
        return round(max(STALLED_SECONDS, STALLED_STEPS * median))

    def _pause_at_most(self) -> int:
        """Seconds within which another step or batch must have come, whatever lies in between."""
        step_seconds, evaluation_seconds = self._pace.median_seconds(), self._evaluation_seconds.value
        return round(
            max(
                PAUSE_SECONDS,
                STALLED_STEPS * (step_seconds or 0.0),
                STALLED_EVALUATIONS * (evaluation_seconds or 0.0),
            )
        )

    def _evaluations_left(self) -> int:
        """Evaluations to come, with that of the current epoch; the last epoch always has one."""
        regular = (
            self._epochs // self._evaluation_interval - self._epochs_finished // self._evaluation_interval
        )
        return regular + (self._epochs % self._evaluation_interval != 0)

    def _tell(self, **changes: object) -> None:
        self._progress = self._progress.model_copy(update=changes)
        self._report(self._progress)
