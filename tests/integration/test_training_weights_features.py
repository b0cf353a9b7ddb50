"""Weights of published networks give the features that they were trained to give, in trunk and head.

Each source is built as its program builds it, gets random weights calibrated on the image, and writes a file
in its own format. Sources: ``keras.applications``; KerasHub's and TLT's networks after the code that
:mod:`tlt_runner.training.pretrained.layer_names` names; torchvision's in NumPy (``torch_networks``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import safetensors.numpy
from keras import layers

import torch_networks
from tiny_detector import TRAINING_SIZE as SIZE
from tiny_detector import training_config
from tlt_api.failures import Reason
from tlt_api.model import PretrainedPixels
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.errors import RunnerError
from tlt_runner.training.pretrained import load

TOLERANCE = 1e-4
"""Largest difference of a feature, in parts of the largest feature."""
BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
MEAN = np.array([123.68, 116.779, 103.939], np.float32)


class Source(NamedTuple):
    """A network of another program.

    Attributes:
        file: Its weights.
        features: Its features at the cut for the image, [1, SIZE / 16, SIZE / 16, C].
        last: Its features after the last stage; None where it has no such stage.
    """

    file: Path
    features: np.ndarray
    last: np.ndarray | None


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)


def config(backbone: str, width: float = 1.0) -> DetectorConfig:
    """A detector whose pooled features have the size of the image's, so that the head can take them."""
    roi = {"poolSize": SIZE // 16, "headStride": 2, "miniBatch": 4}
    if backbone.startswith("vgg"):
        roi.pop("headStride")
    return training_config(["car"], backbone=backbone, widthMultiplier=width, roi=roi)


def caffe(image: np.ndarray) -> np.ndarray:
    return (image - MEAN)[..., ::-1]


def torch(image: np.ndarray) -> np.ndarray:
    return torch_networks.pixels(image).transpose(0, 2, 3, 1).astype(np.float32)


def symmetric(image: np.ndarray) -> np.ndarray:
    return image / 127.5 - 1


def calibrated(model: keras.Model, pixels: np.ndarray) -> None:
    """Random biases, gains and offsets; statistics near those of the image, as a trained network has them."""
    draws = np.random.default_rng(4)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.use_bias:
            layer.bias.assign(draws.normal(0, 0.1, layer.bias.shape))
    for norm in norms:
        norm.momentum = 0.1
        norm.gamma.assign(draws.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(draws.uniform(-0.5, 0.5, norm.beta.shape))
    model(pixels, training=True)


def of_keras(
    make: Callable[..., keras.Model], cut: str, last: str | None, prepared: Callable[..., Any], suffix: str
) -> Callable[[np.ndarray, Path], Source]:
    def source(image: np.ndarray, folder: Path) -> Source:
        model, pixels = make(), prepared(image)
        calibrated(model, pixels)
        file = folder / f"theirs{suffix}"
        model.save_weights(file) if suffix == ".weights.h5" else model.save(file)
        names = [cut] if last is None else [cut, last]
        outputs = keras.Model(model.input, [model.get_layer(name).output for name in names])(pixels)
        return Source(file, np.asarray(outputs[0]), np.asarray(outputs[1]) if last else None)

    return source


def application(make: Callable[..., keras.Model]) -> Callable[[], keras.Model]:
    return partial(make, weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))


def efficientnet() -> keras.Model:
    """EfficientNetB0 with the statistics of the pixels that its published weights have."""
    model = application(keras.applications.EfficientNetB0)()
    normalization = model.get_layer("normalization")
    normalization.set_weights([torch_networks.MEAN, torch_networks.DEVIATION**2, np.array(0)])
    normalization.finalize_state()
    return model


def keras_hub(blocks: tuple[int, ...], bottleneck: bool) -> keras.Model:
    """``keras_hub.models.ResNetBackbone`` with basic_block or bottleneck_block."""

    def normed(x: Any, name: str, filters: int, size: int, stride: int = 1) -> Any:
        if stride > 1 and size > 1:
            x = layers.ZeroPadding2D((size - 1) // 2, name=f"{name}_pad")(x)
        padding = "valid" if stride > 1 else "same"
        x = layers.Conv2D(filters, size, stride, padding, use_bias=False, name=f"{name}_conv")(x)
        return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn")(x)

    pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.ReLU(name="conv1_relu")(normed(pixels, "conv1", 64, 7, 2))
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    for stack, count in enumerate(blocks):
        for block in range(count):
            name, filters = f"stack{stack}_block{block}", 64 * 2**stack
            stride = 2 if stack and not block else 1
            shortcut = x
            if block == 0 and (bottleneck or stack):
                shortcut = normed(x, f"{name}_0", 4 * filters if bottleneck else filters, 1, stride)
            if bottleneck:
                y = layers.ReLU()(normed(x, f"{name}_1", filters, 1))
                y = layers.ReLU()(normed(y, f"{name}_2", filters, 3, stride))
                y = normed(y, f"{name}_3", 4 * filters, 1)
            else:
                y = layers.ReLU()(normed(x, f"{name}_1", filters, 3, stride))
                y = normed(y, f"{name}_2", filters, 3)
            x = layers.ReLU(name=f"{name}_out")(layers.Add()([shortcut, y]))
    return keras.Model(pixels, x)


def tlt(backbone: str, all_projections: bool, use_pooling: bool, use_bias: bool = True) -> keras.Model:
    """TLT's ResNet (``templates/resnet.py``, ``CNNBlock``): blocks stride in their first convolution."""
    bottleneck = backbone == "resnet50"

    def normed(x: Any, name: str, kind: str, filters: int, size: int, stride: int) -> Any:
        conv, norm = f"{name}conv{kind}", f"{name}bn{kind}"
        x = layers.Conv2D(filters, size, stride, "same", use_bias=use_bias, name=conv)(x)
        return layers.BatchNormalization(name=norm)(x)

    x = pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(64, 7, 2, "same", use_bias=use_bias, name="conv1")(x)
    x = layers.Activation("relu")(layers.BatchNormalization(name="bn_conv1")(x))
    if use_pooling:
        # Keras numbers these names; in TLT's process the first is always max_pooling2d_1.
        x = layers.MaxPooling2D(3, 2, "same", name="max_pooling2d_1")(x)
    strides = (1, 2, 2, 2) if use_pooling else (2, 2, 2, 1)
    for stage, count in enumerate(BLOCKS[backbone], 1):
        filters = 32 * 2**stage
        sizes = ((1, filters), (3, filters), (1, 4 * filters)) if bottleneck else ((3, filters),) * 2
        for letter in ascii_lowercase[:count]:
            name, stride = f"block_{stage}{letter}_", strides[stage - 1] if letter == "a" else 1
            y = x
            for number, (size, width) in enumerate(sizes, 1):
                y = layers.Activation("relu")(y) if number > 1 else y
                y = normed(y, name, f"_{number}", width, size, stride if number == 1 else 1)
            if all_projections or letter == "a":
                x = normed(x, name, "_shortcut", sizes[-1][1], 1, stride)
            x = layers.Activation("relu", name=f"{name}relu")(layers.add([y, x]))
    return keras.Model(pixels, x)


def of_tlt(backbone: str, **options: bool) -> Callable[[np.ndarray, Path], Source]:
    stage3, stage4 = (ascii_lowercase[count - 1] for count in BLOCKS[backbone][2:])
    # Without pooling in the stem, TLT's classifier does not stride in its last stage; ours does.
    last = f"block_4{stage4}_relu" if options["use_pooling"] else None
    make = partial(tlt, backbone, **options)
    return of_keras(make, f"block_3{stage3}_relu", last, caffe, ".hdf5")


def of_torch(
    run: Callable[[torch_networks.Network, np.ndarray], list[np.ndarray]], cut: int, last: int | None
) -> Callable[[np.ndarray, Path], Source]:
    def source(image: np.ndarray, folder: Path) -> Source:
        tensors: torch_networks.Tensors = {}
        list(run(torch_networks.Network(tensors), torch_networks.pixels(image)))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        outputs = list(run(torch_networks.Network(tensors), torch_networks.pixels(image)))
        features = outputs[cut].transpose(0, 2, 3, 1)
        end = None if last is None else outputs[last].transpose(0, 2, 3, 1)
        return Source(folder / "model.safetensors", features, end)

    return source


def torch_resnet(backbone: str) -> Callable[[np.ndarray, Path], Source]:
    blocks, bottleneck = BLOCKS[backbone], backbone == "resnet50"
    return of_torch(partial(torch_networks.resnet, blocks=blocks, bottleneck=bottleneck), 2, 3)


def torch_vgg(normalised: bool) -> Callable[[np.ndarray, Path], Source]:
    run = partial(torch_networks.vgg, convolutions=(2, 2, 3, 3, 3), normalised=normalised)
    return of_torch(run, 4, None)


HUB18, HUB50 = partial(keras_hub, BLOCKS["resnet18"], False), partial(keras_hub, BLOCKS["resnet50"], True)
RESNET50 = application(keras.applications.ResNet50)
RESNET101 = application(keras.applications.ResNet101)
SOURCES: dict[str, tuple[DetectorConfig, str, Callable[[np.ndarray, Path], Source]]] = {
    "Keras ResNet50": (
        config("resnet50"),
        "Keras",
        of_keras(RESNET50, "conv4_block6_out", "conv5_block3_out", caffe, ".h5"),
    ),
    "Keras ResNet101": (
        config("resnet101"),
        "Keras",
        of_keras(RESNET101, "conv4_block23_out", "conv5_block3_out", caffe, ".weights.h5"),
    ),
    "Keras VGG16": (
        config("vgg16"),
        "Keras",
        of_keras(application(keras.applications.VGG16), "block5_conv3", None, caffe, ".h5"),
    ),
    "Keras MobileNetV2": (
        config("mobilenet_v2"),
        "Keras",
        of_keras(
            application(keras.applications.MobileNetV2), "block_12_add", "out_relu", symmetric, ".keras"
        ),
    ),
    "Keras MobileNetV2 0.35": (
        config("mobilenet_v2", 0.35),
        "Keras",
        of_keras(
            application(partial(keras.applications.MobileNetV2, alpha=0.35)),
            "block_12_add",
            "out_relu",
            symmetric,
            ".h5",
        ),
    ),
    "Keras MobileNet": (
        config("mobilenet_v1", 0.25),
        "this product",
        of_keras(
            application(partial(keras.applications.MobileNet, alpha=0.25)),
            "conv_pw_11_relu",
            "conv_pw_13_relu",
            symmetric,
            ".h5",
        ),
    ),
    "Keras EfficientNetB0": (
        config("efficientnet_b0"),
        "this product",
        of_keras(efficientnet, "block5c_add", "top_activation", np.asarray, ".h5"),
    ),
    "KerasHub ResNet-18": (
        config("resnet18"),
        "KerasHub",
        of_keras(HUB18, "stack2_block1_out", "stack3_block1_out", torch, ".weights.h5"),
    ),
    "KerasHub ResNet-50": (
        config("resnet50"),
        "KerasHub",
        of_keras(HUB50, "stack2_block5_out", "stack3_block2_out", torch, ".weights.h5"),
    ),
    "torchvision ResNet-18": (config("resnet18"), "torchvision", torch_resnet("resnet18")),
    "torchvision ResNet-50": (config("resnet50"), "torchvision", torch_resnet("resnet50")),
    "torchvision VGG16": (config("vgg16"), "torchvision", torch_vgg(False)),
    "torchvision VGG16 with normalisation": (config("vgg16"), "torchvision", torch_vgg(True)),
    "torchvision MobileNetV2": (
        config("mobilenet_v2"),
        "torchvision",
        of_torch(torch_networks.mobilenet_v2, 13, 18),
    ),
    "TLT ResNet-18": (
        config("resnet18"),
        "TLT",
        of_tlt("resnet18", all_projections=False, use_pooling=True),
    ),
    "TLT ResNet-18 as in its Faster R-CNN samples": (
        config("resnet18"),
        "TLT",
        of_tlt("resnet18", all_projections=True, use_pooling=False),
    ),
    "TLT ResNet-10": (
        config("resnet10"),
        "TLT",
        of_tlt("resnet10", all_projections=True, use_pooling=False, use_bias=False),
    ),
    "TLT ResNet-50": (
        config("resnet50"),
        "TLT",
        of_tlt("resnet50", all_projections=True, use_pooling=True),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_weights_give_their_own_features(name: str, image: np.ndarray, tmp_path: Path) -> None:
    wanted, origin, make = SOURCES[name]
    source = make(image, tmp_path)
    model, taken = load.build(wanted, 1, source.file)
    assert taken.origin == origin
    assert taken.mismatched == taken.ambiguous == ()
    assert {name.split("_")[0] for name in taken.missing} <= {"rpn", "head", "fc1", "fc2"}
    assert_close(model.trunk(image)["features"], source.features)
    if source.last is not None:
        stage = keras.Model(model.head.input, model.head.get_layer("head_pool").input)
        assert_close(stage(source.features.astype(np.float32)), source.last)


def assert_close(features: Any, expected: np.ndarray) -> None:
    largest = float(np.abs(expected).max())
    # Features that vanish or explode would be equal, or unequal, for no reason.
    assert 0.01 < largest < 1000
    difference = float(np.abs(np.asarray(features) - expected).max())
    print(f"largest difference {difference:.2g}, largest feature {largest:.3g}")
    assert difference <= TOLERANCE * largest


def torch_file(folder: Path, image: np.ndarray, **changes: np.ndarray) -> Path:
    """A ResNet-18 of torchvision, with tensors exchanged or added."""
    tensors: torch_networks.Tensors = {}
    network = torch_networks.Network(tensors)
    torch_networks.resnet(network, torch_networks.pixels(image), BLOCKS["resnet18"], False)
    safetensors.numpy.save_file({**tensors, **changes}, folder / "resnet18.safetensors")
    return folder / "resnet18.safetensors"


def refused(backbone: str, file: Path) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        load.build(config(backbone), 1, file)
    return caught.value


def test_the_variant_and_the_pixels_of_the_weights_are_recorded(image: np.ndarray, tmp_path: Path) -> None:
    model, _ = load.build(config("resnet18"), 1, torch_file(tmp_path, image))
    detector.save(model, tmp_path / "model.keras")
    again = detector.load(tmp_path / "model.keras")
    variant = again.config.variant
    assert (variant.padding, variant.stride_in, variant.shortcut) == ("symmetric", "conv2", "strided")
    assert variant.pixels is not None
    np.testing.assert_allclose(variant.pixels.mean, [123.675, 116.28, 103.53])
    np.testing.assert_allclose(variant.pixels.scale, [58.395, 57.12, 57.375])
    np.testing.assert_array_equal(again.trunk(image)["features"], model.trunk(image)["features"])
    # Weights of our own file are built in the variant that it records.
    third, taken = load.build(config("resnet18"), 2, tmp_path / "model.keras")
    assert (third.config.variant, taken.missing) == (variant, ())
    np.testing.assert_array_equal(third.trunk(image)["features"], model.trunk(image)["features"])


def test_weights_in_16_bits_are_adapted_in_32(image: np.ndarray, tmp_path: Path) -> None:
    file = torch_file(tmp_path, image)
    low = {name: value.astype(np.float16) for name, value in safetensors.numpy.load_file(file).items()}
    grey = config("resnet18").model_copy(update={"color_mode": "grayscale"})
    kernels = []
    # The same values in both files: sums over the three channels are the same, too.
    for dtype in (np.float16, np.float32):
        safetensors.numpy.save_file({name: value.astype(dtype) for name, value in low.items()}, file)
        model, _ = load.build(grey, 1, file)
        kernels.append(np.asarray(model.trunk.get_layer("stem_conv").kernel))
    np.testing.assert_array_equal(*kernels)


def test_given_pixels_replace_those_of_the_convention(image: np.ndarray, tmp_path: Path) -> None:
    file = torch_file(tmp_path, image)
    model, _ = load.build(config("resnet18"), 1, file)
    pixels = PretrainedPixels(order="bgr", mean=[10, 20, 30], scale=[40, 50, 60])
    other, _ = load.build(config("resnet18"), 1, file, pixels)
    # The network sees ((b - 30) / 60, (g - 20) / 50, (r - 10) / 40): these pixels, as the usual one.
    seen = ((image - [10, 20, 30]) / [40, 50, 60])[..., ::-1]
    equal = (seen * torch_networks.DEVIATION + torch_networks.MEAN) * 255
    expected = model.trunk(equal.astype(np.float32))["features"]
    assert_close(other.trunk(image)["features"], np.asarray(expected))


def test_weights_in_another_order_are_refused(image: np.ndarray, tmp_path: Path) -> None:
    file = torch_file(tmp_path, image)
    tensors = safetensors.numpy.load_file(file)
    names = sorted(name for name in tensors if name.endswith(".weight"))
    shuffled = dict(zip(names, (tensors[name] for name in names[::-1]), strict=True))
    safetensors.numpy.save_file({**tensors, **shuffled}, file)
    error = refused("resnet18", file)
    assert error.reason == Reason.MODEL_MISMATCH
    for text in (
        "expected weights of resnet18 with widthMultiplier 1, got resnet18.safetensors, which has ",
        "% of the backbone's parameters (at least 90% are needed)",
        "nearest convention of layer names: torchvision, resnet",
        "the first layers that do not match: stem_conv (model [(7, 7, 3, 64)], file ",
    ):
        assert text in error.message


def test_weights_of_another_depth_or_family_are_refused_by_name(image: np.ndarray, tmp_path: Path) -> None:
    file = torch_file(tmp_path, image)
    # 2 of 4 blocks of stage 2 and 2 of 6 of stage 3 are missing: 11.2 of 21.3 million parameters match.
    message = refused("resnet34", file).message
    assert "which has 52.5% of the backbone's parameters" in message
    assert "the first layers that do not match: stage1_block3_conv1 (not in the file)" in message
    message = refused("vgg16", file).message
    assert "which has 0.0% of the backbone's parameters" in message
    assert "nearest convention of layer names: torchvision, resnet" in message
    assert "the file has bn1, conv1, layer1.0.bn1 ..." in message


def test_a_few_layers_without_counterpart_are_reported(image: np.ndarray, tmp_path: Path) -> None:
    # 9,408 of the model's 11.2 million backbone parameters, in a layer of another shape.
    file = torch_file(tmp_path, image, **{"conv1.weight": np.zeros((64, 1, 7, 7), np.float32)})
    model, taken = load.build(config("resnet18"), 1, file)
    status = taken.status
    total = model.count_params()
    assert status.origin == "torchvision"
    assert (status.mismatched.layers, status.missing.layers) == (1, 5)
    assert status.not_loaded is not None
    assert status.not_loaded[0] == "stem_conv"
    assert status.mismatched.parameters == pytest.approx(9408 / total, abs=1e-5)
    parts = (status.matched, status.missing, status.mismatched)
    assert sum(part.parameters for part in parts) == pytest.approx(1, abs=1e-4)
    assert sum(part.layers for part in parts) == len(load.layers_of(model))


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "pytorch_model.bin"])
def test_a_pickled_file_is_refused_with_the_way_to_convert_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    error = refused("resnet18", tmp_path / name)
    assert error.reason == Reason.UNREADABLE_MODEL
    assert f"s.save_file(torch.load('{name}', weights_only=True), " in error.message


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    assert refused("resnet18", tmp_path / "a.safetensors").reason == Reason.UNREADABLE_MODEL
