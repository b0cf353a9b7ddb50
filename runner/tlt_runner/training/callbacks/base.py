"""What a training tells those who watch it: the status, TensorBoard, the log file, the terminal.

The loop calls; it does not know who listens. Watchers never change the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tlt_api.status import Metrics


@dataclass(frozen=True)
class Step:
    """A step whose figures are known.

    Attributes:
        number: Steps since the start of training, from 0.
        in_epoch: Steps finished in the epoch, this one included.
        learning_rate: That it was taken with.
        figures: By name, of :data:`tlt_runner.training.trainer.FIGURES`; a step that was left out because
            its gradient overflowed has no ``gradient_norm``.
    """

    number: int
    in_epoch: int
    learning_rate: float
    figures: Mapping[str, float]


class Watch(Protocol):
    """One who watches a training."""

    def stage(self, stage: str) -> None:
        """Another stage has begun."""

    def epoch(self, finished: int, step: int) -> None:
        """An epoch begins after so many; ``step`` of its steps were taken by an earlier attempt."""

    def step(self, step: Step) -> None:
        """A step is done."""

    def evaluated(self, metrics: Metrics, number: int) -> None:
        """The model was judged after so many steps."""

    def finish(self, epochs: int) -> None:
        """The training is over, after so many epochs."""


class All:
    """Tells several watchers, in order."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches

    def stage(self, stage: str) -> None:
        """Another stage has begun."""
        for watch in self._watches:
            watch.stage(stage)

    def epoch(self, finished: int, step: int) -> None:
        """An epoch begins."""
        for watch in self._watches:
            watch.epoch(finished, step)

    def step(self, step: Step) -> None:
        """A step is done."""
        for watch in self._watches:
            watch.step(step)

    def evaluated(self, metrics: Metrics, number: int) -> None:
        """The model was judged."""
        for watch in self._watches:
            watch.evaluated(metrics, number)

    def finish(self, epochs: int) -> None:
        """The training is over."""
        for watch in self._watches:
            watch.finish(epochs)
