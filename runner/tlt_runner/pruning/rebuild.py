"""Builds the smaller network of a plan: models from configs with fewer filters, and sliced weights.

Last stage of pruning. The given models are only read; the returned ones share nothing with them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import groups as grouping
from tlt_runner.pruning.channels import WIDTH
from tlt_runner.pruning.costs import IN, WEIGHT_AXES
from tlt_runner.pruning.graph import Call, Graph, Layer, Network
from tlt_runner.pruning.groups import Groups, Mask
from tlt_runner.pruning.plan import PruningPlan


def rebuild(network: Network, plan: PruningPlan, groups: Groups | None = None) -> dict[str, keras.Model]:
    """Build the pruned models, by name.

    Args:
        network: The network for which the plan was made.
        plan: Which filters stay.
        groups: The network's groups as the plan was made with them; found anew where they are not given,
            for a plan that was read from a file.

    Raises:
        RunnerError: ``ModelMismatch`` where the plan was made for another network.
    """
    if groups is None:
        # Names that this network lacks are no error of the spec here: the plan is compared with it below.
        groups = grouping.find(network, plan.options.excluded_layers, check_names=False)
    # The mask over coupled sets says for every axis of every weight what stays.
    kept = _kept_sets(groups, plan)
    # The number of channels of each call's output.
    widths = {call: int(kept[sets].sum()) for call, sets in groups.outputs.items()}
    pruned = {}
    for name, model in network.models.items():
        config = _pruned_config(groups.graph.configs[name], groups.graph, widths)
        pruned[name] = type(model).from_config(config)
        # By name: the config keeps the names, and so a plan and excluded layers fit the pruned model, too.
        for layer in pruned[name].layers:
            _copy_weights(model.get_layer(layer.name), layer, groups.graph.layers[layer.name], groups, kept)
    return pruned


def _kept_sets(groups: Groups, plan: PruningPlan) -> Mask:
    """The coupled sets that the plan keeps, after a check that it is a plan for this network."""
    # A plan can come from a file, so nothing of it is taken for granted.
    planned = {layer.name: layer for layer in plan.layers}
    if planned.keys() != groups.filters.keys():
        differing = ", ".join(sorted(planned.keys() ^ groups.filters.keys()))
        raise RunnerError(
            Reason.MODEL_MISMATCH, f"expected a plan for this model's layers, it differs in: {differing}"
        )
    kept = groups.everything()
    for name, sets in groups.filters.items():
        kept[np.delete(sets, _valid(planned[name].kept, len(sets), name))] = False
    # A set is pruned as soon as one layer prunes it: then all layers of the set must have pruned it.
    for name, sets in groups.filters.items():
        if tuple(np.flatnonzero(kept[sets]).tolist()) != planned[name].kept:
            raise RunnerError(
                Reason.MODEL_MISMATCH,
                f"expected a plan that keeps the same filters in all layers of a group, {name!r} differs",
            )
    # Their filters have a meaning outside the network, or the user excluded them.
    for group in groups.groups:
        if group.protection and not all(kept[block].all() for block in group.blocks):
            raise RunnerError(
                Reason.MODEL_MISMATCH,
                f"expected a plan that keeps all filters of {', '.join(group.layers)}, which are protected "
                f"({group.protection})",
            )
    return kept


def _valid(kept: tuple[int, ...], filters: int, name: str) -> list[int]:
    if not kept or min(kept) < 0 or max(kept) >= filters:
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"expected a plan for {filters} filters of layer {name!r}, it keeps {len(kept)}, up to number "
            f"{max(kept, default=-1)}",
        )
    return list(kept)


def _pruned_config(config: Mapping[str, Any], graph: Graph, widths: Mapping[Call, int]) -> dict[str, Any]:
    """The config with fewer filters, and without the shapes that Keras derives when it builds."""
    pruned: dict[str, Any] = copy.deepcopy(dict(config))
    for entry in pruned["layers"]:
        # It holds the unpruned input shape, with which Keras would build the layer before it is called.
        entry.pop("build_config", None)
        # The first call: a shared layer has the same width in all of them. None: it could not be followed,
        # and so keeps its config.
        width = widths.get(Call(entry["name"], 0))
        if width is not None:
            _set_width(entry["config"], graph.layers[entry["name"]], width)
    return pruned


def _set_width(config: dict[str, Any], layer: Layer, width: int) -> None:
    """Set the number of channels in a layer's config, where the config holds one."""
    if layer.kind in WIDTH:
        config[WIDTH[layer.kind]] = width
    # The head's input has as many channels as the trunk's output keeps.
    elif layer.kind == "InputLayer":
        config["batch_shape"] = [*config["batch_shape"][:-1], width]
    # A target of -1 is inferred from the input, and so follows by itself.
    elif layer.kind == "Reshape" and config["target_shape"][-1] != -1:
        config["target_shape"] = [*config["target_shape"][:-1], width]


def _copy_weights(
    source: keras.layers.Layer, target: keras.layers.Layer, layer: Layer, groups: Groups, kept: Mask
) -> None:
    """Copy the kept slices of a layer's weights into the same layer of the pruned model."""
    axes_of = WEIGHT_AXES.get(layer.kind, {})
    values = []
    for weight in source.weights:
        value = np.asarray(weight)
        for axis, side in axes_of.get(weight.name, {}).items():
            # Several axes of a weight are cut in turn; without a layout the layer keeps all of an axis.
            sets = (groups.inputs if side == IN else groups.filters).get(layer.name)
            if sets is not None:
                value = value[(slice(None),) * axis + (kept[sets],)]
        values.append(value)
    target.set_weights(values)
