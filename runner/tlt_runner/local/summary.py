"""What a local run prints at its end: the columns of ``kubectl get``, the artifacts, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from tlt_api.common import JobSpec
from tlt_api.resources import Resource
from tlt_api.status import AnchorsStatus, Phase
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner import exits
from tlt_runner.local import table
from tlt_runner.local.child import Ended
from tlt_runner.local.state import Folders
from tlt_runner.status import lines as report_lines


def lines(
    resources: Sequence[Resource], folders: Folders, logs: Mapping[str, Path], now: datetime
) -> list[str]:
    """The end of a flow.

    Args:
        resources: As they ended.
        folders: Where artifacts are.
        logs: The log of each resource that ran, by ``Kind/name``.
        now: For ages.
    """
    tables = [table.aligned(rows) for rows in table.by_kind(resources, now)]
    made = table.artifacts(resources, folders)
    if made:
        tables.append(table.aligned(made))
    failures = [text for item in resources for text in _failure(item, logs.get(item.key))]
    blocks = [*tables, failures] if failures else tables
    return [line for block in blocks for line in ("", *block)]


def _failure(resource: Resource, log: Path | None) -> list[str]:
    failure = resource.status.failure
    if failure is None:
        return []
    text = [exits.paragraph(resource.key, failure)]
    if log is not None:
        text.append(f"  Its log: {log}")
    if resource.status.phase == Phase.SUSPENDED:
        text.append("  The same command goes on from the last checkpoint.")
    elif failure.retryable:
        text.append("  A local run does not retry by itself; the same command makes a further attempt.")
    return text


def of_part(resource: Resource, ended: Ended) -> list[str]:
    """The end of a command that is not the whole of a resource: what it found, or why it failed."""
    found = ended.report
    said = [
        *([report_lines.line(found.dataset)] if found.dataset else ()),
        *(_anchors(resource.spec, found.anchors) if found.anchors else ()),
        *([report_lines.line(found.metrics)] if found.metrics else ()),
        *(report_lines.line(item) for item in found.artifacts or ()),
    ]
    failure = [exits.paragraph(resource.key, ended.failure)] if ended.failure else []
    return [*said, *failure, f"log: {ended.log}"]


def _anchors(spec: JobSpec, fitted: AnchorsStatus) -> list[str]:
    """Fitted anchors beside the spec's, and what to write into the manifest."""
    if not isinstance(spec, TrainingJobSpec):
        return []
    compared = ["", *table.aligned(table.anchors(spec.model, fitted)), ""]
    given = spec.model.anchors
    if (fitted.scales, fitted.ratios) == (given.scales, given.ratios):
        return [*compared, "No better ones were found.", ""]
    return [
        *compared,
        "spec:",
        "  model:",
        "    anchors:",
        f"      scales: [{table.numbers(fitted.scales)}]",
        f"      ratios: [{table.numbers(fitted.ratios)}]",
        "",
    ]
