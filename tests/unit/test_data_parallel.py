"""Bounded, ordered work, and how many workers a pod may use."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tlt_api.failures import Reason
from tlt_runner.data import parallel
from tlt_runner.data.parallel import Meter, in_order, workers
from tlt_runner.errors import RunnerError


def test_results_come_in_order_and_no_more_than_a_window_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    window = parallel.WINDOW * workers()
    with ThreadPoolExecutor(2) as threads:
        for place, (item, square) in enumerate(in_order(threads, lambda number: number**2, items())):
            assert (item, square) == (place, place**2)
            assert taken <= place + window


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with ThreadPoolExecutor(2) as threads, pytest.raises(ZeroDivisionError):
        list(in_order(threads, lambda number: 1 // number, [1, 0, 1]))


@pytest.mark.parametrize(
    ("limit", "most"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_pod_limit_lowers_the_number_of_workers(tmp_path: Path, limit: str, most: int | None) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    unlimited = workers(tmp_path / "missing")
    assert workers(tmp_path / "cpu.max") == (unlimited if most is None else most)


def test_a_stop_raises_interrupted_with_the_place() -> None:
    stop = Event()
    meter = Meter("convert", 10, None, stop)
    meter.advance()
    meter.check()
    stop.set()
    with pytest.raises(RunnerError, match="image 1 of 10") as caught:
        meter.check()
    assert caught.value.reason == Reason.INTERRUPTED
