"""Where a training is, for people: loss, throughput and the time that is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tlt_api.status import Metrics, Progress
from tlt_runner.training.watch import Step

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
        self._began: tuple[float, float] | None = None
        self._mark: tuple[int, float] = (0, clock())
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def stage(self, stage: str) -> None:
        """Another stage has begun."""
        self._tell(stage=stage)

    def epoch(self, finished: int, step: int) -> None:
        """An epoch begins, after so many."""
        now = self._clock()
        progress = finished + step / self._steps
        if self._began is None:
            self._began = (progress, now)
        self._mark = (-1, now)
        self._tell(stage="train", epoch=finished, step=step, eta_seconds=self._eta(progress, now))

    def step(self, step: Step) -> None:
        """A step is done."""
        now = self._clock()
        self._losses.append(step.figures["total"])
        if self._mark[0] < 0:  # the first step of an epoch waits for data, the very first compiles
            self._mark = (step.in_epoch, now)
            return
        if now - self._mark[1] < INTERVAL_SECONDS and step.in_epoch < self._steps:
            return
        seconds, steps = max(now - self._mark[1], 1e-9), step.in_epoch - self._mark[0]
        self._mark = (step.in_epoch, now)
        self._tell(
            step=step.in_epoch,
            loss=round(sum(self._losses) / len(self._losses), 6),
            learning_rate=step.learning_rate,
            images_per_second=round(steps * self._images / seconds, 2),
            eta_seconds=self._eta((self._now.epoch or 0) + step.in_epoch / self._steps, now),
        )

    def evaluated(self, metrics: Metrics, number: int) -> None:
        """Nothing that progress says."""

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
