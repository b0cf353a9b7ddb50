"""A queue of keys, each at most once, with a delay or a growing backoff where asked.

A key that is added while it is being worked on comes again afterwards, and never to two workers at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

_LONGEST_EXPONENT = 32

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Backoff:
    """Delays after failures: ``base`` doubled each time, up to ``limit`` seconds."""

    base: float = 0.5
    limit: float = 120.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.base * 2.0 ** min(failures - 1, _LONGEST_EXPONENT), self.limit)


class WorkQueue(Generic[Key]):
    """See the module. It belongs to one event loop, whose clock it uses."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._since: dict[Key, float] = {}
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._since)

    def longest_wait(self) -> float:
        """Seconds that the key at the front has waited; 0 for an empty queue."""
        return self._loop.time() - min(self._since.values()) if self._since else 0.0

    def add(self, key: Key) -> None:
        """Let the key be worked on soon."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self._loop.time()
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Let the key be worked on after a delay, unless it is sooner for another reason."""
        if seconds <= 0:
            self.add(key)
            return
        timer = self._timers.get(key)
        if timer is None or timer.when() > self._loop.time() + seconds:
            self._cancel(key)
            self._timers[key] = self._loop.call_later(seconds, self._due, key)

    def retry(self, key: Key, at_least: float = 0.0) -> float:
        """Let the key be worked on again after a failure; the delay in seconds, which grows each time."""
        self._failures[key] = self._failures.get(key, 0) + 1
        seconds = max(self._backoff.delay(self._failures[key]), at_least)
        self.add_after(key, seconds)
        return seconds

    def forget_failures(self, key: Key) -> None:
        """The key was worked on successfully: the next failure starts with the shortest delay."""
        self._failures.pop(key, None)

    async def get(self) -> tuple[Key, float]:
        """The next key, and how many seconds it has waited. Follow up with :meth:`done`."""
        key = await self._ready.get()
        waited = self._loop.time() - self._since.pop(key)
        self._active.add(key)
        # The worker decides anew when the key is due: a delay from an earlier reconciliation is obsolete.
        self._cancel(key)
        return key, waited

    def done(self, key: Key) -> None:
        """The key is no longer worked on."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Cancel all delays."""
        for key in list(self._timers):
            self._cancel(key)

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)

    def _cancel(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer:
            timer.cancel()
