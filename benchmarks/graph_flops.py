"""Counts a traced graph's arithmetic: what convolutions and dense layers of a training step multiply and add.

Called by :mod:`peer_steps`, in the environment of each peer: it knows TensorFlow only. Two operations for
each multiply-add, by the shapes of every convolution (forward, both gradients) and of every product of two
matrices. Products of batches of matrices (and Einsum) are left out: in all these detectors they belong to
suppression, pooling and losses. So are element-wise ops.
"""

from typing import Any

import numpy as np
import tensorflow as tf

CONVOLUTIONS = ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")
UNKNOWN = ("Depthwise", "Conv3D")


def flops(function: Any) -> int:
    """Operations of a concrete function, of what its outputs and effects need."""
    return _of_graph(function.graph)


def _of_graph(graph: Any) -> int:
    total = 0
    for op in _needed(graph):
        if op.type in CONVOLUTIONS:
            total += _convolution(op)
        elif op.type == "MatMul":
            total += _matmul(op)
        elif op.type.startswith(UNKNOWN):
            raise ValueError(f"expected convolutions and products of matrices only, got {op.type} {op.name}")
        for name in ("f", "then_branch", "body"):
            called = op.node_def.attr.get(name)
            if called is not None and called.func.name:
                total += _of_graph(graph._get_function(called.func.name).graph)
    return total


def _needed(graph: Any) -> list[Any]:
    """Return the ops on which outputs and effects depend: a trace also holds unused gradients."""
    needed: dict[str, Any] = {}
    waiting = [output.op for output in graph.outputs] + list(graph.control_outputs)
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed[op.name] = op
            waiting += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return list(needed.values())


def _convolution(op: Any) -> int:
    """Every output, or gradient of one, of the forward convolution costs its kernel once."""
    if op.type == "Conv2D":
        kernel, outputs = op.inputs[1].shape, op.outputs[0].shape
    elif op.type == "Conv2DBackpropInput":
        kernel, outputs = op.inputs[1].shape, op.inputs[2].shape
    else:
        kernel, outputs = tf.get_static_value(op.inputs[1]), op.inputs[2].shape
        kernel = op.outputs[0].shape if kernel is None else kernel
    if op.get_attr("data_format") == b"NCHW":
        raise ValueError(f"expected NHWC, got {op.name}")
    height, width, channels, _ = (int(size) for size in kernel)
    return 2 * int(np.prod(outputs.as_list())) * height * width * channels


def _matmul(op: Any) -> int:
    rows, inner = op.inputs[0].shape.as_list()
    if op.get_attr("transpose_a"):
        rows, inner = inner, rows
    columns = op.inputs[1].shape.as_list()[0 if op.get_attr("transpose_b") else 1]
    return 2 * rows * inner * columns
