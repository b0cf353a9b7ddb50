"""Reports as lines for people: what ``kubectl logs`` and the log of a local run show."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from tlt_api.status import (
    AnchorsStatus,
    Artifact,
    DatasetStatus,
    ExportStatus,
    Metrics,
    Progress,
    PruningStatus,
)

INTERVAL = timedelta(seconds=10)


class ProgressLines:
    """Says progress when stage or epoch changes, and otherwise every ten seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._place: tuple[str | None, int | None] | None = None
        self._last: datetime | None = None

    def progress(self, progress: Progress, now: datetime) -> None:
        """Say it, or not."""
        place = (progress.stage, progress.epoch)
        due = self._last is None or now - self._last >= INTERVAL
        if place != self._place or due:
            self._place, self._last = place, now
            self._say(progress_line(progress))


def progress_line(progress: Progress) -> str:
    """One line; what is not known is left out."""
    epoch = f"epoch {progress.epoch}" if progress.epoch is not None else None
    if epoch and progress.epochs is not None:
        epoch += f"/{progress.epochs}"
    step = _labelled("step", progress.step, "d")
    if step and progress.steps is not None:
        step += f"/{progress.steps}"
    parts = [
        progress.stage,
        epoch,
        step,
        _labelled("loss", progress.loss, ".4g"),
        _labelled("learning rate", progress.learning_rate, ".3g"),
        f"{progress.images_per_second:.1f} images/s" if progress.images_per_second is not None else None,
        f"{duration(progress.eta_seconds)} to go" if progress.eta_seconds is not None else None,
    ]
    return ", ".join(part for part in parts if part)


def dataset(found: DatasetStatus) -> str:
    """What preparation found."""
    classes = ", ".join(f"{item.name} {item.objects}" for item in found.classes or ())
    page = f"; {found.warnings or 0} warnings, see {found.report_uri}" if found.report_uri else ""
    return (
        f"data set: {found.images} images ({found.training_images} to train on, {found.validation_images} to "
        f"validate on), {found.objects} objects, {found.skipped or 0} images skipped, "
        f"{found.dropped_objects or 0} objects dropped; by class: {classes or 'not known'}{page}"
    )


def anchors(chosen: AnchorsStatus) -> str:
    """Anchors chosen from the data."""
    scales, ratios = (
        ", ".join(f"{value:g}" for value in values) for values in (chosen.scales, chosen.ratios)
    )
    return (
        f"anchors chosen from the data: scales {scales}, ratios {ratios}; they fit {chosen.recall:.1%} of "
        f"the training boxes with IoU >= 0.5, those of the spec {chosen.default_recall:.1%}"
    )


def metrics(found: Metrics) -> str:
    """An evaluation."""
    classes = ", ".join(
        f"{item.name} {_number(item.average_precision, '.4f')}" for item in found.per_class or ()
    )
    epoch = f" at epoch {found.epoch}" if found.epoch is not None else ""
    return f"mAP {_number(found.m_ap, '.4f')}{epoch}; by class: {classes or 'not known'}"


def pruning(done: PruningStatus) -> str:
    """What pruning did."""
    return (
        f"pruned: {done.parameters_before:,} -> {done.parameters_after:,} parameters "
        f"({done.parameters_kept}), "
        f"{done.flops_before:,} -> {done.flops_after:,} FLOPs ({done.flops_kept})"
    )


def export(done: ExportStatus) -> str:
    """One exported precision."""
    return (
        f"exported {done.precision}: mAP {_number(done.m_ap, '.4f')}, drop {_number(done.m_ap_drop, '.4f')}, "
        f"largest score error {_number(done.max_abs_error, '.2g')}"
    )


def artifact(made: Artifact) -> str:
    """A file that was made."""
    return f"artifact {made.name}: {made.uri} ({made.size_bytes:,} bytes, sha256 {made.sha256})"


def duration(seconds: int) -> str:
    """Seconds as kubectl writes an age: ``45s``, ``3m20s``, ``2h5m``, ``3d4h``."""
    minutes, rest = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    pairs = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    shown = [f"{value}{unit}" for value, unit in pairs if value]
    return "".join(shown[:2]) or "0s"


def _labelled(name: str, value: float | None, form: str) -> str | None:
    return None if value is None else f"{name} {value:{form}}"


def _number(value: float | None, form: str) -> str:
    return "not known" if value is None else f"{value:{form}}"
