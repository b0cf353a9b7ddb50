"""Which channel of which tensor comes from which filter.

Second stage of pruning. Every filter of a Conv2D, DepthwiseConv2D or Dense is an *atom*; a tensor's *layout*
lists the atom of each of its channels (last axis). Concatenation concatenates layouts, flattening repeats
them, an addition *ties* atoms: they go together or stay together. What Torch-Pruning does with index mappings
between pairs of layers is here one array per tensor.

An atom can be *fixed*, with a reason: it must stay, and so must all that is tied to it. Where a layer is not
understood its inputs must turn out to be fixed in the end, otherwise pruning stops with an error that names
it.
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

PRUNABLE = ("Conv2D", "Dense", "DepthwiseConv2D")
WIDTH = {"Conv2D": "filters", "Dense": "units"}
"""Layer type -> the field of its config that holds the number of filters."""
_PASS = frozenset(
    {
        "BatchNormalization",
        "Activation",
        "ReLU",
        "LeakyReLU",
        "ELU",
        "Identity",
        "Dropout",
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
_ELEMENTWISE = frozenset({"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"})


class Atoms:
    """Filters, and which of them go together: a union-find in which a set can be fixed."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: list[str | None] = []

    def fresh(self, count: int, reason: str | None = None) -> Layout:
        """New atoms; fixed where there is a reason."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._reason.extend([reason] * count)
        return np.arange(start, start + count)

    def tie(self, left: Layout, right: Layout) -> None:
        """Let the atoms at equal places go together."""
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            self._parent[high] = low
            self._reason[low] = self._reason[low] or self._reason[high]

    def fix(self, atoms: Layout, reason: str) -> None:
        """Let the atoms, and all tied to them, stay."""
        for atom in atoms.tolist():
            root = self._root(atom)
            self._reason[root] = self._reason[root] or reason

    def roots(self) -> Layout:
        """For each atom the first of its set."""
        return np.array([self._root(atom) for atom in range(len(self._parent))], np.int64)

    def reason(self, atom: int) -> str | None:
        """Why the atom must stay; None where it need not."""
        return self._reason[self._root(atom)]

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom


@dataclass(frozen=True)
class Channels:
    """What tracing found.

    Attributes:
        atoms: All atoms.
        filters: Prunable layer -> the atoms of its filters.
        inputs: Layer -> layout of its input, for layers with weights that follow it. Of a shared layer the
            first call's: the others are tied to it.
        outputs: Call -> layout of its output; absent where the layer is not understood.
    """

    atoms: Atoms
    filters: Mapping[str, Layout]
    inputs: Mapping[str, Layout]
    outputs: Mapping[Call, Layout]


def trace(graph: Graph, whole: Mapping[str, str]) -> Channels:
    """Follow channels through the graph.

    Args:
        graph: The network.
        whole: Layers whose output channels must all stay -> why.

    Raises:
        RunnerError: ``InvalidSpec``: channels that may be pruned reach a layer that is not understood.
    """
    tracer = _Tracer(graph, whole)
    for node in graph.nodes:
        tracer.visit(node)
    for edge in graph.outputs:
        tracer.fix_output(edge)
    tracer.check()
    return Channels(tracer.atoms, tracer.filters, tracer.inputs, tracer.outputs)


class _Tracer:
    def __init__(self, graph: Graph, whole: Mapping[str, str]) -> None:
        self.graph, self.whole = graph, whole
        self.atoms = Atoms()
        self.filters: dict[str, Layout] = {}
        self.inputs: dict[str, Layout] = {}
        self.outputs: dict[Call, Layout] = {}
        self._demands: list[tuple[Layer, Layout, str]] = []

    def visit(self, node: Node) -> None:
        layer = self.graph.layers[node.call.layer]
        layouts = [self._layout(edge) for edge in node.inputs]
        out = self._output(layer, node, layouts)
        if out is None:
            return
        if layer.name in self.whole:
            self.atoms.fix(out, self.whole[layer.name])
        self.outputs[node.call] = out

    def fix_output(self, edge: Edge) -> None:
        self.atoms.fix(self._layout(edge), "model output")

    def check(self) -> None:
        for layer, layout, problem in self._demands:
            loose = {atom for atom in layout.tolist() if self.atoms.reason(atom) is None}
            if loose:
                producers = [name for name, atoms in self.filters.items() if loose & set(atoms.tolist())]
                raise RunnerError(
                    Reason.INVALID_SPEC,
                    f"expected layers through which pruned channels can be followed, got layer "
                    f"{layer.name!r} of type {layer.kind}: {problem}",
                    f"Add {', '.join(map(repr, producers))} to spec.excludedLayers: their filters reach it.",
                )

    def _layout(self, edge: Edge) -> Layout:
        if edge.output == 0 and edge.source in self.outputs:
            return self.outputs[edge.source]
        width = edge.shape[-1] if len(edge.shape) > 1 and edge.shape[-1] is not None else 0
        return self.atoms.fresh(width, f"made by {edge.source.layer}")

    def _output(self, layer: Layer, node: Node, layouts: list[Layout]) -> Layout | None:
        """The layout of the output; None where the inputs stay, or must be found to stay, as they are."""
        problem = _problem(layer, node)
        if problem is None:
            if layer.kind == "InputLayer":
                return layouts[0] if layouts else self._fixed_input(layer)
            if layer.kind in PRUNABLE:
                return self._prunable(layer, layouts[0])
            if layer.kind in _PASS:
                return self._through(layer, layouts[0])
            if layer.kind in _ELEMENTWISE:
                return self._joined(layouts)
            if layer.kind == "Concatenate":
                return self._concatenated(layer, node, layouts)
            if layer.kind in ("Flatten", "Reshape"):
                return self._reshaped(layer, node, layouts[0])
            problem = "its effect on channels is not known"
        self._demands.extend((layer, layout, problem) for layout in layouts)
        return None

    def _fixed_input(self, layer: Layer) -> Layout:
        width = layer.config["batch_shape"][-1] or 0
        return self.atoms.fresh(width, "network input")

    def _prunable(self, layer: Layer, layout: Layout) -> Layout:
        self._remember_input(layer, layout)
        if layer.name not in self.filters:
            width = len(layout) if layer.kind == "DepthwiseConv2D" else layer.config[WIDTH[layer.kind]]
            self.filters[layer.name] = self.atoms.fresh(width)
        if layer.kind == "DepthwiseConv2D":
            self.atoms.tie(self.filters[layer.name], layout)
        return self.filters[layer.name]

    def _through(self, layer: Layer, layout: Layout) -> Layout:
        if layer.weights:
            self._remember_input(layer, layout)
        return layout

    def _remember_input(self, layer: Layer, layout: Layout) -> None:
        first = self.inputs.setdefault(layer.name, layout)
        if first is not layout:
            self.atoms.tie(first, layout)

    def _joined(self, layouts: list[Layout]) -> Layout:
        """Tie all; a single channel is broadcast over the others' and stands outside."""
        widest = max(layouts, key=len)
        for layout in layouts:
            if len(layout) == len(widest):
                self.atoms.tie(widest, layout)
        return widest

    def _concatenated(self, layer: Layer, node: Node, layouts: list[Layout]) -> Layout:
        if layer.config["axis"] in (-1, len(node.inputs[0].shape) - 1):
            return np.concatenate(layouts)
        return self._joined(layouts)

    def _reshaped(self, layer: Layer, node: Node, layout: Layout) -> Layout | None:
        """Row-major: a last axis k times as long holds the channels k times; a shorter one splits them."""
        width = self.graph.output_shapes[node.call][-1]
        if width is not None and len(layout) and width % len(layout) == 0:
            return np.tile(layout, width // len(layout))
        self.atoms.fix(layout, f"split by {layer.name}")
        return None


def _problem(layer: Layer, node: Node) -> str | None:
    """Why this call cannot be followed, though its kind can."""
    config = layer.config
    if config.get("data_format", "channels_last") != "channels_last":
        return "only channels_last is supported"
    if node.constants:
        return "it is called with an array"
    if config.get("groups", 1) != 1:
        return "grouped convolution cannot be cut"
    if config.get("depth_multiplier", 1) != 1:
        return "depth_multiplier must be 1"
    if layer.kind == "BatchNormalization" and _axis(config["axis"]) not in (
        -1,
        len(node.inputs[0].shape) - 1,
    ):
        return "it normalises another axis than the last"
    if layer.kind == "Rescaling" and not _scalars(config["scale"], config["offset"]):
        return "it has a number for each channel"
    if layer.kind == "Activation" and config["activation"] == "softmax":
        return "softmax runs over the channels"
    return None


def _scalars(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _axis(axis: int | Iterable[int]) -> int:
    return axis if isinstance(axis, int) else next(iter(axis))
