"""Loads pretrained weights by layer name and shape, from our files and from those of Keras and TLT.

Called by :mod:`tlt_runner.training.initial_model`. Names are translated
(:mod:`tlt_runner.training.pretrained.layer_names`), and differences between the networks are folded into
the weights where that is exact. Layers that were not loaded are logged by name: a network that silently
keeps random weights trains badly, and nobody knows why.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from keras import layers

from tlt_api.failures import Reason
from tlt_runner.detector.backbones import FAMILIES
from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.training.pretrained import files, layer_names
from tlt_runner.training.pretrained.class_outputs import OUTPUTS, ClassChange
from tlt_runner.training.pretrained.files import WeightsFile
from tlt_runner.training.pretrained.layer_names import Naming

log = logging.getLogger(__name__)
Arrays = dict[str, list[np.ndarray]]


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
    """

    origin: str
    loaded: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()

    @property
    def untouched(self) -> set[str]:
        """Layers of the model that keep their weights."""
        return {*self.missing, *(text.split(" ")[0] for text in self.mismatched)}

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


def load_by_name(model: FasterRCNN, path: Path) -> Taken:
    """Load the weights of all layers that the file has with the same shapes, under our name or its own.

    From a detector that this product wrote for other classes, the output layers load the weights of the
    classes that both have.

    Raises:
        RunnerError: UnreadableModel for another kind of file, ModelMismatch when no layer fits.
    """
    file = files.read(path)
    naming = layer_names.naming(model.config.backbone, {*file.layers, *file.ambiguous})
    arrays, theirs = _translated(file.layers, naming)
    _adapt(model, arrays, naming)
    change = ClassChange.between(file.class_names or model.config.class_names, model.config.class_names)
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
    taken = Taken(
        naming.origin,
        tuple(loaded),
        tuple(partly),
        tuple(mismatched),
        tuple(missing),
        tuple(sorted(left)),
        file.ambiguous,
    )
    _report(taken, path, naming)
    _report_classes(taken, file, change, model)
    _report_meaning(file, model)
    return taken


def layers_of(model: FasterRCNN) -> list[layers.Layer]:
    """List the layers with weights, trunk first."""
    return [layer for layer in [*model.trunk.layers, *model.head.layers] if layer.weights]


def _shapes(values: list[np.ndarray]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in values]


def _same_inputs(current: list[np.ndarray], values: list[np.ndarray]) -> bool:
    return len(current) == len(values) and values[0].shape[:-1] == current[0].shape[:-1]


def _translated(arrays: Arrays, naming: Naming) -> tuple[Arrays, dict[str, str]]:
    """Return the layers by our names, and the file's name of each."""
    theirs = {ours: name for name in arrays if (ours := naming.ours(name)) is not None}
    return {ours: list(arrays[name]) for ours, name in theirs.items()}, theirs


def _adapt(model: FasterRCNN, arrays: Arrays, naming: Naming) -> None:
    """Convert the file's weights to our layers, in place. Exact in inference and for frozen layers."""
    parts = layers_of(model)
    first = arrays.get(parts[0].name)
    # The inputs of the first kernel are the file's blue, green, red.
    if naming.bgr and first and first[0].ndim == 4 and first[0].shape[2] == 3:
        first[0] = first[0][:, :, ::-1]
    if first and model.config.channels == 1 and first[0].ndim == 4 and first[0].shape[2] == 3:
        first[:] = _for_grey(first, FAMILIES[model.config.backbone])
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
        if not isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D) or not values:
            continue
        norm = norms.get(id(layer.output))
        if norm is not None:
            _absorb_bias(values, arrays.get(norm.name, []))
        # Our network does not normalise here (VGG): kernel and bias take over what the file's layers did.
        elif naming.epsilon is not None and len(arrays.get(f"{layer.name}_bn", [])) == 4:
            values[:] = fold(values, arrays.pop(f"{layer.name}_bn"), naming.epsilon)


def _for_grey(convolution: list[np.ndarray], family: Family) -> list[np.ndarray]:
    """Convert the first convolution to one channel: on a grey it gives what it gives on three equal ones.

    The border is the exception: padding stands for another grey there.

    Args:
        convolution: Kernel [h, w, 3, F], and a bias [F] if it has one.
        family: Means and factors of the pixels before the kernel.

    Returns:
        Kernel [h, w, 1, F], and a bias [F].
    """
    kernel, *bias = convolution
    mean, factor = family.grey_pixels
    factors = np.array(family.pixel_scale or (1.0, 1.0, 1.0))[:, None]
    # A grey g enters as n = (g - mean) * factor. It entered channel c as (g - mean_c) * factor_c, which is
    # n * factor_c / factor + (mean - mean_c) * factor_c. The second term is a bias.
    constant = kernel * (mean - np.array(family.pixel_mean)[:, None]) * factors
    summed = (kernel * factors / factor).sum(axis=2, keepdims=True)
    return [summed.astype(kernel.dtype), (sum(bias) + constant.sum(axis=(0, 1, 2))).astype(kernel.dtype)]


def _absorb_bias(convolution: list[np.ndarray], norm: list[np.ndarray]) -> None:
    """Move a bias before a normalisation into its moving mean: x + b - m = x - (m - b)."""
    if len(convolution) == 2 and len(norm) == 4 and norm[2].shape == convolution[1].shape:
        norm[2] = norm[2] - convolution.pop()


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


def _report(taken: Taken, path: Path, naming: Naming) -> None:
    if not taken.loaded:
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"spec.model.pretrainedWeights: no layer of {path.name} has name and shapes of the model's; "
            f"the model has {', '.join(taken.missing[:3]) or taken.mismatched[0]} ..., "
            f"the file {', '.join(taken.unused[:3]) or 'none'} ..."
            + (f", and several each of {', '.join(taken.ambiguous[:3])} ..." if taken.ambiguous else "")
            + (f"; it is of another network: {naming.caveat}" if naming.caveat else ""),
        )
    log.info("pretrained weights %s with layer names of %s: %s", path.name, taken.origin, taken.summary)
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


def _report_classes(taken: Taken, file: WeightsFile, change: ClassChange, model: FasterRCNN) -> None:
    """Log by class name what the head loaded."""
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
