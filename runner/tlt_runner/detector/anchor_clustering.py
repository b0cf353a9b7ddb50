"""Clusters the object sizes of a data set into anchors: k-means by IoU, on a grid of scales x ratios.

Called by training with ``anchors.auto`` and by ``tlt anchors``. The region proposal network has an anchor
for every pair of a scale and a ratio, so centres cannot move freely as in YOLO's anchor clustering (Redmon
and Farhadi, "YOLO9000", 2017), from which the distance 1 - IoU is taken: all boxes whose best anchor has a
scale move that scale, all whose best anchor has a ratio move that ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tlt_api.model import Anchors
from tlt_api.status import AnchorGap, AnchorsStatus
from tlt_runner.data import anchor_grid
from tlt_runner.data.anchor_grid import FITS, shapes_of

FloatArray = npt.NDArray[np.floating[Any]]

RESTARTS = 8
ROUNDS = 50
SAMPLE = 20_000
"""Most boxes that are clustered, drawn at random from more. The results are compared on all boxes."""
BLOCK = 1 << 14
"""Sizes that are compared with all anchors at once; bounds the memory."""
GAPS = 8
"""Groups of objects without an anchor that a status names; it must fit into a termination message."""
LARGEST_SCALE, LARGEST_RATIO = 4096.0, 100.0
"""Limits of the API's anchors."""


@dataclass(frozen=True)
class PlacedObjects:
    """Objects of a data set with their places in the network's input.

    Attributes:
        boxes: [N, 4] yxyx, in pixels.
        classes: Class ids [N].
        class_names: Names, in the order of ids.
        height: Rows of the network's input.
        width: Columns of the network's input.
    """

    boxes: FloatArray
    classes: npt.NDArray[np.integer[Any]]
    class_names: Sequence[str]
    height: int
    width: int

    @property
    def sizes(self) -> FloatArray:
        """Height and width [N, 2]."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    def best_overlaps(self, anchors: Anchors) -> FloatArray:
        """IoU [N] of each object with the anchor of the grid that overlaps it most."""
        return anchor_grid.best_overlaps(self.boxes, shapes_of(anchors), self.height, self.width)


def propose(sizes: FloatArray, initial: Anchors, seed: int) -> Anchors:
    """Propose the anchors that fit best, as many scales and ratios as are given.

    Args:
        sizes: Height and width [N, 2] of the objects, in pixels of the network's input.
        initial: Anchors to improve on. They are kept where clustering finds none with a larger mean IoU.
        seed: Seed of the sample and of the start centres.

    Returns:
        Scales rounded to pixels and ratios to two digits, both rising.

    Raises:
        ValueError: There are no sizes, or one is not above 0.
    """
    if len(sizes) == 0 or not np.all(np.isfinite(sizes) & (np.asarray(sizes) > 0)):
        raise ValueError(f"expected heights and widths above 0, got {len(sizes)} sizes, not all of them such")
    random = np.random.default_rng(seed)
    sample = sizes if len(sizes) <= SAMPLE else sizes[random.choice(len(sizes), SAMPLE, replace=False)]
    # Rounded before they are compared: the proposal that is reported is the one that was measured. k-means
    # ends in a local optimum: the best of several starts, and of what was given, is taken.
    candidates = [initial.model_copy(update={"auto": False})]
    for _ in range(RESTARTS):
        scales, ratios = _cluster(sample, len(initial.scales), len(initial.ratios), random)
        candidates.append(
            Anchors(
                scales=_filled([_round_scale(value) for value in scales], initial.scales),
                ratios=_filled([_round_ratio(value) for value in ratios], initial.ratios),
            )
        )
    return max(candidates, key=lambda anchors: best_overlaps(sizes, anchors).mean())


def best_overlaps(sizes: FloatArray, anchors: Anchors) -> FloatArray:
    """Return the IoU [N] of each size [N, 2] with its best anchor, both with the same centre."""
    return _best(sizes, shapes_of(anchors))[0]


def compare(objects: PlacedObjects, initial: Anchors, chosen: Anchors, foreground: float) -> AnchorsStatus:
    """Measure how well the given and the chosen anchors fit the objects where these lie.

    Args:
        objects: Objects to train on.
        initial: Anchors of the spec.
        chosen: Anchors that were proposed.
        foreground: Least IoU with which an anchor is trained as foreground (``proposals.maxOverlap``).
    """
    initial_overlaps, chosen_overlaps = objects.best_overlaps(initial), objects.best_overlaps(chosen)
    return AnchorsStatus(
        scales=chosen.scales,
        ratios=chosen.ratios,
        recall=float(np.mean(chosen_overlaps >= FITS)),
        default_recall=float(np.mean(initial_overlaps >= FITS)),
        foreground_recall=float(np.mean(chosen_overlaps >= foreground)),
        default_foreground_recall=float(np.mean(initial_overlaps >= foreground)),
        mean_overlap=float(chosen_overlaps.mean()),
        default_mean_overlap=float(initial_overlaps.mean()),
        gaps=_gaps(objects, chosen_overlaps >= FITS),
    )


def _gaps(objects: PlacedObjects, fits: npt.NDArray[np.bool_]) -> list[AnchorGap]:
    """The classes and sizes with most objects that no anchor fits [N]."""
    groups = np.stack([objects.classes, anchor_grid.octaves(objects.sizes)], axis=1)
    keys, group_of = np.unique(groups, axis=0, return_inverse=True)
    counts = np.bincount(group_of.ravel())
    missed = counts - np.bincount(group_of.ravel(), weights=fits).astype(np.int64)
    # A stable sort: groups of as many objects stay in the order of class and size.
    worst = [index for index in np.argsort(-missed, kind="stable")[:GAPS] if missed[index]]
    return [
        AnchorGap(
            name=objects.class_names[int(keys[index, 0])],
            size=int(keys[index, 1]),
            objects=int(counts[index]),
            missed=int(missed[index]),
        )
        for index in worst
    ]


def _best(sizes: FloatArray, anchor_shapes: FloatArray) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """IoU [N] and index [N] of the best of the anchor shapes [A, 2] for each size [N, 2]."""
    overlaps, indices = np.empty(len(sizes), np.float32), np.empty(len(sizes), np.intp)
    heights, widths = anchor_shapes.T.astype(np.float32)
    # In blocks [n, 1] against [A]: all pairs of a large data set at once would take gigabytes.
    for start in range(0, len(sizes), BLOCK):
        block = np.asarray(sizes[start : start + BLOCK], np.float32)
        height, width = block[:, :1], block[:, 1:]
        # With one centre, the intersection has the smaller height and the smaller width.
        shared = np.minimum(height, heights) * np.minimum(width, widths)
        iou = shared / (height * width + heights * widths - shared)
        rows = slice(start, start + len(block))
        indices[rows] = iou.argmax(axis=1)
        overlaps[rows] = iou.max(axis=1)
    return overlaps, indices


def _cluster(
    sizes: FloatArray, scales: int, ratios: int, random: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Scales and ratios after one start: those of the round with the largest mean IoU."""
    # In logarithms, a pair of side and aspect is a point of the grid and the IoU depends on distances only.
    heights, widths = np.log(np.asarray(sizes, np.float64)).T
    sides, aspects = (heights + widths) / 2, widths - heights
    # Shapes of one aspect whose sides differ by the factor exp(apart) have the IoU exp(-2 * apart).
    side_centres = _spread(sides, scales, lambda apart: np.exp(-2 * apart), random)
    aspect_centres = _spread(aspects, ratios, _overlap_of_aspects, random)
    best, best_mean = (side_centres, aspect_centres), 0.0
    nearest = np.empty(0, np.intp)
    for _ in range(ROUNDS):
        # Scales and ratios move independently, which can lower the mean IoU: the best round counts.
        previous_nearest = nearest
        overlaps, nearest = _best(sizes, _grid(side_centres, aspect_centres))
        if overlaps.mean() > best_mean:
            best, best_mean = (side_centres, aspect_centres), float(overlaps.mean())
        # No box changed its anchor: all further rounds would be the same.
        if np.array_equal(nearest, previous_nearest):
            break
        # The index of an anchor is side * R + aspect (_grid).
        of_side, of_aspect = np.divmod(nearest, len(aspect_centres))
        side_centres = _medians(sides, of_side, side_centres)
        aspect_centres = _medians(aspects, of_aspect, aspect_centres)
    return np.exp(best[0]), np.exp(best[1])


def _grid(sides: FloatArray, aspects: FloatArray) -> FloatArray:
    """Height and width [S * R, 2] of every pair of logarithms, sides outermost."""
    side, aspect = (grid.ravel() for grid in np.meshgrid(sides, aspects, indexing="ij"))
    return np.exp(np.stack([side - aspect / 2, side + aspect / 2], axis=-1))


def _overlap_of_aspects(apart: FloatArray) -> FloatArray:
    """IoU of two shapes of the same area whose aspect ratios differ by the factor exp(apart)."""
    shared = np.exp(-apart / 2)
    return shared / (2 - shared)


def _spread(
    values: FloatArray, count: int, overlap: Callable[[FloatArray], FloatArray], random: np.random.Generator
) -> FloatArray:
    """Start centres by k-means++ (Arthur and Vassilvitskii, 2007); fewer where values repeat."""
    centres = [values[random.integers(len(values))]]
    distance = 1 - overlap(np.abs(values - centres[0]))
    # A distance of 0 for all values: each has a centre already, and there is nothing left to draw.
    while len(centres) < count and distance.max() > 1e-9:
        centres.append(values[random.choice(len(values), p=distance**2 / np.sum(distance**2))])
        distance = np.minimum(distance, 1 - overlap(np.abs(values - centres[-1])))
    return np.array(centres)


def _medians(values: FloatArray, member_of: npt.NDArray[np.intp], centres: FloatArray) -> FloatArray:
    """The median of each centre's members; a centre without members stays."""
    # Near a centre 1 - IoU grows with the distance of the logarithms, and the median has the least sum of
    # distances.
    members = (values[member_of == index] for index in range(len(centres)))
    return np.array(
        [
            np.median(cluster) if len(cluster) else centre
            for cluster, centre in zip(members, centres, strict=True)
        ]
    )


def _round_scale(value: float) -> float:
    return float(np.clip(round(value), 1, LARGEST_SCALE))


def _round_ratio(value: float) -> float:
    """Two digits after the point, or two that count for less than 1: 1.33, 0.41, 0.056."""
    return min(float(f"{value:.2f}") if value >= 1 else float(f"{value:.2g}"), LARGEST_RATIO)


def _filled(centres: Sequence[float], defaults: Sequence[float]) -> list[float]:
    """The centres, each once, rising; defaults fill up where there are too few centres."""
    values = sorted(set(centres))
    unused = [value for value in defaults if value not in values]
    return sorted([*values, *unused[: len(defaults) - len(values)]])
