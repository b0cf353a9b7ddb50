"""A smaller network from a network and a plan: new models from configs with fewer filters, sliced weights.

Last stage of pruning. The models that are given are only read; what is returned shares nothing with them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import channels, graph, groups, planning
from tlt_runner.pruning.channels import WIDTH
from tlt_runner.pruning.costs import IN, WEIGHT_AXES
from tlt_runner.pruning.graph import Call, Graph, Layer, Network
from tlt_runner.pruning.groups import Groups, Mask
from tlt_runner.pruning.plan import PruningPlan


def rebuild(network: Network, plan: PruningPlan) -> dict[str, keras.Model]:
    """The pruned models, by name.

    Args:
        network: The network for which the plan was made.
        plan: Which filters stay.

    Raises:
        RunnerError: ``ModelMismatch`` where the plan was made for another network.
    """
    read = graph.read(network)
    traced = channels.trace(read, planning.whole_layers(network, plan.options))
    found = groups.find(traced)
    kept = _mask(found, plan)
    class_of = np.unique(traced.atoms.roots(), return_inverse=True)[1]
    widths = {call: int(kept[class_of[layout]].sum()) for call, layout in traced.outputs.items()}
    models = {}
    for name, model in network.models.items():
        config = _pruned_config(model.get_config(), read, widths)
        models[name] = type(model).from_config(config)
        for layer in models[name].layers:
            _copy_weights(model.get_layer(layer.name), layer, read.layers[layer.name], found, kept)
    return models


def _mask(found: Groups, plan: PruningPlan) -> Mask:
    """The classes that the plan keeps, after a check that it is a plan for this network."""
    planned = {layer.name: layer for layer in plan.layers}
    if planned.keys() != found.classes.keys():
        others = ", ".join(sorted(planned.keys() ^ found.classes.keys()))
        raise RunnerError(
            Reason.MODEL_MISMATCH, f"expected a plan for this model's layers, it differs in: {others}"
        )
    kept = found.everything()
    for name, ids in found.classes.items():
        kept[np.delete(ids, _valid(planned[name].kept, len(ids), name))] = False
    for name, ids in found.classes.items():
        if tuple(np.flatnonzero(kept[ids]).tolist()) != planned[name].kept:
            raise RunnerError(
                Reason.MODEL_MISMATCH,
                f"expected a plan that keeps the same filters in all layers of a group, {name!r} differs",
            )
    for group in found.groups:
        if group.whole and not all(kept[block].all() for block in group.blocks):
            raise RunnerError(
                Reason.MODEL_MISMATCH,
                f"expected a plan that keeps {', '.join(group.layers)} whole ({group.whole})",
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


def _pruned_config(config: Mapping[str, Any], read: Graph, widths: Mapping[Call, int]) -> dict[str, Any]:
    """The config with fewer filters; what Keras derives from shapes when it builds is left out."""
    pruned: dict[str, Any] = copy.deepcopy(dict(config))
    for entry in pruned["layers"]:
        entry.pop("build_config", None)
        width = widths.get(Call(entry["name"], 0))
        if width is not None:
            _set_width(entry["config"], read.layers[entry["name"]], width)
    return pruned


def _set_width(config: dict[str, Any], layer: Layer, width: int) -> None:
    if layer.kind in WIDTH:
        config[WIDTH[layer.kind]] = width
    elif layer.kind == "InputLayer":
        config["batch_shape"] = [*config["batch_shape"][:-1], width]
    elif layer.kind == "Reshape" and config["target_shape"][-1] != -1:
        config["target_shape"] = [*config["target_shape"][:-1], width]


def _copy_weights(
    source: keras.layers.Layer, target: keras.layers.Layer, layer: Layer, found: Groups, kept: Mask
) -> None:
    axes_of = WEIGHT_AXES.get(layer.kind, {})
    values = []
    for weight in source.weights:
        value = np.asarray(weight)
        for axis, side in axes_of.get(weight.name, {}).items():
            classes = (found.inputs if side == IN else found.classes).get(layer.name)
            if classes is not None:
                value = value[(slice(None),) * axis + (kept[classes],)]
        values.append(value)
    target.set_weights(values)
