"""Converts a detector's output layers to other classes: weights of the classes that both have are kept.

Called where training starts: from a trained model (:mod:`tlt_runner.training.initial_model`) and from
pretrained weights (:mod:`tlt_runner.training.pretrained.load`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlt_runner.detector import head
from tlt_runner.detector.model import FasterRCNN

OUTPUTS = ("head_classes", "head_deltas")
"""Layers with weights for each class."""


@dataclass(frozen=True)
class ClassChange:
    """A change from one list of classes to another; the index of a class is its id.

    Attributes:
        before: Classes that the weights were trained for.
        now: Classes to train.
    """

    before: tuple[str, ...]
    now: tuple[str, ...]

    @classmethod
    def between(cls, before: Sequence[str], now: Sequence[str]) -> ClassChange:
        """Create the change from one list to the other."""
        return cls(tuple(before), tuple(now))

    @property
    def kept(self) -> list[str]:
        """Classes in both lists."""
        return [name for name in self.now if name in self.before]

    @property
    def new(self) -> list[str]:
        """Classes only in ``now``."""
        return [name for name in self.now if name not in self.before]

    @property
    def gone(self) -> list[str]:
        """Classes only in ``before``."""
        return [name for name in self.before if name not in self.now]

    @property
    def text(self) -> str:
        """Describe the change: new, kept and dropped classes."""
        parts = (
            ("initialised anew", self.new),
            ("kept with their weights", self.kept),
            ("dropped", self.gone),
        )
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)

    def carried(
        self, layer: str, fresh: Sequence[np.ndarray], given: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Combine weights of an output layer: given ones for kept classes and background, else fresh ones.

        Args:
            layer: One of OUTPUTS.
            fresh: Kernel [D, K * n] and bias [K * n] for the classes in ``now``, with n numbers per class.
            given: Kernel and bias for the classes in ``before``.

        Raises:
            ValueError: The shapes are not those of such a layer.
        """
        indices = [(self.before.index(name), self.now.index(name)) for name in self.kept]
        background = layer == OUTPUTS[0]
        # Background has the last output on both sides; there are no offsets for it.
        if background:
            indices.append((len(self.before), len(self.now)))
        values = []
        for new, old in zip(fresh, given, strict=True):
            # The n numbers of a class are adjacent in the last axis.
            rows = new.reshape((*new.shape[:-1], len(self.now) + background, -1)).copy()
            source = old.reshape((*old.shape[:-1], len(self.before) + background, -1))
            for before, now in indices:
                rows[..., now, :] = source[..., before, :]
            values.append(rows.reshape(new.shape))
        return values


def change(model: FasterRCNN, class_names: Sequence[str], seed: int) -> FasterRCNN:
    """Create the detector for other classes; it shares all layers but the outputs with the given one.

    Args:
        model: A detector.
        class_names: Classes by id.
        seed: Seed of the new classes' weights.
    """
    changed = ClassChange.between(model.config.class_names, class_names)
    config = model.config.model_copy(update={"class_names": list(class_names)})
    new_head = head.with_classes(model.head, config, seed)
    for name in OUTPUTS:
        layer = new_head.get_layer(name)
        layer.set_weights(
            changed.carried(name, layer.get_weights(), model.head.get_layer(name).get_weights())
        )
    return FasterRCNN(config, model.trunk, new_head, name=model.name)
