"""Count of the kernels that a training step launches on a GPU, part by part, from its traced graph.

A GPU finishes a small kernel sooner than the host can launch the next one: there, the number of launches
limits the step. An op counts as one launch unless one of these holds:

- It moves no data: constants, inputs, reads of variables, and ops that change only a tensor's shape or name.
- The host computes it: arithmetic and slices of int32, which TensorFlow keeps in the host's memory for
  shapes.
- Nothing needs it: TensorFlow removes an op without a side effect on which no output and no side effect
  depends.

Assignments count, although on one device they only hand over a buffer: how many they are is printed. The
graph is not optimised: what TensorFlow folds or fuses later counts in full. Ops inside a loop or a branch
count once.

Name scopes say which part an op belongs to; "gradients" are backward passes. "sums of gradients" add the
gradients of a tensor that is used twice; "statistics" are the moving ones of batch normalisation; "other"
casts, joins and splits the weights and their gradients, and takes the norm. No step is taken: the count is
the same on every machine.

    nice python benchmarks/step_ops.py
    nice python benchmarks/step_ops.py --backbone resnet18 --types
"""

import argparse
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import train_step

from tlt_api.training import Training
from tlt_runner.detector import model as detector
from tlt_runner.training.trainer import Trainer

PARTS = (
    *("trunk", "head", "targets", "proposals", "pooling", "losses"),
    *("statistics", "penalty", "optimizer", "averages"),
)
"""Name scopes of the detector and of the trainer."""
NO_KERNEL = re.compile(
    "Const|Placeholder|ReadVariableOp|IdentityN?|StopGradient|PreventGradient|Reshape|Squeeze|ExpandDims"
    "|ShapeN?|Size|Rank|BroadcastGradientArgs|InvertPermutation|NoOp|Bitcast"
)
"""Types of ops that move no data."""
ON_HOST = re.compile(
    "AddV2|Sub|Mul|FloorDiv|FloorMod|Maximum|Minimum|Neg|StridedSlice|Slice|Pack|ConcatV2|Range|Prod|Fill"
    "|SelectV2|Sum"
)
"""Types of ops of which the host computes those of int32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    train_step.add_arguments(parser)
    parser.add_argument("--float32", action="store_true", help="without mixed precision")
    parser.add_argument("--types", action="store_true", help="print the types of ops of each part")
    arguments = parser.parse_args()
    config = train_step.configure(arguments.backbone, arguments.size, arguments.roi)
    spec = Training(mixed_precision=not arguments.float32)
    trainer = Trainer(detector.build(config, seed=1), spec, tf.distribute.get_strategy())
    launching = launching_ops(trainer.graph(train_step.examples(config, arguments.batch)))
    parts = Counter(part_of(op.name) for op in launching)
    figures: dict[str, Any] = {
        "benchmark": "step_ops",
        "config": {
            **train_step.described(config, arguments),
            "dtype": "float32" if arguments.float32 else "bfloat16",
        },
        "ops": len(launching),
        "of_which_assignments": sum(op.type == "AssignVariableOp" for op in launching),
        "parts": dict(parts.most_common()),
    }
    if arguments.types:
        types = {part: Counter(op.type for op in launching if part_of(op.name) == part) for part in parts}
        figures["types"] = {part: dict(count.most_common()) for part, count in types.items()}
    print(json.dumps(figures))


@dataclass(frozen=True)
class Op:
    """Name and type of an op of a graph, or of a loop's body."""

    name: str
    type: str


def launching_ops(graph: Any) -> list[Op]:
    """Return the ops of a traced function's graph that launch a kernel, those of its loops included."""
    launching = [
        Op(op.name, op.type)
        for op in needed(graph)
        if launches(op.type, {tensor.dtype.base_dtype for tensor in op.outputs})
    ]
    # All ops of a loop or a branch are taken for needed.
    for function in graph.as_graph_def().library.function:
        for node in function.node_def:
            dtypes = {tf.as_dtype(node.attr[name].type) for name in ("T", "DstT") if node.attr[name].type}
            if launches(node.op, dtypes):
                launching.append(Op(node.name, node.op))
    return launching


def needed(graph: Any) -> list[Any]:
    """Return the ops on which an output or a side effect of the graph depends."""
    # What the runtime starts from: outputs, and ops with a side effect.
    waiting = [tensor.op for tensor in graph.outputs]
    waiting += [op for op in graph.get_operations() if op.op_def and op.op_def.is_stateful]
    found = set()
    while waiting:
        op = waiting.pop()
        if op in found:
            continue
        found.add(op)
        waiting += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return [op for op in graph.get_operations() if op in found]


def launches(kind: str, dtypes: set[tf.DType]) -> bool:
    """Whether an op of a type, with outputs of these types, launches a kernel."""
    if NO_KERNEL.fullmatch(kind):
        return False
    return not (dtypes == {tf.int32} and ON_HOST.fullmatch(kind))


def part_of(name: str) -> str:
    """The part of the step that an op belongs to."""
    pieces = [re.sub(r"_\d+$", "", piece) for piece in name.split("/")]
    scope = next((piece for piece in pieces if piece in PARTS), None)
    if scope is None:
        return "sums of gradients" if pieces[0] == "AddN" else "other"
    return f"{scope} gradients" if pieces[0] == "gradient_tape" else scope


if __name__ == "__main__":
    main()
