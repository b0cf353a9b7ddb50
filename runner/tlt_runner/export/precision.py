"""Precision of an exported file: the network in float16, coordinates in float32.

Called by ``tlt_runner.tasks.export``; the mixed precision of training is
:mod:`tlt_runner.training.mixed_precision`. Today's TensorRT builders are strongly typed, so that precision is
a property of the ONNX model. Convolutions and matrix products compute in float16, and so do the operators
that only pass their results on (activation, pooling, residual sums). Boxes, IoU, thresholds and scores stay
float32, because float16 has steps of a whole pixel from 1,024 on. Casts stand at the borders only.
(onnxruntime's ``convert_float_to_float16`` with a block list rounds between neighbouring float32 nodes as
well: box errors were 50 times larger.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

log = logging.getLogger(__name__)

# Operators that gain from float16, and start a chain of float16 nodes.
_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Operators that continue a chain: between two convolutions a pair of casts would cost more than they gain.
_PASS_ON = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Clip", "Flatten", "GlobalAveragePool", "Identity",
        "Gather", "MaxPool", "Pad", "ReduceMean", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: ModelProto) -> ModelProto:
    """Return a copy of a float32 model whose network computes in float16.

    Inputs and outputs keep their types.

    Args:
        model: A float32 model, nodes in topological order (as ONNX demands). Loops stay float32.

    Returns:
        The mixed-precision model.

    Raises:
        ValueError: The model has no convolution or matrix product.
    """
    # Rewritten in a copy, because the float32 model is a product of its own and the source of others.
    copy = ModelProto()
    copy.CopyFrom(model)
    caster = _Caster(copy)
    for node in model.graph.node:
        caster.add(node)
    if not caster.half_nodes:
        raise ValueError("expected a model with convolutions or matrix products, got none")
    caster.finish()
    log.info(
        "converted %d of %d nodes to float16, with %d casts of values and weights",
        caster.half_nodes,
        len(model.graph.node),
        len(caster.casts),
    )
    if caster.saturated:
        log.warning("clipped %d weights to float16's largest number, %g", caster.saturated, _LARGEST)
    return copy


@dataclass
class _Caster:
    """Rewrites the nodes one by one, in topological order.

    Attributes:
        model: The copy that is rewritten.
        half: Names of the values that are float16.
        casts: (value, type) -> name of the value in that type, so that each is cast once.
        nodes: The nodes rewritten so far, and casts between them.
        half_nodes: Number of nodes that compute in float16.
        saturated: Number of weights that were clipped.
    """

    model: ModelProto
    half: set[str] = field(default_factory=set)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)
    half_nodes: int = 0
    saturated: int = 0

    def __post_init__(self) -> None:
        graph = self.model.graph
        # Which values are floats: inference tells the type of every value, in strict mode or it raises.
        # Initializers are not among its values.
        self.weights = {item.name: item for item in graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(self.model, strict_mode=True).graph
        values = [*inferred.input, *inferred.value_info, *inferred.output]
        self.types = {item.name: item.type.tensor_type.elem_type for item in values}
        self.types |= {item.name: item.data_type for item in graph.initializer}

    def add(self, node: NodeProto) -> None:
        """Rewrite a node, with casts of those inputs that have another type than it computes in."""
        # All float inputs get one type: an operator of mixed types is not valid ONNX.
        runs_half = self._runs_half(node)
        input_type = TensorProto.FLOAT16 if runs_half else TensorProto.FLOAT
        new = NodeProto()
        new.CopyFrom(node)
        new.input[:] = [self._as(name, input_type) for name in node.input]
        for body in _bodies(new):
            self._keep_float32(body)
        self.nodes.append(new)
        if runs_half:
            self.half_nodes += 1
            self.half.update(node.output)

    def finish(self) -> None:
        """Put the rewritten nodes into the copy and drop what they no longer use.

        Raises:
            ValueError: An output would be float16.
        """
        graph = self.model.graph
        # Their declared types stay, so a float16 value under an output's name would contradict them.
        for output in graph.output:
            if output.name in self.half:
                raise ValueError(f"expected the output {output.name} to be computed in float32")
        del graph.node[:]
        graph.node.extend(self.nodes)
        # The stored types of intermediate values are float32 and wrong by now; readers infer them again.
        del graph.value_info[:]
        # Weights of which only the float16 copy is used would make the file larger than before.
        used = {name for node in self.nodes for name in _read_by(node)}
        used_weights = [item for item in graph.initializer if item.name in used]
        del graph.initializer[:]
        graph.initializer.extend(used_weights)

    def _keep_float32(self, body: GraphProto) -> None:
        """Let a loop's body read float32 where it reads values of the graph around it."""
        # Names are unique in a whole model: what is in self.half is a value from outside.
        for node in body.node:
            node.input[:] = [self._as(name, TensorProto.FLOAT) for name in node.input]
            for inner in _bodies(node):
                self._keep_float32(inner)

    def _runs_half(self, node: NodeProto) -> bool:
        """Return whether a node computes in float16."""
        # Of the float32 model: here a value that is float16 by now counts as a float, too.
        floats = [name for name in node.input if self.types.get(name) == TensorProto.FLOAT]
        # A MatMul of integers computes nothing that float16 could speed up.
        if node.op_type in _COMPUTE:
            return bool(floats)
        if node.op_type not in _PASS_ON or not any(name in self.half for name in floats):
            return False
        # A float32 value among the inputs can be a coordinate: then the node stays float32.
        return all(name in self.half or name in self.weights for name in floats)

    def _as(self, name: str, dtype: int) -> str:
        """Name of the value in the wanted float type, cast if need be; integers and booleans stay."""
        # Shapes and indices are integers; an omitted optional input has the name "".
        if self.types.get(name) != TensorProto.FLOAT:
            return name
        is_half = name in self.half
        # It has the wanted type already.
        if is_half == (dtype == TensorProto.FLOAT16):
            return name
        key = (name, dtype)
        if key not in self.casts:
            self.casts[key] = self._half_weight(name) if name in self.weights else self._cast(name, dtype)
        return self.casts[key]

    def _cast(self, name: str, dtype: int) -> str:
        new = f"{name}__{'float16' if dtype == TensorProto.FLOAT16 else 'float32'}"
        self.nodes.append(helper.make_node("Cast", [name], [new], name=new, to=dtype))
        return new

    def _half_weight(self, name: str) -> str:
        # Cast here and not by a node, which halves the file. Clipped, since larger numbers become infinite.
        values = numpy_helper.to_array(self.weights[name])
        self.saturated += int(np.count_nonzero(np.abs(values) > _LARGEST))
        halved = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
        self.model.graph.initializer.append(numpy_helper.from_array(halved, f"{name}__float16"))
        return f"{name}__float16"


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _read_by(node: NodeProto) -> Iterator[str]:
    """Names of the values that a node reads, and a loop's body with it."""
    yield from node.input
    for body in _bodies(node):
        yield from (output.name for output in body.output)
        for inner in body.node:
            yield from _read_by(inner)


CONVERSIONS: dict[str, Callable[[ModelProto], ModelProto]] = {"fp32": lambda model: model, "fp16": to_float16}
"""Functions that turn the float32 model into each precision of ``spec.precisions``."""
