"""The RunReport as it grows. Both reporters share it, so a status looks the same with and without a cluster.

A task calls the methods of :class:`tlt_runner.context.Reporter` from any thread; a subclass decides when
and where the whole report goes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from tlt_api.runreport import RunReport
from tlt_api.status import (
    AnchorsStatus,
    Artifact,
    DatasetStatus,
    ExportStatus,
    Metrics,
    Progress,
    PruningStatus,
)
from tlt_runner.status import lines

Clock = Callable[[], datetime]
log = logging.getLogger("tlt.status")


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def timestamp(time: datetime) -> str:
    """A time as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class AccumulatingReporter(ABC):
    """Merges what a task reports into one RunReport. Thread-safe."""

    def __init__(self, now: Clock = utc_now) -> None:
        self._now = now
        self._lock = RLock()
        self._report = RunReport()
        self._lines = lines.ProgressLines(self._say)

    def progress(self, progress: Progress) -> None:
        """Where the run is; ``lastUpdateTime`` is set here."""
        now = self._now()
        stamped = progress.model_copy(update={"last_update_time": timestamp(now)})
        self._update(urgent=False, progress=stamped)
        self._lines.progress(stamped, now)

    def dataset(self, dataset: DatasetStatus) -> None:
        """What preparation found."""
        self._update(dataset=dataset)
        self._say(lines.dataset(dataset))

    def anchors(self, anchors: AnchorsStatus) -> None:
        """The anchors that were chosen from the data."""
        self._update(anchors=anchors)
        self._say(lines.anchors(anchors))

    def metrics(self, metrics: Metrics) -> None:
        """Evaluation of the best model so far."""
        self._update(metrics=metrics)
        self._say(lines.metrics(metrics))

    def pruning(self, pruning: PruningStatus) -> None:
        """What pruning did."""
        self._update(pruning=pruning)
        self._say(lines.pruning(pruning))

    def exports(self, exports: list[ExportStatus]) -> None:
        """What was exported so far; the lowest mAP and the largest drop are derived."""
        scores = [item.m_ap for item in exports if item.m_ap is not None]
        drops = [item.m_ap_drop for item in exports if item.m_ap_drop is not None]
        self._update(
            exports=list(exports),
            lowest_m_ap=min(scores, default=None),
            largest_drop=max(drops, default=None),
        )
        for item in exports:
            self._say(lines.export(item))

    def artifact(self, artifact: Artifact) -> None:
        """A whole file; an artifact of the same name is replaced, in its place."""
        with self._lock:
            by_name = {item.name: item for item in self._report.artifacts or ()}
            self._update(artifacts=list({**by_name, artifact.name: artifact}.values()))
        self._say(lines.artifact(artifact))

    def removed(self, name: str) -> None:
        """An artifact that will not be there any more."""
        with self._lock:
            left = [item for item in self._report.artifacts or () if item.name != name]
            self._update(artifacts=left)
        self._say(f"artifact {name}: removed")

    def snapshot(self) -> RunReport:
        """The report as it is now; waits for nobody, as it is asked for when the run is ended at once."""
        return self._report

    @abstractmethod
    def close(self, timeout: float) -> bool:
        """Bring out what has not been yet, within so many seconds; False where that failed."""

    @abstractmethod
    def _changed(self, *, urgent: bool) -> None:
        """There is something new. Returns at once: training does not wait for a report."""

    def _update(self, *, urgent: bool = True, **fields: Any) -> None:
        with self._lock:
            self._report = self._report.model_copy(update=fields)
        self._changed(urgent=urgent)

    def _say(self, text: str) -> None:
        log.info("%s", text)
