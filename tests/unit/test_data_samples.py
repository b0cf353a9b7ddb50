"""Objects and ignored regions of a training image, brought to a fixed number of rows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tlt_api.training import Augmentation
from tlt_runner.data.input_pipeline.augment import Change
from tlt_runner.data.input_pipeline.samples import Objects, SampleMaker, enclose
from tlt_runner.data.sample import IGNORED

STILL = Change(np.eye(2, 3), None)


def padded(boxes: np.ndarray, classes: list[int], max_objects: int, rows: int) -> tuple[list, list, list]:
    with ThreadPoolExecutor(1) as executor:
        maker = SampleMaker(Augmentation(), 100, 100, 3, max_objects, rows, 1, 0, executor)
        made = maker._padded(Objects(boxes, np.array(classes, np.int32)))
    return tuple(part.tolist() for part in made)  # type: ignore[return-value]


def squares(*sides: int) -> np.ndarray:
    return np.array([[20 * place, 0, 20 * place + side, side] for place, side in enumerate(sides)], float)


def test_the_largest_objects_are_kept_in_the_labels_order_and_the_others_are_ignored() -> None:
    boxes, classes, left_out = padded(squares(5, 9, 3, 7), [0, 1, 2, 0], max_objects=2, rows=5)
    assert classes == [1, 0, -2, -2, -1]
    assert [box[2] - box[0] for box in boxes] == [9, 7, 5, 3, 0]
    assert left_out == [0, 2]


def test_fewer_objects_than_there_is_room_for_stay_as_they_are() -> None:
    boxes, classes, left_out = padded(squares(5, 9), [0, -4], max_objects=2, rows=3)
    assert (classes, left_out) == ([0, -2, -1], [0, 0])
    assert boxes[1] == [20, 0, 29, 9]


def test_regions_that_have_no_row_of_their_own_share_one_with_their_neighbours() -> None:
    places = np.array([[0, 0, 4, 4], [0, 6, 4, 10], [90, 0, 94, 4], [90, 6, 94, 10]], float)
    boxes, classes, _ = padded(places, [-2, -3, -2, -3], max_objects=1, rows=2)
    assert classes == [-2, -2]
    assert boxes == [[0, 0, 4, 10], [90, 0, 94, 10]]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_enclosing_boxes_are_few_and_cover_every_region(count: int) -> None:
    corner = np.random.default_rng(count).uniform(0, 90, (25, 2))
    regions = np.concatenate([corner, corner + 8], axis=1)
    boxes = enclose(regions, count)
    assert len(boxes) == min(count, 25)
    inside = (boxes[None, :, :2] <= regions[:, None, :2]) & (boxes[None, :, 2:] >= regions[:, None, 2:])
    assert inside.all(axis=2).any(axis=1).all()


def test_an_ignored_region_narrower_than_the_smallest_object_stays() -> None:
    boxes = np.array([[0, 0, 40, 20], [0, 30, 40, 50]], np.float32)
    with ThreadPoolExecutor(1) as executor:
        maker = SampleMaker(Augmentation(min_width=30), 100, 100, 3, 5, 5, 1, 0, executor)
        moved = maker._changed(Objects(boxes, np.array([0, IGNORED], np.int32)), STILL)
    assert moved.classes.tolist() == [IGNORED]
    assert moved.out_of_sight == 1
