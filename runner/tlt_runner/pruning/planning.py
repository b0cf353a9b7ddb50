"""From a network to a pruning plan: the filters' values, the keep rule, the search for a target.

Fifth stage of pruning; reads the network and changes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tlt_api.failures import Reason
from tlt_api.prunejob import PruneTarget
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import channels, costs, graph, groups, importance
from tlt_runner.pruning.costs import Costs
from tlt_runner.pruning.graph import Graph, Network
from tlt_runner.pruning.groups import Groups, Mask
from tlt_runner.pruning.importance import FloatArray
from tlt_runner.pruning.plan import LayerPlan, Options, PruningPlan, target_text


@dataclass(frozen=True)
class _Analysis:
    """What does not depend on the threshold."""

    graph: Graph
    groups: Groups
    values: FloatArray
    options: Options

    def mask(self, threshold: float) -> Mask:
        """Which classes stay at this threshold."""
        kept = self.groups.everything()
        for group in self.groups.groups:
            for block in group.blocks if group.whole is None else ():
                chosen = importance.keep(
                    self.values[block], threshold, self.options.granularity, self.options.min_filters
                )
                kept[block] = False
                kept[block[chosen]] = True
        return kept

    def costs(self, kept: Mask) -> Costs:
        """Size of the network with these classes."""
        return costs.costs(self.graph, self.groups, kept)

    def prunable_values(self) -> FloatArray:
        """Values of the classes that may go, ascending, without repetition."""
        blocks = [block for group in self.groups.groups if group.whole is None for block in group.blocks]
        return np.unique(np.concatenate([self.values[block] for block in blocks] or [np.zeros(0)]))


def make(
    network: Network, options: Options, *, threshold: float | None = None, target: PruneTarget | None = None
) -> PruningPlan:
    """Plan the pruning of a network; nothing is changed.

    Args:
        network: What to prune.
        options: How.
        threshold: Filters whose value is not above it go, within the keep rule.
        target: The fraction of parameters or FLOPs to keep at most, instead of a threshold; the lowest
            threshold that gives it is searched for. Filters go in steps of ``granularity``, so it is met from
            below.

    Raises:
        RunnerError: ``InvalidSpec`` for unknown names in ``excluded_layers``, a layer that cannot be followed
            or a target that cannot be reached; ``NothingToPrune`` where every filter would stay.
    """
    if (threshold is None) == (target is None):
        raise RunnerError(Reason.INVALID_SPEC, "expected exactly one of threshold and target")
    analysis = _analyse(network, options)
    before = analysis.costs(analysis.groups.everything())
    if target is not None:
        threshold = _search(analysis, before, target)
    kept = analysis.mask(threshold or 0.0)
    if kept.all():
        raise _nothing(analysis, threshold or 0.0)
    after = analysis.costs(kept)
    return PruningPlan(
        threshold=threshold or 0.0,
        target=target,
        options=options,
        layers=_layer_plans(analysis, kept),
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        flops_before=before.flops,
        flops_after=after.flops,
    )


def whole_layers(network: Network, options: Options) -> dict[str, str]:
    """Layers that keep all their filters -> why."""
    return {**dict.fromkeys(options.excluded_layers, "excluded"), **network.kept}


def _analyse(network: Network, options: Options) -> _Analysis:
    read = graph.read(network)
    _check_names(options.excluded_layers, list(read.layers))
    found = groups.find(channels.trace(read, whole_layers(network, options)))
    statistics = {
        name: importance.normalize(_norms(network, read, name), options.normalizer) for name in found.classes
    }
    values = importance.equalize(statistics, found.classes, found.count, options.equalization)
    return _Analysis(read, found, values, options)


def _norms(network: Network, read: Graph, name: str) -> FloatArray:
    layer = read.layers[name]
    kernel = network.models[layer.model].get_layer(name).kernel
    norms = importance.filter_norms(np.asarray(kernel), depthwise=layer.kind == "DepthwiseConv2D")
    if not np.isfinite(norms).all():
        raise RunnerError(
            Reason.UNREADABLE_MODEL,
            f"expected finite weights, got NaN or infinity in layer {name!r}: did its training diverge?",
        )
    return norms


def _check_names(excluded: Sequence[str], names: Sequence[str]) -> None:
    problems = []
    for name in sorted(set(excluded) - set(names)):
        near = difflib.get_close_matches(name, names, n=3)
        problems.append(f"{name!r}" + (f" (near: {', '.join(near)})" if near else ""))
    if problems:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected names of the model's layers in excludedLayers, got {', '.join(problems)}",
        )


def _search(analysis: _Analysis, before: Costs, target: PruneTarget) -> float:
    """The lowest threshold that keeps at most the target, by bisection over the values that occur."""
    values = analysis.prunable_values()

    def kept_fraction(threshold: float) -> float:
        after = analysis.costs(analysis.mask(threshold))
        if target.flops is not None:
            return after.flops / max(before.flops, 1)
        return after.parameters / before.parameters

    goal = target.flops if target.flops is not None else target.parameters or 0.0
    lowest = kept_fraction(values[-1]) if len(values) else 1.0
    if lowest > goal:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a target that can be reached, got {target_text(target)}: minFilters "
            f"{analysis.options.min_filters}, granularity {analysis.options.granularity}, excludedLayers and "
            f"the outputs keep {lowest:.3f} at least",
            "Aim at more, or lower spec.minFilters and spec.granularity.",
        )
    return _lowest_threshold(values, lambda value: kept_fraction(value) <= goal)


def _lowest_threshold(values: FloatArray, enough: Callable[[float], bool]) -> float:
    """The lowest threshold at which ``enough`` holds, by bisection; it holds at the last of ``values``."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(values[middle]) else (middle + 1, high)
    return _shortest(values[low], values[low + 1] if low + 1 < len(values) else values[low] + 1)


def _shortest(low: float, high: float) -> float:
    """The decimal fraction of fewest places in [low, high): it can be written down and used again."""
    for digits in range(2, 16):
        step = 10.0**-digits
        rounded = round(float(np.ceil(low / step)) * step, digits)
        if low <= rounded < high:
            return rounded
    return float(low)


def _layer_plans(analysis: _Analysis, kept: Mask) -> tuple[LayerPlan, ...]:
    group_of = {
        name: (number, group.whole)
        for number, group in enumerate(analysis.groups.groups)
        for name in group.layers
    }
    return tuple(
        LayerPlan(
            name=name,
            kind=analysis.graph.layers[name].kind,
            group=group_of[name][0],
            filters=len(ids),
            kept=tuple(np.flatnonzero(kept[ids]).tolist()),
            whole=group_of[name][1],
        )
        for name, ids in analysis.groups.classes.items()
    )


def _nothing(analysis: _Analysis, threshold: float) -> RunnerError:
    values, options = analysis.prunable_values(), analysis.options
    message = f"no filter goes at threshold {threshold:g}: "
    if not len(values) or analysis.mask(values[-1]).all():
        message += (
            f"excludedLayers, outputs, minFilters {options.min_filters} and granularity "
            f"{options.granularity} leave none that may go at any threshold"
        )
        return RunnerError(
            Reason.NOTHING_TO_PRUNE,
            message,
            "Lower spec.minFilters or spec.granularity, or exclude fewer layers.",
        )
    first = _lowest_threshold(values, lambda value: not analysis.mask(value).all())
    message += (
        f"the values of filters that may go are {values[0]:.4g} to {values[-1]:.4g}, and minFilters "
        f"{options.min_filters} and granularity {options.granularity} let the first go at threshold {first:g}"
    )
    threshold_too = f", or a spec.threshold of {first:g} or more" if first < 1 else ""
    return RunnerError(Reason.NOTHING_TO_PRUNE, message, f"Give a spec.target{threshold_too}.")
