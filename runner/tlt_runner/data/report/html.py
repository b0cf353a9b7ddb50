"""Render the dataset report as one HTML page (dataset-report.html): no scripts, nothing loaded.

Preparation writes it beside dataset-report.json. Names of files and classes come from strangers: the template
(page.html.jinja) escapes every text, control characters included.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlt_api.model import Anchors
from tlt_runner.data import anchor_grid
from tlt_runner.data.formats import names
from tlt_runner.data.report import anchor_fit, charts
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.data.report.thumbnails import Thumbnail, thumbnails

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render", "thumbnails"]
SHOWN = 200
"""Rows of a table at most; the report's JSON has more of them."""
_LONGEST = 1_000
"""Characters of a text at most."""
_FINDINGS_SHOWN = 6
"""Findings below a picture at most."""


def render(
    report: DatasetReport,
    anchors: Anchors | None,
    fits: Sequence[anchor_fit.Fit],
    pictures: Sequence[Thumbnail],
) -> str:
    """Render the page.

    Args:
        report: The report of a preparation.
        anchors: The anchors to draw among the objects' sizes; None if they are not known.
        fits: Objects that these anchors fit.
        pictures: Pictures of the worst images.
    """
    from markupsafe import Markup

    # Everything is computed here: the template only lays it out.
    return _template().render(
        report=report,
        anchors=anchors,
        pictures=pictures,
        headline=_headline(report),
        conventions=_conventions(report),
        left_out=_left_out(report),
        unmapped=_by_count(report.unmapped_classes),
        unmapped_lines=sum(report.unmapped_classes.values()),
        source_classes=_by_count(report.source_classes),
        unusual=_unusual(report),
        # The charts escape their texts themselves.
        class_histogram=Markup(charts.class_histogram(report.classes)),
        size_histogram=Markup(
            charts.size_histogram(report.box_sizes, None if anchors is None or anchors.auto else anchors)
        ),
        fits=fits,
        suited=sum(fit.found for fit in fits) / sum(fit.objects for fit in fits) if fits else None,
        good_overlap=anchor_grid.FITS,
        stride=anchor_grid.STRIDE,
        colours={"grey": charts.GREY, "blue": charts.BLUE, "amber": charts.AMBER, "red": charts.RED},
        shown=SHOWN,
        findings_shown=_FINDINGS_SHOWN,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        # The template lies beside this module and is part of the package.
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # Every text that the template prints passes through it, so that none can be forgotten.
        finalize=_cut_and_escaped,
        # A misspelt name fails, instead of a page with a hole in it.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Its alphabet needs no escapes, and a picture is not to be cut.
    environment.filters["base64"] = lambda data: Markup(base64.b64encode(data).decode())
    return environment.get_template("page.html.jinja")


def _cut_and_escaped(value: Any) -> Any:
    """Cut a text, and escape its control characters and lone surrogates; markup and numbers stay."""
    # Markup is made here (charts, pictures) and escapes its own texts.
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    cut = value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
    return names.printable(cut)


def _headline(report: DatasetReport) -> list[tuple[str, str, bool]]:
    """List the figures at the top: name, value, and True for a figure that points to a problem."""
    left_out = sum(report.skipped_by_problem.values())
    dropped = sum(report.dropped_by_problem.values())
    bad_share = f"{report.bad_images / max(1, report.images):.1%}"
    return [
        ("images found", f"{report.images:,}", False),
        ("to train on", f"{report.training_images:,}", False),
        ("to validate on", f"{report.validation_images:,}", False),
        ("images left out", f"{left_out:,}", left_out > 0),
        ("images with problems", bad_share, report.bad_images > 0),
        ("label lines", f"{report.lines:,}", False),
        ("objects", f"{report.objects:,}", False),
        ("lines dropped as wrong", f"{dropped:,}", dropped > 0),
        ("of a class not mapped", f"{sum(report.unmapped_classes.values()):,}", False),
        ("ignored regions", f"{report.ignored_regions:,}", False),
        ("images without a label", f"{report.unlabelled_images:,}", False),
        ("boxes cut at the edge", f"{report.clipped_boxes:,}", False),
        ("labels without image", f"{report.labels_without_image:,}", report.labels_without_image > 0),
    ]


def _conventions(report: DatasetReport) -> list[str]:
    """Write a sentence for each convention of the labels, with what decided it."""
    decided = {"coordinates": report.coordinates, "orientation": report.orientation}
    found = [] if report.layout is None else [f"layout auto found {report.layout}"]
    return found + [
        f"{name}: {item.value}, by {item.decided_by} ({item.evidence})"
        for name, item in decided.items()
        if item is not None
    ]


def _left_out(report: DatasetReport) -> list[tuple[str, int, list[tuple[str, int]], Sequence[Any]]]:
    """List the sections about data left out: title, count, counts by problem, findings."""
    by_problem = [
        ("images left out", report.skipped_by_problem, report.skipped),
        ("label lines dropped", report.dropped_by_problem, report.dropped),
        ("label files and entries that cannot be used", report.label_problems, report.label_findings),
    ]
    sections: list[tuple[str, int, list[tuple[str, int]], Sequence[Any]]] = [
        (title, sum(counts.values()), _by_count(counts), findings) for title, counts, findings in by_problem
    ]
    # Of these there is one problem only, so no counts by problem.
    sections.insert(2, ("labels without image", report.labels_without_image, [], report.orphans))
    return [section for section in sections if section[3]]


def _unusual(report: DatasetReport) -> list[tuple[str, int, Sequence[str]]]:
    """List the kinds of unusual images: title, number, names of the images."""
    kinds = [
        *((str(oddity), report.odd_images[oddity], names) for oddity, names in report.odd.items()),
        ("validation images that are training images, too", report.leaked_images, report.leaked),
        ("duplicate training images", report.duplicate_images, report.duplicates),
        ("without a label, taken as images without objects", report.unlabelled_images, report.unlabelled),
        ("listed by no label file, no part of the data set", report.outside_images, report.outside),
    ]
    return [kind for kind in kinds if kind[1]]


def _by_count(counts: Mapping[Any, int]) -> list[tuple[str, int]]:
    """Sort names with their counts, the most frequent first."""
    return sorted(
        ((str(name), count) for name, count in counts.items()), key=lambda item: (-item[1], item[0])
    )
