"""Decorators for tests that are coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from operator_ring.memory_kube import Body, MemoryKube
from tlt_operator.snapshot import Key

Scenario = Callable[[MemoryKube], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> Callable[[], None]:
    """Return a test that runs a coroutine with a new cluster in memory."""

    def test() -> None:
        asyncio.run(scenario(MemoryKube()))

    test.__name__ = scenario.__name__
    return test


def in_a_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Return a test that runs a coroutine."""

    def test() -> None:
        asyncio.run(scenario())

    test.__name__ = scenario.__name__
    return test


def condition(cluster: MemoryKube, key: Key, type_: str) -> Body:
    """Return a condition of a resource's status."""
    return next(item for item in cluster.status(key)["conditions"] if item["type"] == type_)
