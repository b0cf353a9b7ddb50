"""Watchers that write files, put together; none of them can end a training.

Called by the train task, on the worker that publishes: the context manager is around the training, so that
a failure is told too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from tlt_api.runspec import RunSpec
from tlt_api.status import Metrics
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records
from tlt_runner.evaluation.evaluate import Detect
from tlt_runner.storage import join
from tlt_runner.training.callbacks.base import All, Step, Watch
from tlt_runner.training.callbacks.images import Pictures
from tlt_runner.training.callbacks.log_file import JsonLines
from tlt_runner.training.callbacks.tensorboard import TensorBoard, folder_of
from tlt_runner.training.callbacks.uploader import Shipping

log = logging.getLogger(__name__)


class Follower(Watch, Protocol):
    """A watcher that has something to bring to an end."""

    def close(self, failure: BaseException | None) -> None:
        """The training is over, or has failed."""


class Guarded:
    """A follower whose mistakes are told and counted, and go no further."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self.failures = 0

    def stage(self, stage: str) -> None:
        """Another stage has begun."""
        self._try(lambda: self._follower.stage(stage))

    def epoch(self, finished: int, step: int) -> None:
        """An epoch begins."""
        self._try(lambda: self._follower.epoch(finished, step))

    def step(self, step: Step) -> None:
        """A step is done."""
        self._try(lambda: self._follower.step(step))

    def evaluated(self, metrics: Metrics, number: int) -> None:
        """The model was judged."""
        self._try(lambda: self._follower.evaluated(metrics, number))

    def finish(self, epochs: int) -> None:
        """The training is over."""
        self._try(lambda: self._follower.finish(epochs))

    def close(self, failure: BaseException | None) -> None:
        """The training is over, or has failed."""
        self._try(lambda: self._follower.close(failure))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.failures += 1
            if self.failures & (self.failures - 1) == 0:  # a mistake of every step is not told every step
                name = type(self._follower).__name__
                log.warning("%s: failure %d; training goes on", name, self.failures, exc_info=error)


@contextmanager
def followed(status: Watch, followers: Sequence[Follower]) -> Iterator[Watch]:
    """The watcher that a training tells, while it goes on.

    Args:
        status: Told first.
        followers: Closed at the end, whatever it was.
    """
    guarded = [Guarded(follower) for follower in followers]
    failure: BaseException | None = None
    try:
        yield All([status, *guarded])
    except BaseException as error:
        failure = error
        raise
    finally:
        for follower in guarded:
            follower.close(failure)


def files(
    run: RunSpec, spec: TrainingJobSpec, context: Context, records: Records, detect: Detect, images: int
) -> list[Follower]:
    """The followers that write below the output address: log file and TensorBoard's logs.

    Args:
        run: Whose training it is.
        spec: The run's, as it is trained.
        context: Storage and scratch folder.
        records: Prepared data; the first validation images are drawn.
        detect: The detector in training as it is judged.
        images: Of a step, over all replicas.
    """
    output, steps = spec.output.uri, batches.steps_of(records, images)
    scratch = context.scratch / "watching"
    scratch.mkdir(parents=True, exist_ok=True)
    lines = Shipping(context.storage, output, time.monotonic)
    events = Shipping(context.storage, join(output, folder_of(run)), time.monotonic)
    pictures = _pictures(spec, records, detect) if spec.visualization.images else None
    return [
        JsonLines(lines, scratch, run, spec.training.epochs, steps, images, time.monotonic, time.time),
        TensorBoard(events, scratch, run.attempt, steps, images, pictures, time.monotonic, time.time),
    ]


def _pictures(spec: TrainingJobSpec, records: Records, detect: Detect) -> Pictures:
    batch_size, images = spec.training.batch_size_per_gpu, spec.visualization.images
    return Pictures(
        detect,
        lambda: batches.validation_batches(records, batch_size, records.manifest.most_objects, limit=images),
        records.manifest.class_names,
        spec.visualization.score_threshold,
    )
