"""The filter from which each channel of each tensor comes.

Second stage of pruning. Every filter of a Conv2D, DepthwiseConv2D or Dense, and every channel of the
network's input, is a *source* and has a number. A tensor's *layout* lists the source of each of its channels
(last axis). Concatenation concatenates layouts, flattening repeats them, an addition *couples* sources: they
are pruned together or not at all. Torch-Pruning's index mappings between pairs of layers are here one array
per tensor.

A source can be *protected*, with a reason: it stays, and so do all that are coupled to it. The inputs of a
layer that is not understood must turn out to be protected in the end, otherwise pruning stops with an error
that names the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.pruning.graph import Call, Edge, Graph, Layer, Node

Layout = NDArray[np.int64]
"""Source, or coupled set, of each channel [C]."""

PRUNABLE = ("Conv2D", "Dense", "DepthwiseConv2D")
WIDTH = {"Conv2D": "filters", "Dense": "units"}
"""Layer type -> the field of its config that holds the number of filters."""
_CHANNELWISE = frozenset(
    {
        "BatchNormalization",
        "Activation",
        "ReLU",
        "LeakyReLU",
        "ELU",
        "Identity",
        "Dropout",
        "tlt_runner.detector.dropout>Dropout",
        "SpatialDropout2D",
        "GaussianNoise",
        "GaussianDropout",
        "Rescaling",
        "MaxPooling2D",
        "AveragePooling2D",
        "GlobalMaxPooling2D",
        "GlobalAveragePooling2D",
        "ZeroPadding2D",
        "Cropping2D",
        "UpSampling2D",
    }
)
"""Layers whose output channel depends on the same input channel only."""
_ELEMENTWISE = frozenset({"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"})
"""Layers that combine the same channel of several inputs."""


@dataclass(frozen=True)
class Channels:
    """The traced channels of a network.

    Attributes:
        sources: All sources, with their coupling and protection.
        filters: Prunable layer -> the sources that are its filters [F].
        inputs: Layer with weights -> layout of its input. Of a shared layer the first call's: the inputs of
            its other calls are coupled to it.
        outputs: Call -> layout of its output; absent where the layer is not understood.
    """

    sources: Sources
    filters: Mapping[str, Layout]
    inputs: Mapping[str, Layout]
    outputs: Mapping[Call, Layout]


def trace(graph: Graph, protected: Mapping[str, str]) -> Channels:
    """Follow channels through the graph.

    Args:
        graph: The network.
        protected: Layers whose output channels all stay -> reason.

    Raises:
        RunnerError: ``InvalidSpec``: channels that may be pruned reach a layer that is not understood.
    """
    tracer = _Tracer(graph, protected)
    # In topological order: the layouts of a call's inputs are known before it is visited.
    for node in graph.nodes:
        tracer.visit(node)
    # What leaves the network is read by somebody who knows the number and order of its channels.
    for edge in graph.outputs:
        tracer.protect_output(edge)
    # Last, because a protection can come from any later layer.
    tracer.check_requirements()
    return Channels(tracer.sources, tracer.filters, tracer.inputs, tracer.outputs)


class Sources:
    """Sources of channels, coupled and protected: a union-find in which a set can have a reason to stay."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._protection: list[str | None] = []

    def create(self, count: int, protection: str | None = None) -> Layout:
        """Number ``count`` new sources [count]; with a reason they are protected."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._protection.extend([protection] * count)
        return np.arange(start, start + count)

    def couple(self, left: Layout, right: Layout) -> None:
        """Couple the sources at the same index of both layouts: pruned together or not at all."""
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            # The lower number becomes the root: coupled sets are then in the order of the graph.
            low, high = sorted((self._root(one), self._root(other)))
            self._parent[high] = low
            # One protected source protects the whole set, also when the coupling comes after the protection.
            self._protection[low] = self._protection[low] or self._protection[high]

    def protect(self, layout: Layout, reason: str) -> None:
        """Protect the sources, and so all that are coupled to them. The first reason is the one reported."""
        for source in layout.tolist():
            root = self._root(source)
            self._protection[root] = self._protection[root] or reason

    def protection(self, source: int) -> str | None:
        """Return the reason why the source stays; None where it may be pruned."""
        return self._protection[self._root(source)]

    def coupled_sets(self) -> Layout:
        """Return the number of the coupled set of each source, from 0."""
        roots = np.array([self._root(source) for source in range(len(self._parent))], np.int64)
        # The index of a source's root among all roots: numbers without gaps, in the order of the roots.
        return np.unique(roots, return_inverse=True)[1]

    def _root(self, source: int) -> int:
        while self._parent[source] != source:
            # Path halving keeps chains short.
            self._parent[source] = self._parent[self._parent[source]]
            source = self._parent[source]
        return source


class _Tracer:
    """Visits the calls of a graph in order, and collects sources and layouts."""

    def __init__(self, graph: Graph, protected: Mapping[str, str]) -> None:
        self.graph, self.protected = graph, protected
        self.sources = Sources()
        self.filters: dict[str, Layout] = {}
        self.inputs: dict[str, Layout] = {}
        self.outputs: dict[Call, Layout] = {}
        # Inputs of layers that are not understood, with the problem: they must be protected in the end.
        self._requirements: list[tuple[Layer, Layout, str]] = []

    def visit(self, node: Node) -> None:
        """Find the layout of a call's output from those of its inputs."""
        layer = self.graph.layers[node.call.layer]
        layouts = [self._layout(edge) for edge in node.inputs]
        output = self._output(layer, node, layouts)
        # Later layers get protected sources in place of a layout that is not known (see _layout).
        if output is None:
            return
        if layer.name in self.protected:
            self.sources.protect(output, self.protected[layer.name])
        self.outputs[node.call] = output

    def protect_output(self, edge: Edge) -> None:
        self.sources.protect(self._layout(edge), "model output")

    def check_requirements(self) -> None:
        """Refuse the network if channels that may be pruned reach a layer that is not understood.

        Raises:
            RunnerError: InvalidSpec, naming the layer and those whose filters reach it.
        """
        for layer, layout, problem in self._requirements:
            # Channels that all stay anyway may pass through any layer: only these could be pruned.
            prunable = {source for source in layout.tolist() if self.sources.protection(source) is None}
            if prunable:
                producers = [
                    name for name, sources in self.filters.items() if prunable & set(sources.tolist())
                ]
                raise RunnerError(
                    Reason.INVALID_SPEC,
                    f"expected layers through which pruned channels can be followed, got layer "
                    f"{layer.name!r} of type {layer.kind}: {problem}",
                    f"Add {', '.join(map(repr, producers))} to spec.excludedLayers: their filters reach it.",
                )

    def _layout(self, edge: Edge) -> Layout:
        """Layout of a tensor; an output that could not be followed has protected sources of its own."""
        # Only first outputs are followed: no layer that is understood has a second one.
        if edge.output == 0 and edge.source in self.outputs:
            return self.outputs[edge.source]
        # A shape without channels, or with an unknown number of them, has none that could be pruned.
        width = edge.shape[-1] if len(edge.shape) > 1 and edge.shape[-1] is not None else 0
        return self.sources.create(width, f"made by {edge.source.layer}")

    def _output(self, layer: Layer, node: Node, layouts: list[Layout]) -> Layout | None:
        """The layout of the output; None where the layer cannot be followed."""
        problem = _problem(layer, node)
        if problem is None:
            if layer.kind == "InputLayer":
                # A connected input passes on the channels of the other model's output.
                return layouts[0] if layouts else self._network_input(layer)
            if layer.kind in PRUNABLE:
                return self._prunable(layer, layouts[0])
            if layer.kind in _CHANNELWISE:
                return self._channelwise(layer, layouts[0])
            if layer.kind in _ELEMENTWISE:
                return self._elementwise(layouts)
            if layer.kind == "Concatenate":
                return self._concatenated(layer, node, layouts)
            if layer.kind in ("Flatten", "Reshape"):
                return self._reshaped(layer, node, layouts[0])
            # Not an error yet: its inputs may turn out to be protected.
            problem = "its effect on channels is not known"
        self._requirements.extend((layer, layout, problem) for layout in layouts)
        return None

    def _network_input(self, layer: Layer) -> Layout:
        # Protected: the images keep their channels. batch_shape is [None, H, W, C].
        width = layer.config["batch_shape"][-1] or 0
        return self.sources.create(width, "network input")

    def _prunable(self, layer: Layer, layout: Layout) -> Layout:
        """Return the layer's filters, which are new sources at its first call."""
        self._record_input(layer, layout)
        # A shared layer is called several times and has its filters once.
        if layer.name not in self.filters:
            width = len(layout) if layer.kind == "DepthwiseConv2D" else layer.config[WIDTH[layer.kind]]
            self.filters[layer.name] = self.sources.create(width)
        # A depthwise convolution has a filter for each input channel: neither goes without the other.
        if layer.kind == "DepthwiseConv2D":
            self.sources.couple(self.filters[layer.name], layout)
        return self.filters[layer.name]

    def _channelwise(self, layer: Layer, layout: Layout) -> Layout:
        # Batch normalisation has numbers for each channel, which rebuilding cuts by this layout.
        if layer.weights:
            self._record_input(layer, layout)
        return layout

    def _record_input(self, layer: Layer, layout: Layout) -> None:
        first = self.inputs.setdefault(layer.name, layout)
        # A shared layer has one kernel for all calls, so the inputs of all lose the same channels.
        if first is not layout:
            self.sources.couple(first, layout)

    def _elementwise(self, layouts: list[Layout]) -> Layout:
        """Couple all inputs; a single channel is broadcast over the others' and takes no part."""
        # A squeeze-and-excitation gate [1, 1, C] is as wide as the map [H, W, C] that it scales, and coupled
        # to it.
        widest = max(layouts, key=len)
        for layout in layouts:
            if len(layout) == len(widest):
                self.sources.couple(widest, layout)
        return widest

    def _concatenated(self, layer: Layer, node: Node, layouts: list[Layout]) -> Layout:
        # The usual case, along channels: no input is coupled to another, each keeps its own sources.
        if layer.config["axis"] in (-1, len(node.inputs[0].shape) - 1):
            return np.concatenate(layouts)
        # Along another axis all inputs have the same channels, as in an addition.
        return self._elementwise(layouts)

    def _reshaped(self, layer: Layer, node: Node, layout: Layout) -> Layout | None:
        """Repeat the layout if the last axis becomes k times as long; protect it if the axis gets shorter."""
        # Row-major, as Keras reshapes: [h, w, C] flattened is h * w runs of the channels in order. So the
        # layer after a Flatten loses h * w inputs with each channel.
        width = self.graph.output_shapes[node.call][-1]
        if width is not None and len(layout) and width % len(layout) == 0:
            return np.tile(layout, width // len(layout))
        # A shorter last axis spreads one position's channels over several: none of them can go alone.
        self.sources.protect(layout, f"split by {layer.name}")
        return None


def _problem(layer: Layer, node: Node) -> str | None:
    """Reason why this call cannot be followed although layers of its type can; None where it can."""
    config = layer.config
    if config.get("data_format", "channels_last") != "channels_last":
        return "only channels_last is supported"
    if node.constants:
        return "it is called with an array"
    # A filter sees the channels of its own group only: without one of them the groups would shift.
    if config.get("groups", 1) != 1:
        return "grouped convolution cannot be cut"
    # Several filters for each channel need another layout; TLT refuses them as well.
    if config.get("depth_multiplier", 1) != 1:
        return "depth_multiplier must be 1"
    if layer.kind == "BatchNormalization" and _axis(config["axis"]) not in (
        -1,
        len(node.inputs[0].shape) - 1,
    ):
        return "it normalises another axis than the last"
    # Numbers for each channel are part of the config, which would have to be cut like a weight.
    if layer.kind == "Rescaling" and not _are_numbers(config["scale"], config["offset"]):
        return "it has a number for each channel"
    # The value of each channel depends on all of them.
    if layer.kind == "Activation" and config["activation"] == "softmax":
        return "softmax runs over the channels"
    return None


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _axis(axis: int | Iterable[int]) -> int:
    return axis if isinstance(axis, int) else next(iter(axis))
