"""Batch normalisation as one op does what Keras' own does: outputs, gradients, statistics, and the file."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tiny_detector import tiny_config
from tlt_runner.detector import model as detector
from tlt_runner.detector.backbones.layers import fuse

PIXELS = np.random.default_rng(2).normal(3.0, 2.0, (4, 5, 6, 8)).astype(np.float32)


def graph(dtype: str = "float32") -> keras.Model:
    images = keras.Input((5, 6, 8))
    norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name="norm", dtype=dtype)
    model = keras.Model(images, norm(images))
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 2, 8).astype(np.float32) for _ in model.weights])
    return model


def trained(model: keras.Model, pixels: np.ndarray) -> list[Any]:
    """Output, gradients and weights after a pass in training mode."""
    inputs = tf.constant(pixels)

    @tf.function
    def run(inputs: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = tf.cast(model(inputs, training=True), tf.float32)
            total = tf.reduce_sum(outputs * tf.range(8, dtype=tf.float32) + outputs**2)
        return outputs, tape.gradient(total, [inputs, *model.trainable_variables])

    outputs, gradients = run(inputs)
    return [outputs, *gradients, *model.get_weights()]


def test_training_is_the_same_as_with_keras_own_ops() -> None:
    plain, fused = graph(), graph()
    fuse(fused)
    for actual, other in zip(trained(fused, PIXELS), trained(plain, PIXELS), strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-4, atol=1e-4)


def fused_ops(model: keras.Model) -> int:
    traced = tf.function(lambda images: model(images, training=True)).get_concrete_function(
        tf.TensorSpec((2, *model.input_shape[1:]))
    )
    return sum(operation.type == "FusedBatchNormV3" for operation in traced.graph.get_operations())


def test_every_normalisation_of_a_detector_is_one_op() -> None:
    model = detector.build(tiny_config(), 1)
    for part in (model.trunk, model.head):
        norms = [layer for layer in part.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert fused_ops(part) == len(norms) > 0
    assert fused_ops(graph()) == 0


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_its_statistics_in_full(dtype: str) -> None:
    model = graph(dtype)
    fuse(model)
    outputs, *_, mean, variance = trained(model, PIXELS)
    assert model.get_layer("norm").moving_mean.dtype == "float32"
    wanted = trained(graph(), PIXELS)
    np.testing.assert_allclose(outputs, wanted[0], rtol=2e-2, atol=4e-2)
    np.testing.assert_allclose([mean, variance], wanted[-2:], rtol=1e-2)


@pytest.mark.parametrize("frozen", [True, False])
def test_inference_and_frozen_layers_use_the_stored_statistics(frozen: bool) -> None:
    plain, fused = graph(), graph()
    fuse(fused)
    fused.get_layer("norm").trainable = not frozen
    np.testing.assert_array_equal(fused(PIXELS, training=frozen), plain(PIXELS, training=False))
    for actual, other in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, other)


def test_a_fused_layer_is_saved_as_the_layer_of_keras() -> None:
    plain, fused = graph(), graph()
    fuse(fused)
    fuse(fused)
    entry = keras.saving.serialize_keras_object(fused.get_layer("norm"))
    assert (entry["module"], entry["class_name"]) == ("keras.layers", "BatchNormalization")
    assert fused.get_layer("norm").get_config() == {
        **plain.get_layer("norm").get_config(),
        "name": "norm",
    }
