"""Brings what watchers write to the output address: now and then, and without ever ending a training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage, join

SHORTEST_SECONDS = 60.0
SHARE = 0.01
"""Of the time so far, that passes at least between two shipments: their number grows with its logarithm."""
_MOST_DOUBLINGS = 6

log = logging.getLogger(__name__)


class Shipping:
    """One watcher's way to the output address.

    Args:
        storage: Where to publish.
        folder_uri: Address below which the files go.
        clock: Monotonic seconds.
    """

    def __init__(self, storage: Storage, folder_uri: str, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._folder = folder_uri
        self._clock = clock
        self._began = clock()
        self._last: float | None = None
        self._in_a_row = 0
        self.failures = 0

    def due(self) -> bool:
        """Whether it is time for a shipment: the first one at once, after failures with growing waits."""
        if self._last is None:
            return True
        now = self._clock()
        wait = max(SHORTEST_SECONDS, SHARE * (now - self._began))
        return now - self._last >= wait * 2 ** min(self._in_a_row, _MOST_DOUBLINGS)

    def publish(self, local: Path, name: str) -> bool:
        """Publish a file, or say why it could not be; True where it is there."""
        uri = join(self._folder, name)
        try:
            self._storage.publish(local, uri)
        except RunnerError as error:
            self._failed(uri, error)
            return False
        self._last, self._in_a_row = self._clock(), 0
        return True

    def read(self, name: str) -> bytes | None:
        """What is at the address, empty where nothing is; None, and why, where that cannot be known."""
        uri = join(self._folder, name)
        try:
            return self._storage.fetch(uri).read_bytes()
        except NotFoundError:
            return b""
        except (RunnerError, OSError) as error:
            self._failed(uri, error)
            return None

    def _failed(self, uri: str, error: Exception) -> None:
        self.failures += 1
        self._in_a_row += 1
        self._last = self._clock()
        log.warning("%s: not written (failure %d); training goes on: %s", uri, self.failures, error)
