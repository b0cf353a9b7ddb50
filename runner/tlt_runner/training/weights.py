"""Pretrained weights: taken by layer name and shape from a ``.keras``, ``.weights.h5`` or ``.h5`` file.

Whatever could not be taken is named: a network that silently keeps its random weights trains badly and
nobody knows why.
"""

from __future__ import annotations

import io
import logging
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from tlt_api.failures import Reason
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError

log = logging.getLogger(__name__)
_KERAS_WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class Taken:
    """What came of the model's layers that have weights.

    Attributes:
        loaded: Layers that took their weights from the file.
        missing: Layers that the file does not have.
        mismatched: Layers whose shapes differ: name, and both shapes.
        unused: Layers of the file that the model does not have.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def load_by_name(model: FasterRCNN, path: Path) -> Taken:
    """Set the weights of layers that the file has under the same name and with the same shapes.

    Raises:
        RunnerError: UnreadableModel for another kind of file, ModelMismatch when no layer fits.
    """
    found = read(path)
    taken = Taken()
    for layer in [*model.trunk.layers, *model.head.layers]:
        if not layer.weights:
            continue
        arrays = found.pop(layer.name, None)
        if arrays is None:
            taken.missing.append(layer.name)
            continue
        shapes, wanted = [array.shape for array in arrays], [tuple(w.shape) for w in layer.weights]
        if shapes != wanted:
            taken.mismatched.append(f"{layer.name} (model {wanted}, file {shapes})")
            continue
        layer.set_weights(arrays)
        taken.loaded.append(layer.name)
    taken.unused.extend(sorted(found))
    _report(taken, path)
    return taken


def read(path: Path) -> dict[str, list[np.ndarray]]:
    """Weights by layer name, in the layer's order.

    Raises:
        RunnerError: UnreadableModel.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read(_KERAS_WEIGHTS))
            with h5py.File(content, "r") as file:
                return _walk(file)
        with h5py.File(path, "r") as file:
            return _walk(file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RunnerError(
            Reason.UNREADABLE_MODEL,
            f"spec.model.pretrainedWeights: expected a .keras, .weights.h5 or .h5 file, "
            f"{path.name} cannot be read: {error}",
        ) from error


def _walk(file: Any) -> dict[str, list[np.ndarray]]:
    """Both layouts: Keras 3 names the layer in the attributes of ``vars``, Keras 2 lists ``weight_names``."""
    layers: dict[str, list[np.ndarray]] = {}

    def visit(path: str, node: Any) -> None:
        if not isinstance(node, h5py.Group):
            return
        if path.rsplit("/", 1)[-1] == "vars" and "name" in node.attrs and len(node):
            layers[_text(node.attrs["name"])] = [node[key][()] for key in sorted(node, key=int)]
        elif len(node.attrs.get("weight_names", ())):
            names = [_text(name) for name in node.attrs["weight_names"]]
            layers[path.rsplit("/", 1)[-1]] = [node[name][()] for name in names]

    file.visititems(visit)
    return layers


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _report(taken: Taken, path: Path) -> None:
    log.info("pretrained weights %s: %d layers loaded", path.name, len(taken.loaded))
    for what, names in (
        ("not in the file, left as they are", taken.missing),
        ("of another shape, left as they are", taken.mismatched),
        ("of the file not used", taken.unused),
    ):
        if names:
            log.warning("pretrained weights: %d layers %s: %s", len(names), what, ", ".join(names))
    if not taken.loaded:
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"spec.model.pretrainedWeights: no layer of {path.name} has name and shapes of the model's; "
            f"the model has {', '.join(taken.missing[:3])} ..., "
            f"the file {', '.join(taken.unused[:3]) or 'none'} ...",
        )
