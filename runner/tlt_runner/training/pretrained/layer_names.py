"""Translates the layer names of pretrained weights from Keras and TLT to ours.

Pure: names in, names out. Called by :mod:`tlt_runner.training.pretrained.load` for every file. The names
come from the code that writes such files:

- Keras: ``keras.applications.resnet`` (Keras 2.3 and later) and ``keras_applications/resnet50.py`` (before:
  ``res2a_branch2a``); ``keras.applications.vgg16`` and ``vgg19``, whose names are ours;
- TLT: NVIDIA/tao_tensorflow1_backend, ``nvidia_tao_tf1/core/templates``: ``resnet.py`` and ``vgg.py`` with
  ``CNNBlock`` of ``utils.py``, ``darknet.py``, ``googlenet.py`` with ``InceptionV1Block``; its ResNet-101
  has Keras' names (``cv/faster_rcnn/models/resnet101.py``).

All of these networks were trained on BGR pixels minus ImageNet's mean: Keras' "caffe" preprocessing, which
TLT's classification and Faster R-CNN samples use too (``preprocess_mode: "caffe"``, ``image_channel_order:
"bgr"``). A file does not record it: a TLT file that was trained on RGB starts with red and blue swapped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

KERAS_2_EPSILON = 1e-3
"""Default epsilon of batch normalisation in Keras 2, used by TLT's templates."""


@dataclass(frozen=True)
class Naming:
    """A naming scheme for layers, and how the weights of such files are converted.

    Attributes:
        origin: Program that writes such files.
        mark: A layer name that only such files have.
        ours: Function from the name in the file to ours; None for a layer that our network does not have. The
            normalisation of a convolution that our network does not normalise gets the convolution's name and
            ``_bn``.
        bgr: True if the first kernel expects blue first.
        epsilon: Epsilon of the file's batch normalisations; None if it is ours.
        caveat: Differences between the network and ours; empty if there are none.
    """

    origin: str
    mark: str
    ours: Callable[[str], str | None]
    bgr: bool = False
    epsilon: float | None = None
    caveat: str = ""


def naming(backbone: str, names: Collection[str]) -> Naming:
    """Detect the naming scheme of a file by its layer names, for a detector with this backbone.

    Files with unknown names are assumed to have ours.
    """
    # First, because our files have Keras' layer names, too: a VGG of ours is not for BGR.
    if OWN.mark in names:
        return OWN
    # Names are those of the family, except for the darknets, which differ by depth.
    family = re.sub(r"[\d_].*", "", backbone)
    schemes = _BY_FAMILY.get(backbone, _BY_FAMILY.get(family, ()))
    # In the order listed: files of Keras' V2 have the mark of its V1, too.
    return next((candidate for candidate in schemes if candidate.mark in names), OWN)


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
_RESNET_CAVEAT = (
    "its bottlenecks stride in their first convolution and its shortcuts skip pixels, ours stride in the 3x3 "
    "and average (v1.5, ResNet-D): features after the first stage differ until they are trained"
)
_KERAS_CAVEAT = f"{_RESNET_CAVEAT}; its stem pads a pixel more at the top left"
OWN = Naming("this product", "rpn_conv", _same)
_BY_FAMILY = {
    "resnet": (
        Naming(
            "Keras V2", "conv2_block1_preact_bn", _none, caveat="ResNet V2 normalises before it convolves"
        ),
        Naming("Keras", "conv1_conv", _keras_resnet, True, 1.001e-5, _KERAS_CAVEAT),
        Naming("early Keras", "res2a_branch2a", _early_keras_resnet, True, KERAS_2_EPSILON, _KERAS_CAVEAT),
        Naming(
            "TLT",
            "block_1a_conv_1",
            _tlt_resnet,
            True,
            KERAS_2_EPSILON,
            f"{_RESNET_CAVEAT}; of 10, 18 and 34 layers it has a shortcut convolution in the first stage, "
            "and with TLT's all_projections in every block; ours has one where the shape changes",
        ),
    ),
    "vgg": (
        Naming("Keras", "block1_conv1", _same, True),
        Naming("TLT", "block_1a_conv_1", _tlt_vgg, True, KERAS_2_EPSILON),
    ),
    "darknet53": (Naming("TLT", "b1_conv1_1", _tlt_darknet53, True, KERAS_2_EPSILON),),
    "darknet19": (Naming("TLT", "b1_conv1", _tlt_darknet19, True, KERAS_2_EPSILON),),
    "googlenet": (
        Naming(
            "TLT",
            "conv2_reduce",
            _tlt_googlenet,
            True,
            KERAS_2_EPSILON,
            "it pools 2x2, ours 3x3: features differ until they are trained",
        ),
    ),
}
