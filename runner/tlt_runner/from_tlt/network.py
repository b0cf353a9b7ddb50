"""The network: backbone, input, pretrained weights and their pixels, head."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import get_args

from tlt_api.model import Backbone, freezable
from tlt_runner.from_tlt import ours
from tlt_runner.from_tlt.translation import Translation

_INPUT = "model_config.input_image_config"
_WEIGHTS = "model.pretrainedWeights"
_READABLE = (".hdf5", ".h5", ".keras", ".safetensors")
_ENCRYPTED = (".tlt", ".etlt")
ENCRYPTED_WORDS = (
    "encrypted with TLT's key, not readable here: take the .hdf5 of the same network from NGC, or have TAO 5 "
    "write it as .hdf5 with that key"
)
DEFAULT_BACKBONE = "resnet18"


def translate(t: Translation) -> None:
    """Translate what describes the network."""
    backbone = _backbone(t)
    _colour(t)
    _size(t)
    _anchors(t)
    _weights(t)
    _pixels(t)
    _blocks(t, backbone)
    _head(t, backbone)
    _family(t, backbone)


def _backbone(t: Translation) -> str:
    backbone = DEFAULT_BACKBONE
    for item in t.of("model_config.arch"):
        name = str(item.value).replace(":", "_" if str(item.value).startswith("efficientnet") else "")
        if name not in get_args(Backbone):
            t.without(item, f"no such backbone here; {DEFAULT_BACKBONE} is trained", kept=False)
            continue
        backbone = name
        t.put("model.backbone", backbone)
        if str(item.value).startswith("vgg:"):
            # TLT's own VGG has batch normalisation; the Keras one, vgg16 without colon, has none.
            frozen = bool(t.value("model_config.freeze_bn"))
            words = "without batch normalisation, which goes into the kernels"
            t.changed(item, "model.backbone", backbone, words, kept=frozen)
        else:
            t.taken(item, "model.backbone", backbone)
    return backbone


def _colour(t: Translation) -> None:
    for item in t.of(f"{_INPUT}.image_type"):
        mode = "grayscale" if item.value == "GRAY_SCALE" else "rgb"
        t.put("dataset.colorMode", mode)
        t.taken(item, "dataset.colorMode", mode)


def _size(t: Translation) -> None:
    for side in ("height", "width"):
        for item in t.of(f"{_INPUT}.size_height_width.{side}"):
            t.number(item, f"dataset.imageSize.{side}", item.number)
    for item in t.of(f"{_INPUT}.size_min.min"):
        # Of the most common photographs; docs/from-tlt.md has the others.
        height, _ = ours.fit("dataset.imageSize.height", item.number)
        width, _ = ours.fit("dataset.imageSize.width", round((height or 0) * 4 / 3))
        t.put("dataset.imageSize", {"height": height, "width": width, "mode": "letterbox"})
        words = (
            "one size for all images: right for landscape of 4:3; for others choose it by "
            "docs/from-tlt.md#size_min"
        )
        t.changed(item, "dataset.imageSize", f"{width} x {height}, letterbox", words, kept=False)
    for side in ("width", "height"):
        for item in t.of(f"augmentation_config.preprocessing.output_image_{side}"):
            size = t.value(f"{_INPUT}.size_height_width.{side}")
            same = size is None or item.value in (0, size)
            words = "set once, in dataset.imageSize" if same else f"TLT refuses it beside {side} {size}"
            t.without(item, words, kept=same)


def _anchors(t: Translation) -> None:
    for name in ("scale", "ratio"):
        to = f"model.anchors.{name}s"
        values: list[float] = []
        for item in t.of(f"model_config.anchor_box_config.{name}"):
            fitted, limit = ours.fit(to, item.number)
            if fitted is None or len(values) == _MOST_ANCHORS:
                t.without(item, f"{to} {limit or f'takes at most {_MOST_ANCHORS}'}", kept=False)
                continue
            values.append(fitted)
            if limit:
                t.changed(item, to, fitted, limit, kept=False)
            else:
                t.taken(item, to)
        if values:
            t.put(to, values)


_MOST_ANCHORS = 16
"""Most scales, and most ratios, of the API."""


def _weights(t: Translation) -> None:
    for item in t.of("training_config.pretrained_weights"):
        path = str(item.value)
        suffix = PurePosixPath(path).suffix.lower()
        if t.parent is not None:
            t.without(item, "the pruned model brings its own, in TLT too")
        elif not path:
            t.without(item, "empty: from scratch")
        elif suffix in _ENCRYPTED:
            t.without(item, ENCRYPTED_WORDS, kept=False)
        elif suffix not in _READABLE:
            t.without(item, f"expected a file of {', '.join(_READABLE)}", kept=False)
        elif address := t.address(item):
            t.put(f"{_WEIGHTS}.uri", address)
            t.taken(item, _WEIGHTS, address)

    for item in t.of("training_config.retrain_pruned_model"):
        if not item.value:
            t.without(item, "empty: no pruned model")


def _pixels(t: Translation) -> None:
    """Translate the normalisation of the pixels, which belongs to the weights."""
    order, mean, scale = (
        t.of(f"{_INPUT}.{name}")
        for name in ("image_channel_order", "image_channel_mean", "image_scaling_factor")
    )
    if t.parent is not None:
        for item in (*order, *mean, *scale):
            same = item.value in [one.value for one in t.parent.of(item.path)]
            t.without(item, f"the pruned model {'brings' if same else 'keeps'} its own", kept=same)
        return
    if t.got(f"{_WEIGHTS}.uri") is None:
        for item in (*order, *mean, *scale):
            t.without(item, "without pretrained weights the backbone has its own pixels")
        return
    grey = t.got("dataset.colorMode") == "grayscale"
    for item in order:
        to = f"{_WEIGHTS}.pixels.order"
        if item.value in ("rgb", "bgr"):
            t.put(to, item.value)
            t.taken(item, to)
        else:
            t.without(item, "one channel has no order" if grey else "expected rgb or bgr", kept=grey)
    to = f"{_WEIGHTS}.pixels.mean"
    channels = {item.key: item.number for item in mean}
    wanted = ("l", "l", "l") if grey else ("r", "g", "b")
    if channels and set(wanted) <= set(channels):
        t.put(to, [channels[name] for name in wanted])
    for item in mean:
        name = item.key
        if name not in wanted:
            t.without(item, f"TLT reads {', '.join(dict.fromkeys(wanted))}")
        elif t.got(to) is None:
            t.without(item, f"TLT refuses a mean without {', '.join(dict.fromkeys(wanted))}", kept=False)
        elif grey:
            t.changed(item, to, t.got(to), "that of a grey is the luma of three equal ones")
        else:
            t.taken(item, f"{to}[{wanted.index(name)}]", channels[name])
    for item in scale:
        fitted, limit = ours.fit(f"{_WEIGHTS}.pixels.scale", item.number)
        if fitted is None:
            t.without(item, f"the scale {limit}", kept=False)
            continue
        t.put(f"{_WEIGHTS}.pixels.scale", [fitted] * 3)
        words = "one for each channel" + (f"; {limit}" if limit else "")
        t.changed(item, f"{_WEIGHTS}.pixels.scale", [fitted] * 3, words, kept=not limit)


def _blocks(t: Translation, backbone: str) -> None:
    to = "model.freezeBlocks"
    blocks: list[int] = []
    for item in t.of("model_config.freeze_blocks"):
        number = item.number
        # TLT converts its floats to whole numbers in this way.
        if int(number) not in freezable(backbone):
            known = freezable(backbone)
            t.without(item, f"{backbone} has the blocks {known[0]} to {known[-1]}", kept=False)
            continue
        blocks.append(int(number))
        if number == int(number):
            t.taken(item, to)
        else:
            t.changed(item, to, int(number), "a whole number, as in TLT")
    if blocks:
        t.put(to, sorted(set(blocks)))
    if not _has_weights(t):
        # Frozen at random values, a part of the network would never learn.
        for frozen in (to, "model.freezeBatchNorm"):
            if t.got(frozen):
                t.withdraw(frozen, "not frozen: there are no weights to begin with", kept=False)


def _has_weights(t: Translation) -> bool:
    """Tell whether the network begins with weights: of a file, or of the model that is retrained."""
    return t.got(f"{_WEIGHTS}.uri") is not None or t.parent is not None or t.spec.continues


def _head(t: Translation, backbone: str) -> None:
    """Translate the pooling, which TLT doubles and then strides over."""
    double = bool(t.value("model_config.roi_pooling_config.pool_size_2x"))
    vgg = backbone.startswith("vgg")
    for item in t.of("model_config.roi_pooling_config.pool_size"):
        size = item.number
        if double and not vgg:
            t.number(item, "model.roi.poolSize", 2 * size, "doubled by pool_size_2x")
        else:
            t.number(item, "model.roi.poolSize", size)
    flags = t.of("model_config.roi_pooling_config.pool_size_2x")
    if vgg:
        for item in flags:
            words = "a bin is the mean of two samples each way, TLT's the largest of four"
            t.without(item, words if double else "vgg pools to its dense layers", kept=not double)
        return
    to = "model.roi.headStride"
    t.put(to, 2 if double else 1)
    for item in flags:
        t.changed(item, to, t.got(to), "stride of the last stage")
    if not flags:
        t.assume(f"{to} 1", "TLT's value without pool_size_2x")


def _family(t: Translation, backbone: str) -> None:
    """Translate what only some families of backbones have."""
    efficient = backbone.startswith("efficientnet")
    for item in t.of("model_config.dropout_rate"):
        if item.value == 0 or efficient or backbone.startswith("vgg"):
            t.number(item, "model.roi.dropout", item.number)
        else:
            t.without(item, f"TLT has none in {backbone}")
    for item in t.of("model_config.drop_connect_rate"):
        kept = item.value == 0 or not efficient
        t.without(item, "no stochastic depth" if efficient else f"TLT has none in {backbone}", kept=kept)
    for item in t.of("model_config.activation.activation_type"):
        if not efficient:
            t.without(item, f"{backbone} has one of its own, in TLT too")
        elif item.value in ("relu", "swish"):
            t.put("model.activation", item.value)
            t.taken(item, "model.activation")
        else:
            t.without(item, "expected relu or swish", kept=not item.value)
    # Of resnet they change the network: the weights decide, and without weights it is the published one.
    weights = _has_weights(t)
    for name, published in (("all_projections", False), ("use_pooling", True)):
        for item in t.of(f"model_config.{name}"):
            if weights:
                t.without(item, "as in the network of the weights")
            elif backbone.startswith("resnet"):
                words = "without pretrained weights of TLT, the published network"
                t.without(item, words, kept=item.value is published)
            else:
                t.without(item, f"{backbone} is the published network")
