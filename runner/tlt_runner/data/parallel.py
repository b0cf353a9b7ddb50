"""Process many files at once: a bounded window, results in order, progress reported, stopped on request."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Protocol, TypeVar

from tlt_api.runspec import PREPARATION_SECONDS
from tlt_api.status import Progress
from tlt_runner.cancel import Stop
from tlt_runner.cpus import available_cpus

MOST_WORKERS = 32
WINDOW = 4
"""Batches of items in flight for each worker; this bounds the memory."""

MARK_SECONDS = 2.0
MARKS = 10
"""Number of marks, ``MARK_SECONDS`` apart: the speed is that of the last 20 seconds."""

STALLED_SECONDS = 1800
"""The next image is promised within this time: a slow volume or bucket is waited for, not a dead one."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def workers() -> int:
    """Number of threads: the CPUs that this process may use, but not more than :data:`MOST_WORKERS`."""
    return min(available_cpus(), MOST_WORKERS)


class ProgressReporter(Protocol):
    """Receives the progress of a run."""

    def progress(self, progress: Progress) -> None:
        """Take the position of the run. Called for every image."""


class StageProgress:
    """Progress of one stage over the images: position, speed and time left; ends the stage on request.

    Args:
        stage: Its name.
        total: Images in all.
        reporter: Receives the progress; None means nobody.
        stop: Ends the stage when it is set; None means never.
        clock: Seconds.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        reporter: ProgressReporter | None = None,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._total = total
        self._reporter = reporter
        self._stop = stop
        self._clock = clock
        self._done = 0
        # (seconds, images done), the oldest first. The first image sets the first mark: before it come
        # listing and imports, which say nothing about the images to come.
        self._marks: deque[tuple[float, int]] = deque()

    def raise_if_stopped(self) -> None:
        """End the stage if the run is to end.

        Raises:
            InterruptedRunError: The run was asked to stop.
        """
        if self._stop is not None:
            self._stop.raise_if(f"at image {self._done} of {self._total}", stage=self._stage)

    def skip(self, images: int) -> None:
        """Count images that need no work: they are done, and do not count for the speed."""
        self._done += images
        # The marks move with the count, so that skipped images do not look like fast ones.
        self._marks = deque((mark, done + images) for mark, done in self._marks)

    def advance(self) -> None:
        """Count an image, and report."""
        self._done += 1
        if self._reporter is None:
            return
        now = self._clock()
        if not self._marks:
            self._marks.append((now, self._done))
        # A mark every two seconds and not for every image: the window is then of seconds, whatever the speed.
        if now - self._marks[-1][0] >= MARK_SECONDS:
            # One less than done, so that the speed, by which the time left is divided, is never 0.
            self._marks.append((now, self._done - 1))
            if len(self._marks) > MARKS:
                self._marks.popleft()
        # Since the oldest mark and not since the beginning: the time left follows the speed that the run has
        # now.
        since, done_then = self._marks[0]
        # Images come in bursts, several threads at a time: a shorter time says nothing about the speed.
        known = now - since >= MARK_SECONDS and self._done > done_then
        speed = (self._done - done_then) / (now - since) if known else None
        left = self._total - self._done
        self._reporter.progress(
            Progress(
                stage=self._stage,
                step=self._done,
                images_per_second=None if speed is None else round(speed, 2),
                eta_seconds=0 if left <= 0 else None if speed is None else math.ceil(left / speed),
                # After the last image comes what has no steps: files, weights, a model, its compilation.
                next_within_seconds=STALLED_SECONDS if left > 0 else PREPARATION_SECONDS,
            )
        )


def in_order(
    executor: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    progress: StageProgress | None = None,
    batch: int = 1,
) -> Iterator[tuple[Item, Result]]:
    """Yield ``(item, function(item))`` in the items' order, ``WINDOW * workers()`` batches at a time at most.

    Args:
        executor: Runs the function.
        function: The work.
        items: What to work on.
        progress: Its :meth:`StageProgress.raise_if_stopped` is called before each item.
        batch: Items that a thread takes at a time: more than 1 where the work is short (handing over takes
            about 0.1 ms) and its results are small.

    Raises:
        InterruptedRunError: The run was asked to stop.
    """

    # A batch is one task of the executor: handing over each item would cost more than short work itself.
    def work(part: Sequence[Item]) -> list[tuple[Item, Result]]:
        return [(item, function(item)) for item in part]

    pending: deque[Future[list[tuple[Item, Result]]]] = deque()
    limit = WINDOW * workers()
    try:
        for part in _batches(items, batch, progress):
            # Waiting for the oldest batch keeps the results in order, and bounds those that are ready.
            pending.append(executor.submit(work, part))
            if len(pending) >= limit:
                yield from pending.popleft().result()
        # The items are all handed over; what is still in flight follows in order.
        while pending:
            if progress is not None:
                progress.raise_if_stopped()
            yield from pending.popleft().result()
    # Also when the caller stops iterating: work that nobody waits for is not begun.
    finally:
        for future in pending:
            future.cancel()


def _batches(items: Iterable[Item], size: int, progress: StageProgress | None) -> Iterator[list[Item]]:
    part: list[Item] = []
    for item in items:
        if progress is not None:
            progress.raise_if_stopped()
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
