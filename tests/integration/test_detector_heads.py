"""The heads that people can choose: each trains, survives its file, prunes, exports, and detects the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tiny_detector import SIZE, settled, tiny_config
from tlt_api.prunejob import PruneTarget
from tlt_api.training import Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.export import onnx as onnx_export
from tlt_runner.export import verify
from tlt_runner.pruning.plan import Options
from tlt_runner.tasks import prune
from tlt_runner.training.trainer import Trainer

HEADS: dict[str, dict[str, Any]] = {
    "original C4": {"poolSize": 14, "headStride": 2},
    "TLT": {"poolSize": 7, "headStride": 1},
    "default": {},
    "light": {"head": "light"},
    "light on vgg": {"head": "light", "poolSize": 4},
    "other factors": {"deltaScales": {"x": 4, "y": 5, "w": 2, "h": 3}},
}
BACKBONES = {"light on vgg": "vgg16"}
PRUNED = ["TLT", "light", "light on vgg"]


def config(name: str) -> DetectorConfig:
    described = tiny_config().to_wire()
    described["proposals"]["deltaScale"] = 2.0 if name == "other factors" else 1.0
    backbone = BACKBONES.get(name, "resnet10")
    width = 0.0625 if backbone == "vgg16" else 0.25
    roi = {"miniBatch": 8, **HEADS[name]}
    return DetectorConfig.model_validate(
        {**described, "backbone": backbone, "widthMultiplier": width, "roi": roi}
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return next(verify.random_images(7, 1, 2, SIZE, SIZE))


def batch(images: np.ndarray) -> dict[str, np.ndarray]:
    boxes = np.array([[[10, 10, 50, 60]], [[30, 20, 70, 50]]], np.float32)
    return {"image": images, "boxes": boxes, "classes": np.array([[0], [1]], np.int32)}


def assert_same(left: Any, right: Any, images: np.ndarray) -> None:
    for name, value in left(images).items():
        np.testing.assert_allclose(right(images)[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_trains_a_step_and_is_the_same_after_loading(
    name: str, images: np.ndarray, tmp_path: Path
) -> None:
    model = detector.build(config(name), 1)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    trainer = Trainer(model, Training(), tf.distribute.get_strategy())
    assert np.isfinite(trainer.step(batch(images), 0, 1e-4).numpy()).all()
    changed = [np.any(a != np.asarray(b)) for a, b in zip(before, model.trainable_variables, strict=True)]
    assert np.mean(changed) > 0.9
    detector.save(model, tmp_path / "model.keras")
    again = detector.load(tmp_path / "model.keras")
    assert again.config == model.config
    assert_same(model, again, images)


@pytest.mark.parametrize("name", HEADS)
def test_the_exported_head_detects_what_keras_detects(name: str, images: np.ndarray, tmp_path: Path) -> None:
    model = settled(config(name), images)
    onnx_export.write(onnx_export.to_onnx(model), tmp_path / "model.onnx")
    expected = keras_detector(model)(images)
    detections = verify.OnnxDetector(tmp_path / "model.onnx")(images)
    assert expected["count"].min() >= 1
    np.testing.assert_array_equal(detections["count"], expected["count"])
    assert verify.compare([expected], [detections]).unmatched == 0


@pytest.mark.parametrize("name", PRUNED)
def test_a_head_is_pruned_with_its_trunk(name: str, images: np.ndarray, tmp_path: Path) -> None:
    model = settled(config(name), images)
    spread(model)
    options = Options(granularity=2, min_filters=2)
    plan = prune.plan_pruning(model, options, target=PruneTarget(parameters=0.6))
    pruned = prune.rebuild(model, plan)
    assert pruned.count_params() == plan.parameters_after < model.count_params()
    cut = {item.name for item in plan.layers if len(item.kept) < item.filters}
    assert cut & {layer.name for layer in pruned.head.layers}
    detector.save(pruned, tmp_path / "pruned.keras")
    assert_same(pruned, detector.load(tmp_path / "pruned.keras"), images)


def spread(model: detector.FasterRCNN) -> None:
    """Filters that differ in size, as a trained model's do."""
    random = np.random.default_rng(11)
    for layer in [*model.trunk.layers, *model.head.layers]:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and layer.name not in detector.OUTPUT_LAYERS:
            kernel.assign(kernel * random.uniform(0.2, 1.0, kernel.shape[-1]))


def test_the_light_head_runs_the_last_stage_in_the_trunk_once_per_image() -> None:
    model = detector.build(config("light"), 1)
    trunk, head = ({layer.name for layer in part.layers} for part in (model.trunk, model.head))
    assert "stage4_block1_conv1" in trunk
    assert head == {"pooled", "light_flatten", "light_dense"} | {
        name for name in head if name.startswith("head_")
    }
    assert model.trunk.output["features"].shape == (None, SIZE // 16, SIZE // 16, 32)


def test_the_light_heads_last_stage_is_frozen_with_its_block() -> None:
    # A family whose last stage has a number, 5: that of a resnet has none.
    frozen = config("light").model_copy(update={"backbone": "darknet19", "freeze_blocks": [5]})
    trained = {variable.path.split("/")[0] for variable in detector.build(frozen, 1).trainable_variables}
    assert not any(name.startswith("group5_") for name in trained)
    assert {"light_conv", "light_dense", "group4_conv1"} <= trained
