"""Builds a detector for pretrained weights, and loads them by layer name and shape.

Called by :mod:`tlt_runner.training.initial_model`. The file is read first: whose layer names it has decides
the variant of the network (:mod:`tlt_runner.training.pretrained.layer_names`), and the graph is built for
it, so that weights of this product, Keras, KerasHub, torchvision and TLT give their own features. What of a
file fits is counted by layer and by parameter, reported, and an error where it is too little: a network
that silently keeps random weights trains badly, and nobody knows why.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from keras import layers

from tlt_api.failures import Reason
from tlt_api.model import PretrainedPixels
from tlt_api.status import PretrainedLayers, PretrainedStatus
from tlt_runner.detector import model as detector
from tlt_runner.detector import variant
from tlt_runner.detector.backbones import FAMILIES
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.detector.variant import Pixels, Variant
from tlt_runner.errors import RunnerError
from tlt_runner.training.pretrained import files, layer_names
from tlt_runner.training.pretrained.class_outputs import OUTPUTS, ClassChange
from tlt_runner.training.pretrained.files import WeightsFile
from tlt_runner.training.pretrained.layer_names import Naming

log = logging.getLogger(__name__)
Arrays = dict[str, list[np.ndarray]]
LEAST_SHARE = 0.9
"""Least share of the backbone's parameters that a file must have: with less it is of another network."""
_DETECTOR_PREFIXES = ("rpn_", "head_", "light_")
"""Layers that are no part of the backbone."""
_NAMES_SHOWN = 20
"""Most layer names in the status."""


@dataclass(frozen=True)
class Taken:
    """The result of loading, for all of the model's layers with weights.

    Attributes:
        origin: Program whose layer names the file has.
        loaded: Layers with weights from the file.
        partly: Output layers with weights from the file for those classes that it has.
        mismatched: Layers whose shapes differ: name, and both shapes.
        missing: Layers that the file does not have, or has several of.
        unused: Layers of the file that the model does not have, by the file's names.
        ambiguous: Names that several layers of the file share; none of these is loaded.
        parameters: Number of parameters of each of the model's layers.
    """

    origin: str
    loaded: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def untouched(self) -> set[str]:
        """Layers of the model that keep their weights."""
        return {*self.missing, *map(_name_of, self.mismatched)}

    @property
    def summary(self) -> str:
        """Summary in one line: ``41 of 53 layers loaded, 2 of another shape, 10 not in the file``."""
        counts = (
            ("for some classes only", self.partly),
            ("of another shape", self.mismatched),
            ("not in the file", self.missing),
        )
        total = len(self.loaded) + sum(len(names) for _, names in counts)
        parts = [f"{len(self.loaded)} of {total} layers loaded"]
        parts += [f"{len(names)} {what}" for what, names in counts if names]
        if self.unused:
            parts.append(f"{len(self.unused)} of the file not used")
        if self.ambiguous:
            parts.append(f"{len(self.ambiguous)} names in the file of several layers")
        return ", ".join(parts)

    def share(self, names: Iterable[str]) -> float:
        """Return the share of the model's parameters that these layers have."""
        return sum(self.parameters[name] for name in names) / max(1, sum(self.parameters.values()))

    @property
    def status(self) -> PretrainedStatus:
        """Layers that were loaded and that were not, for the resource's status."""
        matched, mismatched = (*self.loaded, *self.partly), [*map(_name_of, self.mismatched)]
        return PretrainedStatus(
            origin=self.origin,
            matched=PretrainedLayers(layers=len(matched), parameters=self.share(matched)),
            missing=PretrainedLayers(layers=len(self.missing), parameters=self.share(self.missing)),
            mismatched=PretrainedLayers(layers=len(mismatched), parameters=self.share(mismatched)),
            unused_layers=len(self.unused) + len(self.ambiguous),
            not_loaded=[*mismatched, *self.missing][:_NAMES_SHOWN],
        )


def build(
    config: DetectorConfig,
    seed: int,
    path: Path,
    pixels: PretrainedPixels | None = None,
    required: Variant | None = None,
) -> tuple[FasterRCNN, Taken]:
    """Build the detector in the variant that the file's weights are of, and load them.

    All layers that the file has with the same shapes are loaded, under our name or its own. From a detector
    that this product wrote for other classes, the output layers load the weights of the classes that both
    have.

    Args:
        config: The detector; its variant is replaced by the file's.
        seed: Seed of the weights that the file does not have.
        path: The file.
        pixels: Channel order and normalisation of the pixels, where the file's convention is not right.
        required: Variant to build instead of the file's, for a training that began with it.

    Raises:
        RunnerError: UnreadableModel for another kind of file, ModelMismatch where the file has less than
            LEAST_SHARE of the backbone's parameters.
    """
    file = files.read(path)
    naming = layer_names.naming(config.backbone, file.names)
    pixels = pixels or PretrainedPixels()
    chosen = required or _variant(config, file, naming, pixels)
    model = detector.build(config.model_copy(update={"variant": chosen}), seed)
    taken = _load(model, file, naming, pixels.order or naming.order)
    # A training that goes on has all weights in its checkpoint, whatever the file lacks.
    if required is None:
        _require_backbone(model, taken, file, path, naming)
    log.info("pretrained weights %s with layer names of %s: %s", path.name, taken.origin, taken.summary)
    log.info("pretrained weights: %s is built as its weights ask for: %s", config.backbone, _text(chosen))
    _report(taken, naming)
    _report_classes(taken, file, model)
    _report_meaning(file, model)
    return model, taken


def _variant(config: DetectorConfig, file: WeightsFile, naming: Naming, given: PretrainedPixels) -> Variant:
    """Variant in which the file's weights mean what they were trained for, with its pixels resolved."""
    if file.detector is not None and file.detector.backbone == config.backbone:
        chosen = file.detector.variant
    elif naming.variant is not None:
        chosen = naming.variant(file.names)
    else:
        chosen = variant.DEFAULT
    usual = naming.pixels or chosen.pixels or FAMILIES[config.backbone].pixels
    resolved = {**usual.model_dump(), **given.model_dump(include={"mean", "scale"}, exclude_none=True)}
    return chosen.model_copy(update={"pixels": Pixels.model_validate(resolved)})


def _load(model: FasterRCNN, file: WeightsFile, naming: Naming, order: str) -> Taken:
    arrays, theirs = _translated(file.layers, naming)
    _adapt(model, arrays, naming, order)
    change = _change(file, model)
    loaded, partly, mismatched, missing = [], [], [], []
    for layer in layers_of(model):
        values = arrays.pop(layer.name, None)
        current = layer.get_weights()
        if values is None:
            missing.append(layer.name)
        # Before shapes are compared: those of two lists of as many classes agree.
        elif layer.name in OUTPUTS and change.before != change.now and _same_inputs(current, values):
            layer.set_weights(change.carried(layer.name, current, values))
            partly.append(layer.name)
        elif _shapes(values) != _shapes(current):
            mismatched.append(f"{layer.name} (model {_shapes(current)}, file {_shapes(values)})")
        else:
            layer.set_weights(values)
            loaded.append(layer.name)
    # By the file's own names: layers that our model lacks, and layers that no translation knows.
    left = {*(theirs[name] for name in arrays if name in theirs), *(set(file.layers) - set(theirs.values()))}
    return Taken(
        naming.origin,
        tuple(loaded),
        tuple(partly),
        tuple(mismatched),
        tuple(missing),
        tuple(sorted(left)),
        file.ambiguous,
        {layer.name: layer.count_params() for layer in layers_of(model)},
    )


def _require_backbone(model: FasterRCNN, taken: Taken, file: WeightsFile, path: Path, naming: Naming) -> None:
    """Refuse a file that lacks more of the backbone than a difference in detail explains.

    Raises:
        RunnerError: ModelMismatch.
    """
    # Dense layers are left out: those of VGG are in no file without its classifier.
    backbone = [
        layer.name
        for layer in layers_of(model)
        if not layer.name.startswith(_DETECTOR_PREFIXES) and not isinstance(layer, layers.Dense)
    ]
    share = taken.share(set(backbone) & set(taken.loaded)) / taken.share(backbone)
    if share >= LEAST_SHARE:
        return
    reasons = {
        **{name: f"{name} (not in the file)" for name in taken.missing},
        **{_name_of(text): text for text in taken.mismatched},
    }
    first = [reasons[name] for name in backbone if name in reasons][:3]
    raise RunnerError(
        Reason.MODEL_MISMATCH,
        f"spec.model.pretrainedWeights: expected weights of {model.config.backbone} with widthMultiplier "
        f"{model.config.width_multiplier:g}, got {path.name}, which has {share:.1%} of the backbone's "
        f"parameters (at least {LEAST_SHARE:.0%} are needed); nearest convention of layer names: "
        f"{layer_names.nearest(model.config.backbone, file.names)}; the first layers that do not match: "
        f"{', '.join(first)}; the file has {', '.join(sorted(file.layers)[:3]) or 'no layers'} ..."
        + (f", and several each of {', '.join(taken.ambiguous[:3])} ..." if taken.ambiguous else "")
        + (f"; it is of another network: {naming.caveat}" if naming.caveat else ""),
        "Set spec.model.backbone and widthMultiplier to those of the file, or take weights of this product, "
        "Keras, KerasHub, torchvision (.safetensors) or TLT (.hdf5).",
    )


def layers_of(model: FasterRCNN) -> list[layers.Layer]:
    """List the layers with weights, trunk first."""
    return [layer for layer in [*model.trunk.layers, *model.head.layers] if layer.weights]


def _name_of(mismatch: str) -> str:
    return mismatch.split(" ")[0]


def _text(chosen: Variant) -> str:
    return ", ".join(f"{name} {value}" for name, value in chosen.to_wire().items())


def _change(file: WeightsFile, model: FasterRCNN) -> ClassChange:
    return ClassChange.between(file.class_names or model.config.class_names, model.config.class_names)


def _shapes(values: list[np.ndarray]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in values]


def _same_inputs(current: list[np.ndarray], values: list[np.ndarray]) -> bool:
    return len(current) == len(values) and values[0].shape[:-1] == current[0].shape[:-1]


def _translated(arrays: Arrays, naming: Naming) -> tuple[Arrays, dict[str, str]]:
    """Return the layers by our names, and the file's name of each."""
    theirs = {ours: name for name in arrays if (ours := naming.ours(name)) is not None}
    # In 32 bits before anything is computed with them: a file in 16 bits would round its adapted statistics.
    translated = {
        ours: [np.asarray(value, np.float32) for value in arrays[name]] for ours, name in theirs.items()
    }
    return translated, theirs


def _adapt(model: FasterRCNN, arrays: Arrays, naming: Naming, order: str) -> None:
    """Convert the file's weights to our layers, in place. Exact in inference and for frozen layers."""
    parts = layers_of(model)
    first = arrays.get(parts[0].name)
    # The inputs of the first kernel are the file's blue, green, red.
    if order == "bgr" and first and first[0].ndim == 4 and first[0].shape[2] == 3:
        first[0] = first[0][:, :, ::-1]
    if first and model.config.channels == 1 and first[0].ndim == 4 and first[0].shape[2] == 3:
        first[:] = _for_grey(first, model.config.variant.pixels or FAMILIES[model.config.backbone].pixels)
        log.info(
            "pretrained weights: the first kernel (%s) is summed over its three channels, because the images "
            "are grayscale",
            parts[0].name,
        )
    # A normalisation by the tensor that it takes: the output of its convolution.
    norms = {id(layer.input): layer for layer in parts if isinstance(layer, layers.BatchNormalization)}
    for layer in parts:
        values = arrays.get(layer.name, [])
        if isinstance(layer, layers.BatchNormalization) and len(values) == 4 and naming.epsilon is not None:
            # The stored variance takes up the difference: only its sum with epsilon is used.
            values[3] = values[3] + (naming.epsilon - layer.epsilon)
        if isinstance(layer, layers.Dense) and naming.flattens_channels_first:
            _reorder_inputs(values, layer, model)
        if not isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D) or not values:
            continue
        norm = norms.get(id(layer.output))
        if norm is not None:
            _absorb_bias(values, arrays.get(norm.name, []))
        # Our network does not normalise here (VGG): kernel and bias take over what the file's layers did.
        elif naming.epsilon is not None and len(arrays.get(f"{layer.name}_bn", [])) == 4:
            values[:] = fold(values, arrays.pop(f"{layer.name}_bn"), naming.epsilon)


def _for_grey(convolution: list[np.ndarray], pixels: Pixels) -> list[np.ndarray]:
    """Convert the first convolution to one channel: on a grey it gives what it gives on three equal ones.

    The border is the exception: padding stands for another grey there.

    Args:
        convolution: Kernel [h, w, 3, F], and a bias [F] if it has one.
        pixels: Normalisation of the colours that the kernel was trained on.

    Returns:
        Kernel [h, w, 1, F], and a bias [F].
    """
    kernel, *bias = convolution
    mean, factor = pixels.grey
    factors = 1.0 / np.array(pixels.scale)[:, None]
    # A grey g enters as n = (g - mean) * factor. It entered channel c as (g - mean_c) * factor_c, which is
    # n * factor_c / factor + (mean - mean_c) * factor_c. The second term is a bias.
    constant = kernel * (mean - np.array(pixels.mean)[:, None]) * factors
    summed = (kernel * factors / factor).sum(axis=2, keepdims=True)
    return [summed.astype(kernel.dtype), (sum(bias) + constant.sum(axis=(0, 1, 2))).astype(kernel.dtype)]


def _absorb_bias(convolution: list[np.ndarray], norm: list[np.ndarray]) -> None:
    """Move a bias before a normalisation into its moving mean: x + b - m = x - (m - b)."""
    if len(convolution) == 2 and len(norm) == 4 and norm[2].shape == convolution[1].shape:
        norm[2] = norm[2] - convolution.pop()


def _reorder_inputs(values: list[np.ndarray], layer: layers.Dense, model: FasterRCNN) -> None:
    """Reorder the inputs of the dense layer after flattening from [C, H, W] to [H, W, C]."""
    height, width, channels = model.head.input_shape[1:]
    flattened = layer.input.shape[-1] == height * width * channels and layer.name == "fc1"
    if values and flattened and values[0].shape[0] == height * width * channels:
        kernel = values[0].reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
        values[0] = kernel.reshape(values[0].shape)


def fold(convolution: list[np.ndarray], norm: list[np.ndarray], epsilon: float) -> list[np.ndarray]:
    """Fold a batch normalisation, with its stored statistics, into the convolution before it.

    Args:
        convolution: Kernel [h, w, C, F], and a bias [F] if it has one.
        norm: gamma, beta, moving mean and variance, [F] each.
        epsilon: Epsilon of the normalisation.

    Returns:
        Kernel and bias.
    """
    kernel, *bias = convolution
    gamma, beta, mean, variance = norm
    scale = gamma / np.sqrt(variance + epsilon)
    return [kernel * scale, beta + (sum(bias) - mean) * scale]


def _report(taken: Taken, naming: Naming) -> None:
    for what, names in (
        ("not in the file, not loaded", taken.missing),
        ("of another shape, not loaded", taken.mismatched),
        ("of the file not used", taken.unused),
    ):
        if names:
            log.warning("pretrained weights: %d layers %s: %s", len(names), what, ", ".join(names))
    if taken.ambiguous:
        log.warning(
            "pretrained weights: %d names belong to several layers of the file, none of which is loaded: %s",
            len(taken.ambiguous),
            ", ".join(taken.ambiguous),
        )
    if naming.caveat:
        log.warning(
            "pretrained weights: the network of %s differs from ours: %s", naming.origin, naming.caveat
        )


def _report_meaning(file: WeightsFile, model: FasterRCNN) -> None:
    """Warn of settings of the file's outputs that this job changes: boxes will be wrong."""
    if file.detector is None:
        return
    config, trained_config = model.config, file.detector
    for field, ours, theirs in (
        ("anchors", config.anchors, trained_config.anchors),
        ("proposals.deltaScale", config.proposals.delta_scale, trained_config.proposals.delta_scale),
        ("roi.deltaScales", config.roi.delta_scales, trained_config.roi.delta_scales),
    ):
        if ours != theirs:
            log.warning(
                "pretrained weights: the file was trained with spec.model.%s %s, this job has %s: boxes are "
                "wrong until they are retrained",
                field,
                theirs,
                ours,
            )


def _report_classes(taken: Taken, file: WeightsFile, model: FasterRCNN) -> None:
    """Log by class name what the head loaded."""
    change = _change(file, model)
    classes = change.now
    if file.class_names is not None:
        if set(change.before) != set(classes):
            text = (
                change.text if taken.partly else "all outputs are newly initialised because the heads differ"
            )
            log.warning("pretrained weights: the file was trained for other classes; %s", text)
    elif OUTPUTS[0] in file.layers:
        # One output is background's.
        count = file.layers[OUTPUTS[0]][-1].shape[-1] - 1
        done = "are newly initialised" if OUTPUTS[0] in taken.untouched else "are loaded in this order"
        log.warning(
            "pretrained weights: the file names no classes; its head has %d and background, this job has %d: "
            "%s; the head's outputs %s",
            count,
            len(classes),
            ", ".join(classes),
            done,
        )
