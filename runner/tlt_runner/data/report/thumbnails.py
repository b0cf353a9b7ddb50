"""Draw small pictures of the images with the most findings, for the data set report's page.

Many problems are seen best in the image itself: a grey lower half, a box beside the object. Whatever prevents
a picture gives a tile without one, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tlt_runner.data.images import decode, jpeg, orientation
from tlt_runner.data.report.report import HARMLESS, DatasetReport, ReportedFinding
from tlt_runner.data.sample import Problem
from tlt_runner.errors import RunnerError

SHOWN = 24
"""Pictures at most."""
SIDE = 240
"""Longer side of a picture, pixels."""
FIRST_BYTES = 32
_MOST_BYTES = 8_000
_QUALITIES = (80, 60, 40, 20, 5)
_LARGEST_FILE = 64 << 20
_RED, _STROKE = (40, 40, 230), 2


@dataclass(frozen=True)
class Thumbnail:
    """Image with findings, and its picture.

    Attributes:
        image: Its path relative to the data set's root.
        findings: Findings about it or its label.
        jpeg: Its picture; None if it could not be drawn.
        first_bytes: The first bytes of the file.
    """

    image: str
    findings: Sequence[ReportedFinding]
    jpeg: bytes | None
    first_bytes: bytes


def thumbnails(
    report: DatasetReport,
    image_of: Callable[[str], Path | None],
    turned: Mapping[str, int] = MappingProxyType({}),
) -> list[Thumbnail]:
    """Draw pictures of the worst images.

    Args:
        report: Names them.
        image_of: Image's path relative to the data set's root -> file, or None where it is not at hand.
        turned: Image's path -> EXIF orientation that is applied, because its boxes are of the turned view.
    """
    return [_thumbnail(image, findings, image_of, turned.get(image, 1)) for image, findings in worst(report)]


def worst(report: DatasetReport) -> list[tuple[str, list[ReportedFinding]]]:
    """Choose the images to show, with their findings: the worst first, new problems before repeated ones."""
    # A finding of an image left out is about the image's file; one of a dropped line names its image.
    by_image: dict[str, list[ReportedFinding]] = {}
    for finding in report.skipped:
        by_image.setdefault(finding.file, []).append(finding)
    for finding in report.dropped:
        if finding.image is not None:
            by_image.setdefault(finding.image, []).append(finding)

    def badness(item: tuple[str, list[ReportedFinding]]) -> tuple[int, str]:
        # Ties by name: the same report gives the same page.
        return -sum(finding.problem not in HARMLESS for finding in item[1]), item[0]

    new: list[tuple[str, list[ReportedFinding]]] = []
    repeated: list[tuple[str, list[ReportedFinding]]] = []
    shown: set[Problem] = set()
    for image, findings in sorted(by_image.items(), key=badness):
        problems = {finding.problem for finding in findings}
        # An image with a kind of problem not shown yet comes before a second one of the same kind.
        (repeated if problems <= shown else new).append((image, findings))
        shown |= problems
    return [*new, *repeated][:SHOWN]


def _thumbnail(
    image: str, findings: list[ReportedFinding], image_of: Callable[[str], Path | None], turn: int
) -> Thumbnail:
    try:
        # Never downloaded: of a bucket only what preparation has fetched already is drawn.
        file = image_of(image)
        if file is None or not file.is_file():
            return Thumbnail(image, findings, None, b"")
        with file.open("rb") as stream:
            # A file beyond the limit is cut off, and drawn as far as it goes.
            data = stream.read(_LARGEST_FILE)
    except (OSError, ValueError, RunnerError):
        return Thumbnail(image, findings, None, b"")
    return Thumbnail(image, findings, _picture(data, findings, turn), data[:FIRST_BYTES])


def _picture(data: bytes, findings: Sequence[ReportedFinding], turn: int) -> bytes | None:
    import cv2

    # Decoding it is what the limits protect from.
    if any(finding.problem == Problem.HUGE_IMAGE for finding in findings):
        return None
    try:
        height, width = decode.size(data)
        pixels = _decoded(data)
        if pixels is None:
            return None
        # Never enlarged: SIDE among the sides keeps the scale at 1 or below.
        scale = SIDE / max(height, width, SIDE)
        return _encoded(_drawn(orientation.upright(pixels, turn), scale, findings))
    except (decode.BadImageError, cv2.error):
        return None


def _decoded(data: bytes) -> Any:
    """Decode as much as possible, uint8 [h, w, 3] BGR, at about the size needed; None if nothing decodes."""
    import cv2
    import simplejpeg

    # libjpeg decodes at a fraction of the size for a fraction of the cost; cv2 takes what it refuses.
    if data.startswith(jpeg.START):
        with suppress(ValueError):
            return simplejpeg.decode_jpeg(data, "BGR", strict=False, min_height=SIDE, min_width=SIDE)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def _drawn(pixels: Any, scale: float, findings: Sequence[ReportedFinding]) -> Any:
    """Draw the boxes into the picture; ``scale`` is its size divided by the original's."""
    import cv2

    # libjpeg scales by eighths only, so the picture may still be too large.
    shrink = min(1.0, SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    for finding in findings:
        if finding.box is not None:
            # A box far outside would overflow the integers of the drawing.
            corners = np.clip(np.array(finding.box) * scale, -SIDE, 2 * SIDE).round().astype(int).tolist()
            y1, x1, y2, x2 = corners
            cv2.rectangle(small, (x1, y1), (x2, y2), _RED, _STROKE)
    return small


def _encoded(pixels: Any) -> bytes | None:
    """Encode as JPEG, at the best quality that fits a picture's share of the page."""
    import cv2

    # Noise compresses badly: the quality falls until the picture fits its share of the page.
    for quality in _QUALITIES:
        encoded, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not encoded:
            return None
        if len(data) <= _MOST_BYTES:
            break
    return bytes(data)
