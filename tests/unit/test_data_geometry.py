"""Boxes follow their image: numbers worked out by hand, then the property for drawings of any size."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tlt_runner.data.images import geometry


def test_stretch_scales_each_axis_on_its_own() -> None:
    where = geometry.placement(100, 200, height=64, width=64, mode="stretch")
    # y * 0.64, x * 0.32
    assert where.to_network(np.array([[10.0, 20.0, 50.0, 100.0]])).tolist() == [[6.4, 6.4, 32.0, 32.0]]


def test_letterbox_keeps_the_aspect_ratio_and_centres() -> None:
    where = geometry.placement(100, 200, height=128, width=128, mode="letterbox")
    # scale 0.64: the content is 64 x 128, with 32 rows of padding above and below
    assert (where.content_height, where.content_width, where.offset_y, where.offset_x) == (64, 128, 32, 0)
    assert where.to_network(np.array([[0.0, 0.0, 100.0, 200.0]])).tolist() == [[32.0, 0.0, 96.0, 128.0]]
    assert where.to_network(np.array([[50.0, 100.0, 75.0, 150.0]])).tolist() == [[64.0, 64.0, 80.0, 96.0]]


def test_letterbox_puts_an_odd_pixel_of_padding_below() -> None:
    where = geometry.placement(101, 128, height=128, width=128, mode="letterbox")
    image = geometry.place_image(np.full((101, 128, 3), 200, np.uint8), where)
    assert where.offset_y == 13
    assert image[12].max() == 0
    assert image[13].min() == 200
    assert image[113].min() == 200
    assert image[114].max() == 0


def test_clip_cuts_at_the_edges_and_leaves_no_area_outside() -> None:
    boxes = np.array([[-5.0, -5.0, 20.0, 30.0], [2.0, 3.0, 4.0, 5.0], [120.0, 0.0, 130.0, 10.0]])
    assert geometry.clip(boxes, 100, 25).tolist() == [
        [0.0, 0.0, 20.0, 25.0],
        [2.0, 3.0, 4.0, 5.0],
        [100.0, 0.0, 100.0, 10.0],
    ]


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_an_image_without_boxes_is_mapped(mode: str) -> None:
    where = geometry.placement(10, 10, 64, 64, mode)  # type: ignore[arg-type]
    assert where.to_network(np.zeros((0, 4))).shape == (0, 4)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    where = geometry.placement(64, 80, 64, 80, "letterbox")
    assert np.array_equal(geometry.place_image(pixels, where), pixels)


@given(
    original=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    size=st.tuples(st.integers(4, 64), st.integers(4, 64)),
    mode=st.sampled_from(["stretch", "letterbox"]),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_to_original_is_the_inverse_of_to_network(
    original: tuple[int, int], size: tuple[int, int], mode: str, corners: list[float]
) -> None:
    where = geometry.placement(*original, 16 * size[0], 16 * size[1], mode)  # type: ignore[arg-type]
    boxes = np.array([corners]) * np.array([*original, *original])
    network_boxes = where.to_network(boxes)
    assert np.allclose(where.to_original(network_boxes), boxes, atol=1e-6 * max(original))
    assert (network_boxes >= 0).all()
    assert (network_boxes[:, 0::2] <= 16 * size[0] + 1e-9).all()
    assert (network_boxes[:, 1::2] <= 16 * size[1] + 1e-9).all()


PAPER, INK = 64, 192
"""Grey values that leave room for what cubic interpolation adds at an edge."""


@settings(max_examples=100, deadline=None)
@given(
    original=st.tuples(st.integers(16, 300), st.integers(16, 300)),
    size=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    mode=st.sampled_from(["stretch", "letterbox"]),
    fractions=st.tuples(st.floats(0, 0.7), st.floats(0, 0.7), st.floats(0.1, 1), st.floats(0.1, 1)),
)
@example(original=(75, 100), size=(12, 12), mode="letterbox", fractions=(0.2, 0.2, 0.5, 0.5))
@example(original=(300, 16), size=(2, 12), mode="stretch", fractions=(0.5, 0.5, 0.25, 0.25))
@example(original=(300, 16), size=(2, 12), mode="stretch", fractions=(0.0, 0.0, 1.0, 1.0))
def test_the_box_of_the_resized_drawing_is_the_resized_box(
    original: tuple[int, int],
    size: tuple[int, int],
    mode: Literal["stretch", "letterbox"],
    fractions: tuple[float, float, float, float],
) -> None:
    height, width = original
    top, left = int(fractions[0] * height), int(fractions[1] * width)
    bottom = min(height, top + max(4, int(fractions[2] * height)))
    right = min(width, left + max(4, int(fractions[3] * width)))
    drawing = np.full((height, width, 3), PAPER, np.uint8)
    drawing[top:bottom, left:right] = INK
    where = geometry.placement(height, width, 16 * size[0], 16 * size[1], mode)
    placed = geometry.place_image(drawing, where)[..., 0]
    assert placed.shape == (16 * size[0], 16 * size[1])
    expected = where.to_network(np.array([[top, left, bottom, right]]))[0]
    assume((expected[2:] - expected[:2] >= 2).all())
    # A fraction of a pixel of the coarser image: pixels are rounded, and cubic interpolation rings.
    far = np.abs(_box_of_the_ink(placed, where, expected) - expected)
    assert (far <= 0.2 * np.maximum(1, [where.scale_y, where.scale_x] * 2)).all()


def _box_of_the_ink(placed: np.ndarray, where: geometry.Placement, expected: np.ndarray) -> np.ndarray:
    """Find the edges at which the ink falls to half of its middle value, to a fraction of a pixel."""
    content = np.full((where.height + 2, where.width + 2), float(PAPER))
    rows = slice(where.offset_y, where.offset_y + where.content_height)
    columns = slice(where.offset_x, where.offset_x + where.content_width)
    content[1:-1, 1:-1][rows, columns] = placed[rows, columns]
    edges = np.zeros(4)
    for axis in (0, 1):
        ink = (content - PAPER).sum(axis=1 - axis)
        middle = round((expected[axis] + expected[2 + axis]) / 2 + 0.5)
        half = ink[middle] / 2
        before = np.flatnonzero(ink[:middle] < half)[-1]
        behind = middle + np.flatnonzero(ink[middle:] < half)[0]
        # Pixel i of the sums, which begin one pixel early, has its centre at i - 0.5.
        edges[axis] = before - 0.5 + (half - ink[before]) / (ink[before + 1] - ink[before])
        edges[2 + axis] = behind - 0.5 - (half - ink[behind]) / (ink[behind - 1] - ink[behind])
    return edges
