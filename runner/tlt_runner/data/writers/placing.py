"""One image of a folder in the making: checked, left as it is or brought to size, its boxes with it.

Called by :mod:`tlt_runner.data.translate` in worker threads; the counterpart of
:mod:`tlt_runner.data.conversion`, which makes records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tlt_api.trainingjob import ImageSize
from tlt_runner.data import geometry, images
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Oddity, Problem, Reader, Sample

SMALLEST_SIDE = 1.0
"""Pixels: VOC cannot say a smaller box, and training does not use one."""
EXACT = 1e-3
"""Pixels by which an edge may be moved without being counted: what a format rounds."""
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}


@dataclass(frozen=True)
class Placed:
    """An image and its objects as they are to be written.

    Attributes:
        data: The file.
        suffix: ``.jpg`` or ``.png``, by its content.
        size: Height and width in pixels.
        boxes: Objects, inside the image.
        dropped: Label lines that are not among them.
        labels: What the label said.
        clipped: Boxes that were cut at the image's edge.
        oddities: What is unusual about the image that was read.
    """

    data: bytes
    suffix: str
    size: tuple[int, int]
    boxes: Sequence[LabelledBox]
    dropped: list[Finding]
    labels: Labels
    clipped: int
    oddities: tuple[Oddity, ...]


def place(sample: Sample, data: bytes, reader: Reader, target: ImageSize | None) -> Placed:
    """Bring one image and its boxes to ``target``, or leave them as they are.

    Raises:
        BadImageError: The image cannot be used.
    """
    head = images.header(data, sample.image_file)
    original_size = (head.height, head.width)
    height, width = original_size if target is None else (target.height, target.width)
    where = geometry.placement(*original_size, height, width, "stretch" if target is None else target.mode)
    labels = reader.read(sample, original_size)
    boxes: list[LabelledBox] = []
    dropped = list(labels.findings)
    clipped = 0
    for box in labels.boxes:
        inside = geometry.clip(np.array([box.yxyx]), *original_size)
        y1, x1, y2, x2 = where.to_network(inside)[0].tolist()
        problem = _problem(inside[0], min(y2 - y1, x2 - x1))
        if problem is not None:
            dropped.append(Finding(sample.label_file, problem, _why(problem, box, original_size), box.line))
            continue
        clipped += bool(np.abs(inside[0] - box.yxyx).max() > EXACT)
        boxes.append(replace(box, yxyx=(y1, x1, y2, x2)))
    if (height, width) == original_size:
        images.check(data, head)
        suffix = _SUFFIXES[head.kind]
    else:
        data = images.encode(geometry.place_image(images.pixels(data, head), where))
        suffix = _SUFFIXES["JPEG"]
    return Placed(data, suffix, (height, width), boxes, dropped, labels, clipped, head.oddities)


def _problem(inside: np.ndarray, smaller_side: float) -> Problem | None:
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        return Problem.OUTSIDE_IMAGE
    return Problem.TOO_SMALL if smaller_side < SMALLEST_SIDE - EXACT else None


def _why(problem: Problem, box: LabelledBox, original_size: tuple[int, int]) -> str:
    y1, x1, y2, x2 = box.yxyx
    got = f"got xmin {x1:g}, ymin {y1:g}, xmax {x2:g}, ymax {y2:g}"
    if problem == Problem.OUTSIDE_IMAGE:
        height, width = original_size
        return f"expected a box that overlaps the image of {width} x {height} pixels, {got}"
    return f"expected a box of at least {SMALLEST_SIDE:g} pixel a side in the folder, {got}"
