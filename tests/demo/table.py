"""The demo's live table: our resources with the columns that kubectl prints."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import rich.console
import rich.live
import rich.table

from cluster.control_plane import Cluster
from tlt_api.resources import KINDS

FINISHED = ("Succeeded", "Failed")


def fetch(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """Return all resources of our kinds in the namespace, by kind (parents first) and name."""
    # The items of a list come without their kind.
    return [
        {"kind": kind, **item}
        for kind in KINDS
        for item in sorted(cluster.api.list(kind, namespace), key=lambda item: item["metadata"]["name"])
    ]


def is_finished(item: dict[str, Any]) -> bool:
    """Return True if the resource succeeded or failed."""
    return item.get("status", {}).get("phase") in FINISHED


def describe(item: dict[str, Any]) -> tuple[str, str, str, str]:
    """Resource, phase, progress and result of a resource, as text."""
    status = item.get("status", {})
    progress = status.get("progress", {})
    kind = KINDS[item["kind"]]
    parts = [progress["stage"]] if "stage" in progress else []
    if "epochs" in progress:
        parts.append(f"epoch {progress.get('epoch', 0)}/{progress['epochs']}")
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("etaSeconds") and not is_finished(item):
        parts.append(f"{progress['etaSeconds']} s left")
    phase = status.get("phase", "")
    if phase == "Pending":
        reconciling = [c for c in status.get("conditions", []) if c["type"] == "Reconciling"]
        parts = [reconciling[0]["message"]] if reconciling else parts
    return f"{kind.short_name}/{item['metadata']['name']}", phase, ", ".join(parts), _result(status)


def _result(status: dict[str, Any]) -> str:
    if "failure" in status and status.get("phase") in ("Failed", "Retrying"):
        return f"{status['failure']['reason']}: {status['failure'].get('message', '')}"
    parts = []
    if "mAP" in status.get("metrics", {}):
        parts.append(f"mAP {status['metrics']['mAP']:.3f}")
    if "pruning" in status:
        pruning = status["pruning"]
        parts.append(f"{pruning['parametersKept']} of parameters, {pruning['flopsKept']} of FLOPs kept")
    parts += [
        f"{export['precision']} {export['mAP']:.3f} (drop {export.get('mAPDrop', 0):.3f})"
        for export in status.get("exports", ())
        if "mAP" in export
    ]
    return ", ".join(parts)


def summary(resources: list[dict[str, Any]]) -> list[str]:
    """Results and artifacts of every resource, and what a failed one says."""
    lines = []
    for item in resources:
        name, phase, _, result = describe(item)
        lines.append(f"{name}: {phase}. {result}")
        failure = item["status"].get("failure")
        if failure and phase == "Failed":
            lines.append(f"    hint: {failure.get('hint', '')}")
        for artifact in item["status"].get("artifacts", ()):
            size = artifact["sizeBytes"] / 1e6
            lines.append(f"    {artifact['name']:<20} {artifact['uri']} ({size:.1f} MB)")
    return lines


class Live:
    """A table that is redrawn on a terminal; elsewhere a line for every change."""

    def __init__(self) -> None:
        self._console = rich.console.Console(file=sys.stdout)
        self._live = rich.live.Live(console=self._console) if self._console.is_terminal else None
        self._shown: dict[str, tuple[str, ...]] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, resources: list[dict[str, Any]]) -> None:
        """Shows the present state."""
        rows = [describe(item) for item in resources]
        if self._live:
            self._live.update(_drawn(rows), refresh=True)
            return
        for name, *rest in rows:
            if self._shown.get(name) != tuple(rest):
                self._shown[name] = tuple(rest)
                print("  ".join([f"{name:<20}", f"{rest[0]:<10}", *rest[1:]]).rstrip(), flush=True)


def _drawn(rows: list[tuple[str, str, str, str]]) -> rich.table.Table:
    drawn = rich.table.Table("resource", "phase", "progress", "result", box=None, pad_edge=False)
    colours = {"Succeeded": "green", "Failed": "red", "Running": "cyan", "Retrying": "yellow"}
    for name, phase, progress, result in rows:
        drawn.add_row(name, f"[{colours.get(phase, 'white')}]{phase}[/]", progress, result)
    return drawn
