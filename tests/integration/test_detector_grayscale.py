"""Detectors of one channel: what they compute, what they take from weights of three, and their users."""

from __future__ import annotations

import logging
from pathlib import Path

import keras
import numpy as np
import pytest

import tiny
from tiny_detector import settled, training_config
from tlt_api.failures import Reason
from tlt_api.status import Inputs, ResolvedModel
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.export import onnx as export
from tlt_runner.export import verify
from tlt_runner.tasks import train
from tlt_runner.training.pretrained import load

SIZE = 64
GREYS = next(verify.random_images(7, 1, 2, SIZE, SIZE, 1))


def config(backbone: str = "resnet10", color_mode: str = "grayscale"):
    return training_config(["car"], backbone=backbone, colorMode=color_mode, widthMultiplier=0.125)


@pytest.mark.parametrize(
    ("backbone", "first"),
    [("resnet10", "stem_bn"), ("vgg16", "block1_conv1"), ("efficientnet_b0", "stem_bn")],
)
def test_the_first_layer_of_a_colour_model_gives_on_greys_what_it_gave_on_three_equal_channels(
    backbone: str, first: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Means, factors and biases differ by channel: the kernel's sum alone would shift every feature."""
    colour = detector.build(config(backbone, "rgb"), 1)
    for layer in colour.trunk.layers:
        vectors = [np.random.default_rng(4).uniform(0.1, 0.5, w.shape) for w in layer.weights if w.ndim == 1]
        layer.set_weights([w for w in layer.get_weights() if w.ndim > 1] + vectors)
    detector.save(colour, tmp_path / "colour.keras")
    with caplog.at_level(logging.INFO):
        grey, _ = load.build(config(backbone), 2, tmp_path / "colour.keras")
    assert "summed over its three channels" in caplog.text
    outputs = [
        np.asarray(keras.Model(model.trunk.input, model.trunk.get_layer(first).output)(images))
        for model, images in ((colour, np.repeat(GREYS, 3, axis=3)), (grey, GREYS))
    ]
    # Without the border, which is padded with the mean pixel: another grey for a colour model.
    inner = [output[:, 2:-2, 2:-2] for output in outputs]
    np.testing.assert_allclose(inner[1], inner[0], rtol=1e-4, atol=1e-4 * np.abs(inner[0]).max())


def test_a_grey_model_exports_with_one_channel_and_detects_the_same(tmp_path: Path) -> None:
    model = settled(config(), GREYS)
    detector.save(model, tmp_path / "grey.keras")
    loaded = detector.load(tmp_path / "grey.keras")
    assert loaded.config.color_mode == "grayscale"
    exported = export.to_onnx(loaded)
    assert export.metadata(exported)["color_mode"] == "grayscale"
    dims = exported.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims][1:] == [1, SIZE, SIZE]
    export.write(exported, tmp_path / "model.onnx")
    expected = keras_detector(model)(GREYS)
    difference = verify.compare([expected], [verify.OnnxDetector(tmp_path / "model.onnx")(GREYS)])
    assert expected["count"].min() >= 3
    assert difference.unmatched == 0
    assert difference.max_abs_error <= 1e-4


def test_a_colour_data_set_trains_a_grey_model_of_an_odd_size(scenes: Path, tmp_path: Path) -> None:
    """Augmentation with mosaics, evaluation with settings of its own, and pictures, all of one channel."""
    run = tiny.run_spec(
        scenes,
        tmp_path / "out",
        dataset={"colorMode": "grayscale", "imageSize": {"width": 72, "height": 65}},
        training={
            "epochs": 1,
            "batchSizePerGPU": 4,
            "augmentation": {"mosaic": 0.5, "contrastScaleMax": 0.2, "zoomMin": 0.8},
        },
        evaluation={"detections": {"scoreThreshold": 0.001}, "proposals": {"preNms": 40, "postNms": 20}},
        visualization={"images": 2},
    )
    reporter = tiny.execute(train, run, tmp_path / "scratch")
    metrics = reporter.snapshot().metrics
    assert metrics is not None and metrics.m_ap is not None
    best = detector.load(tmp_path / "out" / "best.keras")
    assert best.trunk.input_shape == (None, 65, 72, 1)
    # The published model detects with the settings of spec.model.
    assert best.config.detections.score_threshold == 0.01
    assert best.config.proposals.inference.pre_nms == 30


def test_a_training_from_a_model_of_another_colour_mode_is_refused(scenes: Path, tmp_path: Path) -> None:
    detector.save(detector.build(training_config(["one", "zero"]), 0), tmp_path / "colour.keras")
    run = tiny.run_spec(
        scenes,
        tmp_path / "out",
        inputs=Inputs(model=ResolvedModel(uri=f"file://{tmp_path}/colour.keras")).to_wire(),
        dataset={"colorMode": "grayscale"},
    )
    with pytest.raises(RunnerError, match="colorMode: expected the model's rgb, got grayscale") as caught:
        tiny.execute(train, run, tmp_path / "scratch")
    assert caught.value.reason == Reason.MODEL_MISMATCH
