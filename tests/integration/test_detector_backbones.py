"""Every backbone as a whole detector, tiny: built, trained one step, saved, loaded, frozen, pruned, exported.

The issue's table. One image of 64 pixels and the narrowest filters: what is tested is the graph, not how well
it learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from tlt_api.trainingjob import Backbone, Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.backbones import FAMILIES
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.training.trainer import Trainer

SIZE, WIDTH = 64, 0.03125
NAMES = get_args(Backbone)


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


@pytest.mark.parametrize("backbone", NAMES)
def test_a_backbone_trains_a_step_and_is_the_same_after_loading(
    backbone: str, images: np.ndarray, tmp_path: Path
) -> None:
    model = detector.build(tiny(backbone), 1)
    assert model.trunk.output["features"].shape[1:3] == (SIZE // 16, SIZE // 16)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    figures = step(model, images)
    assert np.isfinite(figures).all()
    changed = [np.any(a != np.asarray(b)) for a, b in zip(before, model.trainable_variables, strict=True)]
    assert np.mean(changed) > 0.9
    detector.save(model, tmp_path / "model.keras")
    again = detector.load(tmp_path / "model.keras")
    for name, value in model(images).items():
        np.testing.assert_allclose(again(images)[name], value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet34"])
def test_every_block_can_be_frozen_and_has_weights(backbone: str) -> None:
    free = detector.build(tiny(backbone), 1)
    block_of = FAMILIES[backbone].block_of
    for block in FAMILIES[backbone].blocks:
        model = detector.with_config(free, tiny(backbone, freezeBlocks=[block]))
        parts = [*model.trunk.layers, *model.head.layers]
        own = [layer for layer in parts if block_of(layer.name) == block]
        assert sum(len(layer.weights) for layer in own) > 0
        assert not any(layer.trainable_variables for layer in own)
        assert all(layer.trainable for layer in parts if layer not in own)
