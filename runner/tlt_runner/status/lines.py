"""Reports as lines for people: what ``kubectl logs`` and the log of a local run show."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import singledispatch

from tlt_api.base import StatusModel
from tlt_api.status import (
    AnchorsStatus,
    Artifact,
    DatasetStatus,
    ExportStatus,
    Metrics,
    PretrainedStatus,
    Progress,
    PruningStatus,
)

INTERVAL = timedelta(seconds=10)


class ProgressLines:
    """Print progress when stage or epoch changes, and otherwise every ten seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._stage_and_epoch: tuple[str | None, int | None] | None = None
        self._last: datetime | None = None

    def progress(self, progress: Progress, now: datetime) -> None:
        """Print a line of progress if stage or epoch changed or ten seconds have passed."""
        stage_and_epoch = (progress.stage, progress.epoch)
        due = self._last is None or now - self._last >= INTERVAL
        if stage_and_epoch != self._stage_and_epoch or due:
            # A new stage or epoch is always shown, so that a log of short epochs has a line for each.
            self._stage_and_epoch, self._last = stage_and_epoch, now
            # A run that has just started says only when it will report.
            if line := progress_line(progress):
                self._say(line)


def progress_line(progress: Progress) -> str:
    """Return progress as one line, without the fields that are not known."""
    epoch = f"epoch {progress.epoch}" if progress.epoch is not None else None
    if epoch and progress.epochs is not None:
        epoch += f"/{progress.epochs}"
    step = _labelled("step", progress.step, "d")
    if step and progress.steps is not None:
        step += f"/{progress.steps}"
    # A figure that is not known yet leaves no gap in the line.
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


@singledispatch
def line(section: StatusModel) -> str:
    """Return a section of a report as one line of text; every type of section has a function below."""
    raise TypeError(f"expected a section with a line of text, got {type(section).__name__}")


@line.register
def _(dataset: DatasetStatus) -> str:
    classes = ", ".join(f"{item.name} {item.objects}" for item in dataset.classes or ())
    # Said only where there are some.
    counts = {
        "images without a label, taken as background": dataset.unlabelled_images,
        "images no part of it": dataset.unlisted_images,
    }
    others = "".join(f", {count} {name}" for name, count in counts.items() if count)
    page = f"; {dataset.warnings or 0} warnings, see {dataset.report_uri}" if dataset.report_uri else ""
    conventions = (("coordinates", dataset.coordinates), ("orientation", dataset.orientation))
    read = "".join(
        f"; {name} {item.value} by {item.decided_by} ({item.evidence})" for name, item in conventions if item
    )
    found = f"; found: {dataset.layout}" if dataset.layout else ""
    return (
        f"data set: {dataset.images} images ({dataset.training_images} to train on, "
        f"{dataset.validation_images} to validate on), {dataset.objects} objects, "
        f"{dataset.skipped or 0} images skipped, {dataset.dropped_objects or 0} objects dropped"
        f"{others}; "
        f"by class: {classes or 'not known'}{found}{read}{page}"
    )


@line.register
def _(anchors: AnchorsStatus) -> str:
    scales, ratios = (
        ", ".join(f"{value:g}" for value in values) for values in (anchors.scales, anchors.ratios)
    )
    gaps = ", ".join(
        f"{gap.missed} of {gap.objects} {gap.name} of {gap.size} to {2 * gap.size} pixels"
        for gap in anchors.gaps or ()
    )
    return (
        f"anchors chosen from the data: scales {scales}, ratios {ratios}; they fit {anchors.recall:.1%} of "
        f"the training boxes with IoU >= 0.5 where these lie, those of the spec {anchors.default_recall:.1%}"
        + (f"; none fits {gaps}" if gaps else "")
    )


@line.register
def _(pretrained: PretrainedStatus) -> str:
    matched, missing, mismatched = (
        f"{part.layers} layers ({part.parameters:.1%} of the parameters)"
        for part in (pretrained.matched, pretrained.missing, pretrained.mismatched)
    )
    names = ", ".join(pretrained.not_loaded or ())
    return (
        f"pretrained weights of {pretrained.origin}: {matched} matched, {missing} missing, "
        f"{mismatched} mismatched" + (f"; random weights: {names}" if names else "")
    )


@line.register
def _(metrics: Metrics) -> str:
    classes = ", ".join(
        f"{item.name} {_number(item.average_precision, '.4f')}" for item in metrics.per_class or ()
    )
    epoch = f" at epoch {metrics.epoch}" if metrics.epoch is not None else ""
    interval = metrics.interval
    range_text = f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    best = ""
    if metrics.f1 is not None and metrics.best_threshold is not None:
        best = f"; best F1 {metrics.f1:.4f} at score {metrics.best_threshold:g}"
    return f"mAP {_number(metrics.m_ap, '.4f')}{range_text}{epoch}{best}; by class: {classes or 'not known'}"


@line.register
def _(pruning: PruningStatus) -> str:
    return (
        f"pruned: {pruning.parameters_before:,} -> {pruning.parameters_after:,} parameters "
        f"({pruning.parameters_kept}), "
        f"{pruning.flops_before:,} -> {pruning.flops_after:,} FLOPs ({pruning.flops_kept})"
    )


@line.register
def _(export: ExportStatus) -> str:
    return (
        f"exported {export.precision}: mAP {_number(export.m_ap, '.4f')}, "
        f"drop {_number(export.m_ap_drop, '.4f')}, "
        f"largest score error {_number(export.max_abs_error, '.2g')}"
        + (f"; lost {export.comparison}" if export.comparison else "")
        + (f"; not compared: {export.not_compared}" if export.not_compared else "")
    )


@line.register
def _(artifact: Artifact) -> str:
    size = f"{artifact.size_bytes:,} bytes"
    return f"artifact {artifact.name}: {artifact.uri} ({size}, sha256 {artifact.sha256})"


def duration(seconds: int) -> str:
    """Return a number of seconds as kubectl writes an age: ``45s``, ``3m20s``, ``2h5m``, ``3d4h``."""
    minutes, rest = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    pairs = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    # Two units at most: of days nobody wants seconds.
    shown = [f"{value}{unit}" for value, unit in pairs if value]
    return "".join(shown[:2]) or "0s"


def _labelled(name: str, value: float | None, form: str) -> str | None:
    return None if value is None else f"{name} {value:{form}}"


def _number(value: float | None, form: str) -> str:
    return "not known" if value is None else f"{value:{form}}"
