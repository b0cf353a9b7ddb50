"""Averages the figures of steps for all callbacks, which differ only in the steps that they average over.

:class:`Aggregate` only adds up. A mean over some steps is the difference of the sums before and after these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tlt_runner.training.callbacks.base import Callback, Step


@dataclass(frozen=True)
class Sums:
    """Sums over all steps of an attempt so far.

    Attributes:
        steps: Number of steps.
        figures: Sum and number of values by figure: not every step has every figure.
        timed_steps: Steps whose duration is known.
        seconds: Duration of these.
    """

    steps: int = 0
    figures: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    timed_steps: int = 0
    seconds: float = 0.0

    def means_since(self, earlier: Sums) -> dict[str, float]:
        """Mean of each figure over the steps since ``earlier`` that have it."""
        means = {}
        for name, (total, count) in self.figures.items():
            # A step that was skipped has no gradient norm: each figure has a count of its own.
            total_before, count_before = earlier.figures.get(name, (0.0, 0))
            if count > count_before:
                means[name] = (total - total_before) / (count - count_before)
        return means


class Aggregate(Callback):
    """Adds up figures and durations of steps. Comes first among the callbacks, which read the sums.

    A step is reported when the next one has been handed to the device. A device that computes at once (a CPU)
    has then finished both: the first report of an epoch comes after two steps' time, and the last one right
    after the one before it. So the last step of an epoch is timed together with the first one of the next.
    The first step of an attempt, which compiles, is not timed.

    Args:
        images_per_step: Images of a step, over all replicas.
        clock: Monotonic seconds.
        steps: Steps of an epoch.
    """

    def __init__(self, images_per_step: int, clock: Callable[[], float], steps: int) -> None:
        self.images_per_step = images_per_step
        self._clock, self._steps_of_epoch = clock, steps
        self._last_time = 0.0
        self._compiled = False
        # Steps whose duration is not known before the next step ends, and the time since they began.
        self._open_steps, self._open_seconds = 0, 0.0
        self._steps, self._timed_steps, self._seconds = 0, 0, 0.0
        self._figures: dict[str, tuple[float, int]] = {}

    def on_epoch_begin(self, finished: int, step: int) -> None:
        """Begin to count time: between epochs, evaluation and checkpoint take it."""
        self._last_time = self._clock()

    def on_step_end(self, step: Step) -> None:
        """Add a step."""
        now = self._clock()
        self._open_steps += 1
        self._open_seconds += now - self._last_time
        self._last_time = now
        if not self._compiled:
            self._compiled, self._open_steps, self._open_seconds = True, 0, 0.0
        elif step.in_epoch < self._steps_of_epoch or self._steps_of_epoch == 1:
            self._timed_steps += self._open_steps
            self._seconds += self._open_seconds
            self._open_steps, self._open_seconds = 0, 0.0
        self._steps += 1
        for name, value in step.figures.items():
            total, count = self._figures.get(name, (0.0, 0))
            self._figures[name] = (total + value, count + 1)

    @property
    def sums(self) -> Sums:
        """The sums at this moment."""
        # A copy: callbacks keep it to compare later sums with.
        return Sums(self._steps, dict(self._figures), self._timed_steps, self._seconds)

    @property
    def timed(self) -> tuple[int, float]:
        """The number of timed steps at this moment, and their duration in seconds."""
        return self._timed_steps, self._seconds

    def sum_of(self, figure: str) -> tuple[float, int]:
        """The sum of one figure at this moment, and the number of its values."""
        return self._figures.get(figure, (0.0, 0))

    def images_per_second_since(self, earlier: Sums) -> float | None:
        """Throughput of the timed steps since ``earlier``; None where there are none."""
        seconds, steps = self._seconds - earlier.seconds, self._timed_steps - earlier.timed_steps
        return steps * self.images_per_step / seconds if seconds > 0 else None


@dataclass(frozen=True)
class Means:
    """Means over some steps.

    Attributes:
        steps: Number of the steps.
        figures: Mean by figure, over the steps that have it.
        images_per_second: Throughput; None where no step was timed.
    """

    steps: int
    figures: Mapping[str, float]
    images_per_second: float | None


class Interval:
    """The steps since one callback last took their means; at first, all steps of the attempt."""

    def __init__(self, aggregate: Aggregate) -> None:
        self._aggregate, self._before = aggregate, Sums()

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self._aggregate.sums.steps - self._before.steps

    def end(self) -> Means:
        """Return the means of the interval, and begin the next one."""
        # The difference of two sums: the callbacks' intervals differ, and none needs a list of its steps.
        before, self._before = self._before, self._aggregate.sums
        return Means(
            self._before.steps - before.steps,
            self._before.means_since(before),
            self._aggregate.images_per_second_since(before),
        )
