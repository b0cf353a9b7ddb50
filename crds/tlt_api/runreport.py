"""RunReport: results of the runner, which reach the resource's status in two ways.

While the runner runs, it applies the report to the status of its own resource. When it ends, it writes the
report once more, shortened to Kubernetes' 4,096 bytes, as the container's termination message: nothing is
lost while the API server is away.
"""

from __future__ import annotations

import json
from typing import Any, Self

from tlt_api.base import StatusModel
from tlt_api.status import EPOCH_PREFIX, Failure, RunnerStatus, field_of

TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes of a termination message that the kubelet keeps; it cuts the rest off, and the JSON with it."""


class RunReport(RunnerStatus):
    """Part of the status that the runner writes. Absent fields are not known yet, or do not apply."""

    failure: Failure | None = None
    """Failure of a run that ended without success; in the termination message only."""

    def to_status(self) -> dict[str, Any]:
        """Return the fields that the runner applies to its resource's status."""
        # status.failure is the operator's: it alone sees how the pod ended.
        return {key: value for key, value in self.to_wire().items() if key != "failure"}

    def with_section(self, section: StatusModel) -> Self:
        """Return the report with a section set.

        In a list (artifacts, exports) it replaces the item with the same key in its position, or is appended.
        """
        field = field_of(type(section))
        key = getattr(section, "list_key", None)
        if key is None:
            return self.model_copy(update={field: section})
        # A dict keeps the position of a key whose value is replaced.
        by_key = {getattr(item, key): item for item in getattr(self, field) or ()}
        items = list({**by_key, getattr(section, key): section}.values())
        return self.model_copy(update={field: items})._with_derived_figures()

    def without_artifact(self, name: str) -> Self:
        """Return the report without an artifact."""
        remaining = [item for item in self.artifacts or () if item.name != name]
        return self.model_copy(update={"artifacts": remaining})

    def _with_derived_figures(self) -> Self:
        scores = [item.m_ap for item in self.exports or () if item.m_ap is not None]
        drops = [item.m_ap_drop for item in self.exports or () if item.m_ap_drop is not None]
        # Printer columns cannot compute: the figures over all exports stand in fields of their own.
        figures = {"lowest_m_ap": min(scores, default=None), "largest_drop": max(drops, default=None)}
        return self.model_copy(update=figures)


def to_termination_message(report: RunReport, limit: int = TERMINATION_MESSAGE_LIMIT) -> str:
    """Return the report as JSON of at most ``limit`` bytes.

    The longest parts that are available elsewhere go first: per-class lists, then the texts of a failure
    are cut, then everything but failure, metrics and artifacts, then the checkpoints of epochs, then all but
    a cut failure.
    """
    for attempt in _shorter_and_shorter(report):
        text = attempt.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= limit:
            return text
    raise ValueError(f"a report of {len(text.encode())} bytes cannot be shortened to {limit}")


def _shorter_and_shorter(report: RunReport) -> list[RunReport]:
    # The per-class lists have up to 500 entries each (MOST_CLASSES of tlt_api.dataset); names of layers, of
    # classes that anchors miss, and warnings are fewer.
    no_classes = report.model_copy(
        update={
            "dataset": report.dataset
            and report.dataset.model_copy(update={"classes": None, "first_warnings": None}),
            "metrics": report.metrics and report.metrics.model_copy(update={"per_class": None}),
            "anchors": report.anchors and report.anchors.model_copy(update={"gaps": None}),
            "pretrained": report.pretrained and report.pretrained.model_copy(update={"not_loaded": None}),
        }
    )
    # Texts of any length (the error of a library, a long list of files) are kept in their beginning.
    cut = no_classes.model_copy(update={"failure": _with_cut_texts(report.failure, 1500)})
    # What others wait for: the operator for the failure, dependants for the artifacts.
    core = RunReport(failure=cut.failure, metrics=cut.metrics, artifacts=cut.artifacts)
    # Checkpoints of epochs are many; no resource can refer to them.
    lasting = [item for item in cut.artifacts or () if not item.name.startswith(EPOCH_PREFIX)]
    few = core.model_copy(update={"artifacts": lasting or None})
    return [report, no_classes, cut, core, few, RunReport(failure=cut.failure)]


def _with_cut_texts(failure: Failure | None, limit: int) -> Failure | None:
    if failure is None:
        return None
    texts = {"message": _cut(failure.message, limit), "hint": _cut(failure.hint, limit // 3)}
    return failure.model_copy(update=texts)


def _cut(text: str, limit: int) -> str:
    """Cut a text to ``limit`` bytes as it stands in JSON (where a control character takes six)."""
    if len(json.dumps(text, ensure_ascii=False).encode()) <= limit:
        return text
    # A binary search, since the length in JSON of a part of the text is not known in advance.
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        short = json.dumps(text[:middle] + "...", ensure_ascii=False).encode(errors="replace")
        low, high = (middle, high) if len(short) <= limit else (low, middle - 1)
    return text[:low] + "..."
