"""The knobs of a step on two devices, here two logical CPUs, for which TensorFlow needs another process."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("training_steps_process.py")


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def test_two_replicas_clip_and_average_as_one_device_does(seen: dict[str, Any]) -> None:
    assert seen["norm"] > 1.0
    assert seen["norm_of_parts"] == pytest.approx(seen["norm"], rel=1e-4)
    assert seen["difference"] < 1e-4


def test_all_knobs_at_once_make_a_finite_falling_loss_on_two_replicas(seen: dict[str, Any]) -> None:
    course = seen["all_knobs"]
    assert all(map(math.isfinite, course))
    assert course[-1] < course[0]


def test_replicas_have_the_same_moving_statistics_and_those_are_saved(seen: dict[str, Any]) -> None:
    for found in seen["statistics"]:
        assert found["copies"] == 2
        assert found["apart"] == 0.0
        assert found["least_moved"] > 0.0
