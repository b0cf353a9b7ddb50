"""Event loop in simulated time: hours pass in a moment, and always in the same way."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class SimulatedTime(asyncio.SelectorEventLoop):
    """Event loop that waits for nothing: its clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__(_Impatient(self))
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class _Impatient(selectors.SelectSelector):
    def __init__(self, loop: SimulatedTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for something that never comes"
        self._loop.now += max(timeout, 0)
        return super().select(0)
