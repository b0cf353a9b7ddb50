"""The data set report as one HTML file for people (dataset-report.html): no scripts, nothing loaded.

Preparation writes it beside dataset-report.json. Names of files and classes come from strangers: every text
is escaped, and control characters are shown, not sent.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from tlt_api.model import Anchors
from tlt_runner.data.report import charts
from tlt_runner.data.report.report import DatasetReport, ReportedFinding
from tlt_runner.data.report.thumbnails import Thumbnail, thumbnails
from tlt_runner.data.sample import Problem

__all__ = ["render", "thumbnails"]
SHOWN = 200
"""Rows of a table at most; the report's JSON has more of them."""
_LONGEST = 300
_FINDINGS_SHOWN = 6
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), 11, 12, *range(14, 32), *range(127, 160))}
_STYLE = (
    f""":root{{--line:{charts.GREY};--blue:{charts.BLUE};--amber:{charts.AMBER};--red:{charts.RED}}}"""
    + """
:root{--ink:#1d2733;--soft:#5d6b7a;--paper:#fff;--card:#f5f7fa}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf1;--soft:#9aa8b7;--line:#35404d;--paper:#151b22;
--card:#1e262f;--blue:#6aa5e0;--amber:#e6b455;--red:#f0776c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;
margin:0 auto;padding:24px}
h1{font-size:26px;margin:0 0 16px}h2{font-size:19px;margin:36px 0 10px}
.cards{display:flex;flex-wrap:wrap;gap:10px}.card{background:var(--card);border-radius:8px;padding:10px 16px;
min-width:120px}.card b{display:block;font-size:22px}.card span{color:var(--soft);font-size:13px}
.bad b{color:var(--red)}
table{border-collapse:collapse;width:100%;font-size:13px}th,td{text-align:left;vertical-align:top;
padding:4px 10px 4px 0;border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:600}
table.findings th:first-child{width:36%}td.n{text-align:right;width:5em;font-variant-numeric:tabular-nums}
code{font:12px ui-monospace,monospace;overflow-wrap:anywhere;unicode-bidi:isolate;white-space:pre-wrap}
details{margin:8px 0}summary{cursor:pointer;font-weight:600}
ul.warnings{padding-left:0;list-style:none}ul.warnings li{border-left:4px solid var(--amber);padding:4px 12px;
margin:6px 0;background:var(--card);overflow-wrap:anywhere}
svg{width:100%;height:auto}svg.classes{max-width:760px}svg.sizes{max-width:520px}
svg text{font-size:12px;fill:var(--ink)}svg text.count{fill:var(--soft);font-size:11px}
.training,.bins{fill:var(--blue)}.validation{fill:var(--amber)}.grid{stroke:var(--line)}
.anchors{stroke:var(--red)}
.key i{display:inline-block;width:12px;height:12px;margin:0 5px 0 14px}.key i.training{background:var(--blue)}
.key i.validation{background:var(--amber)}
.thumbnails{display:flex;flex-wrap:wrap;gap:16px}figure{margin:0;width:240px;font-size:12px}
figure img{display:block;max-width:240px}figure .tile{background:#8a929b;color:#fff;height:135px;padding:10px;
box-sizing:border-box;font:12px ui-monospace,monospace;overflow:hidden}
figcaption{margin-top:4px;color:var(--soft);overflow-wrap:anywhere}figcaption b{color:var(--red)}
"""
)


def render(report: DatasetReport, anchors: Anchors, pictures: Sequence[Thumbnail]) -> str:
    """The page.

    Args:
        report: What preparation found.
        anchors: The anchors to draw among the objects' sizes.
        pictures: Of the worst images.
    """
    sections = [
        f'<div class="cards">{_headline(report)}</div>',
        _section("Look at this", _warnings(report.warnings)) if report.warnings else "",
        _section("Left out, and why", _left_out(report)),
        _section("The worst images", _pictures(pictures)) if pictures else "",
        _section("Objects by class", _classes(report)),
        _section("Sizes of objects", _sizes(report, anchors)),
        _section("Unusual images", _unusual(report)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Data set report</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        f"'unsafe-inline'; img-src data:\"><style>{_STYLE}</style></head><body><h1>Data set report</h1>"
        f"{''.join(sections)}</body></html>\n"
    )


def _headline(report: DatasetReport) -> str:
    left_out = sum(report.skipped_by_problem.values())
    dropped = sum(report.dropped_by_problem.values())
    figures = [
        ("images found", f"{report.images:,}", False),
        ("to train on", f"{report.training_images:,}", False),
        ("to validate on", f"{report.validation_images:,}", False),
        ("images left out", f"{left_out:,}", left_out > 0),
        ("images with something wrong", _share(report.bad_images, report.images), report.bad_images > 0),
        ("label lines", f"{report.lines:,}", False),
        ("objects", f"{report.objects:,}", False),
        ("lines dropped as wrong", f"{dropped:,}", dropped > 0),
        ("of a class not mapped", f"{sum(report.unmapped_classes.values()):,}", False),
        ("ignored regions", f"{report.ignored_regions:,}", False),
        ("boxes cut at the edge", f"{report.clipped_boxes:,}", False),
        ("labels without image", f"{report.labels_without_image:,}", report.labels_without_image > 0),
    ]
    return "".join(
        f'<div class="card{" bad" if bad else ""}"><b>{value}</b><span>{name}</span></div>'
        for name, value, bad in figures
    )


def _warnings(warnings: Iterable[str]) -> str:
    return f'<ul class="warnings">{"".join(f"<li>{_text(warning)}</li>" for warning in warnings)}</ul>'


def _left_out(report: DatasetReport) -> str:
    tables = [
        ("images left out", report.skipped_by_problem, report.skipped),
        ("label lines dropped", report.dropped_by_problem, report.dropped),
        ("labels without image", {}, report.orphans),
        ("label files and entries that cannot be used", report.label_problems, report.label_findings),
    ]
    parts = []
    for title, by_problem, findings in tables:
        count = sum(by_problem.values()) if by_problem else report.labels_without_image
        if findings:
            parts.append(f"<h3>{count:,} {title}</h3>{_counts(by_problem)}{_findings(findings, count)}")
    if report.unmapped_classes:
        lines = sum(report.unmapped_classes.values())
        parts.append(
            f"<h3>{lines:,} label lines of classes that targetClassMapping does not name</h3>"
            f"{_counts(report.unmapped_classes)}"
        )
    return "".join(parts) or "<p>Nothing: every image and every label line is used.</p>"


def _counts(counts: Mapping[Problem, int] | Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = "".join(
        f'<tr><td class="n">{count:,}</td><td>{_text(name)}</td></tr>' for name, count in ordered[:SHOWN]
    )
    return f"<table>{rows}</table>{_more(len(ordered))}" if rows else ""


def _findings(findings: Sequence[ReportedFinding], count: int) -> str:
    rows = "".join(
        f"<tr><td><code>{_text(item.file)}</code></td>"
        f'<td class="n">{"" if item.line is None else item.line}</td>'
        f"<td>{item.problem}</td><td>{_text(item.message)}</td></tr>"
        for item in findings[:SHOWN]
    )
    head = "<tr><th>file</th><th>line</th><th>problem</th><th>what</th></tr>"
    return (
        f"<details><summary>{min(count, SHOWN):,} of {count:,}</summary>"
        f'<table class="findings">{head}{rows}</table>{_more(count)}</details>'
    )


def _pictures(pictures: Iterable[Thumbnail]) -> str:
    return (
        "<p>Most findings first, and every kind of problem once before any twice. Red boxes are "
        "dropped lines; a file that does not decode shows its first bytes.</p>"
        f'<div class="thumbnails">{"".join(map(_picture, pictures))}</div>'
    )


def _picture(picture: Thumbnail) -> str:
    if picture.jpeg is not None:
        data = base64.b64encode(picture.jpeg).decode()
        shown = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    else:
        begin = picture.first_bytes.hex(" ") or "no bytes to show"
        shown = f'<div class="tile">{begin}</div>'
    lines = [
        f"<br><b>{item.problem}</b>{'' if item.line is None else f' line {item.line}'}: {_text(item.message)}"
        for item in picture.findings[:_FINDINGS_SHOWN]
    ]
    more = len(picture.findings) - _FINDINGS_SHOWN
    rest = f"<br>and {more} more" if more > 0 else ""
    return (
        f"<figure>{shown}<figcaption><code>{_text(picture.image)}</code>{''.join(lines)}{rest}"
        "</figcaption></figure>"
    )


def _classes(report: DatasetReport) -> str:
    key = '<p class="key"><i class="training"></i>training<i class="validation"></i>validation</p>'
    return (
        f"{key}{charts.class_histogram(report.classes)}<details><summary>the labels' own classes</summary>"
        f"{_counts(report.source_classes)}</details>"
    )


def _sizes(report: DatasetReport, anchors: Anchors) -> str:
    if anchors.auto:
        note = "The anchors are chosen from these sizes when training starts (anchors.auto)."
        return f"<p>{note}</p>{charts.size_histogram(report.box_sizes, None)}"
    share = charts.suited(report.box_sizes, anchors)
    scales = ", ".join(f"{scale:g}" for scale in anchors.scales)
    ratios = ", ".join(f"{ratio:g}" for ratio in anchors.ratios)
    said = (
        ""
        if share is None
        else f"<p><b>{share:.1%}</b> of the objects have an anchor whose shape overlaps theirs by IoU "
        f"{charts.GOOD_OVERLAP:g} or more. Rings are the anchors (scales {scales}; ratios {ratios}). Objects "
        "far from every ring are hard to propose: <code>tlt anchors</code> suggests better ones.</p>"
    )
    return f"{said}{charts.size_histogram(report.box_sizes, anchors)}"


def _unusual(report: DatasetReport) -> str:
    lists = [(str(oddity), report.odd_images[oddity], names) for oddity, names in report.odd.items()]
    lists.append(("validation images that are training images, too", report.leaked_images, report.leaked))
    lists.append(
        ("training images that are there twice", report.duplicate_images, report.duplicates),
    )
    parts = [
        f"<details><summary>{count:,} {title}</summary><p>"
        f"{', '.join(f'<code>{_text(name)}</code>' for name in names[:SHOWN])}</p>{_more(count)}</details>"
        for title, count, names in lists
        if count
    ]
    return "".join(parts) or "<p>None.</p>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _more(count: int) -> str:
    return f"<p>and {count - SHOWN:,} more: see dataset-report.json</p>" if count > SHOWN else ""


def _share(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.1%}"


def _text(text: str) -> str:
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    printable = cut.encode("utf-8", "backslashreplace").decode().translate(_CONTROLS)
    return html.escape(printable)
