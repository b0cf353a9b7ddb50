"""Augmentation: matrices, the boxes that follow them, and drawings that show the pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_api.training import Augmentation
from tlt_runner.data.input_pipeline import augment, mosaic

HEIGHT, WIDTH = 96, 128
OFF = Augmentation(horizontal_flip=0)
GREYS = np.array([[0.0, 0, 0], [128, 128, 128], [255, 255, 255]])

augmentations = st.builds(
    Augmentation,
    horizontal_flip=st.sampled_from([0.0, 0.5, 1.0]),
    vertical_flip=st.sampled_from([0.0, 0.5, 1.0]),
    zoom_min=st.floats(0.5, 1),
    zoom_max=st.floats(1, 2),
    translate_max_x=st.integers(0, 40),
    translate_max_y=st.integers(0, 40),
    rotate_rad_max=st.floats(0, 3.15),
    rotate_probability=st.sampled_from([0.0, 0.5, 1.0]),
)


def draw(augmentation: Augmentation, position: int = 0) -> augment.Change:
    return augment.draw(augmentation, HEIGHT, WIDTH, augment.generator(1, 0, position))


def painted(image: np.ndarray, change: augment.Change) -> np.ndarray:
    out = np.full_like(image, 77)
    augment.paint(image, change, out)
    return out


def coloured(change: augment.Change, pixels: np.ndarray) -> np.ndarray:
    assert change.colour is not None
    return pixels @ change.colour[:, :3].T + change.colour[:, 3]


def rectangle(box: np.ndarray) -> np.ndarray:
    """White on black."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    y1, x1, y2, x2 = box.astype(int)
    image[y1:y2, x1:x2] = 255
    return image


def drawn_box(image: np.ndarray) -> np.ndarray:
    """The box around what is at least half white."""
    rows, columns = np.nonzero(image[..., 0] >= 128)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def test_an_augmentation_with_everything_off_changes_nothing() -> None:
    change = draw(OFF)
    assert change.affine.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert change.colour is None
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    assert np.array_equal(painted(image, change), image)


def test_mirroring_moves_pixels_and_boxes_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    box = np.array([[10.0, 20, 30, 50]])
    sideways, upside_down = (
        draw(Augmentation(horizontal_flip=1)),
        draw(OFF.model_copy(update={"vertical_flip": 1})),
    )
    assert np.array_equal(painted(image, sideways), image[:, ::-1])
    assert augment.move_boxes(box, sideways.affine).tolist() == [[10, 78, 30, 108]]
    assert np.array_equal(painted(image, upside_down), image[::-1])
    assert augment.move_boxes(box, upside_down.affine).tolist() == [[66, 20, 86, 50]]


def test_an_image_can_be_painted_in_place() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    for change in (draw(OFF), draw(Augmentation(horizontal_flip=1)), draw(Augmentation(rotate_rad_max=1))):
        in_place = image.copy()
        augment.paint(in_place, change, in_place)
        assert np.array_equal(in_place, painted(image, change))


def test_zoom_keeps_the_centre_and_scales_boxes_about_it() -> None:
    affine = np.array([[2.0, 0, -WIDTH / 2], [0, 2, -HEIGHT / 2]])
    boxes = np.array([[38.0, 54, 58, 74]])  # 20 x 20 around (48, 64)
    assert augment.move_boxes(boxes, affine).tolist() == [[28, 44, 68, 84]]
    drawn = draw(OFF.model_copy(update={"zoom_max": 3.0}))
    assert (drawn.affine @ [WIDTH / 2, HEIGHT / 2, 1]).tolist() == pytest.approx([WIDTH / 2, HEIGHT / 2])


def test_a_square_turned_by_45_degrees_has_an_enclosing_box_of_twice_its_area() -> None:
    half = np.sqrt(0.5)
    affine = np.array([[half, -half, 0], [half, half, 0]])
    ((y1, x1, y2, x2),) = augment.move_boxes(np.array([[0.0, 0, 10, 10]]), affine)
    assert (y2 - y1) * (x2 - x1) == pytest.approx(200)


@settings(max_examples=60, deadline=None)
@given(augmentations, st.integers(0, 2**31 - 1), st.data())
def test_the_box_of_the_changed_drawing_is_the_changed_box(
    augmentation: Augmentation, position: int, data: st.DataObject
) -> None:
    top, left = data.draw(st.integers(0, HEIGHT - 16)), data.draw(st.integers(0, WIDTH - 16))
    bottom, right = (
        data.draw(st.integers(top + 12, HEIGHT)),
        data.draw(st.integers(left + 12, WIDTH)),
    )
    box = np.array([top, left, bottom, right], float)
    change = draw(augmentation, position)
    moved = augment.move_boxes(box[None], change.affine)
    inside = (moved[0, :2] >= 0).all() and (moved[0, 2:] <= [HEIGHT, WIDTH]).all()
    image = painted(rectangle(box), change)
    if inside:  # what is cut has another enclosing box than the cut enclosing box, when it is turned
        assert np.abs(drawn_box(image) - moved[0]).max() <= 1.5
    elif image.max() >= 128:
        (cut,), _ = augment.cut_boxes(moved, np.array([0, 0, HEIGHT, WIDTH]), 0.0)
        drawn = drawn_box(image)
        assert (drawn[:2] >= cut[:2] - 1.5).all()
        assert (drawn[2:] <= cut[2:] + 1.5).all()


def test_boxes_are_cut_at_the_window_and_dropped_below_their_visible_share() -> None:
    boxes = np.array([[0.0, -10, 10, 10], [0, -30, 10, 10], [0, 5, 0.5, 25], [-9, -9, -1, -1]])
    cut, kept = augment.cut_boxes(boxes, np.array([0, 0, 40, 40]), 0.3)
    assert cut.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [0, 5, 0.5, 25], [0, 0, 0, 0]]
    # Half of the first is visible, a quarter of the second; the third is half a pixel high.
    assert kept.tolist() == [True, False, False, False]


def test_boxes_narrower_or_lower_than_the_least_sides_are_dropped_by_their_cut_size() -> None:
    boxes = np.array([[0.0, 0, 8, 12], [0, 0, 7.9, 12], [0, 0, 8, 11.9], [0, WIDTH - 11, 20, WIDTH + 1]])
    window = np.array([0, 0, HEIGHT, WIDTH])
    _, kept = augment.cut_boxes(boxes, window, 0.25, (8, 12))
    assert kept.tolist() == [True, False, False, False]


def test_an_image_without_boxes_is_augmented() -> None:
    none = np.zeros((0, 4), np.float32)
    cut, kept = augment.cut_boxes(augment.move_boxes(none, draw(OFF).affine), np.array([0, 0, 9, 9]), 0.5)
    assert cut.shape == (0, 4)
    assert kept.shape == (0,)


@pytest.mark.parametrize("option", [{"hue_rotation_max": 180.0}, {"saturation_shift_max": 1.0}])
def test_hue_and_saturation_leave_greys_alone(option: dict[str, float]) -> None:
    for position in range(5):
        change = draw(OFF.model_copy(update=option), position)
        assert coloured(change, GREYS) == pytest.approx(GREYS)
        assert coloured(change, np.array([200.0, 10, 10])) != pytest.approx(np.array([200.0, 10, 10]))


def test_hue_turned_by_120_degrees_moves_each_channel_to_the_next() -> None:
    turned = augment.hue_rotation(np.deg2rad(120)) @ [255, 20, 0]
    assert turned == pytest.approx(np.array([0, 255, 20]))


def test_contrast_scales_values_about_its_centre() -> None:
    for position in range(5):
        change = draw(OFF.model_copy(update={"contrast_scale_max": 0.5, "contrast_center": 0.4}), position)
        assert coloured(change, np.full(3, 0.4 * 255)) == pytest.approx(np.full(3, 102.0))
        factor = (coloured(change, np.full(3, 202.0))[0] - 102) / 100
        assert 0.5 <= factor <= 1.5
        assert factor != pytest.approx(1)


def test_colour_shifts_have_the_configured_standard_deviation() -> None:
    shifts = [draw(OFF.model_copy(update={"color_shift_stddev": 0.1}), n).colour[:, 3] for n in range(400)]
    # 1,200 normal numbers: the estimate's own deviation is 2 %.
    assert np.std(shifts) == pytest.approx(25.5, rel=0.1)


def test_colours_are_clipped_to_bytes_and_pixels_from_outside_stay_black() -> None:
    lighter = np.column_stack([np.eye(3), np.full(3, 200.0)])
    moved = np.array([[1.0, 0, WIDTH / 2], [0, 1, 0]])
    image = painted(np.full((HEIGHT, WIDTH, 3), 100, np.uint8), augment.Change(moved, lighter))
    assert (image[:, : WIDTH // 2 - 1] == 0).all()
    assert (image[:, WIDTH // 2 + 1 :] == 255).all()


@pytest.mark.parametrize("position", range(6))
def test_a_grey_image_is_painted_as_its_three_equal_channels(position: int) -> None:
    strong = Augmentation(
        horizontal_flip=0.5, vertical_flip=0.5, zoom_min=0.8, rotate_rad_max=0.5, contrast_scale_max=0.4
    )
    # Every second change only mirrors.
    change = draw(strong if position % 2 else Augmentation(contrast_scale_max=0.4), position)
    grey = np.random.default_rng(position).integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
    assert change.colour is not None
    expected = painted(np.repeat(grey, 3, axis=2), change)
    difference = painted(grey, change).astype(int) - expected[..., :1]
    assert np.abs(difference).max() <= 1
    in_place = grey.copy()
    augment.paint(in_place, change, in_place)
    assert np.array_equal(in_place, painted(grey, change))


def test_a_shift_of_the_colours_shifts_a_grey_by_its_luma() -> None:
    colour = np.column_stack([np.eye(3), [100.0, 10.0, -50.0]])
    change = augment.Change(np.array([[1.0, 0, 0], [0, 1, 0]]), colour)
    # 0.299 * 100 + 0.587 * 10 - 0.114 * 50 = 30.07
    assert painted(np.full((4, 4, 1), 80, np.uint8), change).tolist() == [[[110]] * 4] * 4


def test_a_mosaic_of_greys_is_that_of_their_three_equal_channels() -> None:
    greys = list(np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 1), np.uint8))
    quadrants = mosaic.draw(HEIGHT, WIDTH, augment.generator(1, 0, 0))
    coloured_ones = mosaic.paint([np.repeat(grey, 3, axis=2) for grey in greys], quadrants)
    assert np.array_equal(mosaic.paint(greys, quadrants), coloured_ones[..., :1])


def test_random_numbers_depend_on_seed_epoch_and_position_alone() -> None:
    keys = [(1, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    first, again, *others = [augment.generator(*key).random(4).tolist() for key in keys]
    assert first == again
    assert all(not set(first) & set(other) for other in others)


def test_one_option_does_not_change_the_draws_of_another() -> None:
    turned = OFF.model_copy(update={"rotate_rad_max": 0.5})
    both = turned.model_copy(update={"hue_rotation_max": 20.0, "zoom_max": 2.0})
    angles = [np.arctan2(draw(one, 3).affine[1, 0], draw(one, 3).affine[0, 0]) for one in (turned, both)]
    assert angles[0] == pytest.approx(angles[1])


def test_quadrants_fill_the_mosaic_with_as_much_of_each_image_as_fits() -> None:
    for position in range(20):
        quadrants = mosaic.draw(HEIGHT, WIDTH, augment.generator(1, 0, position))
        areas = [np.prod(quadrant.window[2:] - quadrant.window[:2]) for quadrant in quadrants]
        assert sum(areas) == HEIGHT * WIDTH
        for quadrant in quadrants:
            scale = quadrant.affine[0, 0]
            assert 0.5 <= scale <= 0.76
            y1, x1, y2, x2 = augment.move_boxes(np.array([[0.0, 0, HEIGHT, WIDTH]]), quadrant.affine)[0]
            # The image covers its quadrant and lies with one corner at the centre.
            assert (np.array([y1, x1]) <= quadrant.window[:2] + 1e-9).all()
            assert (np.array([y2, x2]) >= quadrant.window[2:] - 1e-9).all()


def test_boxes_of_a_mosaic_lie_around_their_drawings() -> None:
    for position in range(10):
        quadrants = mosaic.draw(HEIGHT, WIDTH, augment.generator(1, 0, position))
        box = np.array([30.0, 40, 60, 80])
        for index in range(4):
            images = [rectangle(box) if index == one else rectangle(0 * box) for one in range(4)]
            boxes, kept = mosaic.move_boxes([box[None]] * 4, quadrants, [0.25] * 4)
            image = mosaic.paint(images, quadrants)
            if kept[index]:
                assert np.abs(drawn_box(image) - boxes[index]).max() <= 1.5


def test_a_mosaic_drops_objects_outside_their_quadrant() -> None:
    quadrant = mosaic.Quadrant(np.array([0, 0, 48, 64]), np.array([[0.5, 0, 0], [0, 0.5, -12]]))
    boxes, kept = mosaic.move_boxes([np.array([[0.0, 0, 20, 20], [16, 0, 40, 40]])], [quadrant], [0.5])
    # Halved and 12 rows up: the first is above the edge, a third of the second too.
    assert kept.tolist() == [False, True]
    assert boxes[1].tolist() == [0, 0, 8, 20]
