"""Where a training is, for people: loss, throughput and the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tlt_api.status import Progress

INTERVAL_SECONDS = 2.0
WINDOW = 50
"""Steps that the reported loss is the mean of."""


class Meter:
    """Turns steps into :class:`~tlt_api.status.Progress`.

    Time to the end counts whole epochs, evaluation included, once one is done; before, only steps.

    Args:
        report: Takes the progress.
        epochs: Epochs of the run.
        steps: Steps of an epoch.
        images: Images of a step.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        epochs: int,
        steps: int,
        images: int,
        clock: Callable[[], float],
    ) -> None:
        self._report = report
        self._epochs, self._steps, self._images = epochs, steps, images
        self._clock = clock
        self._now = Progress(stage="train", epochs=epochs)
        self._began: tuple[int, float] | None = None
        self._mark: tuple[int, float] = (0, clock())

    def stage(self, stage: str) -> None:
        """Another stage has begun."""
        self._tell(stage=stage)

    def epoch(self, finished: int) -> None:
        """An epoch begins, after so many."""
        now = self._clock()
        if self._began is None:
            self._began = (finished, now)
        self._mark = (-1, now)
        self._tell(stage="train", epoch=finished, step=0, eta_seconds=self._eta(finished, now))

    def step(self, step: int, losses: Sequence[float], learning_rate: float) -> None:
        """A step of the epoch is done; ``losses`` are the epoch's so far."""
        now = self._clock()
        if self._mark[0] < 0:  # the first step of an epoch waits for data, the very first compiles
            self._mark = (step, now)
            return
        if now - self._mark[1] < INTERVAL_SECONDS and step < self._steps:
            return
        seconds, steps = max(now - self._mark[1], 1e-9), step - self._mark[0]
        self._mark = (step, now)
        finished = self._now.epoch or 0
        recent = losses[-WINDOW:]
        self._tell(
            step=step,
            loss=round(sum(recent) / len(recent), 6) if recent else None,
            learning_rate=learning_rate,
            images_per_second=round(steps * self._images / seconds, 2),
            eta_seconds=self._eta(finished + step / self._steps, now),
        )

    def finish(self, epochs: int) -> None:
        """The run is over, after so many epochs."""
        self._tell(stage="train", epoch=epochs, eta_seconds=0)

    def _eta(self, progress: float, now: float) -> int | None:
        """Seconds to the end at ``progress`` epochs, by the pace since this attempt began."""
        began, since = self._began or (0, now)
        done = progress - began
        return int((now - since) / done * (self._epochs - progress)) if done > 0 else None

    def _tell(self, **changes: object) -> None:
        self._now = self._now.model_copy(update=changes)
        self._report(self._now)
