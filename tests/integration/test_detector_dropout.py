"""Dropout of the head: its share, its draws, where it stands, and that files, pruning and exports take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tiny_detector import settled, training_config
from tlt_api.training import Training
from tlt_runner.detector import dropout, losses
from tlt_runner.detector import model as detector
from tlt_runner.detector.dropout import Dropout
from tlt_runner.detector.seeds import StepSeeds
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.export import onnx as export
from tlt_runner.pruning.plan import Options
from tlt_runner.tasks import prune
from tlt_runner.training.trainer import Trainer

ROIS, WIDTH = 8, 500
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)


def config(rate: float, backbone: str = "vgg16", head: str = "lastStage") -> Any:
    roi = {"poolSize": 3, "miniBatch": 8, "dropout": rate, "head": head}
    return training_config(["car"], backbone=backbone, widthMultiplier=0.03125, roi=roi)


def dropped(images: int, step: int = 3, replica: int = 0, replicas: int = 1, rate: float = 0.3) -> Any:
    """Ones of a few images after dropout, [images * ROIS, WIDTH]."""
    random = StepSeeds(7, np.int64(step), np.int64(replica), replicas)
    with dropout.drawing(random, ROIS):
        return np.asarray(Dropout(rate)(np.ones((images * ROIS, WIDTH), np.float32), training=True))


def test_a_share_of_the_values_is_zero_and_the_others_keep_the_mean() -> None:
    values = dropped(8)
    np.testing.assert_allclose(np.unique(values), [0, 1 / 0.7], rtol=1e-6)
    # 32,000 draws: four standard deviations of the share are 0.01, and of the mean 0.0146.
    assert (values == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert values.mean() == pytest.approx(1.0, abs=0.015)


def test_a_step_drops_the_same_again_and_another_step_drops_others() -> None:
    np.testing.assert_array_equal(dropped(2), dropped(2))
    # Two independent masks differ at 2 * 0.3 * 0.7 of the places.
    assert (dropped(2) != dropped(2, step=4)).mean() == pytest.approx(0.42, abs=0.03)


def test_replicas_together_drop_what_a_single_device_drops() -> None:
    parts = [dropped(2, replica=replica, replicas=2) for replica in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), dropped(4))


def test_inference_drops_nothing_and_training_without_draws_is_an_error() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(np.asarray(Dropout(0.5)(values, training=False)), values)
    with pytest.raises(ValueError, match=r"expected .* within dropout\.drawing"):
        Dropout(0.5)(values, training=True)


@pytest.mark.parametrize(
    ("backbone", "head", "names"),
    [
        ("vgg16", "lastStage", ["fc1_dropout", "fc2_dropout"]),
        ("efficientnet_b0", "lastStage", ["head_dropout"]),
        ("resnet10", "light", ["light_dropout"]),
    ],
)
def test_dropout_follows_dense_layers_or_stands_before_the_outputs(
    backbone: str, head: str, names: list[str]
) -> None:
    with_it = detector.build(config(0.5, backbone, head), 1)
    without = detector.build(config(0.0, backbone, head), 1)
    assert [layer.name for layer in with_it.head.layers if isinstance(layer, Dropout)] == names
    assert not any(isinstance(layer, Dropout) for layer in without.head.layers)
    # It has no variable, and takes no seed from the layers after it.
    for one, other in zip(with_it.variables, without.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_losses_depend_on_the_step_through_dropout_alone() -> None:
    boxes, classes = np.array([[[8, 8, 40, 40]]] * 2, np.float32), np.zeros((2, 1), np.int32)
    # Every RoI is a ground truth box and drawn in any case, so that nothing else is random in the head.
    figures = {}
    for rate in (0.0, 0.5):
        model = settled(config(rate), IMAGES)
        figures[rate] = []
        for step in (1, 1, 2):
            random = StepSeeds(7, np.int64(step))
            features = model.trunk(IMAGES)["features"]
            with dropout.drawing(random, 1):
                logits, _ = model.classify(features, boxes, training=True)
            figures[rate].append(np.asarray(logits))
        parts = losses.losses(model, IMAGES, boxes, classes, StepSeeds(7, np.int64(1)))
        assert np.isfinite(np.asarray(parts)).all()
    still, moving = figures[0.0], figures[0.5]
    np.testing.assert_array_equal(still[0], still[2])
    np.testing.assert_array_equal(moving[0], moving[1])
    assert np.abs(moving[0] - moving[2]).max() > 0.1


def test_a_step_in_two_parts_drops_what_a_whole_one_drops() -> None:
    batch = {
        "image": tf.constant(IMAGES[[0, 1, 1, 0]]),
        "boxes": tf.constant([[[8.0, 8, 40, 40]]] * 4),
        "classes": tf.zeros((4, 1), tf.int32),
    }
    totals = []
    for rate, parts in ((0.5, 1), (0.5, 2), (0.0, 1)):
        trainer = Trainer(
            model=detector.build(config(rate), 1),
            spec=Training(batch_size_per_gpu=4 // parts, gradient_accumulation_steps=parts),
            strategy=tf.distribute.get_strategy(),
            low_dtype="float32",
        )
        totals.append(float(trainer.step(batch, 1, 0.0)[0]))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    assert abs(totals[0] - totals[2]) > 1e-3


def test_a_model_with_dropout_is_stored_pruned_and_exported(tmp_path: Path) -> None:
    model = settled(config(0.5), IMAGES)
    detector.save(model, tmp_path / "model.keras")
    loaded = detector.load(tmp_path / "model.keras")
    expected = keras_detector(model)(IMAGES)
    for name, values in keras_detector(loaded)(IMAGES).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4, err_msg=name)
    plan = prune.plan_pruning(loaded, Options(granularity=4, min_filters=4), threshold=0.9)
    pruned = prune.rebuild(loaded, plan)
    assert pruned.count_params() == plan.parameters_after < plan.parameters_before
    assert [layer.rate for layer in pruned.head.layers if isinstance(layer, Dropout)] == [0.5, 0.5]
    exported = export.to_onnx(pruned)
    assert not {"Dropout", "RandomUniform"} & {node.op_type for node in exported.graph.node}
