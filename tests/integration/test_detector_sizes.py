"""Image sizes that are no multiple of the stride: the model pads, and everybody else keeps the true size."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_detector import settled, tiny_config
from tlt_api.model import ProposalCounts
from tlt_runner.detector import model as detector
from tlt_runner.detector import rpn
from tlt_runner.detector.anchors import anchors
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.export import onnx as export
from tlt_runner.export import verify

HEIGHT, WIDTH = 72, 100
"""Padded to 80 x 112: 5 x 7 cells."""
IMAGES = np.random.default_rng(1).uniform(0, 255, (2, HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> detector.FasterRCNN:
    """A detector of an odd size. No test may change it."""
    config = tiny_config().model_copy(update={"height": HEIGHT, "width": WIDTH})
    return settled(config, IMAGES)


def test_tlts_600_pixels_have_38_cells_and_its_sample_size_as_many_as_before() -> None:
    config = tiny_config().model_copy(update={"height": 600, "width": 1000})
    assert (config.feature_height, config.feature_width) == (38, 63)
    # TLT's centres, (i + 0.5) * 16: the last row is at 600, the border of the image.
    assert anchors(config)[-1, [0, 2]].mean() == 600
    sample = tiny_config().model_copy(update={"height": 384, "width": 1248})
    assert (sample.feature_height, sample.feature_width) == (24, 78)


@pytest.mark.parametrize(
    ("backbone", "mean"),
    [("resnet10", (123.68, 116.779, 103.939)), ("mobilenet_v2", (127.5, 127.5, 127.5))],
)
def test_the_model_sees_its_image_above_and_left_of_mean_pixels(
    backbone: str, mean: tuple[float, ...]
) -> None:
    sizes = {"height": HEIGHT, "width": WIDTH}, {"height": 80, "width": 112}
    base = tiny_config().model_copy(update={"backbone": backbone})
    odd, even = (detector.build(base.model_copy(update=size), 0) for size in sizes)
    framed = np.empty((2, 80, 112, 3), np.float32)
    framed[:] = mean
    framed[:, :HEIGHT, :WIDTH] = IMAGES
    outputs, expected = odd.trunk(IMAGES), even.trunk(framed)
    for name in ("features", "objectness", "deltas"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-4, err_msg=name)


def test_a_size_that_needs_no_padding_has_no_padding_layer(tiny_model: detector.FasterRCNN) -> None:
    assert "pad_to_stride" not in {layer.name for layer in tiny_model.trunk.layers}


def test_a_size_that_needs_padding_has_a_padding_layer(model: detector.FasterRCNN) -> None:
    assert "pad_to_stride" in {layer.name for layer in model.trunk.layers}


def test_proposals_end_at_the_true_border(model: detector.FasterRCNN) -> None:
    count = model.config.anchor_count
    assert count == 5 * 7 * 4
    proposals, valid = rpn.propose(
        model.config,
        np.zeros((1, count), np.float32),
        np.zeros((1, count, 4), np.float32),
        ProposalCounts(pre_nms=count, post_nms=count - 1),
    )
    boxes = np.asarray(proposals)[np.asarray(valid)]
    # The anchors themselves, many of which reach below and right of the image.
    assert boxes.max(axis=0).tolist()[2:] == [HEIGHT, WIDTH]


def test_the_exported_model_keeps_the_size_and_detects_the_same(model: detector.FasterRCNN, tmp_path) -> None:
    detector.save(model, tmp_path / "model.keras")
    loaded = detector.load(tmp_path / "model.keras")
    exported = export.to_onnx(loaded)
    dims = exported.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims][1:] == [3, HEIGHT, WIDTH]
    export.write(exported, tmp_path / "model.onnx")
    expected = keras_detector(model)(IMAGES)
    detections = verify.OnnxDetector(tmp_path / "model.onnx")(IMAGES)
    assert expected["count"].min() >= 5
    difference = verify.compare([expected], [detections])
    assert difference.unmatched == 0
    assert difference.max_abs_error <= 1e-4
