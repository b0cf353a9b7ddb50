"""Draw the charts of the dataset report as inline SVG: objects by class, objects' sizes with the anchors.

Called by the page (:mod:`tlt_runner.data.report.html`), whose style sets the colours by class. The colours
given here hold for a chart that is taken out of the page. Drawn without matplotlib: ADR 12.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from tlt_api.model import Anchors
from tlt_runner.data.formats.names import printable
from tlt_runner.data.report.report import ReportedClass, ReportedSize

BLUE, AMBER, RED, GREY = "#2f6fb2", "#e0a030", "#c8372d", "#dde3ea"
_CLASSES_DRAWN = 60
_ROW, _LABEL, _BAR = 34, 200, 480
_PLOT, _MARGIN = 420, 52


def class_histogram(classes: Sequence[ReportedClass]) -> str:
    """Draw bars for every class, training above validation; classes with most objects first."""
    # Ties by name, so that the page has the same bytes for the same data.
    ordered = sorted(classes, key=lambda item: (-item.training - item.validation, item.name))
    drawn = ordered[:_CLASSES_DRAWN]
    # "or 1": a bar of nothing needs no division by nothing.
    most = max((max(item.training, item.validation) for item in drawn), default=0) or 1
    rows = []
    for row, item in enumerate(drawn):
        y = row * _ROW
        rows.append(f'<text x="{_LABEL - 8}" y="{y + 19}" text-anchor="end">{_short(item.name)}</text>')
        for offset, kind, colour, count in (
            (2, "training", BLUE, item.training),
            (15, "validation", AMBER, item.validation),
        ):
            width = count / most * _BAR
            rows.append(
                f'<rect class="{kind}" fill="{colour}" x="{_LABEL}" y="{y + offset}" width="{width:.1f}" '
                f'height="12"/>'
                f'<text class="count" x="{_LABEL + width + 5:.1f}" y="{y + offset + 10}">{count:,}</text>'
            )
    height = max(1, len(drawn)) * _ROW
    more = len(ordered) - len(drawn)
    # A data set of a thousand classes would make a page of bars.
    note = f"<p>and {more} classes with fewer objects</p>" if more > 0 else ""
    return (
        f'<svg class="classes" role="img" aria-label="objects by class" '
        f'viewBox="0 0 {_LABEL + _BAR + 80} {height}">{"".join(rows)}</svg>{note}'
    )


def size_histogram(sizes: Sequence[ReportedSize], anchors: Anchors | None) -> str:
    """Draw a histogram of widths (across) and heights (up), both logarithmic; rings are anchors."""
    # None stands for anchors that are still to be fitted to the data (auto).
    shapes = anchors.shapes() if anchors is not None else []
    if not sizes:
        return "<p>no objects</p>"
    # Both axes have one range, so that squares look like squares; anchors outside of the data widen it.
    edges = [math.log2(value) for size in sizes for value in (size.width, size.height)]
    edges += [math.log2(max(1.0, value)) for shape in shapes for value in shape]
    # An eighth of an octave is half a bin: the highest bin is drawn as a square around its middle.
    low, high = math.floor(min(edges)), math.ceil(max(edges) + 0.125)
    unit = _PLOT / (high - low)

    def across(pixels: float) -> float:
        return _MARGIN + (math.log2(max(pixels, 2.0**low)) - low) * unit

    def up(pixels: float) -> float:
        return _MARGIN / 4 + _PLOT - (math.log2(max(pixels, 2.0**low)) - low) * unit

    # Opacity is logarithmic: bins of a few objects stay visible beside those of thousands.
    most = max(size.objects for size in sizes)
    side = unit / 4
    bins = "".join(
        f'<rect x="{across(size.width) - side / 2:.1f}" y="{up(size.height) - side / 2:.1f}" '
        f'width="{side:.1f}" height="{side:.1f}" '
        f'fill-opacity="{0.15 + 0.85 * math.log1p(size.objects) / math.log1p(most):.2f}"><title>about '
        f"{size.width:.0f} x {size.height:.0f} pixels: {size.objects:,} objects</title></rect>"
        for size in sizes
    )
    rings = "".join(
        f'<circle cx="{across(width):.1f}" cy="{up(height):.1f}" r="6">'
        f"<title>anchor {width:.0f} x {height:.0f}</title></circle>"
        for width, height in shapes
    )
    whole = _PLOT + _MARGIN * 1.5
    return (
        f'<svg class="sizes" role="img" aria-label="objects by width and height" '
        f'viewBox="0 0 {whole:.0f} {whole:.0f}">{_axes(low, high, unit)}'
        f'<g class="bins" fill="{BLUE}">{bins}</g>'
        f'<g class="anchors" fill="none" stroke="{RED}" stroke-width="2">{rings}</g></svg>'
    )


def _axes(low: int, high: int, unit: float) -> str:
    top, left, bottom = _MARGIN / 4, _MARGIN, _MARGIN / 4 + _PLOT
    lines, parts = [], []
    for power in range(low, high + 1):
        # y counts downwards in SVG, so heights are subtracted from the bottom.
        x, y = left + (power - low) * unit, bottom - (power - low) * unit
        lines.append(f"M{x:.1f} {top}V{bottom}M{left} {y:.1f}H{left + _PLOT}")
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{2**power}</text>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{2**power}</text>'
        )
    parts.append(f'<path class="grid" fill="none" stroke="{GREY}" d="{"".join(lines)}"/>')
    middle = left + _PLOT / 2
    parts.append(
        f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">width, pixels of the network</text>'
        f'<text transform="translate(12 {top + _PLOT / 2}) rotate(-90)" text-anchor="middle">height</text>'
    )
    return "".join(parts)


def _short(name: str) -> str:
    return html.escape(printable(name if len(name) <= 24 else f"{name[:23]}…"))
