"""A detector's output layers for other classes than those it learnt: which weights stay, in class names.

Called where training starts: from a whole model (:mod:`tlt_runner.training.initial_model`) and from
pretrained weights (:mod:`tlt_runner.training.pretrained.load`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlt_runner.detector import head
from tlt_runner.detector.model import FasterRCNN

OUTPUTS = ("head_classes", "head_deltas")
"""The layers that have weights for each class."""


@dataclass(frozen=True)
class ClassChange:
    """Two lists of classes; a class's id is its place.

    Attributes:
        before: Those that the weights were trained for.
        now: Those to train.
    """

    before: tuple[str, ...]
    now: tuple[str, ...]

    @classmethod
    def between(cls, before: Sequence[str], now: Sequence[str]) -> ClassChange:
        """The change from one list to the other."""
        return cls(tuple(before), tuple(now))

    @property
    def kept(self) -> list[str]:
        """Classes of both."""
        return [name for name in self.now if name in self.before]

    @property
    def new(self) -> list[str]:
        """Classes of now only."""
        return [name for name in self.now if name not in self.before]

    @property
    def gone(self) -> list[str]:
        """Classes of before only."""
        return [name for name in self.before if name not in self.now]

    @property
    def text(self) -> str:
        """The change in a person's words: new, kept and dropped classes."""
        said = (
            ("initialised anew", self.new),
            ("kept with their weights", self.kept),
            ("dropped", self.gone),
        )
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in said if names)

    def carried(
        self, layer: str, fresh: Sequence[np.ndarray], given: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Weights of an output layer: the given ones of kept classes and background, else the fresh ones.

        Args:
            layer: One of OUTPUTS.
            fresh: Kernel [D, K * n] and bias [K * n] for the classes of now; n numbers a class.
            given: The same for the classes of before.

        Raises:
            ValueError: The shapes are not those of such a layer.
        """
        places = [(self.before.index(name), self.now.index(name)) for name in self.kept]
        background = layer == OUTPUTS[0]
        if background:
            places.append((len(self.before), len(self.now)))
        values = []
        for new, old in zip(fresh, given, strict=True):
            rows = new.reshape((*new.shape[:-1], len(self.now) + background, -1)).copy()
            source = old.reshape((*old.shape[:-1], len(self.before) + background, -1))
            for before, now in places:
                rows[..., now, :] = source[..., before, :]
            values.append(rows.reshape(new.shape))
        return values


def change(model: FasterRCNN, class_names: Sequence[str], seed: int) -> FasterRCNN:
    """The detector for other classes: all layers but the outputs are the same, with their weights.

    Args:
        model: A detector; the new one shares its layers.
        class_names: Classes by id.
        seed: Of the new classes' weights.
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
