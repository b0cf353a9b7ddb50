"""Metrics of the operator, for Prometheus; the process, ``__main__``, serves them on ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from tlt_operator.cluster.client import ApiError, ConflictError, RefusedError

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Limits of the histograms' buckets, in seconds."""

RECONCILE_SECONDS = Histogram(
    "tlt_operator_reconcile_seconds", "Duration of one reconciliation, requests included", buckets=_SHORT
)
RECONCILES = Counter("tlt_operator_reconciles_total", "Reconciliations by outcome", ["outcome"])
# The gauges QUEUE_DEPTH and RESOURCES are set when they are read.
QUEUE_DEPTH = Gauge("tlt_operator_queue_depth", "Resources that wait for a worker")
QUEUE_WAIT_SECONDS = Histogram(
    "tlt_operator_queue_wait_seconds", "Time that a resource waited for a worker", buckets=_SHORT
)
API_REQUESTS = Counter(
    "tlt_operator_api_requests_total",
    "Requests to the API server, those of watches included; code 0 is no answer",
    ["verb", "resource", "code"],
)
API_SECONDS = Histogram(
    "tlt_operator_api_request_seconds",
    "Time from a request to the headers of its answer",
    ["verb", "resource"],
    buckets=_SHORT,
)
LEADER = Gauge("tlt_leader", "1 for the operator that works, 0 for one that stands by")
# Set when it is read, as QUEUE_DEPTH is.
WATCH_AGE_SECONDS = Gauge(
    "tlt_operator_watch_age_seconds",
    "Time since a watch was last opened with success, or reported something",
    ["resource", "namespace"],
)
WATCH_REFUSED = Gauge(
    "tlt_operator_watch_refused",
    "1 for a watch of Jobs or pods that is not allowed",
    ["resource", "namespace"],
)
LOOP_LAG_SECONDS = Gauge(
    "tlt_operator_loop_lag_seconds", "Time by which the event loop was late for a timer, once a second"
)
WRITES = Counter("tlt_operator_writes_total", "Writes to the API server", ["kind", "what", "outcome"])
REWRITES = Counter(
    "tlt_operator_rewrites_total", "Statuses written again because somebody else had changed them", ["kind"]
)
ATTEMPTS = Counter("tlt_attempts_total", "Attempts started", ["kind"])
FAILURES = Counter("tlt_failures_total", "Attempts and resources that failed", ["kind", "reason"])
RESOURCES = Gauge("tlt_resources", "Resources by phase", ["kind", "phase"])
MISSED = Counter(
    "tlt_operator_missed_events_total", "Changes that a sweep found before the watch reported them"
)
UNLISTED = Counter(
    "tlt_operator_failed_lists_total",
    "Lists of our kinds that failed",
    ["kind", "namespace"],
)


@contextmanager
def write(kind: str, what: str) -> Iterator[None]:
    """Count a write for a resource of a kind by its outcome."""
    outcome = "ok"
    try:
        yield
    # From the narrowest class to the widest: both are ApiErrors as well.
    except ConflictError:
        outcome = "conflict"
        raise
    except RefusedError:
        outcome = "refused"
        raise
    except ApiError:
        outcome = "error"
        raise
    finally:
        WRITES.labels(kind, what, outcome).inc()
