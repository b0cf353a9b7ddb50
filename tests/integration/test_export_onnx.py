"""A tiny detector, exported: the file detects what Keras detects, and holds nothing that TensorRT refuses."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tiny_detector import CLASS_NAMES, DETECTIONS, SIZE
from tlt_api.failures import Reason
from tlt_runner.detector import kernels, nms
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.export import onnx as export
from tlt_runner.export import verify

FP32_SCORES, FP32_PIXELS = 1e-4, 0.01
FP16_SCORES, FP16_IOU = 0.01, 0.95


def detector_of(exported, folder: Path) -> verify.OnnxDetector:
    export.write(exported, folder / "model.onnx")
    return verify.OnnxDetector(folder / "model.onnx")


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_detects_what_keras_detects(tiny_model, tiny_onnx, tiny_images, tmp_path, batch):
    expected = keras_detector(tiny_model)(tiny_images[:batch])
    detections = detector_of(tiny_onnx, tmp_path)(tiny_images[:batch])
    assert expected["count"].min() >= 5
    np.testing.assert_array_equal(detections["count"], expected["count"])
    np.testing.assert_allclose(detections["scores"], expected["scores"], atol=FP32_SCORES)
    difference = verify.compare([expected], [detections])
    assert difference.unmatched == 0
    assert difference.max_abs_error <= FP32_SCORES


def test_onnx_boxes_are_xyxy_at_the_border(tiny_model, tiny_onnx, tiny_images, tmp_path):
    expected = keras_detector(tiny_model)(tiny_images)
    export.write(tiny_onnx, tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    first = session.run(["boxes"], {"images": tiny_images.transpose(0, 3, 1, 2).copy()})[0][0, 0]
    top, left, bottom, right = expected["boxes"][0, 0]
    np.testing.assert_allclose(first, [left, top, right, bottom], atol=FP32_PIXELS)


def test_fp16_detects_what_fp32_detects(tiny_onnx, tiny_onnx_fp16, tiny_images, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    full = detector_of(tiny_onnx, tmp_path / "a")(tiny_images)
    half = detector_of(tiny_onnx_fp16, tmp_path / "b")(tiny_images)
    difference = verify.compare([full], [half])
    assert difference.max_abs_error <= FP16_SCORES
    assert difference.matched >= 0.9 * full["count"].sum()


def test_file_has_standard_operators_only_and_none_that_tensorrt_refuses(tiny_onnx, tiny_onnx_fp16):
    for exported in (tiny_onnx, tiny_onnx_fp16):
        assert {node.domain for node in exported.graph.node} == {""}
        assert not {node.op_type for node in exported.graph.node} & export.REFUSED_OPS
        assert [item.version for item in exported.opset_import if item.domain == ""] == [export.OPSET]


def test_inputs_and_outputs_keep_their_names_types_and_dynamic_batch(tiny_onnx, tiny_onnx_fp16):
    def border(values):
        tensors = [(value.name, value.type.tensor_type) for value in values]
        return [
            (name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim])
            for name, tensor in tensors
        ]

    for exported in (tiny_onnx, tiny_onnx_fp16):
        assert border(exported.graph.input) == [("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
        assert border(exported.graph.output) == [
            ("boxes", TensorProto.FLOAT, ["batch", DETECTIONS, 4]),
            ("scores", TensorProto.FLOAT, ["batch", DETECTIONS]),
            ("classes", TensorProto.INT32, ["batch", DETECTIONS]),
            ("count", TensorProto.INT32, ["batch"]),
        ]


def test_file_metadata_describes_the_detector(tiny_onnx_fp16):
    metadata = export.metadata(tiny_onnx_fp16)
    assert metadata["class_names"] == CLASS_NAMES
    assert (metadata["height"], metadata["width"], metadata["mode"]) == (SIZE, SIZE, "stretch")
    assert metadata["source_sha256"] == "0" * 64


def test_fp16_halves_the_weights_and_computes_coordinates_in_float32(tiny_onnx, tiny_onnx_fp16):
    typed = onnx.shape_inference.infer_shapes(tiny_onnx_fp16, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*typed.value_info, *typed.output]}
    half = Counter(n.op_type for n in tiny_onnx_fp16.graph.node if types[n.output[0]] == TensorProto.FLOAT16)
    full = Counter(n.op_type for n in tiny_onnx_fp16.graph.node if types[n.output[0]] == TensorProto.FLOAT)
    assert not {"Conv", "MatMul", "Gemm"} & set(full)
    assert not {"Exp", "Sub", "Div", "Mul", "Softmax", "Sigmoid", "Min", "Max", "TopK"} & set(half)
    assert len(tiny_onnx_fp16.SerializeToString()) < 0.75 * len(tiny_onnx.SerializeToString())


def test_two_casts_never_follow_each_other_in_fp16(tiny_onnx_fp16):
    made_by = {name: node for node in tiny_onnx_fp16.graph.node for name in node.output}
    halves = [
        n
        for n in tiny_onnx_fp16.graph.node
        if n.op_type == "Cast" and n.attribute[0].i == TensorProto.FLOAT16
    ]
    for node in tiny_onnx_fp16.graph.node:
        source = made_by.get(node.input[0]) if node.input else None
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            assert source not in halves


def test_operator_that_needs_a_plugin_is_refused_by_name():
    node = helper.make_node("NonZero", ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, None])],
    )
    with pytest.raises(RunnerError, match="NonZero") as caught:
        export.check(helper.make_model(graph))
    assert caught.value.reason == Reason.EXPORT_FAILED


def sliding_masks(count: int, threshold: float):
    """A graph of suppression alone, for boxes [batch, count, 4]."""
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, count, 4), tf.float32, name="boxes")]

    def kept(boxes):
        return nms.keep_mask(boxes, tf.ones(tf.shape(boxes)[:2], tf.bool), threshold)

    with kernels.portable():
        traced = tf.function(kept, input_signature=signature)
        return tf2onnx.convert.from_function(traced, input_signature=signature, opset=export.OPSET)[0]


def test_the_exported_suppression_is_greedy_for_chains_of_any_length():
    """600 boxes one step of a tenth apart, in two blocks: IoU 9/11 with the next, 8/12 with the one after."""
    graph = sliding_masks(600, 0.7)
    boxes = np.array([[0, i, 10, i + 10] for i in range(600)], np.float32)
    pairs = np.repeat(boxes[::2], 2, axis=0)  # each box twice: every second one stays
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (kept,) = session.run(None, {"boxes": np.stack([boxes, pairs])})
    np.testing.assert_array_equal(kept, [np.arange(600) % 2 == 0] * 2)


def test_an_export_sorts_no_more_boxes_than_tensorrt_can():
    wanted = {"proposals": {"inference": {"preNms": 6000, "postNms": 300}}}
    large = DetectorConfig.model_validate({"classNames": ["a"], "height": 640, "width": 640, **wanted})
    assert large.anchor_count == 40 * 40 * 9
    assert export.sorted_boxes(large) == 3840
    small = DetectorConfig.model_validate({"classNames": ["a"], "height": 320, "width": 320, **wanted})
    assert export.sorted_boxes(small) == 20 * 20 * 9


def test_the_exported_file_has_no_larger_sort_than_the_limit(tiny_model, monkeypatch):
    """The limit is lowered to 50: the tiny detector's 100 boxes before suppression are too many for it."""
    monkeypatch.setattr(export, "MOST_SORTED", 50)
    exported = export.to_onnx(tiny_model)
    weights = {item.name: item for item in exported.graph.initializer}
    sizes = {
        int(onnx.numpy_helper.to_array(weights[node.input[1]]).item())
        for node in exported.graph.node
        if node.op_type == "TopK"
    }
    # Proposals before and after suppression; pairs of 32 proposals and 2 classes; detections.
    assert sizes == {50, 32, 64, DETECTIONS}
