"""Weights of other networks and other classes, in numbers worked out by hand."""

import numpy as np
import pytest

from lazy import Lazy

class_outputs = Lazy("tlt_runner.training.pretrained.class_outputs")
load = Lazy("tlt_runner.training.pretrained.load")


def test_folded_weights_do_what_convolution_and_normalisation_did() -> None:
    kernel = np.array([[[[2.0, 1.0]]]], np.float32)
    bias = np.array([1.0, 0.0], np.float32)
    gamma, beta, mean, variance = (np.array(v, np.float32) for v in ([4, 1], [3, 0], [5, 2], [3, 0]))
    folded, moved = load.fold([kernel, bias], [gamma, beta, mean, variance], epsilon=1.0)
    # 4 (2x + 1 - 5) / 2 + 3 = 4x - 5, and (x - 2) / 1
    np.testing.assert_allclose(folded.ravel(), [4, 1])
    np.testing.assert_allclose(moved, [-5, -2])
    np.testing.assert_allclose(load.fold([kernel], [gamma, beta, mean, variance], 1.0)[1], [-7, -2])


def test_a_kept_class_takes_its_weights_to_its_new_id() -> None:
    change = class_outputs.ClassChange.between(["bus", "car", "dog"], ["car", "van"])
    given = [np.array([[1.0, 2, 3, 9]]), np.array([10.0, 20, 30, 90])]
    kernel, bias = change.carried("head_classes", [np.zeros((1, 3)), np.zeros(3)], given)
    np.testing.assert_array_equal(kernel, [[2, 0, 9]])
    np.testing.assert_array_equal(bias, [20, 0, 90])
    boxes = [np.arange(12.0)[None], np.arange(12.0)]
    kernel, bias = change.carried("head_deltas", [np.full((1, 8), -1.0), np.full(8, -1.0)], boxes)
    np.testing.assert_array_equal(kernel, [[4, 5, 6, 7, -1, -1, -1, -1]])
    np.testing.assert_array_equal(bias, kernel[0])


def test_a_change_of_classes_is_described_by_names() -> None:
    change = class_outputs.ClassChange.between(["bus", "car"], ["car", "van"])
    assert change.text == "initialised anew: van; kept with their weights: car; dropped: bus"


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        (("Keras", ("a", "b")), "2 of 2 layers loaded"),
        (
            ("TLT", ("a",), ("b",), ("c (model, file)",), ("d", "e"), ("f",), ("g", "h")),
            "1 of 5 layers loaded, 1 for some classes only, 1 of another shape, 2 not in the file, "
            "1 of the file not used, 2 names in the file of several layers",
        ),
    ],
)
def test_the_summary_of_loaded_layers_is_one_line(layers: tuple[object, ...], line: str) -> None:
    assert load.Taken(*layers).summary == line
