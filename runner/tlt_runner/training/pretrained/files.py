"""Reads the weights of a file without building its network.

The formats are ``.keras``, ``.weights.h5``, ``.h5``, ``.hdf5`` and ``.safetensors``. Reading a file needs no
code of the program that wrote it. Called by
:mod:`tlt_runner.training.pretrained.load`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from tlt_api.failures import Reason
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.errors import RunnerError

_KERAS_WEIGHTS, _KERAS_CONFIG = "model.weights.h5", "config.json"
_OURS = "tlt>"
"""Prefix of this product's classes in a ``.keras`` file."""
_PICKLED = (".pth", ".pt", ".pkl", ".bin", ".ckpt")
"""Suffixes of PyTorch's pickled files."""
_CONVERSION = (
    'convert it where it comes from: python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('{name}', weights_only=True), '{stem}.safetensors')\""
)


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a weights file.

    Attributes:
        layers: Layer name -> its arrays, in the layer's order.
        ambiguous: Names that several layers share, as in two nested models; ``layers`` has none of these.
        without_weights: Names of layers without weights, as far as the file lists them.
        detector: Configuration of the detector, if this product wrote the file.
    """

    layers: dict[str, list[np.ndarray]]
    ambiguous: tuple[str, ...] = ()
    without_weights: tuple[str, ...] = ()
    detector: DetectorConfig | None = None

    @property
    def names(self) -> set[str]:
        """Names of all layers."""
        return {*self.layers, *self.ambiguous, *self.without_weights}

    @property
    def class_names(self) -> list[str] | None:
        """Classes of the detector; None if the file names none."""
        return self.detector.class_names if self.detector else None


def read(path: Path) -> WeightsFile:
    """Read all layers with weights; those of an optimizer are left out.

    Raises:
        RunnerError: UnreadableModel.
    """
    try:
        if path.suffix in _PICKLED:
            raise ValueError(
                f"it may run code when it is opened; {_CONVERSION.format(name=path.name, stem=path.stem)}"
            )
        if path.suffix == ".safetensors":
            return WeightsFile(_torch_layers(safetensors.numpy.load_file(path)))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read(_KERAS_WEIGHTS))
                config = json.loads(archive.read(_KERAS_CONFIG))
            with h5py.File(content, "r") as file:
                return _contents(file, _names_in(config), _detector(config))
        with h5py.File(path, "r") as file:
            config = json.loads(_text(file.attrs.get("model_config", "null")))
            listed = {*_names_in(config), *map(_text, file.attrs.get("layer_names", ()))}
            return _contents(file, listed)
    # h5py raises OSError, too, for a file that is no HDF5; numpy knows no bfloat16: TypeError.
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        raise RunnerError(
            Reason.UNREADABLE_MODEL,
            f"spec.model.pretrainedWeights: expected a .keras, .weights.h5, .h5, .hdf5 or .safetensors file, "
            f"{path.name} cannot be read: {error}",
        ) from error


def _contents(file: Any, listed: Iterable[str] = (), detector: DetectorConfig | None = None) -> WeightsFile:
    named = _layers(file)
    counts = Counter(name for name, _ in named)
    layers = {name: arrays for name, arrays in named if counts[name] == 1}
    ambiguous = tuple(sorted(set(counts) - set(layers)))
    return WeightsFile(layers, ambiguous, tuple(sorted(set(listed) - set(counts))), detector)


def _names_in(config: Any) -> set[str]:
    """Names of all layers in the serialised config of a model, nested ones included."""
    if isinstance(config, list):
        return set().union(*map(_names_in, config)) if config else set()
    if not isinstance(config, dict):
        return set()
    settings = config.get("config")
    name = settings.get("name") if isinstance(settings, dict) and "class_name" in config else None
    inner = _names_in(list(config.values()))
    return {*inner, name} if isinstance(name, str) else inner


def _torch_layers(tensors: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Group PyTorch's tensors by layer, in Keras' order and layout."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        layer, _, weight = name.rpartition(".")
        layers.setdefault(layer, {})[weight] = tensor
    # num_batches_tracked, a counter of batch normalisation, is not needed.
    order = ("weight", "bias", "running_mean", "running_var")
    return {
        layer: [_keras_layout(weights[key]) for key in order if key in weights]
        for layer, weights in layers.items()
    }


def _keras_layout(tensor: np.ndarray) -> np.ndarray:
    """Transpose a kernel: dense [out, in] to [in, out], convolution [out, in, h, w] to [h, w, in, out].

    A depthwise one has a single input per filter, [C, 1, h, w], and becomes [h, w, C, 1].
    """
    if tensor.ndim == 4:
        depthwise = tensor.shape[1] == 1 and tensor.shape[0] > 1
        tensor = tensor.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    elif tensor.ndim == 2:
        tensor = tensor.T
    return np.ascontiguousarray(tensor, np.float32)


def _layers(file: Any) -> list[tuple[str, list[np.ndarray]]]:
    """Read both layouts: Keras 3 names layers in attributes of ``vars``, Keras 2 lists ``weight_names``."""
    layers: list[tuple[str, list[np.ndarray]]] = []

    def visit(path: str, node: Any) -> None:
        if not isinstance(node, h5py.Group) or path.startswith("optimizer"):
            return
        if path.rsplit("/", 1)[-1] == "vars" and "name" in node.attrs and len(node):
            # Keys are numbers as text: 10 comes after 9.
            layers.append((_text(node.attrs["name"]), [node[key][()] for key in sorted(node, key=int)]))
        elif len(node.attrs.get("weight_names", ())):
            layers.extend(_listed(path.rsplit("/", 1)[-1], node))

    file.visititems(visit)
    return layers


def _listed(name: str, group: Any) -> list[tuple[str, list[np.ndarray]]]:
    """Read a group of Keras 2: a layer or, if its weights' paths have several parents, a nested model.

    The group of a layer always has the layer's name; paths may differ: ``conv1_1/kernel:0``, ``conv1_W:0``.
    """
    parents: dict[str, list[np.ndarray]] = {}
    for weight in map(_text, group.attrs["weight_names"]):
        parents.setdefault(weight.rpartition("/")[0], []).append(group[weight][()])
    # A layer's weights have one parent; those of a nested model have one for each of its layers.
    if len(parents) == 1:
        return [(name, arrays) for arrays in parents.values()]
    return [(parent.rsplit("/", 1)[-1] or name, arrays) for parent, arrays in parents.items()]


def _detector(config: Any) -> DetectorConfig | None:
    if not str(config.get("registered_name")).startswith(_OURS):
        return None
    return DetectorConfig.from_file(config["config"]["config"])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
