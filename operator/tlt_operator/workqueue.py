"""Queue of keys, each at most once, with a delay or a growing backoff on request; some go first.

A key that is added while it is being worked on comes again afterwards, and never to two workers at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

_LONGEST_EXPONENT = 32
"""Limit of doublings: 2.0 ** 1024 would overflow after enough failures."""

KeyType = TypeVar("KeyType", bound=Hashable)


@dataclass(frozen=True)
class Backoff:
    """Backoff after failures: ``base`` doubled each time, up to ``limit`` seconds."""

    base: float = 0.5
    limit: float = 120.0

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after this number of failures in a row."""
        return min(self.base * 2.0 ** min(failures - 1, _LONGEST_EXPONENT), self.limit)


class WorkQueue(Generic[KeyType]):
    """Queue of keys in one event loop, whose clock it uses."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._loop = asyncio.get_running_loop()
        self._is_paused = False
        self._first: deque[KeyType] = deque()
        self._ready: deque[KeyType] = deque()
        self._count = asyncio.Semaphore(0)
        # Keys in the queue, with the time at which they were added.
        self._since: dict[KeyType, float] = {}
        # Keys that a worker has, and those of them that were added meanwhile.
        self._active: set[KeyType] = set()
        self._again: set[KeyType] = set()
        self._timers: dict[KeyType, asyncio.TimerHandle] = {}
        self._failures: dict[KeyType, int] = {}
        # Time until which a key is held.
        self._held: dict[KeyType, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def longest_wait(self) -> float:
        """Return the seconds that the key at the front has waited; 0 for an empty queue."""
        return self._loop.time() - min(self._since.values()) if self._since else 0.0

    @property
    def is_paused(self) -> bool:
        """True while keys are dropped, because nobody works."""
        return self._is_paused

    def pause(self) -> None:
        """Drop all keys until :meth:`resume`: nobody works."""
        self._is_paused = True

    def resume(self, keys: Iterable[KeyType]) -> None:
        """Begin with these keys, which stand for all that were dropped."""
        self._is_paused = False
        for key in keys:
            self.add(key)

    def hold(self, key: KeyType, seconds: float) -> None:
        """Let a key wait for this time whoever adds it."""
        now = self._loop.time()
        # Those of keys that nobody adds any more, as of deleted resources, would add up.
        self._held = {held: until for held, until in self._held.items() if until > now}
        self._held[key] = now + seconds

    def add(self, key: KeyType, first: bool = False) -> None:
        """Queue a key, a ``first`` one before others; one that is being worked on comes again afterwards."""
        # Not kept: an operator may stand by for months, and the names of deleted resources would add up.
        if self._is_paused:
            return
        if key in self._held:
            left = self._held[key] - self._loop.time()
            if left > 0:
                self.add_after(key, left)
                return
            del self._held[key]
        # The worker may have read before this change: it is not enough that the key is being worked on.
        if key in self._active:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self._loop.time()
            (self._first if first else self._ready).append(key)
            self._count.release()

    def add_after(self, key: KeyType, seconds: float) -> None:
        """Queue a key after a delay, unless an earlier delay ends sooner."""
        if seconds <= 0:
            self.add(key)
            return
        timer = self._timers.get(key)
        # The sooner of two wishes counts: a look too early costs a read, one too late is a delay that people
        # see.
        if timer is None or timer.when() > self._loop.time() + seconds:
            self._cancel(key)
            self._timers[key] = self._loop.call_later(seconds, self._due, key)

    def retry(self, key: KeyType, at_least: float = 0.0) -> float:
        """Queue a key again after a failure; return the delay in seconds, which grows each time."""
        self._failures[key] = self._failures.get(key, 0) + 1
        seconds = max(self._backoff.delay(self._failures[key]), at_least)
        self.add_after(key, seconds)
        return seconds

    def forget_failures(self, key: KeyType) -> None:
        """Forget the failures of a key after a success: the next one starts with the shortest delay."""
        self._failures.pop(key, None)

    async def get(self) -> tuple[KeyType, float]:
        """Take the next key; return it and the seconds that it has waited. Call :meth:`done` afterwards."""
        await self._count.acquire()
        key = (self._first or self._ready).popleft()
        waited = self._loop.time() - self._since.pop(key)
        self._active.add(key)
        # The worker decides anew when the key is due: a delay from an earlier reconciliation is obsolete.
        self._cancel(key)
        return key, waited

    def done(self, key: KeyType) -> None:
        """Give a key back after the work on it."""
        self._active.discard(key)
        # It goes to the end of the queue: a key that changes all the time must not keep the others waiting.
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Cancel all delays."""
        for key in list(self._timers):
            self._cancel(key)

    def _due(self, key: KeyType) -> None:
        del self._timers[key]
        self.add(key)

    def _cancel(self, key: KeyType) -> None:
        timer = self._timers.pop(key, None)
        if timer:
            timer.cancel()
