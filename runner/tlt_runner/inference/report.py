"""The report of an inference: ``inference-report.json``, and its summary for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tlt_api.base import StatusModel
from tlt_runner.data.report.report import NAMED_IN_ERROR, ReportedFinding
from tlt_runner.data.sample import Oddity, Problem

REPORT = "inference-report.json"


class InferenceReport(StatusModel):
    """The outcome of every entry of a folder of images."""

    model: str
    """The model, as given."""
    model_sha256: str
    """SHA-256 of the model file."""
    images_folder: str
    """The folder of images, as given."""
    score: float | None = None
    """Lowest score of a detection that is drawn and listed. Absent where each class has its own."""
    class_scores: dict[str, float] = {}
    """Lowest score of a detection of each class, where the model's own thresholds were used: those at which
    F1 was best in its evaluation."""
    whole: bool = False
    """True if all images were processed; False after an interruption."""
    images: int = 0
    """Image files found, used or not."""
    inferred_images: int = 0
    """Images that went through the model."""
    images_without_detections: int = 0
    """Inferred images without any detection."""
    odd_images: dict[Oddity, int] = {}
    """Inferred images with unusual properties, by property. Boxes are in the pixels of the copy: an image
    with an EXIF orientation is turned for the model and in its copy if the model was trained on turned images
    (TurnedUpright), else in neither (Turned)."""
    detections: dict[str, int] = {}
    """Detections by class."""
    clipped_boxes: int = 0
    """Boxes of detections that were cut at the image's edge."""
    outside_boxes: int = 0
    """Detections left out because they lie in the padding of a letterbox."""
    label_names: dict[str, str] = {}
    """Class -> name in the label files, if it differs. Such names have no spaces, which separate columns."""
    skipped_by_problem: dict[Problem, int] = {}
    """Number of images left out, by problem."""
    skipped: list[ReportedFinding] = []
    """Images left out, each with its reason."""
    other_files: list[str] = []
    """Entries of the folder that are no images, and were not read; a hidden folder is one entry."""
    left_alone: list[str] = []
    """Files of the output folder that no inference has made: the results of these names were not written."""
    leftover: list[str] = []
    """Files of an earlier inference that still exist and that this one has not made again."""
    files: dict[str, str] = {}
    """Every file that this or an earlier inference has made here, with its SHA-256."""


def summary(report: InferenceReport, output: Path) -> list[str]:
    """Return the lines printed at the end."""
    by_class = ", ".join(f"{name} {count}" for name, count in report.detections.items())
    lines = [
        f"{report.inferred_images} of {report.images} images, {sum(report.detections.values())} detections "
        f"with score >= {_lowest_scores(report)} ({by_class})"
    ]
    if report.skipped:
        lines.append(f"images left out: {len(report.skipped)} ({named(report.skipped)})")
    if report.other_files:
        lines.append(f"entries that are no images, and were not read: {len(report.other_files)}")
    if report.left_alone:
        first = ", ".join(report.left_alone[:NAMED_IN_ERROR])
        lines.append(
            "results not written, because files that no inference has made are in their place: "
            f"{len(report.left_alone)} ({first}{', ...' if len(report.left_alone) > NAMED_IN_ERROR else ''})"
        )
    if report.leftover:
        lines.append(f"files of an earlier inference that are still there: {len(report.leftover)}")
    return [*lines, f"report: {output / REPORT}"]


def _lowest_scores(report: InferenceReport) -> str:
    if report.score is not None:
        return f"{report.score:g}"
    return "the model's thresholds: " + ", ".join(f"{n} {s:g}" for n, s in report.class_scores.items())


def named(skipped: Sequence[ReportedFinding]) -> str:
    """Return the first ten images left out, with reasons."""
    text = "; ".join(f"{item.file}: {item.problem}: {item.message}" for item in skipped[:NAMED_IN_ERROR])
    more = len(skipped) - NAMED_IN_ERROR
    return f"{text}; and {more} more" if more > 0 else text
