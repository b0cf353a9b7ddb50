"""Makes the pruning plan of a network: values of filters, the keep rule, the search for a target.

Fifth stage of pruning; reads the network and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tlt_api.failures import Reason
from tlt_api.prunejob import PruneTarget
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import costs, importance
from tlt_runner.pruning import groups as grouping
from tlt_runner.pruning.channels import Layout
from tlt_runner.pruning.costs import Costs
from tlt_runner.pruning.graph import Network
from tlt_runner.pruning.groups import Groups, Mask
from tlt_runner.pruning.importance import FloatArray
from tlt_runner.pruning.plan import LayerPlan, Options, PruningPlan, target_text

log = logging.getLogger(__name__)


def make(
    network: Network,
    options: Options,
    *,
    threshold: float | None = None,
    target: PruneTarget | None = None,
    groups: Groups | None = None,
) -> PruningPlan:
    """Plan the pruning of a network; nothing is changed.

    Args:
        network: What to prune.
        options: How to prune it.
        threshold: Filters with a value of at most this are pruned, within the keep rule.
        target: The fraction of parameters or FLOPs to keep at most, instead of a threshold; the lowest
            threshold that gives it is searched for. Filters are pruned in steps of ``granularity``, so it is
            met from below.
        groups: The network's groups with the excluded layers of ``options``, where they are at hand.

    Raises:
        RunnerError: ``InvalidSpec`` for unknown names in ``excluded_layers``, a layer that cannot be followed
            or a target that cannot be reached; ``NothingToPrune`` where every filter would stay.
    """
    if (threshold is None) == (target is None):
        raise RunnerError(Reason.INVALID_SPEC, "expected exactly one of threshold and target")
    # 1. Groups: what can only go together.
    groups = groups or grouping.find(network, options.excluded_layers)
    for number in range(len(groups.groups) if log.isEnabledFor(logging.DEBUG) else 0):
        log.debug("%s", groups.details(number))
    # 2. Values: how much each coupled set matters.
    candidates = _Candidates(groups, _values(network, groups, options), options)
    before = candidates.costs(groups.everything())
    # 3. Choice, by the threshold given or by the one that reaches the target.
    if target is not None:
        threshold = _search(candidates, before, target)
    kept = candidates.mask(threshold or 0.0)
    # A model like the given one would pass for a pruned one.
    if kept.all():
        raise _nothing_to_prune(candidates, threshold or 0.0)
    after = candidates.costs(kept)
    return PruningPlan(
        threshold=threshold or 0.0,
        target=target,
        options=options,
        layers=_layer_plans(groups, kept),
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        flops_before=before.flops,
        flops_after=after.flops,
    )


@dataclass(frozen=True)
class _Candidates:
    """All that decides which filters are pruned, apart from the threshold."""

    groups: Groups
    values: FloatArray
    options: Options

    def mask(self, threshold: float) -> Mask:
        """Return the coupled sets that stay at this threshold."""
        kept = self.groups.everything()
        # Protected groups are left out, and network inputs, which are in no group, stay.
        for block in self._prunable_blocks():
            chosen = importance.keep(
                self.values[block], threshold, self.options.granularity, self.options.min_filters
            )
            kept[block] = False
            kept[block[chosen]] = True
        return kept

    def costs(self, kept: Mask) -> Costs:
        """Return the size of the network with these coupled sets."""
        return costs.costs(self.groups, kept)

    def prunable_values(self) -> FloatArray:
        """Return the values of the coupled sets that may be pruned, ascending, without repetition."""
        return np.unique(
            np.concatenate([self.values[block] for block in self._prunable_blocks()] or [np.zeros(0)])
        )

    def _prunable_blocks(self) -> list[Layout]:
        return [block for group in self.groups.groups if group.protection is None for block in group.blocks]


def _values(network: Network, groups: Groups, options: Options) -> FloatArray:
    """Value of each coupled set."""
    statistics = {
        name: importance.normalize(_norms(network, groups, name), options.normalizer)
        for name in groups.filters
    }
    return importance.equalize(statistics, groups.filters, groups.count, options.equalization)


def _norms(network: Network, groups: Groups, name: str) -> FloatArray:
    """Norm of each filter of a layer [F].

    Raises:
        RunnerError: UnreadableModel where a weight is not finite.
    """
    layer = groups.graph.layers[name]
    kernel = network.models[layer.model].get_layer(name).kernel
    norms = importance.filter_norms(np.asarray(kernel), depthwise=layer.kind == "DepthwiseConv2D")
    # NaN is above no threshold: its filters would be pruned as the least important ones.
    if not np.isfinite(norms).all():
        raise RunnerError(
            Reason.UNREADABLE_MODEL,
            f"expected finite weights, got NaN or infinity in layer {name!r}: did its training diverge?",
        )
    return norms


def _search(candidates: _Candidates, before: Costs, target: PruneTarget) -> float:
    """Return the lowest threshold that keeps at most the target, by bisection over the values that occur."""
    values = candidates.prunable_values()

    def kept_fraction(threshold: float) -> float:
        after = candidates.costs(candidates.mask(threshold))
        # max: a network without convolutions and dense layers has no FLOPs.
        if target.flops is not None:
            return after.flops / max(before.flops, 1)
        return after.parameters / before.parameters

    goal = target.flops if target.flops is not None else target.parameters or 0.0
    # At the largest value every block is down to what minFilters and granularity leave it.
    lowest = kept_fraction(values[-1]) if len(values) else 1.0
    if lowest > goal:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a target that can be reached, got {target_text(target)}: minFilters "
            f"{candidates.options.min_filters}, granularity {candidates.options.granularity}, excludedLayers "
            f"and the outputs keep {lowest:.3f} at least",
            "Aim at more, or lower spec.minFilters and spec.granularity.",
        )
    return _lowest_threshold(values, lambda value: kept_fraction(value) <= goal)


def _lowest_threshold(values: FloatArray, enough: Callable[[float], bool]) -> float:
    """Return the lowest threshold at which ``enough`` holds; it holds at the last of ``values``."""
    # A higher threshold never keeps more filters: bisection finds the first one that suffices.
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(values[middle]) else (middle + 1, high)
    # Every threshold up to the next value prunes the same filters.
    return _shortest(values[low], values[low + 1] if low + 1 < len(values) else values[low] + 1)


def _shortest(low: float, high: float) -> float:
    """Return the decimal fraction of fewest digits in [low, high): it can be written down and used again."""
    # Digits after the point; a float has no more than 15 for certain.
    for digits in range(2, 16):
        step = 10.0**-digits
        # Up, because below `low` the filter with this value would stay.
        rounded = round(float(np.ceil(low / step)) * step, digits)
        if low <= rounded < high:
            return rounded
    return float(low)


def _layer_plans(groups: Groups, kept: Mask) -> tuple[LayerPlan, ...]:
    """List the kept filters of each layer."""
    group_of = {
        name: (number, group.protection)
        for number, group in enumerate(groups.groups)
        for name in group.layers
    }
    return tuple(
        LayerPlan(
            name=name,
            kind=groups.graph.layers[name].kind,
            group=group_of[name][0],
            filters=len(sets),
            kept=tuple(np.flatnonzero(kept[sets]).tolist()),
            protection=group_of[name][1],
        )
        for name, sets in groups.filters.items()
    )


def _nothing_to_prune(candidates: _Candidates, threshold: float) -> RunnerError:
    """Make the error for a threshold that prunes nothing: it says which threshold would."""
    values, options = candidates.prunable_values(), candidates.options
    message = f"no filter goes at threshold {threshold:g}: "
    # Either no threshold prunes anything, or the message names the lowest one that does.
    if not len(values) or candidates.mask(values[-1]).all():
        message += (
            f"excludedLayers, outputs, minFilters {options.min_filters} and granularity "
            f"{options.granularity} leave none that may go at any threshold"
        )
        return RunnerError(
            Reason.NOTHING_TO_PRUNE,
            message,
            "Lower spec.minFilters or spec.granularity, or exclude fewer layers.",
        )
    first = _lowest_threshold(values, lambda value: not candidates.mask(value).all())
    message += (
        f"the values of filters that may go are {values[0]:.4g} to {values[-1]:.4g}, and minFilters "
        f"{options.min_filters} and granularity {options.granularity} let the first go at threshold {first:g}"
    )
    # With normalizer max the API takes thresholds below 1 only.
    threshold_too = f", or a spec.threshold of {first:g} or more" if first < 1 else ""
    return RunnerError(Reason.NOTHING_TO_PRUNE, message, f"Give a spec.target{threshold_too}.")
