"""Reads the weights of a ``.keras``, ``.weights.h5``, ``.h5`` or ``.hdf5`` file without building its network.

Reading a file needs no code of the program that wrote it. Called by
:mod:`tlt_runner.training.pretrained.load`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from tlt_api.failures import Reason
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.errors import RunnerError

_KERAS_WEIGHTS, _KERAS_CONFIG = "model.weights.h5", "config.json"
_OURS = "tlt>"
"""Prefix of this product's classes in a ``.keras`` file."""


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a weights file.

    Attributes:
        layers: Layer name -> its arrays, in the layer's order.
        ambiguous: Names that several layers share, as in two nested models; ``layers`` has none of these.
        detector: Configuration of the detector, if this product wrote the file.
    """

    layers: dict[str, list[np.ndarray]]
    ambiguous: tuple[str, ...] = ()
    detector: DetectorConfig | None = None

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
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read(_KERAS_WEIGHTS))
                config = json.loads(archive.read(_KERAS_CONFIG))
            with h5py.File(content, "r") as file:
                return _contents(file, _detector(config))
        with h5py.File(path, "r") as file:
            return _contents(file)
    # h5py raises OSError, too, for a file that is no HDF5.
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RunnerError(
            Reason.UNREADABLE_MODEL,
            f"spec.model.pretrainedWeights: expected a .keras, .weights.h5, .h5 or .hdf5 file, "
            f"{path.name} cannot be read: {error}",
        ) from error


def _contents(file: Any, detector: DetectorConfig | None = None) -> WeightsFile:
    named = _layers(file)
    counts = Counter(name for name, _ in named)
    layers = {name: arrays for name, arrays in named if counts[name] == 1}
    return WeightsFile(layers, tuple(sorted(set(counts) - set(layers))), detector)


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
    return DetectorConfig.model_validate(config["config"]["config"])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
