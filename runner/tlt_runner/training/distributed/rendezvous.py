"""Rendezvous of the workers of a training before TensorFlow starts: none begins until all are there.

Called by :mod:`tlt_runner.training.distributed.workers`. TensorFlow's own start blocks without a limit and
without naming the missing worker; pods of one Job may start minutes apart, because the image was not on every
node. So each worker listens on its own port and connects to the others' until all have answered.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from tlt_api.failures import Reason
from tlt_runner.cancel import Stop
from tlt_runner.errors import RunnerError

log = logging.getLogger(__name__)

INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
"""Environment variable with the index of a pod of an indexed Job, set by Kubernetes."""
LIMIT_SECONDS = 900.0
"""Limit of waiting for the others: longer than pulling an image of several GB takes."""
_CONNECT_SECONDS = 2.0
_PAUSE_SECONDS = 0.5
_LOG_SECONDS = 30.0


def index_of(environment: Mapping[str, str], workers: Sequence[str]) -> int:
    """Read the index of this worker from the environment.

    Raises:
        RunnerError: Internal when it is no index of ``workers``.
    """
    # A run of one pod is no indexed Job and has no list of workers.
    if not workers:
        return 0
    text = environment.get(INDEX_VARIABLE, "")
    if not text.isdigit() or int(text) >= len(workers):
        raise RunnerError(
            Reason.INTERNAL,
            f"{INDEX_VARIABLE}: expected a number below {len(workers)}, the workers of the run, got {text!r}",
            "A run of several nodes is an indexed Job; start it as the operator does.",
        )
    return int(text)


def split(address: str) -> tuple[str, int]:
    """Split ``host:port`` into host and port.

    Raises:
        RunnerError: Internal.
    """
    # The last colon: an IPv6 address has others.
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise RunnerError(Reason.INTERNAL, f"workers: expected host:port, got {address!r}")
    return host, int(port)


def meet(
    workers: Sequence[str],
    index: int,
    stop: Stop,
    limit: float = LIMIT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until every other worker answers; its port is free for TensorFlow afterwards.

    Args:
        workers: ``host:port`` of all, by index.
        index: Index of this worker.
        stop: Ends the wait.
        limit: Seconds to wait.
        clock: Monotonic seconds.

    Raises:
        RunnerError: WorkerLost naming the missing workers and the reason; Interrupted.
    """
    missing = {number: "" for number in range(len(workers)) if number != index}
    began = logged = clock()
    # Once all have answered, TensorFlow's server takes the port over and answers those that still ask.
    with _listening(split(workers[index])[1]):
        while missing:
            # A worker that answered once is not asked again: it may have closed its port for TensorFlow's.
            for number in list(missing):
                problem = _connection_problem(workers[number])
                if problem is None:
                    del missing[number]
                else:
                    missing[number] = problem
            stop.raise_if("while waiting for the other workers")
            # Fail instead of waiting for ever: the pods that are there hold GPUs.
            if missing and clock() - began > limit:
                raise RunnerError(
                    Reason.WORKER_LOST, f"after {limit:.0f} s there is no {_names(workers, missing)}"
                )
            if missing and clock() - logged > _LOG_SECONDS:
                logged = clock()
                log.info("waiting for %s", _names(workers, missing))
            if missing:
                time.sleep(_PAUSE_SECONDS)
    log.info("all %d workers are there; this is worker %d", len(workers), index)


def _names(workers: Sequence[str], missing: Mapping[int, str]) -> str:
    return "; ".join(f"worker {number} at {workers[number]} ({why})" for number, why in missing.items())


def _listening(port: int) -> socket.socket:
    """Open a socket that others can connect to; nothing is sent over it."""
    # Addresses of pods are IPv4 or IPv6, as the cluster is.
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=128, dualstack_ipv6=dual)


def _connection_problem(address: str) -> str | None:
    """Connect to a worker; return the problem, or None where it answers."""
    # Closed at once: that the connection was made is the whole message.
    host, port = split(address)
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    # The DNS names a pod only from its start on.
    except socket.gaierror:
        return f"no address is known for {host}"
    except OSError as error:
        return str(error.strerror or error)
    return None
