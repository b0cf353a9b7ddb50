"""The importance of a filter, TLT's magnitude criterion, and TLT's rule of how many filters stay.

Fourth stage of pruning; numpy only. Restated from the TAO TF1 backend (core/pruning): the L2 norm of each
output filter's kernel (bias and batch normalisation do not count), divided by a normaliser of the layer,
merged over coupled filters, compared with a threshold. Pruning filters by the norm of their kernel is from
Li et al., "Pruning Filters for Efficient ConvNets" (2017), where the norm is L1.
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
    """Compute the L2 norm of each output filter.

    Args:
        kernel: [..., out], or [height, width, channels, 1] of a depthwise convolution.
        depthwise: Whether the kernel is a depthwise convolution's.

    Returns:
        [out], or [channels].
    """
    axis = (0, 1, 3) if depthwise else tuple(range(kernel.ndim - 1))
    # A float32 sum of thousands of squares loses the digits that tell similar filters apart.
    return np.sqrt(np.sum(np.square(kernel.astype(np.float64)), axis=axis))


def normalize(norms: FloatArray, normalizer: Normalizer) -> FloatArray:
    """Make norms [F] comparable between layers.

    ``max`` divides by the layer's largest, giving 0 to 1. ``l2`` divides by the norm of the layer's norms and
    multiplies by their number, giving values around the square root of that number. A layer of zeros gives
    zeros.
    """
    # Layers differ in the size of their weights, so that one threshold needs figures without a unit.
    scale = norms.max(initial=0.0) if normalizer == "max" else np.sqrt(np.sum(norms**2)) / max(len(norms), 1)
    return norms / scale if scale > 0 else np.zeros_like(norms)


def equalize(
    statistics: Mapping[str, FloatArray],
    filters: Mapping[str, NDArray[np.int64]],
    count: int,
    equalization: Equalization,
) -> FloatArray:
    """Merge the values of coupled filters into one value for each coupled set.

    Args:
        statistics: Layer -> value of each filter.
        filters: Layer -> coupled set of each filter.
        count: Number of coupled sets.
        equalization: ``union`` is the largest, ``intersection`` the smallest, or one of the means.

    Returns:
        [count]; NaN for sets that have no filter (a network's input).
    """
    # Flat arrays of all filters of all layers; the empty one is for a network without layers.
    sets = np.concatenate([np.zeros(0, np.int64), *(filters[name] for name in statistics)])
    values = np.concatenate([np.zeros(0), *statistics.values()])
    members = np.bincount(sets, minlength=count)
    merged = np.zeros(count)
    # The ufuncs' `at`, because a set occurs as often as it has filters: indexed assignment would keep one.
    if equalization == "union":
        np.maximum.at(merged, sets, values)
    elif equalization == "intersection":
        merged[:] = np.inf
        np.minimum.at(merged, sets, values)
    else:
        geometric = equalization == "geometricMean"
        # log(0) is -inf, and exp turns it back into 0: a set with a filter of zeros has the mean 0.
        with np.errstate(divide="ignore"):
            np.add.at(merged, sets, np.log(values) if geometric else values)
        merged /= np.maximum(members, 1)
        merged = np.exp(merged) if geometric else merged
    return np.where(members > 0, merged, np.nan)


def keep(values: FloatArray, threshold: float, granularity: int, min_filters: int) -> NDArray[np.int64]:
    """Choose the filters that stay, by TLT's rule.

    As many as are above the threshold (strictly), but at least ``min_filters``, rounded *up* to a multiple
    of ``granularity``, and no more than there are: those with the largest values. Rounding up can keep
    filters that are below the threshold. Of equal values the first stays.

    Args:
        values: [N], one for each filter or coupled set.
        threshold: Filters with a value of at most this are pruned.
        granularity: At least 1.
        min_filters: At least 1.

    Returns:
        Indices of those that stay, ascending.
    """
    total = len(values)
    count = max(int(np.sum(values > threshold)), min(min_filters, total))
    # -(-a // b) is a / b rounded up. Multiples of 8 or 16 suit tensor cores.
    count = min(-(-count // granularity) * granularity, total)
    # Negated values instead of a reversed order: the stable sort then keeps the first of equal ones.
    return np.sort(np.argsort(-values, kind="stable")[:count])
