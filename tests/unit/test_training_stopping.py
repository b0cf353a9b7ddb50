"""Workers agree on a stop: all at the same calls, every few seconds."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from tlt_runner.cancel import Stop
from tlt_runner.training.distributed.stop import MAX_CALLS, SYNCHRONISATION_SECONDS, StopAgreement


class Exchange:
    """Two workers in one thread: this one's figures, and those of the other, whose signal is ``other``."""

    several = True
    worker_slice = SimpleNamespace(count=2)

    def __init__(self) -> None:
        self.synchronised: list[int] = []
        self.call = 0
        self.other = False

    def total(self, values: Any) -> Any:
        self.synchronised.append(self.call)
        stop, seconds = values
        return np.asarray([stop + self.other, 2 * seconds], np.float32)


def answers(
    exchange: Exchange, step_seconds: float, calls: int, pauses: dict[int, float] | None = None
) -> list[bool]:
    """Answers of ``calls`` calls, each a step apart, some after a pause."""

    def clock() -> float:
        before = sum(seconds for call, seconds in (pauses or {}).items() if call <= exchange.call)
        return exchange.call * step_seconds + before

    agreement = StopAgreement(Stop(), exchange, clock)  # type: ignore[arg-type]
    given = []
    for number in range(1, calls + 1):
        exchange.call = number
        given.append(agreement.requested())
    return given


def test_workers_with_short_steps_synchronise_every_few_seconds() -> None:
    exchange = Exchange()
    answers(exchange, 0.25, 200)
    assert exchange.synchronised[:4] == [1, 3, 7, 15]  # at most twice as many calls as the time before
    assert set(np.diff(exchange.synchronised)[4:]) == {SYNCHRONISATION_SECONDS / 0.25}


def test_workers_with_very_short_steps_synchronise_after_a_maximum_of_calls() -> None:
    exchange = Exchange()
    answers(exchange, 0.001, 400)
    assert set(np.diff(exchange.synchronised)[6:]) == {MAX_CALLS}


def test_a_pause_shortens_the_next_intervals() -> None:
    exchange = Exchange()
    pauses = {60: 100.0}
    answers(exchange, 0.25, 200, pauses=pauses)
    first = next(index for index, call in enumerate(exchange.synchronised) if call >= 60)
    assert np.diff(exchange.synchronised)[first : first + 4].tolist() == [1, 2, 4, 8]


def test_workers_with_long_steps_synchronise_at_every_step() -> None:
    exchange = Exchange()
    answers(exchange, 30, 10)
    assert exchange.synchronised == list(range(1, 11))


def test_the_stop_of_another_worker_stops_this_one_at_the_next_synchronisation() -> None:
    exchange = Exchange()
    exchange.other = True
    assert answers(exchange, 0.25, 4) == [True, False, True, False]


def test_a_single_worker_does_not_synchronise() -> None:
    stop = Stop()
    agreement = StopAgreement(stop, SimpleNamespace(several=False))  # type: ignore[arg-type]
    before = agreement.requested()
    stop.request()
    assert (before, agreement.requested()) == (False, True)
