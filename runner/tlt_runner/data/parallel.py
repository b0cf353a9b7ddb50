"""Work on many files at once: bounded window, results in order, progress told, stopped when asked."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from threading import Event
from typing import TypeVar

from tlt_api.status import Progress
from tlt_runner.context import Reporter
from tlt_runner.errors import InterruptedRunError

MOST_WORKERS = 32
WINDOW = 4
"""Batches of items in flight for each worker: what bounds the memory."""

MARK_SECONDS = 2.0
MARKS = 10
"""The speed is that of the last 20 seconds."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def workers(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Threads to use: the cores that this process may run on, or fewer where the pod's CPU limit is lower."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, or "max": no limit
    return max(1, min(cores, MOST_WORKERS))


def in_order(
    executor: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    check: Callable[[], None] = lambda: None,
    batch: int = 1,
) -> Iterator[tuple[Item, Result]]:
    """``(item, function(item))`` in the items' order, at most ``WINDOW * workers()`` batches at a time.

    Args:
        executor: Runs the function.
        function: The work.
        items: What to work on.
        check: Called before each item; raises to stop.
        batch: Items that a thread takes at a time: more than 1 where the work is short (handing over takes
            about 0.1 ms) and its results are small.
    """

    def work(taken: Sequence[Item]) -> list[tuple[Item, Result]]:
        return [(item, function(item)) for item in taken]

    pending: deque[Future[list[tuple[Item, Result]]]] = deque()
    limit = WINDOW * workers()
    try:
        for taken in _batches(items, batch, check):
            pending.append(executor.submit(work, taken))
            if len(pending) >= limit:
                yield from pending.popleft().result()
        while pending:
            check()
            yield from pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _batches(items: Iterable[Item], size: int, check: Callable[[], None]) -> Iterator[list[Item]]:
    taken: list[Item] = []
    for item in items:
        check()
        taken.append(item)
        if len(taken) == size:
            yield taken
            taken = []
    if taken:
        yield taken


class Meter:
    """Progress of a stage: how far, how fast lately, how long still.

    Args:
        stage: Its name.
        total: Images in all.
        reporter: Is told; None means nobody.
        stop: When it is set, :meth:`check` raises.
        clock: Seconds.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        reporter: Reporter | None,
        stop: Event | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._total = total
        self._reporter = reporter
        self._stop = stop
        self._clock = clock
        self._done = 0
        self._marks = deque([(clock(), 0)])

    def skip(self, images: int) -> None:
        """So many images need no work: they are done, and say nothing of the speed."""
        self._done += images
        self._marks = deque((mark, done + images) for mark, done in self._marks)

    def advance(self) -> None:
        """One image is done."""
        self._done += 1
        if self._reporter is None:
            return
        now = self._clock()
        if now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, self._done - 1))
            if len(self._marks) > MARKS:
                self._marks.popleft()
        since, done_then = self._marks[0]
        speed = (self._done - done_then) / max(now - since, 1e-6)
        self._reporter.progress(
            Progress(
                stage=self._stage,
                step=self._done,
                images_per_second=round(speed, 2),
                eta_seconds=math.ceil((self._total - self._done) / speed),
            )
        )

    def check(self) -> None:
        """Raise when the run is to stop.

        Raises:
            InterruptedRunError: The run was asked to stop.
        """
        if self._stop is not None and self._stop.is_set():
            raise InterruptedRunError(f"{self._stage}: stopped at image {self._done} of {self._total}")
