"""Workers ask each other whether to stop: all at the same calls, every few seconds."""

from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np

from tlt_runner.training.distributed.stop import MOST_CALLS, SECONDS_A_QUESTION, Stopping


class Exchange:
    """Two workers in one thread: this one's figures, and those of the other, whose signal is ``other``."""

    several = True
    share = SimpleNamespace(count=2)

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.call = 0
        self.other = False

    def total(self, values: Any) -> Any:
        self.asked.append(self.call)
        stop, seconds = values
        return np.asarray([stop + self.other, 2 * seconds], np.float32)


def answers(
    exchange: Exchange, step_seconds: float, calls: int, pauses: dict[int, float] | None = None
) -> list[bool]:
    """What so many calls say, each a step apart, and some after a pause besides."""

    def clock() -> float:
        before = sum(seconds for call, seconds in (pauses or {}).items() if call <= exchange.call)
        return exchange.call * step_seconds + before

    stopping = Stopping(Event(), exchange, clock)  # type: ignore[arg-type]
    given = []
    for number in range(1, calls + 1):
        exchange.call = number
        given.append(stopping())
    return given


def test_short_steps_are_asked_about_every_few_seconds() -> None:
    exchange = Exchange()
    answers(exchange, 0.25, 200)
    assert exchange.asked[:4] == [1, 3, 7, 15]  # at most twice as many calls as the time before
    assert set(np.diff(exchange.asked)[4:]) == {SECONDS_A_QUESTION / 0.25}


def test_very_short_steps_are_asked_about_before_they_could_become_long() -> None:
    exchange = Exchange()
    answers(exchange, 0.001, 400)
    assert set(np.diff(exchange.asked)[6:]) == {MOST_CALLS}


def test_a_pause_makes_the_next_questions_closer() -> None:
    exchange = Exchange()
    pauses = {60: 100.0}
    answers(exchange, 0.25, 200, pauses=pauses)
    first = next(place for place, call in enumerate(exchange.asked) if call >= 60)
    assert np.diff(exchange.asked)[first : first + 4].tolist() == [1, 2, 4, 8]


def test_long_steps_are_asked_about_each_time() -> None:
    exchange = Exchange()
    answers(exchange, 30, 10)
    assert exchange.asked == list(range(1, 11))


def test_the_signal_of_another_stops_this_one_at_the_next_question() -> None:
    exchange = Exchange()
    exchange.other = True
    assert answers(exchange, 0.25, 4) == [True, False, True, False]


def test_a_single_worker_asks_nobody() -> None:
    stop = Event()
    stopping = Stopping(stop, SimpleNamespace(several=False))  # type: ignore[arg-type]
    before = stopping()
    stop.set()
    assert (before, stopping()) == (False, True)
