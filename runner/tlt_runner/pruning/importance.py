"""How much a filter matters: TLT's magnitude criterion, and TLT's rule of how many filters stay.

Fourth stage of pruning; numpy only. Restated from the TAO TF1 backend (core/pruning): the L2 norm of each
output filter's kernel (bias and batch normalisation do not count), divided by a normaliser of the layer,
merged over filters that go together, compared with a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Normalizer = Literal["max", "l2"]
Equalization = Literal["union", "intersection", "arithmeticMean", "geometricMean"]


def filter_norms(kernel: NDArray[np.floating], depthwise: bool) -> FloatArray:
    """L2 norm of each output filter.

    Args:
        kernel: [..., out], or [height, width, channels, 1] of a depthwise convolution.
        depthwise: Whether it is one.

    Returns:
        [out], or [channels].
    """
    axis = (0, 1, 3) if depthwise else tuple(range(kernel.ndim - 1))
    return np.sqrt(np.sum(np.square(kernel.astype(np.float64)), axis=axis))


def normalize(norms: FloatArray, normalizer: Normalizer) -> FloatArray:
    """Norms made comparable between layers.

    ``max`` divides by the layer's largest, giving 0 to 1. ``l2`` divides by the norm of the layer's norms and
    multiplies by their number, giving values around the square root of that number. A layer of zeros gives
    zeros.
    """
    scale = norms.max(initial=0.0) if normalizer == "max" else np.sqrt(np.sum(norms**2)) / max(len(norms), 1)
    return norms / scale if scale > 0 else np.zeros_like(norms)


def equalize(
    statistics: Mapping[str, FloatArray],
    classes: Mapping[str, NDArray[np.int64]],
    count: int,
    equalization: Equalization,
) -> FloatArray:
    """One value for each class of filters that go together.

    Args:
        statistics: Layer -> value of each filter.
        classes: Layer -> class id of each filter.
        count: Number of classes.
        equalization: ``union`` is the largest, ``intersection`` the smallest, or one of the means.

    Returns:
        [count]; NaN for classes that have no filter (a network's input).
    """
    ids = np.concatenate([np.zeros(0, np.int64), *(classes[name] for name in statistics)])
    values = np.concatenate([np.zeros(0), *statistics.values()])
    members = np.bincount(ids, minlength=count)
    merged = np.zeros(count)
    if equalization == "union":
        np.maximum.at(merged, ids, values)
    elif equalization == "intersection":
        merged[:] = np.inf
        np.minimum.at(merged, ids, values)
    else:
        geometric = equalization == "geometricMean"
        with np.errstate(divide="ignore"):
            np.add.at(merged, ids, np.log(values) if geometric else values)
        merged /= np.maximum(members, 1)
        merged = np.exp(merged) if geometric else merged
    return np.where(members > 0, merged, np.nan)


def keep(statistics: FloatArray, threshold: float, granularity: int, min_filters: int) -> NDArray[np.int64]:
    """Which filters stay, by TLT's rule.

    As many as are above the threshold (strictly), but at least ``min_filters``, rounded *up* to a multiple
    of ``granularity``, and no more than there are: those with the largest values. Rounding up can keep
    filters that are below the threshold. Of equal values the first stays.

    Args:
        statistics: [N], one value a filter.
        threshold: Filters not above it go.
        granularity: At least 1.
        min_filters: At least 1.

    Returns:
        Positions of those that stay, ascending.
    """
    total = len(statistics)
    count = max(int(np.sum(statistics > threshold)), min(min_filters, total))
    count = min(-(-count // granularity) * granularity, total)
    return np.sort(np.argsort(-statistics, kind="stable")[:count])
