"""Weights in groups: the same gradients as weight by weight, from few ops."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tiny_detector import training_config
from tlt_api.training import Training
from tlt_runner.detector import losses
from tlt_runner.detector import model as detector
from tlt_runner.detector.seeds import StepSeeds
from tlt_runner.training.trainer import Trainer
from tlt_runner.training.weight_groups import WeightGroups

CONFIG = training_config(["car", "dog"])


def batch(images: int = 2) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    return {
        "image": tf.constant(draws.uniform(0, 255, (images, 64, 64, 3)), tf.float32),
        "boxes": tf.constant(np.tile([[4, 4, 30, 30], [30, 30, 60, 60]], (images, 1, 1)), tf.float32),
        "classes": tf.constant(np.tile([0, 1], (images, 1)), tf.int32),
    }


def trainer(**fields: Any) -> Trainer:
    spec = Training.model_validate(fields)
    return Trainer(detector.build(CONFIG, 1), spec, tf.distribute.get_strategy())


@pytest.fixture
def weights() -> list[keras.Variable]:
    """Two kernels in 16 bits, one in float32, a bias of each type, and a vector of batch normalisation."""
    shapes = [("kernel", (3, 2)), ("bias", (2,)), ("gamma", (2,)), ("kernel", (2, 2, 1)), ("kernel", (4, 1))]
    values = np.random.default_rng(1)
    named = [*shapes, ("bias", (1,))]
    return [keras.Variable(values.normal(size=shape).astype("float32"), name=name) for name, shape in named]


def groups_of(weights: list[keras.Variable]) -> WeightGroups:
    return WeightGroups(weights, {id(weights[index]) for index in (0, 1, 3)}, "bfloat16")


def test_gradients_come_back_in_the_order_of_the_weights(weights: list[keras.Variable]) -> None:
    groups = groups_of(weights)
    gradients = [tf.cast(np.full(weight.shape, index), tf.float32) for index, weight in enumerate(weights)]
    for index in (0, 1, 3):  # as they arrive from layers in 16 bits
        gradients[index] = tf.cast(gradients[index], tf.bfloat16)
    vectors = groups.gathered(gradients)
    assert sorted(vector.shape[0] for vector in vectors) == [2, 3, 4, 10]
    assert groups.sizes == [vector.shape[0] for vector in vectors]
    assert {vector.dtype for vector in vectors} == {tf.float32}
    for index, (gradient, weight) in enumerate(zip(groups.split(vectors), weights, strict=True)):
        np.testing.assert_array_equal(gradient, np.full(weight.shape, index))


def test_kernels_alone_are_penalised_and_get_its_gradient(weights: list[keras.Variable]) -> None:
    groups = groups_of(weights)
    penalised = groups.penalised(groups.current())
    kernels = [np.asarray(weights[index]).ravel() for index in (0, 3, 4)]
    assert sorted(np.concatenate(penalised)) == sorted(np.concatenate(kernels))
    zeros = [tf.zeros(size) for size in groups.sizes]
    added = groups.split(groups.added(zeros, [vector * 2 for vector in penalised]))
    for index, (term, weight) in enumerate(zip(added, weights, strict=True)):
        np.testing.assert_array_equal(term, np.asarray(weight) * (2 if index in (0, 3, 4) else 0))


def test_layers_use_the_parts_in_16_bits_and_gradients_reach_them(weights: list[keras.Variable]) -> None:
    groups = groups_of(weights)
    lowered = groups.lowered(groups.current())
    sources = groups.sources(lowered)
    assert [source.dtype for source in sources if isinstance(source, tf.Tensor)] == [tf.bfloat16] * 3
    with tf.GradientTape() as tape:
        tape.watch([source for source in sources if isinstance(source, tf.Tensor)])
        with groups.substituted(sources):
            used = [tf.cast(weight.value, tf.float32) for weight in weights]
        total = tf.add_n([tf.reduce_sum(value) * (index + 1) for index, value in enumerate(used)])
    gradients = groups.split(groups.gathered(tape.gradient(total, sources)))
    for index, gradient in enumerate(gradients):
        np.testing.assert_array_equal(gradient, np.full(weights[index].shape, index + 1))
        rounded = tf.cast(tf.cast(np.asarray(weights[index]), tf.bfloat16), tf.float32)
        np.testing.assert_array_equal(used[index], rounded if index in (0, 1, 3) else weights[index])


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_a_step_goes_down_the_gradient_of_losses_and_penalty(kind: str) -> None:
    spec = {"regularizer": {"type": kind, "weight": 0.01}, "optimizer": {"momentum": 0}}
    one, reference = trainer(**spec), detector.build(CONFIG, 1)
    rate, images = 1e-3, batch()
    before = [np.copy(np.asarray(variable)) for variable in one.model.trainable_variables]
    figures = one.step(images, 0, rate).numpy()
    with tf.GradientTape() as tape:
        draws = StepSeeds(one._spec.seed, tf.constant(0, tf.int64))
        parts = losses.losses(reference, images["image"], images["boxes"], images["classes"], draws)
        kernels = [weight for weight in reference.trainable_variables if weight.name == "kernel"]
        measure = tf.abs if kind == "l1" else tf.square
        total = tf.add_n(
            [tf.reduce_sum(parts), *(0.01 * tf.reduce_sum(measure(kernel)) for kernel in kernels)]
        )
    gradients = tape.gradient(total, reference.trainable_variables)
    assert figures[0] == pytest.approx(float(total), rel=1e-5)
    for start, moved, gradient in zip(before, one.model.trainable_variables, gradients, strict=True):
        np.testing.assert_allclose(np.asarray(moved), start - rate * np.asarray(gradient), rtol=0, atol=1e-6)


def test_weights_in_16_bits_are_cast_in_one_op() -> None:
    one = trainer(mixedPrecision=True)
    shapes = {tuple(weight.shape) for weight in one.model.trainable_variables if len(weight.shape) > 1}
    casts = [op for op in one.graph(batch()).get_operations() if op.type == "Cast"]
    assert not [op for op in casts if tuple(op.outputs[0].shape) in shapes]
    kernels = [
        int(np.prod(layer.kernel.shape))
        for layer in [*one.model.trunk.layers, *one.model.head.layers]
        if hasattr(layer, "kernel") and not layer.name.startswith(detector.OUTPUT_LAYERS)
    ]
    low = [op for op in casts if op.outputs[0].dtype == tf.bfloat16 and op.outputs[0].shape.rank == 1]
    assert sum(kernels) in [op.outputs[0].shape[0] for op in low]
    assert len(low) == 2  # kernels, and the biases beside them


def test_all_moving_statistics_move_by_one_product_and_one_sum() -> None:
    one = trainer()
    norms = sum(
        isinstance(layer, keras.layers.BatchNormalization)
        for layer in [*one.model.trunk.layers, *one.model.head.layers]
    )
    scoped = [op.type for op in one.graph(batch()).get_operations() if op.name.startswith("statistics")]
    assert scoped.count("AssignVariableOp") == 2 * norms > 10
    # (n - 1) / n of the variances, momentum of both, and their sum.
    assert {kind: scoped.count(kind) for kind in ("Mul", "AddV2", "RealDiv", "SplitV")} == {
        "Mul": 3,
        "AddV2": 1,
        "RealDiv": 1,
        "SplitV": 1,
    }
