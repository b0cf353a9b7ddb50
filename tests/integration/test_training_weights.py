"""Files of other people's networks, real ones: what loads, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase

import keras
import numpy as np
import pytest
from keras import layers

from tiny_detector import TRAINING_SIZE as SIZE
from tiny_detector import training_config
from tlt_api.failures import Reason
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.variant import Variant
from tlt_runner.errors import RunnerError
from tlt_runner.training.pretrained import layer_names, load

DETECTOR = {"rpn_conv", "rpn_objectness", "rpn_deltas", "head_classes", "head_deltas"}
MEAN = np.array([123.68, 116.779, 103.939], np.float32)
CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "darknet19": (1, 1, 3, 3, 5, 5)}


def tiny(backbone: str, width: float = 0.03125) -> DetectorConfig:
    roi = {"poolSize": 3, "miniBatch": 4}
    return training_config(["car"], backbone=backbone, widthMultiplier=width, roi=roi)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)


def bgr(images: np.ndarray) -> np.ndarray:
    """Caffe preprocessing."""
    return (images - MEAN)[..., ::-1]


def unsettle(model: keras.Model) -> None:
    """Biases and statistics that a trained network would have."""
    draws = np.random.default_rng(4)
    for layer in model.layers:
        if layer.weights and not isinstance(layer, layers.InputLayer):
            values = layer.get_weights()
            vectors = [value + draws.uniform(0, 0.3, value.shape) for value in values if value.ndim == 1]
            layer.set_weights([value for value in values if value.ndim > 1] + vectors)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5", ".hdf5"])
@pytest.mark.parametrize("nested", [False, True])
def test_every_kind_of_file_loads(suffix: str, nested: bool, images: np.ndarray, tmp_path: Path) -> None:
    theirs = tlt_vgg()
    whole = classifier(theirs) if nested else theirs
    file = tmp_path / f"vgg{suffix}"
    whole.save_weights(file) if suffix == ".weights.h5" else whole.save(file)
    model, taken = load.build(tiny("vgg16"), 1, file)
    assert len(taken.loaded) == 13
    assert taken.unused == (("predictions",) if nested else ())
    assert_equal_features(model, theirs, images)


def classifier(*backbones: keras.Model) -> keras.Model:
    """Whole networks as layers of one, as a classifier has them that begins with another's backbone."""
    pixels = keras.Input((SIZE, SIZE, 3))
    pooled = [layers.GlobalAveragePooling2D()(backbone(pixels)) for backbone in backbones]
    joined = layers.Concatenate()(pooled) if len(pooled) > 1 else pooled[0]
    return keras.Model(pixels, layers.Dense(2, name="predictions")(joined))


@pytest.mark.parametrize("suffix", [".keras", ".hdf5"])
def test_a_name_of_two_layers_is_taken_from_neither(suffix: str, tmp_path: Path) -> None:
    pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, padding="same", name="block_1a_conv_1")(pixels)
    x = layers.Conv2D(8, 3, padding="same", name="other")(x)
    classifier(tlt_vgg(), keras.Model(pixels, x)).save(tmp_path / f"two{suffix}")
    before = detector.build(tiny("vgg16"), 1).trunk.get_layer("block1_conv1").get_weights()
    model, taken = load.build(tiny("vgg16"), 1, tmp_path / f"two{suffix}")
    assert taken.origin == "TLT"
    assert taken.ambiguous == ("block_1a_conv_1",)
    assert "block1_conv1" in taken.untouched
    assert len(taken.loaded) == 12
    assert taken.unused == ("block_1a_bn_1", "other", "predictions")
    for value, now in zip(before, model.trunk.get_layer("block1_conv1").get_weights(), strict=True):
        np.testing.assert_array_equal(now, value)


def test_a_file_of_two_such_networks_is_refused_and_says_why(tmp_path: Path) -> None:
    classifier(tlt_vgg(), tlt_vgg()).save(tmp_path / "twins.h5")
    with pytest.raises(RunnerError, match="several each of block_1a_bn_1, block_1a_conv_1") as caught:
        load.build(tiny("vgg16"), 1, tmp_path / "twins.h5")
    assert caught.value.reason == Reason.MODEL_MISMATCH


def tlt_vgg() -> keras.Model:
    """VGG-16 as TLT makes it, 8 filters a layer: with normalisation, for BGR."""
    x = pixels = keras.Input((SIZE, SIZE, 3))
    for block, count in enumerate(CONVOLUTIONS["vgg16"], 1):
        for letter in ascii_lowercase[:count]:
            filters = max(8, min(64 * 2 ** (block - 1), 512) // 32)
            x = layers.Conv2D(filters, 3, padding="same", name=f"block_{block}{letter}_conv_1")(x)
            x = layers.ReLU()(layers.BatchNormalization(name=f"block_{block}{letter}_bn_1")(x))
        if block < 5:
            x = layers.MaxPooling2D(2, 2, "same")(x)
    model = keras.Model(pixels, x)
    unsettle(model)
    return model


def test_tlts_vgg_gives_its_features_though_ours_does_not_normalise(
    images: np.ndarray, tmp_path: Path
) -> None:
    theirs = tlt_vgg()
    theirs.save(tmp_path / "theirs.hdf5")
    assert_same_features("vgg16", theirs, images, tmp_path)


def test_tlts_darknet_gives_its_features_without_bias_and_with_another_epsilon(
    images: np.ndarray, tmp_path: Path
) -> None:
    x = features = pixels = keras.Input((SIZE, SIZE, 3))
    for group, count in enumerate(CONVOLUTIONS["darknet19"]):
        for number in range(1, count + 1):
            name = f"b{group}_conv{number}" if group else "conv1"
            filters = max(8, 2**group) // (1 if number % 2 else 2)
            x = layers.Conv2D(filters, 3 if number % 2 else 1, padding="same", name=name)(x)
            x = layers.LeakyReLU(negative_slope=0.1)(layers.BatchNormalization(name=f"{name}_bn")(x))
        features = x if group == 4 else features
        if group != 4:
            x = layers.MaxPooling2D(2, 2, "same")(x)
    theirs = keras.Model(pixels, x)
    unsettle(theirs)
    theirs.save(tmp_path / "theirs.hdf5")
    assert_same_features("darknet19", keras.Model(pixels, features), images, tmp_path)


def assert_same_features(backbone: str, theirs: keras.Model, images: np.ndarray, folder: Path) -> None:
    model, taken = load.build(tiny(backbone), 1, folder / "theirs.hdf5")
    assert taken.origin == "TLT"
    assert taken.mismatched == taken.unused == ()
    assert_equal_features(model, theirs, images)


def assert_equal_features(model: detector.FasterRCNN, theirs: keras.Model, images: np.ndarray) -> None:
    expected = theirs(bgr(images))
    got = model.trunk(images)["features"]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


def keras_resnet(blocks: tuple[int, ...]) -> Iterator[str]:
    yield from ("conv1_conv", "conv1_bn")
    for stage, count in enumerate(blocks, 2):
        for block in range(1, count + 1):
            for part in range(0 if block == 1 else 1, 4):
                yield from (f"conv{stage}_block{block}_{part}_{kind}" for kind in ("conv", "bn"))


def tlt_resnet(blocks: tuple[int, ...], convolutions: int) -> Iterator[str]:
    yield from ("conv1", "bn_conv1")
    for stage, count in enumerate(blocks, 1):
        for letter in ascii_lowercase[:count]:
            parts = [str(number + 1) for number in range(convolutions)]
            parts += ["shortcut"] if letter == "a" else []
            yield from (f"block_{stage}{letter}_{kind}_{part}" for part in parts for kind in ("conv", "bn"))


def tlt_darknet53() -> Iterator[str]:
    names = [f"conv{number}" for number in range(1, 7)]
    for group, count in enumerate((1, 2, 8, 8, 4), 1):
        names += [f"b{group}_conv{block}_{part}" for block in range(1, count + 1) for part in (1, 2)]
    yield from names
    yield from (f"{name}_bn" for name in names)


def tlt_googlenet() -> Iterator[str]:
    for name in ("conv1", "conv2_reduce", "conv2"):
        yield from (name, f"bn_{name}")
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for branch in ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj"):
            yield from (f"inception_{block}_{branch}", f"inception_{block}_{branch}_bn")


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("resnet50", keras_resnet((3, 4, 6, 3))),
        ("resnet101", keras_resnet((3, 4, 23, 3))),
        ("resnet10", tlt_resnet((1, 1, 1, 1), 2)),
        ("resnet34", tlt_resnet((3, 4, 6, 3), 2)),
        ("resnet50", tlt_resnet((3, 4, 6, 3), 3)),
        ("darknet53", tlt_darknet53()),
        ("googlenet", tlt_googlenet()),
    ],
)
def test_every_layer_of_a_backbone_has_a_counterpart_in_other_programs_files(
    backbone: str, names: Iterator[str]
) -> None:
    theirs = list(names)
    naming = layer_names.naming(backbone, theirs)
    variant = naming.variant(theirs) if naming.variant else Variant()
    model = detector.build(tiny(backbone).model_copy(update={"variant": variant}), 1)
    mine = {layer.name for layer in load.layers_of(model)} - DETECTOR
    assert sorted(str(naming.ours(name)) for name in theirs) == sorted(mine)


def test_a_network_that_is_not_ours_is_refused_and_named(tmp_path: Path) -> None:
    pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 7, 2, name="conv1_conv")(pixels)
    x = layers.BatchNormalization(name="conv2_block1_preact_bn")(x)
    keras.Model(pixels, x).save(tmp_path / "resnet50v2.keras")
    with pytest.raises(RunnerError, match="ResNet V2") as caught:
        load.build(tiny("resnet50"), 1, tmp_path / "resnet50v2.keras")
    assert caught.value.reason == Reason.MODEL_MISMATCH
