"""The interface of callbacks, which the loop calls. A callback never changes a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tlt_api.status import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A finished training step.

    Attributes:
        number: Steps since the start of training, from 0.
        in_epoch: Steps finished in the epoch, this one included.
        learning_rate: Learning rate of the step.
        figures: By name, of :data:`tlt_runner.training.trainer.FIGURES`; a step that was skipped because its
            gradient overflowed has no ``gradient_norm``.
    """

    number: int
    in_epoch: int
    learning_rate: float
    figures: Mapping[str, float]


class Callback:
    """Base of callbacks: every method does nothing."""

    def on_epoch_begin(self, finished: int, step: int) -> None:
        """An epoch begins after ``finished`` others; an earlier attempt took ``step`` of its steps."""

    def on_step_end(self, step: Step) -> None:
        """A step is finished."""

    def on_evaluation_begin(self) -> None:
        """An evaluation begins."""

    def on_evaluation_batch_end(self) -> None:
        """A batch of an evaluation is finished."""

    def on_evaluation_end(self, metrics: Metrics, number: int) -> None:
        """The model was evaluated after ``number`` steps since the start of training."""

    def on_train_end(self, epochs: int) -> None:
        """The training has reached its end, after ``epochs`` epochs."""

    def close(self, failure: BaseException | None) -> None:
        """Write what is left. Called once, after :meth:`on_train_end` or a failure."""


class CallbackList(Callback):
    """Calls several callbacks in order. An exception of one is logged and goes no further.

    A context manager around the training: at its end all callbacks are closed, with the failure if there is
    one.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self.failures = [0] * len(callbacks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Returns None: the failure goes on to whoever ends the run.
        self.close(failure)

    def on_epoch_begin(self, finished: int, step: int) -> None:
        """Call all."""
        self._call(lambda callback: callback.on_epoch_begin(finished, step))

    def on_step_end(self, step: Step) -> None:
        """Call all."""
        self._call(lambda callback: callback.on_step_end(step))

    def on_evaluation_begin(self) -> None:
        """Call all."""
        self._call(lambda callback: callback.on_evaluation_begin())

    def on_evaluation_batch_end(self) -> None:
        """Call all."""
        self._call(lambda callback: callback.on_evaluation_batch_end())

    def on_evaluation_end(self, metrics: Metrics, number: int) -> None:
        """Call all."""
        self._call(lambda callback: callback.on_evaluation_end(metrics, number))

    def on_train_end(self, epochs: int) -> None:
        """Call all."""
        self._call(lambda callback: callback.on_train_end(epochs))

    def close(self, failure: BaseException | None) -> None:
        """Call all."""
        self._call(lambda callback: callback.close(failure))

    def _call(self, method: Callable[[Callback], None]) -> None:
        """Call a method of every callback; log what it raises."""
        # Each on its own: a full disk of the log file does not keep progress from the status.
        for index, callback in enumerate(self._callbacks):
            try:
                method(callback)
            # Exits and interrupts pass: only a callback's own failures end here.
            except Exception as error:
                self.failures[index] += 1
                count = self.failures[index]
                # A failure of every step is logged at its 1st, 2nd, 4th, 8th ... occurrence.
                if count & (count - 1) == 0:
                    name = type(callback).__name__
                    log.warning("%s failed %d times; training continues", name, count, exc_info=error)
