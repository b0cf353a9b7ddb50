"""The number of parameters and FLOPs of a network with some of its channels pruned.

Counts from the graph, without building anything, so that a target can be searched for. The table of weight
axes here is the one by which :mod:`~tlt_runner.pruning.rebuild` cuts: the prediction is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.pruning.graph import Layer, Node
from tlt_runner.pruning.groups import Groups, Mask

IN, OUT = "in", "out"

WEIGHT_AXES: Mapping[str, Mapping[str, Mapping[int, str]]] = {
    "Conv2D": {"kernel": {2: IN, 3: OUT}, "bias": {0: OUT}},
    # Kernel [height, width, channels, 1]: its filters are its input channels.
    "DepthwiseConv2D": {"kernel": {2: IN}, "bias": {0: IN}},
    "Dense": {"kernel": {0: IN, 1: OUT}, "bias": {0: OUT}},
    "BatchNormalization": {name: {0: IN} for name in ("gamma", "beta", "moving_mean", "moving_variance")},
}
"""Layer type -> weight -> axis -> whether it runs over the input's channels or over the layer's filters."""


@dataclass(frozen=True)
class Costs:
    """Size of a network.

    Attributes:
        parameters: All weights, batch normalisation's statistics included, as Keras' ``count_params``.
        flops: Two for each multiply-add of convolutions and dense layers, for one image.
    """

    parameters: int
    flops: int


def costs(groups: Groups, kept: Mask) -> Costs:
    """Count what the network has when only the coupled sets in ``kept`` are left.

    Raises:
        RunnerError: ``UnreadableModel`` where the size of a feature map is not known.
    """
    parameters = sum(_parameters(layer, groups, kept) for layer in groups.graph.layers.values())
    flops = sum(_flops(node, groups, kept) for node in groups.graph.nodes)
    return Costs(parameters, flops)


def _parameters(layer: Layer, groups: Groups, kept: Mask) -> int:
    return sum(math.prod(_shape(layer, name, shape, groups, kept)) for name, shape in layer.weights)


def _flops(node: Node, groups: Groups, kept: Mask) -> int:
    """FLOPs of one call for one image; 0 for layers that are neither convolution nor dense.

    Raises:
        RunnerError: UnreadableModel where the size of a feature map is not known.
    """
    # By call, not by layer: a shared layer has its parameters once and computes at every call.
    layer = groups.graph.layers[node.call.layer]
    kernel = next((weight for weight in layer.weights if weight.name == "kernel"), None)
    if layer.kind not in ("Conv2D", "DepthwiseConv2D", "Dense") or kernel is None:
        return 0
    # Without batch and channels: [H, W] of a feature map, [] of a vector, whose product is 1.
    positions = groups.graph.output_shapes[node.call][1:-1]
    if None in positions:
        raise RunnerError(
            Reason.UNREADABLE_MODEL,
            f"expected a model of fixed image size, got an output of {positions} at layer {layer.name!r}",
        )
    # The whole kernel is applied once at each position of the output.
    multiply_adds = math.prod(_shape(layer, "kernel", kernel.shape, groups, kept))
    # Two operations each: a multiplication and an addition. The head runs once for each proposal.
    return 2 * layer.runs * multiply_adds * math.prod(size for size in positions if size is not None)


def _shape(layer: Layer, name: str, shape: tuple[int, ...], groups: Groups, kept: Mask) -> tuple[int, ...]:
    """Shape of a weight after pruning."""
    # A layer that the table lacks is not cut: its channels are all protected (channels.trace).
    axes = WEIGHT_AXES.get(layer.kind, {}).get(name, {})
    return tuple(
        size if axis not in axes else _width(layer, axes[axis], size, groups, kept)
        for axis, size in enumerate(shape)
    )


def _width(layer: Layer, side: str, size: int, groups: Groups, kept: Mask) -> int:
    sets = (groups.inputs if side == IN else groups.filters).get(layer.name)
    return size if sets is None else int(kept[sets].sum())
