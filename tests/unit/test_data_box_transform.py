"""Boxes of an image: which are used, where they lie in the resized image, and labels of another image."""

from pathlib import Path

import pytest

from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import geometry
from tlt_runner.data.images.decode import BadImageError
from tlt_runner.data.images.header import Header
from tlt_runner.data.preparation import convert
from tlt_runner.data.sample import LabelledBox, Labels, Problem, Sample

SAMPLE = Sample("images/1", "1", Path("1.png"), "images/1.png", "labels/1.txt", "1.txt")


def header(orientation: int) -> Header:
    return Header("PNG", height=40, width=60, oddities=(), fits_records=False, orientation=orientation)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_label_of_the_turned_image_is_explained(orientation: int) -> None:
    with pytest.raises(BadImageError) as caught:
        convert.check_label(header(orientation), Labels(image_size=(60, 40)), (40, 60))
    assert caught.value.problem == Problem.SIZE_MISMATCH
    assert "EXIF orientation" in caught.value.message


@pytest.mark.parametrize("orientation", [1, 4])
def test_an_image_that_is_not_turned_gets_no_such_explanation(orientation: int) -> None:
    with pytest.raises(BadImageError) as caught:
        convert.check_label(header(orientation), Labels(image_size=(60, 40)), (40, 60))
    assert "EXIF" not in caught.value.message


@pytest.mark.parametrize(("side", "usable"), [(2.0, 1), (1.99, 0)])
def test_a_box_of_one_pixel_in_the_resized_image_is_used_and_a_smaller_one_is_not(
    side: float, usable: int
) -> None:
    placement = geometry.placement(40, 60, 20, 30, "stretch")  # half the size
    box = LabelledBox("car", (10.0, 10.0, 10.0 + side, 30.0))
    transformed = convert.transform_boxes([box], SAMPLE, ClassMapping({"car": "car"}), (40, 60), placement)
    assert len(transformed.boxes) == usable
    assert [finding.problem for finding in transformed.dropped] == [Problem.TOO_SMALL] * (1 - usable)


@pytest.mark.parametrize(
    ("right", "clipped", "reaching_out"),
    [(60.0, 0, 0), (60.5, 1, 0), (62.0, 1, 0), (62.5, 1, 1)],
)
def test_a_box_that_reaches_out_by_more_than_a_tools_rounding_is_counted(
    right: float, clipped: int, reaching_out: int
) -> None:
    placement = geometry.placement(40, 60, 40, 60, "stretch")
    box = LabelledBox("car", (10.0, 10.0, 30.0, right))
    transformed = convert.transform_boxes([box], SAMPLE, ClassMapping({"car": "car"}), (40, 60), placement)
    assert (transformed.clipped, transformed.reaching_out) == (clipped, reaching_out)
