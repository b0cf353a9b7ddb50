"""Schedules of the learning rate, by hand; and that a field which a schedule has no use for is refused."""

import pytest
from pydantic import ValidationError

from tlt_api.training import LearningRate
from tlt_runner.training.schedule import learning_rate

ANNEALING = LearningRate(min=1e-5, max=1e-3, soft_start=0.2, annealing=0.6)
COSINE = LearningRate(schedule="cosine", min=1e-4, max=5e-4, soft_start=0.2)
STEP = LearningRate(schedule="step", max=1e-2, gamma=0.5, step_size=0.25)


@pytest.mark.parametrize(
    ("progress", "wanted"),
    [(0, 1e-5), (0.1, 1e-4), (0.2, 1e-3), (0.4, 1e-3), (0.6, 1e-3), (0.8, 1e-4), (1, 1e-5), (1.2, 1e-5)],
)
def test_the_rate_rises_stays_and_falls_exponentially(progress: float, wanted: float) -> None:
    assert learning_rate(progress, ANNEALING) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("progress", "wanted"),
    [(0, 1e-4), (0.1, 3e-4), (0.2, 5e-4), (0.4, 4.414214e-4), (0.6, 3e-4), (1, 1e-4)],
)
def test_cosine_rises_in_a_line_and_falls_by_half_a_cosine(progress: float, wanted: float) -> None:
    # at 0.4 a quarter has passed: 1e-4 + 4e-4 * (1 + cos(45 degrees)) / 2
    assert learning_rate(progress, COSINE) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("progress", "wanted"),
    [(0, 1e-2), (0.2499, 1e-2), (0.25, 5e-3), (0.49, 5e-3), (0.5, 2.5e-3), (0.75, 1.25e-3), (0.99, 1.25e-3)],
)
def test_the_step_schedule_is_constant_between_its_steps(progress: float, wanted: float) -> None:
    assert learning_rate(progress, STEP) == pytest.approx(wanted)


def test_three_tenths_are_three_steps_of_a_tenth() -> None:
    spec = LearningRate(schedule="step", max=1.0, gamma=0.1, step_size=0.1)
    assert learning_rate(3 / 10, spec) == pytest.approx(1e-3)  # 0.3 / 0.1 is 2.9999999999999996


def test_a_schedule_without_rise_and_fall_is_constant() -> None:
    flat = LearningRate(min=1e-5, max=1e-3, soft_start=0, annealing=1)
    assert {learning_rate(progress / 10, flat) for progress in range(11)} == {1e-3}


def test_the_lowest_rate_is_a_hundredth_unless_it_is_given() -> None:
    assert learning_rate(0, LearningRate(max=2e-3)) == pytest.approx(2e-5)


def test_the_rate_is_multiplied_by_the_number_of_replicas_unless_scaling_is_none() -> None:
    assert learning_rate(0.5, ANNEALING, replicas=4) == pytest.approx(4e-3)
    unscaled = LearningRate(max=1e-3, scaling="none")
    assert learning_rate(0.5, unscaled, replicas=4) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "step", "min": 1e-6},
        {"schedule": "step", "softStart": 0.1},
        {"schedule": "cosine", "annealing": 0.7},
        {"schedule": "cosine", "stepSize": 0.1},
        {"gamma": 0.5},
        {"stepSize": 0.5},
        {"softStart": 0.8},
        {"annealing": 0.05},
    ],
)
def test_a_field_that_the_schedule_does_not_use_or_that_contradicts_another_is_refused(fields: dict) -> None:
    with pytest.raises(ValidationError, match="expected (softStart <= annealing|.* only with schedule)"):
        LearningRate.model_validate(fields)
