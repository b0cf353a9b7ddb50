"""Publishes what callbacks write: from time to time, and without ever ending a training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage, join

MIN_INTERVAL_SECONDS = 60.0
MIN_INTERVAL_FRACTION = 0.01
"""Minimum upload interval as a fraction of elapsed time: the number of uploads grows with its logarithm."""
_MAX_DOUBLINGS = 6

log = logging.getLogger(__name__)


class Uploader:
    """Publishes files of one callback below an address.

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
        self._last_attempt: float | None = None
        self._failures_in_a_row = 0
        self.failures = 0

    def due(self) -> bool:
        """Return whether an upload is due: the first one at once; failures double the interval."""
        # Nothing was tried yet.
        if self._last_attempt is None:
            return True
        now = self._clock()
        interval = max(MIN_INTERVAL_SECONDS, MIN_INTERVAL_FRACTION * (now - self._began))
        # Counted from the last attempt, so that a storage that is gone is not asked at every step.
        return now - self._last_attempt >= interval * 2 ** min(self._failures_in_a_row, _MAX_DOUBLINGS)

    def publish(self, local: Path, name: str) -> bool:
        """Publish a file, or log why it could not be. Returns whether it is published."""
        uri = join(self._folder, name)
        # Storage that fails must not end a training: the same files are tried again later.
        try:
            self._storage.publish(local, uri)
        except RunnerError as error:
            self._failed(uri, error)
            return False
        self._last_attempt, self._failures_in_a_row = self._clock(), 0
        return True

    def read(self, name: str) -> bytes | None:
        """Read a published file: empty where there is none; None, and a warning, if unreadable."""
        uri = join(self._folder, name)
        try:
            return self._storage.fetch(uri).read_bytes()
        # The first attempt of a run.
        except NotFoundError:
            return b""
        # Not the same as empty: the file may have lines that must not be overwritten.
        except (RunnerError, OSError) as error:
            self._failed(uri, error)
            return None

    def _failed(self, uri: str, error: Exception) -> None:
        self.failures += 1
        self._failures_in_a_row += 1
        self._last_attempt = self._clock()
        log.warning("%s not written (failure %d); training continues: %s", uri, self.failures, error)
