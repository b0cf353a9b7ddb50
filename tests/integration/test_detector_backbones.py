"""Every backbone as a whole detector, tiny: built, trained one step, saved, loaded, frozen, pruned, exported.

One image of 64 pixels and the narrowest filters: what is tested is the graph, not how well it
learns.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.model import Backbone
from tlt_api.prunejob import PruneTarget
from tlt_api.training import Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.backbones import FAMILIES
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.errors import RunnerError
from tlt_runner.export import onnx as onnx_export
from tlt_runner.pruning.plan import Options
from tlt_runner.tasks import prune
from tlt_runner.training.trainer import Trainer

SIZE, WIDTH = 64, 0.03125
LARGER = {
    "efficientnet_b1": 23,
    "efficientnet_b2": 23,
    "efficientnet_b3": 26,
    "efficientnet_b4": 32,
    "efficientnet_b5": 39,
    "efficientnet_b6": 45,
    "efficientnet_b7": 55,
}
"""Larger EfficientNet -> number of blocks that the paper's depth coefficient gives."""
TRAINED = [name for name in get_args(Backbone) if name not in LARGER or name == "efficientnet_b3"]
"""The deepest ones are made of the same layers, and a step of theirs takes longest."""
ONE_EACH = ["darknet53", *(family.names[0] for family in dict.fromkeys(FAMILIES.values()))]
"""One backbone of each family, and both of darknet, which differ."""


def tiny(backbone: str, **changes: object) -> DetectorConfig:
    return DetectorConfig.model_validate(
        {
            "classNames": ["car"],
            "height": SIZE,
            "width": SIZE,
            "backbone": backbone,
            "widthMultiplier": WIDTH,
            "anchors": {"scales": [24], "ratios": [1.0]},
            "proposals": {
                "miniBatch": 8,
                "training": {"preNms": 12, "postNms": 4},
                "inference": {"preNms": 12, "postNms": 4},
            },
            "roi": {"poolSize": 3, "miniBatch": 4},
            "detections": {"maxDetections": 4},
            "maxObjects": 1,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)


def step(model: detector.FasterRCNN, images: np.ndarray) -> np.ndarray:
    batch = {
        "image": images,
        "boxes": np.array([[[10, 10, 40, 40]]], np.float32),
        "classes": np.array([[0]], np.int32),
    }
    trainer = Trainer(model, Training(), tf.distribute.get_strategy())
    return trainer.step(batch, 0, 1e-4).numpy()


@pytest.mark.parametrize("backbone", TRAINED)
def test_a_backbone_trains_a_step_and_is_the_same_after_loading(
    backbone: str, images: np.ndarray, tmp_path: Path
) -> None:
    model = detector.build(tiny(backbone), 1)
    assert model.trunk.output["features"].shape[1:3] == (SIZE // 16, SIZE // 16)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    figures = step(model, images)
    assert np.isfinite(figures).all()
    changed = [np.any(a != np.asarray(b)) for a, b in zip(before, model.trainable_variables, strict=True)]
    # Before a normalisation, a gamma's gradient is but rounding: less than float32 holds beside its 1.
    assert np.mean(changed) > 0.85
    detector.save(model, tmp_path / "model.keras")
    again = detector.load(tmp_path / "model.keras")
    assert_alike(again, model, images)


@pytest.mark.parametrize("backbone", [name for name in LARGER if name not in TRAINED])
def test_an_untrained_larger_efficientnet_is_the_same_after_loading(
    backbone: str, images: np.ndarray, tmp_path: Path
) -> None:
    model = detector.build(tiny(backbone), 1)
    detector.save(model, tmp_path / "model.keras")
    assert_alike(detector.load(tmp_path / "model.keras"), model, images)


@pytest.mark.parametrize(("backbone", "blocks"), LARGER.items())
def test_larger_efficientnets_are_deeper(backbone: str, blocks: int) -> None:
    model = detector.build(tiny(backbone), 1)
    assert model.trunk.output["features"].shape[1:3] == (SIZE // 16, SIZE // 16)
    parts = [*model.trunk.layers, *model.head.layers]
    assert sum(isinstance(layer, keras.layers.DepthwiseConv2D) for layer in parts) == blocks


@pytest.mark.parametrize("backbone", ONE_EACH)
def test_every_block_can_be_frozen_and_has_weights(backbone: str) -> None:
    free = detector.build(tiny(backbone), 1)
    block_of = FAMILIES[backbone].block_of
    for block in FAMILIES[backbone].blocks:
        model = detector.with_config(free, tiny(backbone, freezeBlocks=[block]))
        parts = [*model.trunk.layers, *model.head.layers]
        of_block = [layer for layer in parts if block_of(layer.name) == block]
        assert sum(len(layer.weights) for layer in of_block) > 0
        assert not any(layer.trainable_variables for layer in of_block)
        assert all(layer.trainable for layer in parts if layer not in of_block)


def test_freeze_blocks_that_a_model_does_not_have_are_refused() -> None:
    model = detector.build(tiny("resnet10"), 1)
    with pytest.raises(RunnerError, match="expected 0 to 3 for resnet10, .* got 4, 9") as caught:
        detector.with_config(model, tiny("resnet10", freezeBlocks=[4, 3, 9]))
    assert caught.value.reason == Reason.INVALID_SPEC


@pytest.mark.parametrize("backbone", ONE_EACH)
def test_a_pruned_backbone_computes_what_the_unpruned_one_does_with_those_filters_at_zero(
    backbone: str, images: np.ndarray
) -> None:
    model = detector.build(tiny(backbone, widthMultiplier=0.125), 1)
    options = Options(granularity=2, min_filters=4)
    plan = prune.plan_pruning(model, options, target=PruneTarget(parameters=0.6))
    assert not [layer.name for layer in plan.layers if layer.protection not in (None, "output layer")]
    pruned = prune.rebuild(model, plan)
    assert pruned.count_params() == plan.parameters_after
    for planned in plan.layers:
        part = model.head if planned.name in {layer.name for layer in model.head.layers} else model.trunk
        kernel = part.get_layer(planned.name).kernel
        axis = 2 if planned.kind == "DepthwiseConv2D" else -1
        gone = np.setdiff1d(np.arange(planned.filters), planned.kept)
        values = np.moveaxis(np.array(np.asarray(kernel)), axis, 0)
        values[gone] = 0.0
        kernel.assign(np.moveaxis(values, 0, axis))
    assert_alike(pruned, model, images)


def test_squeeze_and_excitation_is_exported_and_detects_the_same(images: np.ndarray, tmp_path: Path) -> None:
    model = detector.build(tiny("efficientnet_b0"), 1)
    onnx_export.write(onnx_export.to_onnx(model), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    scores, count = session.run(["scores", "count"], {"images": images.transpose(0, 3, 1, 2)})
    detections = model(images)
    np.testing.assert_array_equal(count, detections["count"])
    np.testing.assert_allclose(scores, detections["scores"], atol=1e-5)


def assert_alike(one: detector.FasterRCNN, other: detector.FasterRCNN, images: np.ndarray) -> None:
    expected = other(images)
    for name, value in one(images).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-3)


def test_relu_takes_the_place_of_swish_in_every_layer_of_an_efficientnet() -> None:
    models = [detector.build(tiny("efficientnet_b0", **choice), 0) for choice in ({}, {"activation": "relu"})]
    functions = [
        Counter(
            layer.activation.__name__
            for part in (model.trunk, model.head)
            for layer in part.layers
            if hasattr(layer, "activation")
        )
        for model in models
    ]
    swish, relu = functions
    # The convolution of the region proposal network is the only one with relu in the usual network.
    assert swish["relu"] == 1 and swish["silu"] > 40
    assert relu == Counter({**swish, "relu": swish["relu"] + swish["silu"], "silu": 0}) - Counter()
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(one, other)
