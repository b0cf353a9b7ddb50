"""TLT's criterion and keep rule, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_api.prunejob import PruneTarget
from tlt_runner.pruning.importance import equalize, filter_norms, keep, normalize
from tlt_runner.pruning.plan import LayerPlan, Options, PruningPlan

TEN = [0.05, 0.9, 0.3, 0.7, 0.1, 1.0, 0.2, 0.6, 0.4, 0.5]


@pytest.mark.parametrize(
    ("threshold", "granularity", "min_filters", "expected"),
    [
        (0.5, 1, 1, [1, 3, 5, 7]),  # strictly above: 0.5 itself goes
        (0.45, 1, 1, [1, 3, 5, 7, 9]),
        (0.45, 4, 1, [1, 2, 3, 5, 6, 7, 8, 9]),  # 5 round up to 8: the largest of those below stay
        (0.95, 1, 3, [1, 3, 5]),  # at least three
        (0.95, 4, 3, [1, 3, 5, 7]),  # at least three, rounded up to four
        (0.95, 8, 16, list(range(10))),  # no more than there are
        (0.25, 8, 1, [1, 2, 3, 5, 6, 7, 8, 9]),  # seven above, rounded up to eight
        (0.01, 8, 1, list(range(10))),  # ten round up to sixteen, clipped
        (2.0, 1, 1, [5]),
    ],
)
def test_keep_rule_by_hand(threshold, granularity, min_filters, expected):
    assert keep(np.array(TEN), threshold, granularity, min_filters).tolist() == expected


def test_the_first_of_equal_filters_stay():
    assert keep(np.full(6, 0.1), 0.5, 2, 1).tolist() == [0, 1]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(1, 16),
    st.integers(1, 20),
)
def test_no_kept_filter_is_smaller_than_a_pruned_one(values, threshold, granularity, min_filters):
    values = np.array(values)
    kept = keep(values, threshold, granularity, min_filters)
    pruned = np.delete(values, kept)
    assert len(kept) == len(values) or len(kept) % granularity == 0
    assert len(kept) >= min(min_filters, len(values))
    assert not len(pruned) or values[kept].min() >= pruned.max()
    assert not len(pruned) or pruned.max() <= threshold


def test_norms_of_filters_run_over_all_axes_but_the_last():
    kernel = np.zeros((1, 2, 1, 2))
    kernel[..., 0] = [[[3], [4]]]
    kernel[..., 1] = [[[5], [12]]]
    np.testing.assert_allclose(filter_norms(kernel, depthwise=False), [5, 13])


def test_norms_of_a_depthwise_convolution_are_by_channel():
    kernel = np.zeros((1, 2, 2, 1))
    kernel[0, :, 0, 0], kernel[0, :, 1, 0] = [3, 4], [5, 12]
    np.testing.assert_allclose(filter_norms(kernel, depthwise=True), [5, 13])


def test_normalizers_are_those_of_tlt():
    np.testing.assert_allclose(normalize(np.array([1.0, 2.0, 4.0]), "max"), [0.25, 0.5, 1.0])
    # ||(3, 4)|| is 5, and there are two: 3 / 5 * 2, 4 / 5 * 2
    np.testing.assert_allclose(normalize(np.array([3.0, 4.0]), "l2"), [1.2, 1.6])
    np.testing.assert_allclose(normalize(np.zeros(3), "max"), np.zeros(3))
    np.testing.assert_allclose(normalize(np.zeros(3), "l2"), np.zeros(3))


@pytest.mark.parametrize(
    ("equalization", "expected"),
    [
        ("union", [0.4, 1.0]),
        ("intersection", [0.1, 0.0]),
        ("arithmeticMean", [0.25, 0.5]),
        ("geometricMean", [0.2, 0.0]),
    ],
)
def test_equalization_by_hand(equalization, expected):
    statistics = {"a": np.array([0.1, 1.0]), "b": np.array([0.4, 0.0])}
    coupled_sets = {"a": np.array([0, 1]), "b": np.array([0, 1])}
    np.testing.assert_allclose(equalize(statistics, coupled_sets, 3, equalization), [*expected, np.nan])


def a_plan(**changes):
    fields = {
        "threshold": 0.37,
        "target": PruneTarget(parameters=0.5),
        "options": Options(excluded_layers=("stem",)),
        "layers": (
            LayerPlan(name="stem", kind="Conv2D", group=0, filters=2, kept=(0, 1), protection="excluded"),
            LayerPlan(name="conv", kind="Conv2D", group=1, filters=4, kept=(1, 3)),
        ),
        "parameters_before": 1000,
        "parameters_after": 420,
        "flops_before": 2000,
        "flops_after": 1000,
    }
    return PruningPlan(**{**fields, **changes})


def test_a_plan_survives_json():
    assert PruningPlan.model_validate_json(a_plan().to_json()) == a_plan()


def test_a_stored_plan_says_whole_for_the_reason_of_a_protection():
    stored = a_plan().to_json()
    assert '"whole":"excluded"' in stored
    assert PruningPlan.model_validate_json(stored).layers[0].protection == "excluded"


def test_the_table_has_a_line_for_each_layer_and_ends_with_the_totals():
    lines = a_plan().table().splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["stem", "conv"]
    assert lines[1].split()[2:] == ["0", "2", "2", "(excluded)"]
    assert lines[2].split()[2:] == ["1", "4", "2"]
    assert "420 of 1,000 parameters (42.0%)" in lines[-1]
    assert "threshold 0.37 found for target.parameters 0.5" in lines[-1]


def test_kept_fractions():
    assert (a_plan().parameters_kept, a_plan().flops_kept) == (0.42, 0.5)
