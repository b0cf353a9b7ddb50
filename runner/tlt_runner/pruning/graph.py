"""The graph of one or several Keras functional models, as plain data.

First stage of pruning: graph -> channels -> groups -> plan -> rebuild. A functional model's config already is
a graph of layers and calls; this module only reads it. Several models become one graph by *connections*: an
output of one is, channel by channel, the input of another (RoI pooling passes channels through). Layers and
calls are told apart because a shared layer has one set of filters and several calls.

The graph is read from the config, not from live layers, because the config is what
:mod:`~tlt_runner.pruning.rebuild` edits: what is planned and what is built cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, NamedTuple

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError

if TYPE_CHECKING:
    import keras

Shape = tuple[int | None, ...]


class Call(NamedTuple):
    """One call of a layer: the layer's name and the call's number, from 0."""

    layer: str
    number: int


class Edge(NamedTuple):
    """A tensor that a call takes: the call that makes it, which of its outputs, the shape (batch first)."""

    source: Call
    output: int
    shape: Shape


class Weight(NamedTuple):
    """A weight of a layer: ``kernel``, ``bias``, ``gamma`` ..., and its shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Connection:
    """An output of one model whose channels are those of an input of another.

    Attributes:
        source: Name of the model that makes the output.
        output: Position of the output among the model's outputs, or its key where the outputs are a mapping.
        target: Name of the model that takes it.
        input: Position of the input among the model's inputs.
    """

    source: str
    output: int | str
    target: str
    input: int = 0


@dataclass(frozen=True)
class Network:
    """Functional models that are pruned together.

    Attributes:
        models: By name.
        connections: Outputs that feed inputs; an output without a connection keeps all its channels.
        runs: Model name -> how often it runs for one image, for FLOPs; 1 for models that are not listed.
        protected: Layers that keep all their filters in every plan -> reason.
    """

    models: Mapping[str, keras.Model]
    connections: tuple[Connection, ...] = ()
    runs: Mapping[str, int] = field(default_factory=dict)
    protected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A layer with its weights' shapes.

    Attributes:
        name: Its name, unique in the network.
        kind: Class name for the layers of Keras itself, ``module>class`` for all others.
        model: Name of its model.
        config: Its Keras config.
        weights: Names and shapes.
        runs: How often its model runs for one image.
    """

    name: str
    kind: str
    model: str
    config: Mapping[str, Any]
    weights: tuple[Weight, ...]
    runs: int


@dataclass(frozen=True)
class Node:
    """One call of a layer.

    Attributes:
        call: Layer and number of the call.
        inputs: The tensors it takes, in order. An input layer with a connection takes the connected output.
        constants: Whether the call takes arrays or other values besides tensors and numbers.
    """

    call: Call
    inputs: tuple[Edge, ...]
    constants: bool = False


@dataclass(frozen=True)
class Graph:
    """Layers, calls and the outputs that leave the network.

    Attributes:
        layers: By name.
        nodes: Calls in topological order: each comes after those whose outputs it takes.
        outputs: Outputs without a connection.
        configs: Model name -> the Keras config from which all this was read.
    """

    layers: Mapping[str, Layer]
    nodes: tuple[Node, ...]
    outputs: tuple[Edge, ...]
    configs: Mapping[str, Mapping[str, Any]]

    @cached_property
    def output_shapes(self) -> Mapping[Call, Shape]:
        """Shape of each call's first output, batch first."""
        edges = [*self.outputs, *(edge for node in self.nodes for edge in node.inputs)]
        return {edge.source: edge.shape for edge in edges if edge.output == 0}


def read(network: Network) -> Graph:
    """Read the graph of a network.

    Raises:
        RunnerError: ``Internal`` where a model is not functional or a name stands for two layers.
    """
    # 1. Each model's layers, calls, outputs and inputs, by names that are unique in the network.
    configs = {name: _config(name, model) for name, model in network.models.items()}
    layers: dict[str, Layer] = {}
    nodes: dict[Call, Node] = {}
    outputs: dict[tuple[str, int | str], Edge] = {}
    inputs: dict[tuple[str, int], Call] = {}
    for name, model in network.models.items():
        config = configs[name]
        for entry in config["layers"]:
            layer = _layer(entry, name, model, network.runs.get(name, 1))
            # Keras checks this within a model only; a plan speaks of layers by name alone.
            if layer.name in layers:
                raise RunnerError(Reason.INTERNAL, f"two layers of the network are named {layer.name!r}")
            layers[layer.name] = layer
            nodes.update((node.call, node) for node in _nodes(entry))
        for key, (source, tensor) in _outputs(config["output_layers"], model).items():
            outputs[name, key] = Edge(Call(*source[:2]), source[2], tuple(tensor.shape))
        for position, source in enumerate(_triples(config["input_layers"])):
            inputs[name, position] = Call(*source[:2])
    # 2. The models joined: a connected input layer becomes an ordinary call that takes the other's output.
    for connection in network.connections:
        target = inputs[connection.target, connection.input]
        nodes[target] = Node(target, (outputs[connection.source, connection.output],))
    # 3. The other outputs leave the network: their channels all stay.
    connected = {(connection.source, connection.output) for connection in network.connections}
    leaving = tuple(edge for key, edge in outputs.items() if key not in connected)
    return Graph(layers, _ordered(nodes), leaving, configs)


def _config(name: str, model: keras.Model) -> Mapping[str, Any]:
    config: Mapping[str, Any] = model.get_config()
    # The config of a subclassed model holds its arguments and no graph.
    if "layers" not in config or "output_layers" not in config:
        raise RunnerError(
            Reason.INTERNAL, f"expected a functional model as {name!r}, got {type(model).__name__}"
        )
    return config


def _layer(entry: Mapping[str, Any], model_name: str, model: keras.Model, runs: int) -> Layer:
    module, class_name = entry.get("module") or "", entry["class_name"]
    # A layer from elsewhere can have the name of one of Keras' and do something else.
    kind = class_name if module == "keras.layers" else f"{module or 'unknown'}>{class_name}"
    # The config holds no shapes of weights: they come from the layer itself.
    layer = next((item for item in model.layers if item.name == entry["name"]), None)
    weights = tuple(Weight(item.name, tuple(item.shape)) for item in (layer.weights if layer else ()))
    return Layer(entry["name"], kind, model_name, entry["config"], weights, runs)


def _nodes(entry: Mapping[str, Any]) -> Iterator[Node]:
    # Keras lists no call for an input layer; here it has one, so that its output has a source.
    calls = entry["inbound_nodes"] or ([{"args": [], "kwargs": {}}] if _is_input(entry) else [])
    for index, call in enumerate(calls):
        edges, constants = _edges([call["args"], call["kwargs"]])
        yield Node(Call(entry["name"], index), tuple(edges), constants)


def _is_input(entry: Mapping[str, Any]) -> bool:
    return bool(entry["class_name"] == "InputLayer")


def _edges(value: Any) -> tuple[list[Edge], bool]:
    """Tensors in the arguments of a call, in order, and whether there is an array among the rest."""
    # Arguments of a call are nested: a list of tensors for Add, say. A tensor names the call that made it.
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            layer, call, output = value["config"]["keras_history"]
            return [Edge(Call(layer, call), output, tuple(value["config"]["shape"]))], False
        # Any other serialised object is an array or a value that Keras could not write as plain JSON.
        if "class_name" in value:
            return [], True
        return _edges(list(value.values()))
    if isinstance(value, list | tuple):
        parts = [_edges(item) for item in value]
        return [edge for edges, _ in parts for edge in edges], any(constants for _, constants in parts)
    # Numbers, strings, None: options of the call, such as `training`.
    return [], False


def _outputs(structure: Any, model: keras.Model) -> dict[int | str, tuple[tuple[str, int, int], Any]]:
    """Source and tensor of each output, by key where the outputs are a mapping, by position otherwise."""
    # Keras flattens a mapping by its sorted keys: model.outputs has this order.
    keys = sorted(structure) if isinstance(structure, Mapping) else range(len(model.outputs))
    return dict(zip(keys, zip(_triples(structure), model.outputs, strict=True), strict=True))


def _triples(structure: Any) -> list[tuple[str, int, int]]:
    """``[name, call, output]`` triples of a nested structure, in the order in which Keras flattens it."""
    if isinstance(structure, Mapping):
        return [item for key in sorted(structure) for item in _triples(structure[key])]
    # A model with a single output, not a list of one, has the triple itself.
    if _is_triple(structure):
        return [(structure[0], structure[1], structure[2])]
    return [item for part in structure for item in _triples(part)]


def _is_triple(value: Sequence[Any]) -> bool:
    # Three outputs in a list have the same length; only a triple begins with a name.
    return len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int)


def _ordered(nodes: Mapping[Call, Node]) -> tuple[Node, ...]:
    # Models are joined by connections: the order of each one's layers is not enough.
    sources = {call: [edge.source for edge in node.inputs] for call, node in nodes.items()}
    return tuple(nodes[call] for call in TopologicalSorter(sources).static_order())
