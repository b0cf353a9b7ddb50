"""The layers of a weights file, from files written by hand as Keras 2 and 3 lay them out."""

from collections.abc import Mapping
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest

from tlt_runner.training.pretrained import files


def keras_2(path: Path, groups: Mapping[str, list[str]]) -> files.WeightsFile:
    """A group a layer, with its weights' names; each weight is its number in the group."""
    with h5py.File(path, "w") as file:
        for name, weights in groups.items():
            group = file.create_group(f"model_weights/{name}")
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for number, weight in enumerate(weights):
                group[weight] = np.array([number])
    return files.read(path)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"conv1": ["conv1/kernel:0", "conv1/bias:0"]}, {"conv1": [0, 1]}),
        ({"conv1": ["conv1_1/kernel:0", "conv1_1/bias:0"]}, {"conv1": [0, 1]}),
        ({"conv1": ["conv1_W:0", "conv1_b:0"]}, {"conv1": [0, 1]}),
        ({"lstm": ["lstm/lstm_cell/kernel:0", "lstm/lstm_cell/bias:0"]}, {"lstm": [0, 1]}),
        ({"pool": [], "dense": ["sequential/dense/kernel"]}, {"dense": [0]}),
        (
            {
                "vgg": [
                    "conv1/kernel:0",
                    "bn/gamma:0",
                    "bn/beta:0",
                    "bn/moving_mean:0",
                    "bn/moving_variance:0",
                ]
            },
            {"conv1": [0], "bn": [1, 2, 3, 4]},
        ),
        (
            {"vgg": ["vgg/bn/gamma", "vgg/conv1/kernel", "vgg/bn/moving_mean"], "fc": ["fc/kernel"]},
            {"bn": [0, 2], "conv1": [1], "fc": [0]},
        ),
    ],
)
def test_a_layer_has_its_own_name_also_in_a_nested_model(
    groups: dict[str, list[str]], expected: dict[str, list[int]], tmp_path: Path
) -> None:
    file = keras_2(tmp_path / "given.h5", groups)
    assert {name: [int(value[0]) for value in arrays] for name, arrays in file.layers.items()} == expected
    assert file.ambiguous == ()


@pytest.mark.parametrize(
    "groups",
    [
        {"left": ["conv1/kernel", "fc/kernel"], "right": ["conv1/kernel", "bn/gamma"]},
        {"both": ["left/conv1/kernel", "right/conv1/kernel", "fc/kernel", "bn/gamma"]},
        {"conv1": ["conv1/kernel"], "other": ["conv1/kernel", "fc/kernel", "bn/gamma"]},
    ],
)
def test_a_name_of_two_layers_is_ambiguous(groups: dict[str, list[str]], tmp_path: Path) -> None:
    file = keras_2(tmp_path / "given.h5", groups)
    assert file.ambiguous == ("conv1",)
    assert set(file.layers) == {"fc", "bn"}


def test_a_name_of_two_layers_is_ambiguous_in_a_file_of_keras_3(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "given.weights.h5", "w") as file:
        for path, name in (("a/conv2d", "conv1"), ("b/conv2d", "conv1"), ("b/dense", "fc")):
            group = file.create_group(f"layers/{path}/vars")
            group.attrs["name"] = name
            group["0"] = np.zeros(1)
    weights_file = files.read(tmp_path / "given.weights.h5")
    assert weights_file.ambiguous == ("conv1",)
    assert list(weights_file.layers) == ["fc"]
