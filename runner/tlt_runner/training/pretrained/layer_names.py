"""Whose layer names a file of pretrained weights uses, and what those layers are called here.

Pure: names in, names out. :mod:`tlt_runner.training.pretrained.load` asks it for every file. The names were
read in the code that made such files:

- Keras: ``keras.applications.resnet`` (Keras 2.3 and later) and ``keras_applications/resnet50.py`` (before:
  ``res2a_branch2a``); ``keras.applications.vgg16`` and ``vgg19``, whose names are ours;
- TLT: NVIDIA/tao_tensorflow1_backend, ``nvidia_tao_tf1/core/templates``: ``resnet.py`` and ``vgg.py`` with
  ``CNNBlock`` of ``utils.py``, ``darknet.py``, ``googlenet.py`` with ``InceptionV1Block``; its ResNet-101
  has Keras' names (``cv/faster_rcnn/models/resnet101.py``).

All of these were trained on BGR pixels less ImageNet's mean: Keras' "caffe" preprocessing, which TLT's
classification and Faster R-CNN samples choose, too (``preprocess_mode: "caffe"``, ``image_channel_order:
"bgr"``). A file says nothing of it, so a TLT file that was trained on RGB begins with red and blue swapped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

KERAS_2_EPSILON = 1e-3
"""Of a batch normalisation for which no other was chosen, as in TLT's templates."""


@dataclass(frozen=True)
class Naming:
    """Whose names a file uses, and what else its weights need.

    Attributes:
        origin: Who made such files.
        mark: A layer name by which they are known.
        ours: Name in the file to name here; None for a layer that this network has not. What normalises
            a convolution that is not normalised here is called as the convolution with ``_bn``.
        bgr: Whether the first kernel takes blue first.
        epsilon: Of the file's batch normalisations; None where it is that of ours.
        caveat: How the network differs from ours; empty where it does not.
    """

    origin: str
    mark: str
    ours: Callable[[str], str | None]
    bgr: bool = False
    epsilon: float | None = None
    caveat: str = ""


def naming(backbone: str, names: Collection[str]) -> Naming:
    """The naming of a file with these layers, for a detector with this backbone.

    A file of names that are not known is taken as one with our own.
    """
    if OWN.mark in names:
        return OWN
    family = re.sub(r"[\d_].*", "", backbone)
    known = _BY_FAMILY.get(backbone, _BY_FAMILY.get(family, ()))
    return next((candidate for candidate in known if candidate.mark in names), OWN)


def _same(name: str) -> str | None:
    return name


def _none(name: str) -> str | None:
    return None


def _keras_resnet(name: str) -> str | None:
    found = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", name)
    if found is None:
        return {"conv1_conv": "stem_conv", "conv1_bn": "stem_bn"}.get(name)
    return _resnet(int(found[1]) - 1, int(found[2]), int(found[3]), found[4])


def _early_keras_resnet(name: str) -> str | None:
    found = re.fullmatch(r"(res|bn)([2-5])([a-z])_branch(1|2[abc])", name)
    if found is None:
        return _STEM.get(name)
    number = 0 if found[4] == "1" else _place(found[4][1])
    return _resnet(int(found[2]) - 1, _place(found[3]), number, "bn" if found[1] == "bn" else "conv")


def _tlt_resnet(name: str) -> str | None:
    found = re.fullmatch(r"block_([1-4])([a-z])_(conv|bn)_([1-3]|shortcut)", name)
    if found is None:
        return _STEM.get(name)
    number = 0 if found[4] == "shortcut" else int(found[4])
    return _resnet(int(found[1]), _place(found[2]), number, found[3])


def _resnet(stage: int, block: int, number: int, kind: str) -> str:
    """Convolution or normalisation ``number`` of a block, all from 1; 0 is the shortcut."""
    prefix = f"stage{stage}_block{block}"
    if number:
        return f"{prefix}_{kind}{number}"
    return f"{prefix}_shortcut_bn" if kind == "bn" else f"{prefix}_shortcut"


def _tlt_vgg(name: str) -> str | None:
    """The dense layers stay out: how TLT flattens before them depends on how Keras was set up."""
    found = re.fullmatch(r"block_([1-5])([a-d])_(conv|bn)_1", name)
    if found is None:
        return None
    return f"block{found[1]}_conv{_place(found[2])}" + ("_bn" if found[3] == "bn" else "")


def _tlt_darknet53(name: str) -> str | None:
    found = re.fullmatch(r"conv([1-6])(_bn)?", name)
    if found is not None:
        return f"group{int(found[1]) - 1}_conv1{found[2] or ''}"
    found = re.fullmatch(r"b([1-5])_conv(\d)_([12])(_bn)?", name)
    return found and f"group{found[1]}_block{found[2]}_conv{found[3]}{found[4] or ''}"


def _tlt_darknet19(name: str) -> str | None:
    found = re.fullmatch(r"b([1-5])_conv(\d)(_bn)?", name)
    if found is None:
        return {"conv1": "group0_conv1", "conv1_bn": "group0_conv1_bn"}.get(name)
    return f"group{found[1]}_conv{found[2]}{found[3] or ''}"


def _tlt_googlenet(name: str) -> str | None:
    if re.fullmatch(r"inception_[345][a-e]_(1x1|3x3_reduce|3x3|5x5_reduce|5x5|pool_proj)(_bn)?", name):
        return name
    found = re.fullmatch(r"(bn_)?conv(1|2_reduce|2)", name)
    return found and f"stem_conv{found[2]}{'_bn' if found[1] else ''}"


def _place(letter: str) -> int:
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
