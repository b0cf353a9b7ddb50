"""The choice of the nodes that become float16, on graphs of a few nodes; numbers worked out by hand."""

from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tlt_api.exportjob import Precision
from tlt_runner.export.precision import CONVERSIONS, to_float16


def graph_of(nodes, weights, shape=(2,)):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"] * len(shape))]
    initializers = [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def computed(model, x):
    return ReferenceEvaluator(model).run(None, {"x": np.array(x, np.float32)})[0]


def chain():
    """x @ w -> Relu (float16), then - 2000.5 (float32)."""
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Sub", ["b", "far"], ["y"]),
        ],
        {"w": [[1.0], [2049.0]], "far": [2000.5]},
    )


def test_casts_stand_only_at_the_borders():
    mixed = to_float16(chain())
    assert [node.op_type for node in mixed.graph.node] == ["Cast", "MatMul", "Relu", "Cast", "Sub"]
    onnx.checker.check_model(mixed, full_check=True)


def test_weights_of_products_are_rounded_and_coordinates_are_not():
    """2049 is no float16 (2048 is next); 2000.5 would be 2000 or 2001 there, and stays."""
    assert computed(chain(), [0.0, 1.0]) == pytest.approx([2049.0 - 2000.5])
    assert computed(to_float16(chain()), [0.0, 1.0]) == pytest.approx([2048.0 - 2000.5])


def test_weight_used_in_both_precisions_is_kept_in_both():
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "w"], ["y"])],
        {"w": [2049.0, 0.0]},
    )
    mixed = to_float16(model)
    types = sorted(item.data_type for item in mixed.graph.initializer)
    assert types == [TensorProto.FLOAT, TensorProto.FLOAT16]
    np.testing.assert_allclose(computed(mixed, [1.0, 1.0]), [2048.0 * 2049.0, 0.0])


def test_addition_of_a_float32_value_stays_float32():
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])],
        {"w": [[1.0, 0.0], [0.0, 1.0]]},
        shape=(1, 2),
    )
    np.testing.assert_allclose(computed(to_float16(model), [[2049.0, 1.0]]), [[2048.0 + 2049.0, 2.0]])


def test_weights_beyond_float16_are_limited_not_made_infinite():
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Abs", ["a"], ["y"])],
        {"w": [[1e6], [0.0]]},
    )
    assert computed(to_float16(model), [1.0, 0.0]) == pytest.approx([65504.0])


def test_model_with_nothing_to_convert_is_refused():
    model = graph_of([helper.make_node("Abs", ["x"], ["y"])], {})
    with pytest.raises(ValueError, match="convolutions or matrix products"):
        to_float16(model)


def test_model_given_is_left_as_it_was():
    model = chain()
    before = model.SerializeToString()
    to_float16(model)
    assert model.SerializeToString() == before


def test_every_precision_of_the_api_has_a_conversion() -> None:
    assert set(CONVERSIONS) == set(get_args(Precision))


def test_fp32_is_the_model_itself() -> None:
    model = chain()
    assert CONVERSIONS["fp32"](model) is model
    assert CONVERSIONS["fp16"] is to_float16
