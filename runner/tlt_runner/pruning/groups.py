"""Which filters go together, and which layers decide together.

Third stage of pruning. Tied atoms form a *class*: one decision, keep or cut. Layers that share classes form a
*group*, TLT's unit: chained residual blocks are one group, and one layer that must stay whole keeps its whole
group whole. Inside a group, classes that belong to the same layers form a *block*, to which the keep rule is
applied; there is more than one block only where a concatenation is added to something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlt_runner.pruning.channels import Channels, Layout

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Layers whose filters are decided together.

    Attributes:
        layers: Names, in the order of the graph.
        blocks: Class ids, by block.
        whole: Why all filters stay; None where they may go.
    """

    layers: tuple[str, ...]
    blocks: tuple[NDArray[np.int64], ...]
    whole: str | None


@dataclass(frozen=True)
class Groups:
    """All groups.

    Attributes:
        groups: In the order of the graph.
        classes: Prunable layer -> class id of each of its filters.
        inputs: Layer with weights -> class id of each of its input channels.
        count: Number of classes; a mask over them says what is kept.
    """

    groups: tuple[Group, ...]
    classes: Mapping[str, Layout]
    inputs: Mapping[str, Layout]
    count: int

    def everything(self) -> Mask:
        """The mask that keeps all classes."""
        return np.ones(self.count, bool)


def find(channels: Channels) -> Groups:
    """Classes, blocks and groups of what was traced."""
    _, class_of = np.unique(channels.atoms.roots(), return_inverse=True)
    classes = {name: class_of[atoms] for name, atoms in channels.filters.items()}
    blocks = _blocks(classes)
    groups = []
    for members in _components(list(blocks)):
        layers = tuple(name for name in classes if any(name in key for key in members))
        own = tuple(np.array(blocks[key], np.int64) for key in members)
        groups.append(Group(layers, own, _reason(channels, layers)))
    groups.sort(key=lambda group: list(classes).index(group.layers[0]))
    count = int(class_of.max()) + 1 if class_of.size else 0
    return Groups(
        tuple(groups), classes, {name: class_of[atoms] for name, atoms in channels.inputs.items()}, count
    )


def _blocks(classes: Mapping[str, Layout]) -> dict[tuple[str, ...], list[int]]:
    """Names of the layers that share a class -> the classes that exactly these share."""
    owners: dict[int, list[str]] = {}
    for name, ids in classes.items():
        for one in np.unique(ids).tolist():
            owners.setdefault(one, []).append(name)
    blocks: dict[tuple[str, ...], list[int]] = {}
    for one in sorted(owners):
        blocks.setdefault(tuple(owners[one]), []).append(one)
    return blocks


def _components(keys: list[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Keys that are connected by common layers."""
    components: list[tuple[set[str], list[tuple[str, ...]]]] = []
    for key in keys:
        touching = [part for part in components if part[0] & set(key)]
        components = [part for part in components if not part[0] & set(key)]
        names = set(key).union(*(part[0] for part in touching))
        components.append((names, [*(item for part in touching for item in part[1]), key]))
    return [members for _, members in components]


def _reason(channels: Channels, layers: tuple[str, ...]) -> str | None:
    for name in layers:
        for atom in channels.filters[name].tolist():
            reason = channels.atoms.reason(atom)
            if reason:
                return reason
    return None
