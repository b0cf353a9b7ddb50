"""Conventions of pretrained weights: layer names, variant of the network, and pixels, by who wrote the file.

Pure: names in, names and a :class:`~tlt_runner.detector.variant.Variant` out. Called by
:mod:`tlt_runner.training.pretrained.load` for every file, before a graph is built. All of this comes from the
code that writes such files:

- Keras: ``keras.applications.resnet`` (Keras 2.3 and later) and ``keras_applications/resnet50.py`` (before:
  ``res2a_branch2a``); ``keras.applications.vgg16``, ``vgg19`` and ``mobilenet_v2``, whose names are ours;
- KerasHub: ``keras_hub/src/models/resnet/resnet_backbone.py``, whose published weights are timm's;
- torchvision, and timm, which has its names: ``models/resnet.py``, ``vgg.py`` and ``mobilenetv2.py``;
- TLT: NVIDIA/tao_tensorflow1_backend, ``nvidia_tao_tf1/core/templates``: ``resnet.py`` and ``vgg.py`` with
  ``CNNBlock`` of ``utils.py``, ``darknet.py``, ``googlenet.py`` with ``InceptionV1Block``; its ResNet-101
  has Keras' names (``cv/faster_rcnn/models/resnet101.py``).

Keras' ResNets and VGGs were trained on BGR pixels minus ImageNet's mean ("caffe" preprocessing), which TLT's
classification and Faster R-CNN samples use too (``preprocess_mode: "caffe"``, ``image_channel_order:
"bgr"``). A file does not record it: of a TLT file that was trained otherwise, ``pretrainedWeights.pixels``
says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from tlt_runner.detector.variant import CAFFE_PIXELS, TORCH_PIXELS, Pixels, Variant

KERAS_2_EPSILON = 1e-3
"""Default epsilon of batch normalisation in Keras 2, used by TLT's templates."""
KERAS_RESNET_EPSILON = 1.001e-5
TORCH_EPSILON = 1e-5
_VGG_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions of each block, by which torchvision numbers its layers."""


@dataclass(frozen=True)
class Naming:
    """A naming scheme for layers, and how the weights of such files are converted.

    Attributes:
        origin: Program that writes such files.
        mark: A layer name that only such files have.
        ours: Function from the name in the file to ours; None for a layer that our network does not have. The
            normalisation of a convolution that our network does not normalise gets the convolution's name and
            ``_bn``.
        variant: Function from all layer names of the file to the variant in which its weights mean the same;
            None for the backbone's usual one.
        order: Order of the channels that the first kernel takes.
        pixels: Normalisation of the pixels; None for the family's own.
        epsilon: Epsilon of the file's batch normalisations; None if it is ours.
        flattens_channels_first: Whether the first dense layer takes features [C, H, W] flattened.
        caveat: Differences between the network and ours; empty if there are none.
    """

    origin: str
    mark: str
    ours: Callable[[str], str | None]
    variant: Callable[[Collection[str]], Variant] | None = None
    order: Literal["rgb", "bgr"] = "rgb"
    pixels: Pixels | None = None
    epsilon: float | None = None
    flattens_channels_first: bool = False
    caveat: str = ""


def naming(backbone: str, names: Collection[str]) -> Naming:
    """Detect the naming scheme of a file by its layer names, for a detector with this backbone.

    Files with unknown names are assumed to have ours.
    """
    # First, because our files have Keras' layer names, too: a VGG of ours is not for BGR.
    if OWN.mark in names:
        return OWN
    # In the order listed: files of Keras' V2 have the mark of its V1, too.
    schemes = _BY_FAMILY.get(backbone, _BY_FAMILY.get(_family(backbone), ()))
    return next((candidate for candidate in schemes if candidate.mark in names), OWN)


def nearest(backbone: str, names: Collection[str]) -> str:
    """Describe whose layer names a file has, of the backbone's family or else of any other; for an error."""
    own_family = naming(backbone, names)
    if own_family is not OWN or OWN.mark in names:
        return f"{own_family.origin}, {_family(backbone)}"
    for family, schemes in _BY_FAMILY.items():
        for candidate in schemes:
            if candidate.mark in names:
                return f"{candidate.origin}, {family}"
    return "none that is known (this product, Keras, KerasHub, torchvision, TLT)"


def _family(backbone: str) -> str:
    # Names are those of the family, except for the darknets and MobileNets, which differ by their number.
    return re.sub(r"[\d_].*", "", backbone)


def _same(name: str) -> str | None:
    return name


def _none(name: str) -> str | None:
    return None


def _keras_resnet(name: str) -> str | None:
    # Keras' conv1 is the stem, so that its conv2 is our stage 1.
    match = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", name)
    if match is None:
        return {"conv1_conv": "stem_conv", "conv1_bn": "stem_bn"}.get(name)
    return _resnet(int(match[1]) - 1, int(match[2]), int(match[3]), match[4])


def _early_keras_resnet(name: str) -> str | None:
    match = re.fullmatch(r"(res|bn)([2-5])([a-z])_branch(1|2[abc])", name)
    if match is None:
        return _STEM.get(name)
    # Branch 1 is the shortcut; 2a, 2b and 2c are the convolutions.
    number = 0 if match[4] == "1" else _position_of(match[4][1])
    return _resnet(int(match[2]) - 1, _position_of(match[3]), number, "bn" if match[1] == "bn" else "conv")


def _keras_hub_resnet(name: str) -> str | None:
    match = re.fullmatch(r"stack([0-3])_block(\d+)_([0-3])_(conv|bn)", name)
    if match is None:
        return {"conv1_conv": "stem_conv", "conv1_bn": "stem_bn"}.get(name)
    return _resnet(int(match[1]) + 1, int(match[2]) + 1, int(match[3]), match[4])


def _torch_resnet(name: str) -> str | None:
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)", name)
    if match is None:
        return {"conv1": "stem_conv", "bn1": "stem_bn"}.get(name)
    stage, block, kind, number = int(match[1]), int(match[2]) + 1, match[3], int(match[4])
    # A shortcut is a sequence of its convolution, 0, and its normalisation, 1.
    if kind == "downsample.":
        return _resnet(stage, block, 0, "bn" if number else "conv")
    return _resnet(stage, block, number, kind)


def _tlt_resnet_variant(names: Collection[str]) -> Variant:
    """Variant of TLT's ResNet, seen from the layers that it has."""
    # The first block of a stage has a shortcut's convolution in any case; resnet10 has no other.
    projects = any(re.fullmatch(r"block_[1-4][b-z]_conv_shortcut", name) for name in names)
    return Variant(
        epsilon=KERAS_2_EPSILON,
        stride_in="conv1",
        projections="all" if projects else "stage",
        stem_pool=any(name.startswith("max_pooling2d") for name in names),
    )


def _tlt_resnet(name: str) -> str | None:
    match = re.fullmatch(r"block_([1-4])([a-z])_(conv|bn)_([1-3]|shortcut)", name)
    if match is None:
        return _STEM.get(name)
    number = 0 if match[4] == "shortcut" else int(match[4])
    return _resnet(int(match[1]), _position_of(match[2]), number, match[3])


def _resnet(stage: int, block: int, number: int, kind: str) -> str:
    """Name convolution or normalisation ``number`` of a block, all from 1; 0 is the shortcut."""
    prefix = f"stage{stage}_block{block}"
    if number:
        return f"{prefix}_{kind}{number}"
    return f"{prefix}_shortcut_bn" if kind == "bn" else f"{prefix}_shortcut"


def _tlt_vgg(name: str) -> str | None:
    """Translate convolutions only: how TLT flattens inputs of dense layers depends on Keras' settings."""
    match = re.fullmatch(r"block_([1-5])([a-d])_(conv|bn)_1", name)
    if match is None:
        return None
    return f"block{match[1]}_conv{_position_of(match[2])}" + ("_bn" if match[3] == "bn" else "")


def _torch_vgg(backbone: str, normalised: bool) -> Callable[[str], str | None]:
    """Return the translation of torchvision's VGG, which numbers activations and poolings, too."""
    names, index = {"classifier.0": "fc1", "classifier.3": "fc2"}, 0
    for block, count in enumerate(_VGG_CONVOLUTIONS[backbone], 1):
        for number in range(1, count + 1):
            names[f"features.{index}"] = f"block{block}_conv{number}"
            if normalised:
                names[f"features.{index + 1}"] = f"block{block}_conv{number}_bn"
            index += 3 if normalised else 2
        index += 1
    return names.get


def _torch_mobilenet_v2(name: str) -> str | None:
    stem = {"features.0.0": "Conv1", "features.0.1": "bn_Conv1"}
    last = {"features.18.0": "Conv_1", "features.18.1": "Conv_1_bn"}
    match = re.fullmatch(r"features\.(\d+)\.conv\.([\d.]+)", name)
    if match is None:
        return {**stem, **last}.get(name)
    block = int(match[1]) - 1
    parts = ["0.0", "0.1", "1.0", "1.1", "2", "3"]
    ours = ["expand", "expand_BN", "depthwise", "depthwise_BN", "project", "project_BN"]
    # The first block does not expand, so that its sequence is shorter.
    if block == 0:
        parts, ours = ["0.0", "0.1", "1", "2"], ours[2:]
    prefix = f"block_{block}_" if block else "expanded_conv_"
    return prefix + ours[parts.index(match[2])] if match[2] in parts else None


def _tlt_darknet53(name: str) -> str | None:
    # conv1 is the stem, conv2 to conv6 are the first convolutions of groups 1 to 5.
    match = re.fullmatch(r"conv([1-6])(_bn)?", name)
    if match is not None:
        return f"group{int(match[1]) - 1}_conv1{match[2] or ''}"
    match = re.fullmatch(r"b([1-5])_conv(\d)_([12])(_bn)?", name)
    return match and f"group{match[1]}_block{match[2]}_conv{match[3]}{match[4] or ''}"


def _tlt_darknet19(name: str) -> str | None:
    match = re.fullmatch(r"b([1-5])_conv(\d)(_bn)?", name)
    if match is None:
        return {"conv1": "group0_conv1", "conv1_bn": "group0_conv1_bn"}.get(name)
    return f"group{match[1]}_conv{match[2]}{match[3] or ''}"


def _tlt_googlenet(name: str) -> str | None:
    if re.fullmatch(r"inception_[345][a-e]_(1x1|3x3_reduce|3x3|5x5_reduce|5x5|pool_proj)(_bn)?", name):
        return name
    match = re.fullmatch(r"(bn_)?conv(1|2_reduce|2)", name)
    return match and f"stem_conv{match[2]}{'_bn' if match[1] else ''}"


def _position_of(letter: str) -> int:
    return ord(letter) - ord("a") + 1


_STEM = {"conv1": "stem_conv", "bn_conv1": "stem_bn"}
OWN = Naming("this product", "rpn_conv", _same)
_V1 = Variant(padding="symmetric", stride_in="conv1")
_V1_5 = Variant(padding="symmetric")
_DEEP_STEM = "ResNet-D (vd) has three convolutions in its stem and averages in its shortcuts"


def _torch_vggs(backbone: str) -> tuple[Naming, ...]:
    return tuple(
        Naming(
            "torchvision",
            mark,
            _torch_vgg(backbone, normalised),
            pixels=TORCH_PIXELS,
            epsilon=TORCH_EPSILON,
            flattens_channels_first=True,
        )
        # The second layer has weights only if it is a normalisation.
        for mark, normalised in (("features.1", True), ("features.0", False))
    )


_KERAS_AND_TLT_VGG = (
    Naming("Keras", "block1_conv1", _same, order="bgr", pixels=CAFFE_PIXELS),
    Naming("TLT", "block_1a_conv_1", _tlt_vgg, order="bgr", pixels=CAFFE_PIXELS, epsilon=KERAS_2_EPSILON),
)
_BY_FAMILY: dict[str, tuple[Naming, ...]] = {
    "resnet": (
        Naming(
            "Keras V2", "conv2_block1_preact_bn", _none, caveat="ResNet V2 normalises before it convolves"
        ),
        Naming(
            "KerasHub V2",
            "stack0_block0_pre_activation_bn",
            _none,
            caveat="ResNet V2 normalises before it convolves",
        ),
        Naming("KerasHub vd", "conv3_conv", _none, caveat=_DEEP_STEM),
        Naming("timm's ResNet-D", "conv1.0", _none, caveat=_DEEP_STEM),
        Naming(
            "KerasHub",
            "stack0_block0_1_conv",
            _keras_hub_resnet,
            lambda names: _V1_5,
            pixels=TORCH_PIXELS,
            epsilon=TORCH_EPSILON,
        ),
        Naming(
            "torchvision",
            "layer1.0.conv1",
            _torch_resnet,
            lambda names: _V1_5,
            pixels=TORCH_PIXELS,
            epsilon=TORCH_EPSILON,
        ),
        Naming(
            "Keras",
            "conv1_conv",
            _keras_resnet,
            lambda names: _V1.model_copy(update={"epsilon": KERAS_RESNET_EPSILON}),
            order="bgr",
            pixels=CAFFE_PIXELS,
            epsilon=KERAS_RESNET_EPSILON,
        ),
        Naming(
            "early Keras",
            "res2a_branch2a",
            _early_keras_resnet,
            lambda names: _V1.model_copy(update={"epsilon": KERAS_2_EPSILON}),
            order="bgr",
            pixels=CAFFE_PIXELS,
            epsilon=KERAS_2_EPSILON,
        ),
        Naming(
            "TLT",
            "block_1a_conv_1",
            _tlt_resnet,
            _tlt_resnet_variant,
            order="bgr",
            pixels=CAFFE_PIXELS,
            epsilon=KERAS_2_EPSILON,
        ),
    ),
    "vgg16": (*_KERAS_AND_TLT_VGG, *_torch_vggs("vgg16")),
    "vgg19": (*_KERAS_AND_TLT_VGG, *_torch_vggs("vgg19")),
    "mobilenet_v2": (
        Naming("Keras", "Conv1", _same, lambda names: Variant(wide_end=True)),
        Naming(
            "torchvision",
            "features.0.0",
            _torch_mobilenet_v2,
            lambda names: Variant(padding="symmetric", epsilon=TORCH_EPSILON, wide_end=True),
            pixels=TORCH_PIXELS,
            epsilon=TORCH_EPSILON,
        ),
    ),
    "darknet53": (
        Naming(
            "TLT", "b1_conv1_1", _tlt_darknet53, order="bgr", pixels=CAFFE_PIXELS, epsilon=KERAS_2_EPSILON
        ),
    ),
    "darknet19": (
        Naming("TLT", "b1_conv1", _tlt_darknet19, order="bgr", pixels=CAFFE_PIXELS, epsilon=KERAS_2_EPSILON),
    ),
    "googlenet": (
        Naming(
            "TLT",
            "conv2_reduce",
            _tlt_googlenet,
            order="bgr",
            pixels=CAFFE_PIXELS,
            epsilon=KERAS_2_EPSILON,
            caveat="it pools 2x2, ours 3x3: features differ until they are trained",
        ),
    ),
}
