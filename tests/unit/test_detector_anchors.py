"""Anchors, worked out by hand."""

import numpy as np

from tlt_api.model import Anchors
from tlt_runner.data.anchor_grid import shapes_of
from tlt_runner.detector.anchors import anchors
from tlt_runner.detector.config import DetectorConfig


def config(**changes: object) -> DetectorConfig:
    fields = {
        "class_names": ["car"],
        "height": 64,
        "width": 96,
        "anchors": Anchors(scales=[32], ratios=[1.0]),
    }
    return DetectorConfig.model_validate({**fields, **changes})


def test_an_anchor_is_centred_in_its_cell() -> None:
    boxes = anchors(config())
    assert boxes.shape == (4 * 6, 4)
    np.testing.assert_array_equal(boxes[0], [8 - 16, 8 - 16, 8 + 16, 8 + 16])
    np.testing.assert_array_equal(boxes[1], [-8, 24 - 16, 24, 24 + 16])  # next column
    np.testing.assert_array_equal(boxes[6], [24 - 16, -8, 24 + 16, 24])  # next row


def test_scale_is_the_side_of_a_square_of_the_same_area_and_ratio_is_width_to_height() -> None:
    sides = shapes_of(Anchors(scales=[10, 20], ratios=[1.0, 4.0]))
    np.testing.assert_allclose(sides, [[10, 10], [5, 20], [20, 20], [10, 40]])


def test_the_network_has_an_output_for_each_anchor() -> None:
    two = config(anchors=Anchors(scales=[16, 32], ratios=[0.5, 1.0, 2.0]))
    assert len(anchors(two)) == two.anchor_count == 4 * 6 * 6
