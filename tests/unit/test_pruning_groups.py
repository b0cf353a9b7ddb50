"""Groups of a network of plain data, without Keras: read once, described as text."""

from __future__ import annotations

import numpy as np

from tlt_runner.pruning.graph import Graph
from tlt_runner.pruning.groups import Group, Groups

RESIDUAL = Groups(
    Graph({}, (), (), {}),
    (
        Group(("stem", "b"), (np.arange(4),), None),
        Group(("a",), (np.arange(4, 7),), None),
        Group(("end",), (np.arange(7, 9),), "model output"),
    ),
    filters={"stem": np.arange(4), "b": np.arange(4), "a": np.arange(4, 7), "end": np.arange(7, 9)},
    inputs={"a": np.arange(4), "b": np.arange(4, 7), "joined_bn": np.arange(7)},
    outputs={},
    count=9,
)
"""stem (4 filters) -> a (3) -> b (4), added to stem; joined_bn sees b's channels, then a's."""


def test_details_of_a_group_list_every_weight_that_is_cut_with_its_filters():
    assert RESIDUAL.details(0).splitlines() == [
        "group 0: 4 coupled sets, may be pruned",
        "  filters         stem       4 of 4",
        "  filters         b          4 of 4",
        "  input channels  a          4 of 4",
        "  input channels  joined_bn  4 of 7",
    ]


def test_details_of_a_protected_group_give_the_reason():
    assert RESIDUAL.details(2).splitlines() == [
        "group 2: 2 coupled sets, protected (model output)",
        "  filters         end  2 of 2",
    ]
