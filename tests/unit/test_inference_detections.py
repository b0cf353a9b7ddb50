"""Detections in an image's own pixels, as text and as drawing; by hand."""

import cv2
import numpy as np

from tlt_runner.data.images.geometry import placement
from tlt_runner.evaluation.visualize import colour, draw, encode
from tlt_runner.inference.detections import ImageDetections, in_image, label_text

NOTHING = np.zeros((0, 4))


def batch(*detections: tuple[list[float], float, int]) -> dict[str, np.ndarray]:
    boxes, scores, classes = zip(*detections, strict=True)
    return {"boxes": np.array([boxes]), "scores": np.array([scores]), "classes": np.array([classes])}


def test_a_stretched_box_goes_back_to_the_original() -> None:
    where = placement(50, 200, 100, 100, "stretch")  # twice as high, half as wide
    detections = in_image(batch(([20, 10, 60, 30], 0.9, 1)), 0, (50, 200), where, lowest_scores=[0.5] * 3)
    assert detections.boxes.tolist() == [[10, 20, 30, 60]]
    assert (detections.class_ids, detections.scores, detections.clipped, detections.outside) == (
        [1],
        [0.9],
        0,
        0,
    )


def test_a_letterboxed_box_is_cut_at_the_image_and_left_out_in_the_padding() -> None:
    where = placement(50, 100, 100, 100, "letterbox")  # scale 1, rows 25 to 75
    raw = batch(([20, 10, 60, 30], 0.9, 0), ([0, 0, 25, 50], 0.8, 0), ([30, 0, 40, 100], 0.7, 0))
    detections = in_image(raw, 0, (50, 100), where, lowest_scores=[0.5] * 3)
    assert detections.boxes.tolist() == [[0, 10, 35, 30], [5, 0, 15, 100]]
    assert (detections.scores, detections.clipped, detections.outside) == ([0.9, 0.7], 1, 1)


def test_padding_low_scores_and_nan_are_left_out() -> None:
    where = placement(100, 100, 100, 100, "stretch")
    box = [1.0, 1.0, 2.0, 2.0]
    raw = batch(
        (box, 0.6, 0), (box, 0.59, 0), (box, 0.9, -1), ([float("nan"), *box[1:]], 0.9, 0), (box, np.nan, 0)
    )
    assert in_image(raw, 0, (100, 100), where, lowest_scores=[0.6] * 3).scores == [0.6]


def test_a_label_line_has_sixteen_columns_with_the_score_last() -> None:
    detections = ImageDetections(np.array([[1.0, 2.0, 30.456, 40.0]]), [1], [0.98765432], 0, 0)
    assert label_text(detections, ["bus", "fire_truck"]) == (
        "fire_truck 0.00 0 0.00 2.00 1.00 40.00 30.46 0 0 0 0 0 0 0 0.9876543\n"
    )
    assert label_text(ImageDetections(NOTHING, [], [], 0, 0), ["bus"]) == ""


def test_a_box_is_drawn_along_its_edges_and_the_original_stays() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    drawn = draw(image, np.array([[40.0, 50.0, 80.0, 150.0]]), ["bus: 0.90"], [0])
    assert not image.any()
    marked = (drawn == colour(0)).all(axis=-1)
    for row, column in ((40, 60), (79, 60), (60, 50), (60, 149)):
        assert marked[row, column]
    assert not drawn[45:75, 55:145].any()  # the caption is above
    assert not drawn[:, 160:].any()
    assert drawn[30:38, 50:60].any()


def test_captions_have_room_at_every_edge() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    corners = np.array([[0.0, 0.0, 5.0, 5.0], [35.0, 55.0, 40.0, 60.0]])
    assert draw(image, corners, ["überlanger Name: 0.5", "x"], [0, 1]).shape == image.shape


def test_classes_side_by_side_have_different_colours() -> None:
    assert len({colour(class_id) for class_id in range(50)}) == 50


def test_a_drawn_image_keeps_its_file_format() -> None:
    image = np.full((8, 8, 3), 77, np.uint8)
    assert encode(image, ".PNG").startswith(b"\x89PNG")
    assert encode(image, ".JPEG").startswith(b"\xff\xd8\xff")
    decoded = cv2.imdecode(np.frombuffer(encode(image, ".png"), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded, image)


def test_each_class_has_a_lowest_score_of_its_own() -> None:
    where = placement(100, 100, 100, 100, "stretch")
    raw = batch(([0, 0, 10, 10], 0.5, 0), ([0, 0, 10, 10], 0.5, 1))
    kept = in_image(raw, 0, (100, 100), where, lowest_scores=[0.4, 0.6])
    assert kept.class_ids == [0]
