"""Anchors for the boxes of a data set: by hand where the answer is obvious, by property elsewhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_api.model import Anchors
from tlt_api.status import AnchorGap
from tlt_runner.detector.anchor_clustering import PlacedObjects, best_overlaps, compare, propose

ONE_BY_ONE = Anchors(scales=[64], ratios=[1.0])


def sizes(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, np.float32)


def centred(*pairs: tuple[float, float], classes: list[int] | None = None) -> PlacedObjects:
    """Objects of height and width, each around the centre of the cell in row 4, column 4: (72, 72)."""
    half = sizes(*pairs) / 2
    ids = np.array(classes or [0] * len(pairs))
    return PlacedObjects(np.concatenate([72 - half, 72 + half], axis=1), ids, ["car", "dog"], 144, 160)


def test_the_overlap_of_shapes_by_hand() -> None:
    anchors = Anchors(scales=[10, 20], ratios=[1.0, 4.0])  # height x width: 10x10, 5x20, 20x20, 10x40
    overlaps = best_overlaps(sizes((10, 10), (10, 20), (5, 40), (30, 40)), anchors)
    # 10x20 shares all of its 200 with 20x20 (400); 5x40 its 200 with 10x40 (400); 30x40 shares 400 of 1200.
    np.testing.assert_allclose(overlaps, [1, 0.5, 0.5, 400 / 1200], rtol=1e-6)


def test_recall_is_the_share_of_boxes_that_fit() -> None:
    anchors = Anchors(scales=[10], ratios=[1.0])
    boxes = centred((10, 10), (10, 20), (10, 40), (40, 40))  # IoU 1, 1/2, 1/4, 1/16
    results = [compare(boxes, ONE_BY_ONE, anchors, foreground=least) for least in (0.1, 0.25, 0.5, 0.6)]
    assert [item.foreground_recall for item in results] == [0.75, 0.75, 0.5, 0.25]
    assert {item.recall for item in results} == {0.5}


def test_two_clear_clusters_are_found_exactly() -> None:
    boxes = sizes(*[(40, 40)] * 30, *[(120, 120)] * 10)
    proposed = propose(boxes, Anchors(scales=[64, 128], ratios=[1.0]), seed=0)
    assert (proposed.scales, proposed.ratios) == ([40, 120], [1.0])


def test_a_grid_of_shapes_is_found_exactly() -> None:
    # Areas 32 and 128 squared; width / height 1/2, 1 and 2: 22.627 x 45.255 has ratio 2 and area 1024.
    wanted = Anchors(scales=[32, 128], ratios=[0.5, 1.0, 2.0])
    root = 2**0.5
    boxes = [(s * r, s / r) for s in (32, 128) for r in (root, 1.0, 1 / root) for _ in range(20)]
    proposed = propose(sizes(*boxes), Anchors(scales=[64, 256], ratios=[1.0, 0.3, 3.0]), seed=1)
    assert proposed == wanted


def test_the_median_of_a_cluster_is_its_scale() -> None:
    boxes = sizes((18, 18), (19, 19), (20, 20), (22, 22), (60, 60))
    assert propose(boxes, ONE_BY_ONE, seed=0).scales == [20]


def test_anchors_that_fit_already_are_kept() -> None:
    boxes = sizes(*[(50, 50)] * 5, *[(100, 200)] * 5)
    perfect = Anchors(auto=True, scales=[50, 2 * 10000**0.5 / 2**0.5], ratios=[2.0, 1.0])
    proposed = propose(boxes, perfect, seed=0)
    assert best_overlaps(boxes, perfect).min() == pytest.approx(1.0, abs=1e-6)
    assert proposed == perfect.model_copy(update={"auto": False})


def test_fewer_shapes_than_anchors_leave_given_ones_in_place() -> None:
    proposed = propose(sizes((30, 30), (30, 30)), Anchors(scales=[64, 128, 256], ratios=[1.0, 0.5]), seed=0)
    assert (proposed.scales, proposed.ratios) == ([30, 64, 128], [0.5, 1.0])


def test_anchors_of_extreme_boxes_stay_within_the_limits_of_a_spec() -> None:
    proposed = propose(
        sizes((1, 4000), (4000, 1), (1, 1)), Anchors(scales=[64], ratios=[1.0, 2.0, 0.5]), seed=0
    )
    assert Anchors.model_validate(proposed.model_dump()) == proposed
    assert max(proposed.ratios) <= 100


@pytest.mark.parametrize("wrong", [np.zeros((0, 2)), sizes((0, 5)), sizes((5, float("nan")))])
def test_sizes_that_are_not_positive_numbers_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected heights and widths above 0"):
        propose(wrong, ONE_BY_ONE, seed=0)


def test_the_comparison_reports_both_sets() -> None:
    boxes = centred(*[(32, 32)] * 3, (64, 64))
    result = compare(boxes, ONE_BY_ONE, Anchors(scales=[32], ratios=[1.0]), foreground=0.7)
    assert (result.scales, result.ratios) == ([32], [1.0])
    assert (result.recall, result.default_recall) == (0.75, 0.25)  # 32 in 64 has an IoU of 1/4
    assert (result.foreground_recall, result.default_foreground_recall) == (0.75, 0.25)
    assert (result.mean_overlap, result.default_mean_overlap) == (0.8125, 0.4375)


def test_an_anchor_fits_an_object_by_its_place_on_the_grid() -> None:
    # 16 x 16 with an anchor of its shape: 0, 4 and 8 pixels beside a centre along both axes the IoU is 1,
    # 144 / (512 - 144) = 0.39 and 64 / (512 - 64) = 0.14; 4 beside along one axis 192 / 320 = 0.6.
    low = np.array([[64, 64], [68, 68], [72, 72], [64, 68]], np.float32)
    objects = PlacedObjects(np.concatenate([low, low + 16], axis=1), np.zeros(4, int), ["car"], 144, 160)
    own = Anchors(scales=[16], ratios=[1.0])
    np.testing.assert_allclose(objects.best_overlaps(own), [1, 144 / 368, 64 / 448, 0.6], rtol=1e-6)
    result = compare(objects, ONE_BY_ONE, own, foreground=0.7)
    assert (result.recall, result.foreground_recall, result.default_recall) == (0.5, 0.25, 0.0)
    assert result.gaps == [AnchorGap(name="car", size=16, objects=4, missed=2)]


def test_gaps_are_by_class_and_size_and_the_largest_come_first() -> None:
    objects = centred(*[(12, 12)] * 2, *[(33, 30)] * 3, (64, 64), *[(12, 12)] * 3, classes=[0] * 6 + [1] * 3)
    result = compare(objects, ONE_BY_ONE, ONE_BY_ONE, foreground=0.7)
    assert [(gap.name, gap.size, gap.objects, gap.missed) for gap in result.gaps or ()] == [
        ("car", 16, 3, 3),  # 33 x 30 is 31.5 squared
        ("dog", 8, 3, 3),
        ("car", 8, 2, 2),
    ]


SIDE = st.floats(1, 2000, width=32)


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=60),
    scales=st.lists(st.floats(1, 1000, width=32), min_size=1, max_size=4, unique=True),
    ratios=st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 2**31),
)
def test_a_proposal_is_never_worse_has_as_many_anchors_and_is_reproducible(
    boxes: list[tuple[float, float]], scales: list[float], ratios: list[float], seed: int
) -> None:
    shapes, before = sizes(*boxes), Anchors(scales=scales, ratios=ratios)
    proposed = propose(shapes, before, seed)
    assert best_overlaps(shapes, proposed).mean() >= best_overlaps(shapes, before).mean()
    assert (len(proposed.scales), len(proposed.ratios)) == (len(scales), len(ratios))
    assert Anchors.model_validate(proposed.model_dump()) == proposed
    assert propose(shapes, before, seed) == proposed


@settings(max_examples=40, deadline=None)
@given(boxes=st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=30), factor=st.sampled_from([0.5, 2.0]))
def test_overlap_does_not_depend_on_the_unit(boxes: list[tuple[float, float]], factor: float) -> None:
    shapes = sizes(*boxes)
    anchors = Anchors(scales=[30, 90], ratios=[0.5, 1.5])
    larger = Anchors(scales=[30 * factor, 90 * factor], ratios=[0.5, 1.5])
    np.testing.assert_allclose(
        best_overlaps(shapes, anchors), best_overlaps(shapes * factor, larger), rtol=1e-4
    )
