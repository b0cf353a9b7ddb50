"""Soft-start annealing, by hand."""

import pytest

from tlt_api.training import LearningRate
from tlt_runner.training.schedule import learning_rate

SPEC = LearningRate(min=1e-5, max=1e-3, soft_start=0.2, annealing=0.6)


@pytest.mark.parametrize(
    ("progress", "wanted"),
    [(0, 1e-5), (0.1, 1e-4), (0.2, 1e-3), (0.4, 1e-3), (0.6, 1e-3), (0.8, 1e-4), (1, 1e-5), (1.2, 1e-5)],
)
def test_the_rate_rises_stays_and_falls_exponentially(progress: float, wanted: float) -> None:
    assert learning_rate(progress, SPEC) == pytest.approx(wanted)


def test_a_schedule_without_rise_and_fall_is_constant() -> None:
    flat = LearningRate(min=1e-5, max=1e-3, soft_start=0, annealing=1)
    assert {learning_rate(progress / 10, flat) for progress in range(11)} == {1e-3}
