"""The knobs of a step on two devices, here two logical CPUs, for which TensorFlow needs another process."""

import json
import math
from typing import Any

import pytest

import patience
from forked import Forked


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("steps")
    process = Forked("training_steps_process:main", [str(folder / "figures.json")], folder / "log")
    assert process.wait(patience.MINUTES) == 0, (folder / "log").read_text()[-2000:]
    read: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return read


def test_two_replicas_clip_and_average_as_one_device_does(figures: dict[str, Any]) -> None:
    assert figures["norm"] > 1.0
    assert figures["norm_of_parts"] == pytest.approx(figures["norm"], rel=1e-4)
    assert figures["difference"] < 1e-4


def test_all_options_at_once_give_a_finite_falling_loss_on_two_replicas(figures: dict[str, Any]) -> None:
    course = figures["all_knobs"]
    assert all(map(math.isfinite, course))
    assert course[-1] < course[0]


def test_replicas_have_the_same_moving_statistics_and_those_are_saved(figures: dict[str, Any]) -> None:
    for statistics in figures["statistics"]:
        assert statistics["copies"] == 2
        assert statistics["apart"] == 0.0
        assert statistics["least_moved"] > 0.0
