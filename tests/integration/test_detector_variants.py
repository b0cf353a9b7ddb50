"""Variants of a backbone's graph: recorded in the model file, pruned, exported; files of before name none."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers

from tiny_detector import TRAINING_SIZE as SIZE
from tiny_detector import training_config
from tlt_api.dataset import Dataset
from tlt_api.model import Model
from tlt_api.prunejob import PruneTarget
from tlt_runner.detector import model as detector
from tlt_runner.detector.backbones.layers import Layers
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.variant import DEFAULT, Pixels, Variant
from tlt_runner.export import onnx as onnx_export
from tlt_runner.pruning.plan import Options
from tlt_runner.tasks import prune

FORMER_FILES = Path(__file__).parents[1] / "fixtures/model-2026-11"
VARIANTS = {
    "v1.5": ("resnet10", Variant(padding="symmetric")),
    "v1": ("resnet50", Variant(padding="symmetric", stride_in="conv1", epsilon=1.001e-5)),
    "TLT": ("resnet10", Variant(projections="all", stem_pool=False, epsilon=1e-3)),
    "TLT, bottlenecks": ("resnet50", Variant(projections="stage", stride_in="conv1", epsilon=1e-3)),
    "torchvision's MobileNetV2": ("mobilenet_v2", Variant(padding="symmetric", wide_end=True)),
    "without weights": ("resnet10", DEFAULT),
}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)


def tiny(backbone: str, variant: Variant) -> DetectorConfig:
    config = training_config(["car"], backbone=backbone, widthMultiplier=0.0625)
    return config.model_copy(update={"variant": variant})


def assert_alike(one: detector.FasterRCNN, other: detector.FasterRCNN, images: np.ndarray) -> None:
    expected = other(images)
    for name, value in one(images).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-3)


def exported(model: detector.FasterRCNN, images: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    onnx_export.write(onnx_export.to_onnx(model), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images.transpose(0, 3, 1, 2)}), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_recorded_pruned_and_exported(name: str, images: np.ndarray, tmp_path: Path) -> None:
    backbone, variant = VARIANTS[name]
    variant = variant.model_copy(update={"pixels": Pixels(mean=(1, 2, 3), scale=(50, 60, 70))})
    model = detector.build(tiny(backbone, variant), 1)
    assert model.trunk.output["features"].shape[1:3] == (SIZE // 16, SIZE // 16)
    detector.save(model, tmp_path / "model.keras")
    again = detector.load(tmp_path / "model.keras")
    assert again.config.variant == variant
    assert_alike(again, model, images)

    outputs = exported(model, images, tmp_path)
    np.testing.assert_allclose(outputs["scores"], model(images)["scores"], atol=1e-5)

    plan = prune.plan_pruning(
        model, Options(granularity=2, min_filters=4), target=PruneTarget(parameters=0.7)
    )
    assert not [layer.name for layer in plan.layers if layer.protection not in (None, "output layer")]
    pruned = prune.rebuild(model, plan)
    assert pruned.count_params() == plan.parameters_after < model.count_params()
    assert pruned.config.variant == variant


def test_the_published_resnet_strides_as_torchvisions_and_only_where_it_has_to() -> None:
    model = detector.build(tiny("resnet50", Variant(padding="symmetric")), 1)
    strided = {
        layer.name: layer.kernel_size[0]
        for layer in [*model.trunk.layers, *model.head.layers]
        if isinstance(layer, layers.Conv2D) and layer.strides != (1, 1)
    }
    blocks = {f"stage{stage}_block1_conv2": 3 for stage in (2, 3, 4)}
    assert strided == {"stem_conv": 7, **blocks}


@pytest.mark.parametrize("size", [7, 8])
def test_symmetric_padding_halves_odd_and_even_maps_as_same_padding_does(size: int) -> None:
    make = Layers(1, variant=Variant(padding="symmetric"))
    x = keras.Input((size, size, 8))
    for shape in (make.conv(x, "a", 8, 3, 2).shape, make.max_pool(x, "b", 3, 2).shape):
        assert shape == (None, 4, 4, 8)


@pytest.mark.parametrize("size", [4, 5])
def test_left_out_pixels_and_a_convolution_equal_a_strided_convolution(size: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, size, size, 32)).astype(np.float32)
    strided = layers.Conv2D(16, 1, 2, use_bias=False)
    expected = strided(x)
    plain = layers.Conv2D(16, 1, use_bias=False)
    plain.build(x.shape)
    plain.set_weights(strided.get_weights())
    np.testing.assert_array_equal(plain(layers.MaxPooling2D(1, 2)(x)), expected)


def test_a_model_file_of_before_detects_the_same(images: np.ndarray) -> None:
    model = detector.load(FORMER_FILES / "best.keras")
    assert model.config.variant == DEFAULT
    stored = np.load(FORMER_FILES / "detections.npz")
    got = {**model(images), "features": model.trunk(images)["features"]}
    assert stored["count"].tolist() == [8, 8]
    for name in stored.files:
        np.testing.assert_allclose(got[name], stored[name], rtol=1e-5, atol=1e-4)


def test_a_model_file_of_before_is_saved_pruned_and_exported(images: np.ndarray, tmp_path: Path) -> None:
    shutil.copy(FORMER_FILES / "best.keras", tmp_path / "best.keras")
    model = detector.load(tmp_path / "best.keras")
    detector.save(model, tmp_path / "again.keras")
    again = detector.load(tmp_path / "again.keras")
    assert again.config == model.config
    assert_alike(again, model, images)
    np.testing.assert_allclose(
        exported(model, images, tmp_path)["scores"], model(images)["scores"], atol=1e-5
    )
    options = Options(granularity=2, min_filters=2)
    plan = prune.plan_pruning(model, options, target=PruneTarget(parameters=0.7))
    assert prune.rebuild(model, plan).count_params() == plan.parameters_after


def frozen(model: detector.FasterRCNN) -> set[str]:
    parts = [*model.trunk.layers, *model.head.layers]
    return {layer.name.split("_")[0] for layer in parts if layer.weights and not layer.trainable}


def test_freeze_blocks_of_a_model_file_of_before_keep_their_meaning() -> None:
    # 0 was the stem with stage 1, and 3 the head's stage.
    model = detector.load(FORMER_FILES / "best.keras")
    assert model.config.freeze_blocks == [0, 3]
    assert frozen(model) == {"stem", "stage1", "stage4"}


@pytest.mark.parametrize(("blocks", "names"), [([0], {"stem"}), ([0, 1, 3], {"stem", "stage1", "stage3"})])
def test_a_retraining_of_a_model_file_of_before_has_tlts_numbers(blocks: list[int], names: set[str]) -> None:
    model = detector.load(FORMER_FILES / "best.keras")
    dataset = Dataset.model_validate(
        {
            "uri": "s3://data/cars",
            "format": "kitti",
            "imageSize": {"width": SIZE, "height": SIZE},
            "targetClassMapping": {"car": "car"},
        }
    )
    wanted = model.config.retrained_by(Model(freeze_blocks=blocks), dataset)
    assert frozen(detector.with_config(model, wanted)) == names
