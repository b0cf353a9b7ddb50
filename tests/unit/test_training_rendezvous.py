"""Rendezvous of workers: their indices, missing workers, and the end of waiting."""

import itertools
import socket
import threading

import pytest

from tlt_api.failures import Reason
from tlt_runner.cancel import Stop
from tlt_runner.errors import RunnerError
from tlt_runner.training.distributed import rendezvous

NAMES = ["tiny-0.tiny:2222", "tiny-1.tiny:2222"]


@pytest.mark.parametrize(("environment", "index"), [({"JOB_COMPLETION_INDEX": "1"}, 1)])
def test_the_index_of_a_worker_is_that_of_its_pod(environment: dict[str, str], index: int) -> None:
    assert rendezvous.index_of(environment, NAMES) == index


def test_a_single_worker_needs_no_index() -> None:
    assert rendezvous.index_of({}, []) == 0


@pytest.mark.parametrize("text", ["", "2", "-1", "one"])
def test_an_index_of_no_worker_is_refused(text: str) -> None:
    with pytest.raises(RunnerError, match="below 2") as caught:
        rendezvous.index_of({"JOB_COMPLETION_INDEX": text}, NAMES)
    assert caught.value.reason == Reason.INTERNAL


@pytest.mark.parametrize("address", ["tiny-0.tiny", "tiny-0.tiny:", ":2222", "tiny-0.tiny:http"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(RunnerError, match="host:port"):
        rendezvous.split(address)


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def test_a_missing_worker_is_named() -> None:
    workers = [*_free_addresses(1), "nobody.invalid:2222"]
    seconds = itertools.count(step=10.0)
    with pytest.raises(RunnerError, match=r"worker 1 at nobody.invalid:2222 \(no address is known") as caught:
        rendezvous.meet(workers, 0, Stop(), limit=5, clock=lambda: next(seconds))
    assert caught.value.reason == Reason.WORKER_LOST


def test_a_stop_ends_the_wait_for_other_workers() -> None:
    stop = Stop()
    stop.request()
    with pytest.raises(RunnerError) as caught:
        rendezvous.meet(_free_addresses(2), 0, stop)
    assert caught.value.reason == Reason.INTERRUPTED


def test_no_worker_continues_before_all_are_there() -> None:
    workers = _free_addresses(2)
    first = threading.Thread(target=rendezvous.meet, args=(workers, 0, Stop()), daemon=True)
    first.start()
    first.join(0.1)
    assert first.is_alive()
    port = rendezvous.split(workers[1])[1]
    with socket.create_server(("localhost", port)):  # what TensorFlow's server of another would be
        first.join(30)
    assert not first.is_alive()
