"""Effects of the options of a training step on the weights, on a tiny detector."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tiny_detector import DETERMINISTIC, SIZE, settled, tiny_config, training_config
from tlt_api.training import Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.evaluation.collection import Collector
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.evaluation.protocols import Protocol, measure
from tlt_runner.export import verify
from tlt_runner.training import mixed_precision
from tlt_runner.training.trainer import FIGURES, LOSSES, Trainer

CONFIG = training_config(["car", "dog"], **DETERMINISTIC)
NORMED = CONFIG.model_copy(update={"freeze_batch_norm": False})


def batch(images: int = 4) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    return {
        "image": tf.constant(draws.uniform(0, 255, (images, 64, 64, 3)), tf.float32),
        "boxes": tf.constant(np.tile([[4, 4, 30, 30], [30, 30, 60, 60]], (images, 1, 1)), tf.float32),
        "classes": tf.constant(np.tile([0, 1], (images, 1)), tf.int32),
    }


def trainer(config: DetectorConfig = CONFIG, low: str = mixed_precision.BFLOAT16, **fields: Any) -> Trainer:
    spec = Training.model_validate({"regularizer": {"type": "none"}, **fields})
    return Trainer(detector.build(config, 1), spec, tf.distribute.get_strategy(), low)


def run(one: Trainer, steps: int, rate: float = 1e-5, data: Any = None) -> list[dict[str, float]]:
    figures = [one.step(data or batch(), number, rate).numpy() for number in range(steps)]
    return [dict(zip(FIGURES, row.tolist(), strict=True)) for row in figures]


def weights(one: Trainer) -> list[np.ndarray]:
    return [np.copy(np.asarray(variable)) for variable in one.model.trainable_variables]


def furthest(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


@pytest.fixture(scope="module")
def plain() -> tuple[list[dict[str, float]], list[np.ndarray]]:
    one = trainer()
    return run(one, 3), weights(one)


def test_accumulated_parts_of_a_batch_give_the_update_of_the_whole_batch(plain: Any) -> None:
    one = trainer(gradientAccumulationSteps=2, batchSizePerGPU=2)
    figures = run(one, 3)
    for name in ("total", "gradient_norm", "head_classes"):
        assert figures[-1][name] == pytest.approx(plain[0][-1][name], rel=1e-4)
    assert furthest(weights(one), plain[1]) < 1e-5
    assert furthest(weights(one), weights(trainer())) > 1e-3  # they have moved


def test_accumulated_parts_run_one_at_a_time() -> None:
    one = trainer(gradientAccumulationSteps=2, batchSizePerGPU=2)
    loops = [op for op in one.graph(batch()).get_operations() if op.type in ("While", "StatelessWhile")]
    assert [op.get_attr("parallel_iterations") for op in loops] == [1]


def test_the_mean_gradient_of_the_parts_is_clipped() -> None:
    whole = trainer(optimizer={"clipNorm": 0.5})
    parts = trainer(optimizer={"clipNorm": 0.5}, gradientAccumulationSteps=4, batchSizePerGPU=1)
    norms = [run(one, 2)[0]["gradient_norm"] for one in (whole, parts)]
    assert norms[0] > 1.0
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert furthest(weights(whole), weights(parts)) < 1e-6


def test_a_clipped_first_step_is_as_long_as_the_norm_allows() -> None:
    one = trainer(optimizer={"clipNorm": 0.5})
    before = weights(one)
    run(one, 1, rate=0.1)
    moved = [after - start for after, start in zip(weights(one), before, strict=True)]
    assert np.sqrt(sum(float((part**2).sum()) for part in moved)) == pytest.approx(0.05, rel=1e-4)


def test_a_loss_is_multiplied_by_its_weight(plain: Any) -> None:
    heavy = run(trainer(lossWeights={"headClasses": 3, "rpnDeltas": 0.5}), 1)[0]
    first = plain[0][0]
    assert heavy["head_classes"] == pytest.approx(3 * first["head_classes"], rel=1e-5)
    assert heavy["rpn_deltas"] == pytest.approx(0.5 * first["rpn_deltas"], rel=1e-5)
    assert heavy["total"] == pytest.approx(
        first["total"] + 2 * first["head_classes"] - 0.5 * first["rpn_deltas"], rel=1e-5
    )


def test_averaged_weights_follow_and_are_used_only_in_their_context() -> None:
    one = trainer(ema={"momentum": 0.5})
    start = weights(one)
    run(one, 1)
    first = weights(one)
    with one.averaged():
        averages = weights(one)
    # after one update the momentum is (1 + 1) / (10 + 1)
    expected = [a * 2 / 11 + b * 9 / 11 for a, b in zip(start, first, strict=True)]
    assert furthest(averages, expected) < 1e-6
    assert furthest(weights(one), first) == 0.0


def test_a_detector_with_averaged_weights_leaves_the_weights_unchanged() -> None:
    one = trainer(ema={"momentum": 0.5})
    detect = keras_detector(one.model)
    averaged = one.averaged()(detect)
    run(one, 2, rate=1e-4)
    before, images = weights(one), np.asarray(batch()["image"])
    with one.averaged():
        expected = np.asarray(detect(images)["scores"])
    assert expected.max() > 0.0
    for _ in range(2):  # pictures are drawn again and again
        np.testing.assert_array_equal(np.asarray(averaged(images)["scores"]), expected)
    assert np.abs(np.asarray(detect(images)["scores"]) - expected).max() > 0.0
    assert furthest(weights(one), before) == 0.0


def test_the_weights_come_back_when_the_evaluation_fails() -> None:
    one = trainer(ema={})
    run(one, 2)
    before = [np.copy(np.asarray(variable)) for variable in one.state]
    with pytest.raises(RuntimeError), one.averaged():
        raise RuntimeError
    assert furthest([np.copy(np.asarray(variable)) for variable in one.state], before) == 0.0


def test_without_averages_the_weights_stay() -> None:
    one = trainer()
    before = weights(one)
    with one.averaged():
        assert furthest(weights(one), before) == 0.0


def test_the_loss_falls_in_16_bits_as_in_32_bits(tmp_path: Path) -> None:
    low, full = trainer(NORMED, mixedPrecision=True), trainer(NORMED)
    ours, theirs = ([row["total"] for row in run(one, 12, 3e-3)] for one in (low, full))
    assert ours[-1] < 0.8 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=0.08)
    assert ours != theirs
    detector.save(low.model, tmp_path / "model.keras")
    saved = detector.load(tmp_path / "model.keras")
    for layer in [*saved.trunk.layers, *saved.head.layers]:
        assert layer.dtype_policy.name == "float32"
    assert all(variable.dtype == "float32" for variable in [*saved.variables, *low.model.variables])
    images = batch(1)["image"]
    np.testing.assert_array_equal(
        np.asarray(saved(images)["scores"]), np.asarray(low.model(images)["scores"])
    )


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_an_evaluation_in_16_bits_finds_the_objects_of_32_bits(tiny_images: np.ndarray, low: str) -> None:
    model = settled(tiny_config(), tiny_images)
    images = next(verify.random_images(3, 1, 16, SIZE, SIZE))
    spec = Training(mixed_precision=True)
    full = keras_detector(model)(images)
    trained = Trainer(model, spec, tf.distribute.get_strategy(), low)
    found = keras_detector(trained.in_step_types(model))(images)
    assert np.abs(found["scores"] - full["scores"]).max() > 1e-5  # it did compute in 16 bits
    # What 32 bits found with some certainty are the objects that 16 bits are to find.
    certain = np.where(full["scores"] > 0.5, full["classes"], -1)
    assert (certain >= 0).sum() > 20
    collector = Collector(model.config.class_names)
    for index in range(len(images)):
        real = certain[index] >= 0
        truth = full["boxes"][index][real], certain[index][real].astype(int), np.zeros(real.sum(), bool)
        detections = [found[name][index] for name in ("boxes", "scores", "classes")]
        collector.add_image(detections[0], detections[1], detections[2].astype(int), *truth)
    mean = measure(collector.collection(), Protocol()).mean
    assert mean is not None
    assert mean > 0.97


def test_an_update_whose_scaled_gradient_overflows_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_precision, "FIRST_SCALE", 2.0**24)
    one = trainer(NORMED, mixed_precision.FLOAT16, mixedPrecision=True, ema={})
    start, figures = weights(one), run(one, 1)[0]
    assert not np.isfinite(figures["gradient_norm"])
    assert figures["loss_scale"] == 2.0**24
    assert furthest(weights(one), start) == 0.0
    course = run(one, 12, 3e-3)
    assert course[-1]["loss_scale"] < 2.0**24
    assert any(np.isfinite(row["gradient_norm"]) for row in course)
    assert course[-1]["total"] < course[0]["total"]
    assert furthest(weights(one), start) > 0.0


def test_float16_is_for_gpus_before_ampere() -> None:
    assert mixed_precision.dtype_of([(7, 5), (8, 0)]) == "float16"
    assert mixed_precision.dtype_of([(8, 0), (9, 0)]) == "bfloat16"
    assert mixed_precision.dtype_of([]) == "bfloat16"


def test_all_workers_compute_in_float16_if_one_has_an_old_gpu() -> None:
    flags: list[bool] = []

    def another_is_old(is_old: bool) -> bool:
        flags.append(is_old)
        return True

    assert mixed_precision.low_dtype(another_is_old) == "float16"
    assert mixed_precision.low_dtype(lambda is_old: is_old) == "bfloat16"
    assert flags == [False]


def test_xla_computes_the_same(plain: Any) -> None:
    one = trainer(xla=True)
    np.testing.assert_allclose(
        [row["total"] for row in run(one, 3)], [row["total"] for row in plain[0]], rtol=1e-4
    )
    assert furthest(weights(one), plain[1]) < 1e-4


def test_all_options_at_once_give_a_finite_falling_loss() -> None:
    one = trainer(
        NORMED,
        xla=True,
        mixedPrecision=True,
        ema={},
        gradientAccumulationSteps=2,
        optimizer={"type": "adamw", "clipNorm": 1.0},
    )
    course = [row["total"] for row in run(one, 8, 2e-3)]
    assert np.isfinite(course).all()
    assert course[-1] < course[0]


def test_the_global_policy_of_keras_stays_float32() -> None:
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(("kind", "measure"), [("l1", np.abs), ("l2", np.square)])
def test_only_kernels_that_are_trained_are_penalised(kind: str, measure: Any) -> None:
    frozen = CONFIG.model_copy(update={"freeze_blocks": [0]})
    one = trainer(frozen, regularizer={"type": kind, "weight": 0.25})
    layers = [layer for layer in [*one.model.trunk.layers, *one.model.head.layers] if layer.trainable]
    kernels = [np.asarray(layer.kernel) for layer in layers if hasattr(layer, "kernel")]
    everything = [np.asarray(variable) for variable in one.model.variables]
    expected = 0.25 * sum(float(measure(kernel).sum()) for kernel in kernels)
    (figures,) = run(one, 1, rate=0.0)
    assert figures["penalty"] == pytest.approx(expected, rel=1e-5)
    assert expected < 0.25 * sum(float(measure(value).sum()) for value in everything)
    assert figures["total"] == pytest.approx(sum(figures[name] for name in LOSSES[1:]), rel=1e-5)
