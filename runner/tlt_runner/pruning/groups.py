"""The filters that are pruned together, and the layers whose filters are chosen together.

Third stage of pruning, and the one to which the later stages refer. Coupled sources of channels form a
*coupled set*: one decision, keep or prune. Layers that share coupled sets form a *group*, TLT's unit: chained
residual blocks are one group, and one protected layer protects its whole group. Inside a group, coupled sets
that belong to the same layers form a *block*, to which the keep rule is applied; there is more than one block
only where a concatenation is added to something.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import channels, graph
from tlt_runner.pruning.channels import Channels, Layout
from tlt_runner.pruning.graph import Call, Graph, Network

Mask = NDArray[np.bool_]
"""A bool for each coupled set: True keeps it."""


@dataclass(frozen=True)
class Group:
    """Layers whose filters are chosen together.

    Attributes:
        layers: Names, in the order of the graph.
        blocks: Numbers of the coupled sets, by block.
        protection: Reason why all filters stay; None where they may be pruned.
    """

    layers: tuple[str, ...]
    blocks: tuple[NDArray[np.int64], ...]
    protection: str | None


@dataclass(frozen=True)
class Groups:
    """All groups of a network, with everything that planning and rebuilding read.

    Attributes:
        graph: The network's graph.
        groups: In the order of the graph.
        filters: Prunable layer -> coupled set of each of its filters.
        inputs: Layer with weights -> coupled set of each of its input channels.
        outputs: Call -> coupled set of each channel of its output; absent where it could not be followed.
        count: Number of coupled sets; a mask over them says what is kept.
    """

    graph: Graph
    groups: tuple[Group, ...]
    filters: Mapping[str, Layout]
    inputs: Mapping[str, Layout]
    outputs: Mapping[Call, Layout]
    count: int

    def everything(self) -> Mask:
        """Return the mask that keeps all coupled sets."""
        return np.ones(self.count, bool)

    def details(self, number: int) -> str:
        """Describe one group as text: the weights that are cut when one of its coupled sets is pruned.

        For debugging, as Torch-Pruning's ``Group.details()``::

            group 0: 8 coupled sets, may be pruned
              filters         stem    8 of 8
              filters         a2      8 of 8
              input channels  a1      8 of 8
              input channels  cat_bn  8 of 14
        """
        group = self.groups[number]
        # Coupled sets of the group; a layer outside it appears by the input channels that it loses.
        members = np.concatenate(group.blocks)
        rows = [
            (side, name, f"{np.isin(sets, members).sum()} of {len(sets)}")
            for side, layouts in (("filters", self.filters), ("input channels", self.inputs))
            for name, sets in layouts.items()
            if np.isin(sets, members).any()
        ]
        width = max(len(name) for _, name, _ in rows)
        state = f"protected ({group.protection})" if group.protection else "may be pruned"
        head = f"group {number}: {len(members)} coupled sets, {state}"
        return "\n".join([head, *(f"  {side:<14}  {name:<{width}}  {counts}" for side, name, counts in rows)])


def find(network: Network, excluded_layers: Sequence[str] = (), check_names: bool = True) -> Groups:
    """Read a network, follow its channels, and find its groups.

    Args:
        network: What is to be pruned.
        excluded_layers: Layers that keep all their filters, besides those that the network protects.
        check_names: Whether names that the network lacks are refused; otherwise they protect nothing.

    Raises:
        RunnerError: ``InvalidSpec`` for unknown names in ``excluded_layers`` or a layer through which
            channels cannot be followed.
    """
    network_graph = graph.read(network)
    # Before tracing: a misspelt exclusion would show as the layer that it was meant to work around.
    if check_names:
        _check_names(excluded_layers, list(network_graph.layers))
    protected = {**dict.fromkeys(excluded_layers, "excluded"), **network.protected}
    traced = channels.trace(network_graph, protected)
    # The later stages see coupled sets only: one set is one decision.
    set_of_source = traced.sources.coupled_sets()
    filters = {name: set_of_source[sources] for name, sources in traced.filters.items()}
    return Groups(
        network_graph,
        _groups(traced, filters),
        filters,
        {name: set_of_source[layout] for name, layout in traced.inputs.items()},
        {call: set_of_source[layout] for call, layout in traced.outputs.items()},
        int(set_of_source.max()) + 1 if set_of_source.size else 0,
    )


def _check_names(excluded: Sequence[str], names: Sequence[str]) -> None:
    """Refuse names that are no layers.

    Raises:
        RunnerError: InvalidSpec.
    """
    problems = []
    # All of them in one message, each with what may have been meant.
    for name in sorted(set(excluded) - set(names)):
        suggestions = difflib.get_close_matches(name, names, n=3)
        problems.append(f"{name!r}" + (f" (near: {', '.join(suggestions)})" if suggestions else ""))
    if problems:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected names of the model's layers in excludedLayers, got {', '.join(problems)}",
        )


def _groups(traced: Channels, filters: Mapping[str, Layout]) -> tuple[Group, ...]:
    """Group the layers that share coupled sets, in the order of the graph."""
    blocks = _blocks(filters)
    groups = []
    for owners in _components(list(blocks)):
        # Through `filters`, which has the order of the graph.
        layers = tuple(name for name in filters if any(name in names for names in owners))
        sets = tuple(np.array(blocks[names], np.int64) for names in owners)
        groups.append(Group(layers, sets, _protection(traced, layers)))
    order = list(filters)
    return tuple(sorted(groups, key=lambda group: order.index(group.layers[0])))


def _blocks(filters: Mapping[str, Layout]) -> dict[tuple[str, ...], list[int]]:
    """Names of the layers that share a coupled set -> all coupled sets that exactly these layers share."""
    owners: dict[int, list[str]] = {}
    for name, sets in filters.items():
        # Filters of one layer can be coupled to each other: then they are one set.
        for number in np.unique(sets).tolist():
            owners.setdefault(number, []).append(name)
    blocks: dict[tuple[str, ...], list[int]] = {}
    for number in sorted(owners):
        blocks.setdefault(tuple(owners[number]), []).append(number)
    return blocks


def _components(blocks: list[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Blocks, each given by its layers' names, that are connected by common layers."""
    # Pairs of all layers of a component and its blocks.
    components: list[tuple[set[str], list[tuple[str, ...]]]] = []
    for block in blocks:
        # A block joins all components with which it shares a layer into one.
        # Few blocks: no need for a faster union than a pass over all components.
        touching = [part for part in components if part[0] & set(block)]
        components = [part for part in components if not part[0] & set(block)]
        names = set(block).union(*(part[0] for part in touching))
        components.append((names, [*(item for part in touching for item in part[1]), block]))
    return [members for _, members in components]


def _protection(traced: Channels, layers: tuple[str, ...]) -> str | None:
    """The first reason that protects a filter of the layers."""
    # One filter is enough: a protected layer protects its whole group, as in TLT.
    for name in layers:
        for source in traced.filters[name].tolist():
            reason = traced.sources.protection(source)
            if reason:
                return reason
    return None
