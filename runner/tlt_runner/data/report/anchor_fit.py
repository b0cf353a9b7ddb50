"""Objects that the anchors fit, by class and size: for the dataset report and its warnings.

The report of a data set holds no anchors, since the same records serve several models: this is worked out
when the report is shown to somebody who has chosen anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlt_api.dataset import ImageSize
from tlt_api.model import Anchors
from tlt_runner.data import anchor_grid
from tlt_runner.data.report.report import DatasetReport

WARNED = 0.5
"""Share of a size's objects below which there is a warning: most of them have no anchor that fits."""
_NAMED = 10


@dataclass(frozen=True)
class Fit:
    """Objects of one class and of about one size, and how many of them an anchor fits.

    Attributes:
        name: The class.
        size: Least square root of the area, in pixels of the network's input; the group ends at its double.
        objects: Number of objects.
        found: Number of them that an anchor overlaps by IoU 0.5, expected over all places in the image.
        own_shape: The same for an anchor of each object's own shape: what no choice of anchors exceeds by
            much.
    """

    name: str
    size: int
    objects: int
    found: float
    own_shape: float


def by_class_and_size(report: DatasetReport, anchors: Anchors, image_size: ImageSize) -> list[Fit]:
    """Count the objects that the anchors fit, for each class and size; those that fit fewest come first.

    Anchors that are still to be chosen from the data (``auto``) are compared with them when they are chosen:
    here, there is nothing to count.
    """
    if anchors.auto:
        return []
    rows = [
        (name, item.height, item.width, item.objects)
        for name, sizes in report.sizes_by_class.items()
        for item in sizes
    ]
    if not rows:
        return []
    # Classes share their sizes: bins of a histogram.
    sizes, bin_of = np.unique(np.array([row[1:3] for row in rows], np.float32), axis=0, return_inverse=True)
    pixels = (image_size.height, image_size.width)
    fitted_shares = anchor_grid.shares_found(sizes, anchor_grid.shapes_of(anchors), *pixels)
    own_shape_shares = anchor_grid.shares_found(sizes, None, *pixels)
    groups: dict[tuple[str, int], list[float]] = {}
    for (name, _, _, objects), index, size in zip(
        rows, bin_of.ravel(), anchor_grid.octaves(sizes)[bin_of.ravel()], strict=True
    ):
        sums = groups.setdefault((name, int(size)), [0.0, 0.0, 0.0])
        for column, share in enumerate((1.0, fitted_shares[index], own_shape_shares[index])):
            sums[column] += objects * float(share)
    fits = [
        Fit(name, size, round(objects), fitted_objects, own_shape_objects)
        for (name, size), (objects, fitted_objects, own_shape_objects) in groups.items()
    ]
    return sorted(fits, key=lambda fit: (fit.found / fit.objects, fit.size, fit.name))


def warnings(fits: Sequence[Fit], anchors: Anchors) -> list[str]:
    """Write one sentence for each size of which most objects have no anchor that fits."""
    sentences = []
    scales = ", ".join(f"{scale:g}" for scale in anchors.scales)
    for size in sorted({fit.size for fit in fits}):
        of_size = [fit for fit in fits if fit.size == size]
        objects, fitted, fitted_by_own_shape = (
            sum(figures)
            for figures in zip(*((fit.objects, fit.found, fit.own_shape) for fit in of_size), strict=True)
        )
        # Each class counts by itself: a class of small objects must not hide behind a large one that fits.
        missed = [fit for fit in of_size if fit.found < WARNED * fit.objects]
        if not missed:
            continue
        classes = ", ".join(
            f"{fit.name} {fit.objects - fit.found:.0f} of {fit.objects}" for fit in missed[:_NAMED]
        )
        more = ", ..." if len(missed) > _NAMED else ""
        # Of the classes that are missed alone: others of the size may fit any anchor.
        reachable = sum(fit.own_shape for fit in missed) >= WARNED * sum(fit.objects for fit in missed)
        advice = (
            "`tlt anchors` suggests better ones"
            if reachable
            else "no choice of anchors finds them reliably: enlarge imageSize, or cut images into parts"
        )
        sentences.append(
            f"objects of {size} to {2 * size} pixels have no anchor that overlaps them by IoU "
            f"{anchor_grid.FITS:g} ({classes}{more}): the anchors of scales {scales} fit "
            f"{fitted / objects:.0%} of {objects} on their grid of {anchor_grid.STRIDE} pixels, anchors of "
            f"each object's own shape would fit {fitted_by_own_shape / objects:.0%}; {advice}"
        )
    return sentences
