"""Mixed precision inside an ONNX model: the network in float16, coordinates in float32.

Called by ``tlt_runner.tasks.export``. Today's TensorRT builders are strongly typed, so that precision is a
property of the model. Convolutions and matrix products go to float16, with what only passes their results
on (activation, pooling, residual sums); boxes, IoU, thresholds and scores stay float32, because float16 has
steps of a whole pixel from 1,024 on. Casts stand at the borders only. (onnxruntime's
``convert_float_to_float16`` with a block list rounds between neighbouring float32 nodes as well: boxes were
50 times further off than with this.)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

log = logging.getLogger(__name__)

_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PASS_ON = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Clip", "Flatten", "GlobalAveragePool", "Identity",
        "MaxPool", "Pad", "ReduceMean", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: ModelProto) -> ModelProto:
    """A copy of a float32 model that computes in float16 what may be computed so.

    Inputs and outputs keep their types.

    Args:
        model: A float32 model, nodes in topological order (as ONNX demands), without subgraphs.

    Returns:
        The mixed-precision model.

    Raises:
        ValueError: The model has no convolution or matrix product, or a node with a subgraph.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    caster = _Caster(copy)
    for node in model.graph.node:
        caster.add(node)
    if not caster.half_nodes:
        raise ValueError("expected a model with convolutions or matrix products, got none")
    caster.finish()
    log.info("float16: %d of %d nodes, %d casts", caster.half_nodes, len(model.graph.node), len(caster.casts))
    if caster.saturated:
        log.warning("float16: %d weights beyond %g were limited to it", caster.saturated, _LARGEST)
    return copy


@dataclass
class _Caster:
    """Rewrites the nodes one by one; knows which values are float16 by now."""

    model: ModelProto
    half: set[str] = field(default_factory=set)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)
    half_nodes: int = 0
    saturated: int = 0

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.weights = {item.name: item for item in graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(self.model, strict_mode=True).graph
        values = [*inferred.input, *inferred.value_info, *inferred.output]
        self.types = {item.name: item.type.tensor_type.elem_type for item in values}
        self.types |= {item.name: item.data_type for item in graph.initializer}

    def add(self, node: NodeProto) -> None:
        if any(item.g.ByteSize() or item.graphs for item in node.attribute):
            raise ValueError(f"expected no node with a subgraph, got {node.op_type} {node.name!r}")
        runs_half = self._runs_half(node)
        wanted = TensorProto.FLOAT16 if runs_half else TensorProto.FLOAT
        new = NodeProto()
        new.CopyFrom(node)
        new.input[:] = [self._as(name, wanted) for name in node.input]
        self.nodes.append(new)
        if runs_half:
            self.half_nodes += 1
            self.half.update(node.output)

    def finish(self) -> None:
        graph = self.model.graph
        for output in graph.output:
            if output.name in self.half:
                raise ValueError(f"expected the output {output.name} to be computed in float32")
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]
        used = {name for node in self.nodes for name in node.input}
        kept = [item for item in graph.initializer if item.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _runs_half(self, node: NodeProto) -> bool:
        floats = [name for name in node.input if self.types.get(name) == TensorProto.FLOAT]
        if node.op_type in _COMPUTE:
            return bool(floats)
        if node.op_type not in _PASS_ON or not any(name in self.half for name in floats):
            return False
        return all(name in self.half or name in self.weights for name in floats)

    def _as(self, name: str, wanted: int) -> str:
        """The name under which the value is there in the wanted float type; other types are left alone."""
        if self.types.get(name) != TensorProto.FLOAT:
            return name
        is_half = name in self.half
        if is_half == (wanted == TensorProto.FLOAT16):
            return name
        key = (name, wanted)
        if key not in self.casts:
            self.casts[key] = self._half_weight(name) if name in self.weights else self._cast(name, wanted)
        return self.casts[key]

    def _cast(self, name: str, wanted: int) -> str:
        new = f"{name}__{'float16' if wanted == TensorProto.FLOAT16 else 'float32'}"
        self.nodes.append(helper.make_node("Cast", [name], [new], name=new, to=wanted))
        return new

    def _half_weight(self, name: str) -> str:
        values = numpy_helper.to_array(self.weights[name])
        self.saturated += int(np.count_nonzero(np.abs(values) > _LARGEST))
        halved = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
        self.model.graph.initializer.append(numpy_helper.from_array(halved, f"{name}__float16"))
        return f"{name}__float16"
