"""Figures of several steps as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Means:
    """Figures of steps, averaged until they are taken: each over the steps that have it."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, int]] = {}
        self.count = 0

    def add(self, figures: Mapping[str, float]) -> None:
        """Take in those of a step."""
        for name, value in figures.items():
            total, count = self._values.get(name, (0.0, 0))
            self._values[name] = (total + value, count + 1)
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means; from here on anew."""
        means = {name: total / count for name, (total, count) in self._values.items()}
        self._values, self.count = {}, 0
        return means


class Throughput:
    """Images a second, until it is taken. A step after a pause, which waits for data, does not count.

    Args:
        images: Of a step.
        clock: Monotonic seconds.
    """

    def __init__(self, images: int, clock: Callable[[], float]) -> None:
        self._images, self._clock = images, clock
        self._last: float | None = None
        self._steps, self._seconds = 0, 0.0

    def pause(self) -> None:
        """Something else than steps was done."""
        self._last = None

    def step(self) -> None:
        """A step is done."""
        now = self._clock()
        if self._last is not None:
            self._steps += 1
            self._seconds += now - self._last
        self._last = now

    def take(self) -> float | None:
        """Images a second since the last time; None where no step counts."""
        rate = self._steps * self._images / self._seconds if self._seconds > 0 else None
        self._steps, self._seconds = 0, 0.0
        return rate
