"""Texts and tables of a local run, while it runs and at its end.

Tables have the columns of ``kubectl get``; artifacts are listed with their paths on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tlt_api.common import JobSpec
from tlt_api.model import Model
from tlt_api.resources import Column, Resource
from tlt_api.runreport import RunReport
from tlt_api.status import AnchorsStatus, DatasetStatus, Phase
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner import exits
from tlt_runner.local.child import Ended
from tlt_runner.local.state import Folders, body_of
from tlt_runner.status import lines
from tlt_runner.status.lines import duration, progress_line

Row = list[str]


def of_flow(
    resources: Sequence[Resource], folders: Folders, logs: Mapping[str, Path], now: datetime
) -> list[str]:
    """Return the lines at the end of a flow: tables of resources and artifacts, failures and what to do next.

    Args:
        resources: The resources, as they ended.
        folders: Folders of the local run.
        logs: ``Kind/name`` -> log, of the resources that ran.
        now: The time, for ages.
    """
    tables = [*by_kind(resources, now), artifacts(resources, folders)]
    failures = [line for item in resources for line in _failure(item, logs.get(item.key))]
    # Blocks without content are dropped; each of the others begins with an empty line.
    blocks = [*(aligned(rows) for rows in tables if rows), failures]
    return [line for block in blocks if block for line in ("", *block)]


def _failure(resource: Resource, log: Path | None) -> list[str]:
    failure = resource.status.failure
    if failure is None:
        return []
    # In a cluster the operator would retry; here the next command does what it would have done.
    texts = [exits.paragraph(resource.key, failure)]
    if log is not None:
        texts.append(f"  Its log: {log}")
    if resource.status.phase == Phase.SUSPENDED:
        texts.append("  The same command goes on from the last checkpoint.")
    elif failure.retryable:
        texts.append("  A local run does not retry by itself; the same command makes a further attempt.")
    return texts


def by_kind(resources: Sequence[Resource], now: datetime) -> list[list[Row]]:
    """Return one table a kind, each with a header row, as ``kubectl get`` prints them."""
    # In the order in which the resources run.
    kinds = list(dict.fromkeys(item.kind.name for item in resources))
    return [_table([item for item in resources if item.kind.name == kind], now) for kind in kinds]


def _table(resources: Sequence[Resource], now: datetime) -> list[Row]:
    # The reason is among the columns of `kubectl get -o wide`; here it is shown as soon as one has failed.
    failed = any(item.status.failure for item in resources)
    columns = [
        column
        for column in resources[0].kind.columns
        if not column.wide or (failed and column.name == "Reason")
    ]
    header = ["NAME", *(column.name.upper() for column in columns)]
    return [
        header,
        *([item.name, *(_cell(body_of(item), column, now) for column in columns)] for item in resources),
    ]


def _cell(body: dict[str, Any], column: Column, now: datetime) -> str:
    value: Any = body
    for part in column.path.lstrip(".").split("."):
        # Absent parts are empty cells, as kubectl shows them.
        value = value.get(part) if isinstance(value, dict) else None
    if value is None or value == "":
        return ""
    # Like kubectl: an age instead of a time.
    if column.type == "date":
        return duration(int((now - datetime.fromisoformat(value)).total_seconds()))
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def artifacts(resources: Sequence[Resource], folders: Folders) -> list[Row]:
    """Return a table of all artifacts and dataset reports: resource, name, path, size; empty without any."""
    rows = [*_dataset_reports(resources, folders)]
    rows += [
        [
            item.key,
            artifact.name,
            # The path is what one opens on this machine; an object in a bucket has its address only.
            str(folders.path_of(artifact.uri) or artifact.uri),
            f"{artifact.size_bytes:,}",
        ]
        for item in resources
        for artifact in item.status.artifacts or ()
    ]
    return [["RESOURCE", "ARTIFACT", "PATH", "BYTES"], *rows] if rows else []


def _dataset_reports(resources: Sequence[Resource], folders: Folders) -> list[Row]:
    rows = []
    for item in resources:
        dataset = RunReport.model_validate(item.status.to_wire()).dataset
        if dataset and dataset.report_uri:
            path = folders.path_of(dataset.report_uri)
            size = f"{path.stat().st_size:,}" if path is not None and path.is_file() else ""
            rows.append([item.key, "dataset report", str(path or dataset.report_uri), size])
    return rows


def of_part(resource: Resource, ended: Ended) -> list[str]:
    """Return the lines at the end of a command that does a part of a resource's work."""
    report = ended.report
    results = [
        *([lines.line(report.dataset), *_warnings(report.dataset)] if report.dataset else ()),
        *(_anchors(resource.spec, report.anchors) if report.anchors else ()),
        *([lines.line(report.pretrained)] if report.pretrained else ()),
        *([lines.line(report.metrics)] if report.metrics else ()),
        *(lines.line(item) for item in report.artifacts or ()),
    ]
    failure = [exits.paragraph(resource.key, ended.failure)] if ended.failure else []
    return [*results, *failure, f"log: {ended.log}"]


def _anchors(spec: JobSpec, fitted: AnchorsStatus) -> list[str]:
    """Compare the proposed anchors with the spec's, and show what to write into the manifest."""
    if not isinstance(spec, TrainingJobSpec):
        return []
    compared = ["", *aligned(anchors(spec.model, fitted)), "", *_gaps(fitted)]
    given = spec.model.anchors
    # Clustering keeps the spec's anchors where it finds none with a larger mean IoU.
    if (fitted.scales, fitted.ratios) == (given.scales, given.ratios):
        return [*compared, "No better ones were found.", ""]
    return [
        *compared,
        "spec:",
        "  model:",
        "    anchors:",
        f"      scales: [{numbers(fitted.scales)}]",
        f"      ratios: [{numbers(fitted.ratios)}]",
        "",
    ]


def anchors(model: Model, fitted: AnchorsStatus) -> list[Row]:
    """Return a table of the spec's anchors and of the proposed ones, with how well both fit the objects."""
    foreground = f"RECALL@{model.proposals.max_overlap:g}"
    given = model.anchors
    before = (fitted.default_recall, fitted.default_foreground_recall, fitted.default_mean_overlap)
    after = (fitted.recall, fitted.foreground_recall, fitted.mean_overlap)
    return [
        ["ANCHORS", "SCALES", "RATIOS", "RECALL@0.5", foreground, "MEAN IOU"],
        ["spec", numbers(given.scales), numbers(given.ratios), *(f"{figure:.4f}" for figure in before)],
        ["proposed", numbers(fitted.scales), numbers(fitted.ratios), *(f"{figure:.4f}" for figure in after)],
    ]


def _gaps(fitted: AnchorsStatus) -> list[str]:
    """List the classes and sizes with objects that none of the proposed anchors fits."""
    if not fitted.gaps:
        return []
    rows = [
        [gap.name, f"{gap.size} to {2 * gap.size} px", str(gap.objects), str(gap.missed)]
        for gap in fitted.gaps
    ]
    return [*aligned([["CLASS", "SIZE", "OBJECTS", "WITHOUT AN ANCHOR"], *rows]), ""]


def numbers(values: Sequence[float]) -> str:
    """Return numbers as a manifest lists them."""
    return ", ".join(f"{value:g}" for value in values)


def aligned(rows: Sequence[Row]) -> list[str]:
    """Return rows as text, with columns aligned and three spaces between them."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def live(resources: Sequence[Resource]) -> list[Row]:
    """Return the table while the flow runs: resource, phase, progress."""
    return [
        ["RESOURCE", "PHASE", "PROGRESS"],
        *([item.key, item.status.phase or Phase.PENDING, activity(item)] for item in resources),
    ]


def activity(resource: Resource) -> str:
    """Return progress while a resource runs, its result if it succeeded, else the reason."""
    status = resource.status
    if status.phase == Phase.RUNNING:
        best = result(resource)
        # The first report of a run says only when the next one is due.
        line = (progress_line(status.progress) if status.progress else "") or "starting"
        return f"{line}; so far {best}" if best else line
    if status.phase == Phase.SUCCEEDED:
        return result(resource)
    if status.failure:
        return f"{status.failure.reason}: {status.failure.message}"
    # Ready carries the reason of every state.
    ready = next((item for item in status.conditions if item.type == "Ready"), None)
    return ready.message if ready else ""


def sections(resource: Resource) -> dict[str, list[str]]:
    """Return what a resource has reported apart from progress, as lines for each section that is there."""
    status = RunReport.model_validate(resource.status.to_wire())
    result: dict[str, list[str]] = {}
    if status.dataset:
        result["dataset"] = [lines.line(status.dataset), *_warnings(status.dataset)]
    if status.anchors:
        result["anchors"] = [lines.line(status.anchors)]
    if status.pretrained:
        result["pretrained"] = [lines.line(status.pretrained)]
    if status.metrics and status.metrics.m_ap is not None:
        epoch = f" after epoch {status.metrics.epoch}" if status.metrics.epoch is not None else ""
        result["metrics"] = [f"best mAP so far {status.metrics.m_ap:.4f}{epoch}"]
    for export in status.exports or ():
        result[f"export {export.precision}"] = [lines.line(export)]
    return result


def _warnings(dataset: DatasetStatus) -> list[str]:
    first = dataset.first_warnings or []
    more = (dataset.warnings or 0) - len(first)
    rest = [f"warning: and {more} more in the dataset report"] if more > 0 and first else []
    return [*(f"warning: {text}" for text in first), *rest]


def share_done(resource: Resource) -> float | None:
    """Return the share of a running training that is done, 0 to 1; None if it is not known."""
    progress = resource.status.progress
    if resource.status.phase != Phase.RUNNING or progress is None or not progress.epochs:
        return None
    # epoch counts the finished ones, so the steps of the running one are added.
    within = (progress.step or 0) / progress.steps if progress.steps else 0.0
    return min(1.0, ((progress.epoch or 0) + within) / progress.epochs)


def result(resource: Resource) -> str:
    """Return the main figure of a resource's kind: mAP, parameters kept or lowest mAP."""
    # By field name: each kind has one of these figures, and the others have no such field.
    status = resource.status.to_wire()
    texts = [
        ("mAP", (status.get("metrics") or {}).get("mAP")),
        ("parameters kept", (status.get("pruning") or {}).get("parametersKept")),
        ("lowest mAP", status.get("lowestMAP")),
    ]
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in texts
        if value is not None
    )
