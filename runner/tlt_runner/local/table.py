"""Resources as tables: the columns of ``kubectl get``, and the artifacts with their paths here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tlt_api.model import Model
from tlt_api.resources import Column, Resource
from tlt_api.status import AnchorsStatus, Phase
from tlt_runner.local.state import Folders, body_of
from tlt_runner.status.lines import duration, progress_line

Row = list[str]


def by_kind(resources: Sequence[Resource], now: datetime) -> list[list[Row]]:
    """One table a kind, each with a header row, as ``kubectl get`` prints them."""
    kinds = list(dict.fromkeys(item.kind.name for item in resources))
    return [_table([item for item in resources if item.kind.name == kind], now) for kind in kinds]


def _table(resources: Sequence[Resource], now: datetime) -> list[Row]:
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
        value = value.get(part) if isinstance(value, dict) else None
    if value is None or value == "":
        return ""
    if column.type == "date":
        return duration(int((now - datetime.fromisoformat(value)).total_seconds()))
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def artifacts(resources: Sequence[Resource], folders: Folders) -> list[Row]:
    """Every artifact: whose, which, where, how large."""
    rows = [
        [item.key, made.name, str(folders.path_of(made.uri) or made.uri), f"{made.size_bytes:,}"]
        for item in resources
        for made in item.status.artifacts or ()
    ]
    return [["RESOURCE", "ARTIFACT", "PATH", "BYTES"], *rows] if rows else []


def live(resources: Sequence[Resource]) -> list[Row]:
    """The table while the flow runs: phase, and what there is to say."""
    return [
        ["RESOURCE", "PHASE", "PROGRESS"],
        *([item.key, item.status.phase or Phase.PENDING, what_now(item)] for item in resources),
    ]


def what_now(resource: Resource) -> str:
    """Progress of what runs, the result of what succeeded, the reason of what did not."""
    status = resource.status
    if status.phase == Phase.RUNNING:
        known = result(resource)
        line = progress_line(status.progress) if status.progress else "starting"
        return f"{line}; so far {known}" if known else line
    if status.phase == Phase.SUCCEEDED:
        return result(resource)
    if status.failure:
        return f"{status.failure.reason}: {status.failure.message}"
    ready = next((item for item in status.conditions if item.type == "Ready"), None)
    return ready.message if ready else ""


def share_done(resource: Resource) -> float | None:
    """How much of its training is done, 0 to 1; None where it does not train, or that is not known."""
    progress = resource.status.progress
    if resource.status.phase != Phase.RUNNING or progress is None or not progress.epochs:
        return None
    within = (progress.step or 0) / progress.steps if progress.steps else 0.0
    return min(1.0, ((progress.epoch or 0) + within) / progress.epochs)


def result(resource: Resource) -> str:
    """The figure that the kind is about."""
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


def anchors(model: Model, fitted: AnchorsStatus) -> list[Row]:
    """The anchors of a spec and those that were fitted to its data, and how well both fit."""
    foreground = f"RECALL@{model.proposals.max_overlap:g}"
    given = model.anchors
    before = (fitted.default_recall, fitted.default_foreground_recall, fitted.default_mean_overlap)
    after = (fitted.recall, fitted.foreground_recall, fitted.mean_overlap)
    return [
        ["ANCHORS", "SCALES", "RATIOS", "RECALL@0.5", foreground, "MEAN IOU"],
        ["spec", numbers(given.scales), numbers(given.ratios), *(f"{figure:.4f}" for figure in before)],
        ["proposed", numbers(fitted.scales), numbers(fitted.ratios), *(f"{figure:.4f}" for figure in after)],
    ]


def numbers(values: Sequence[float]) -> str:
    """Numbers as a manifest lists them."""
    return ", ".join(f"{value:g}" for value in values)


def aligned(rows: Sequence[Row]) -> list[str]:
    """Rows as text, columns aligned, three spaces between."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
