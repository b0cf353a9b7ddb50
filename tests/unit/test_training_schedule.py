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


MULTI_STEP = LearningRate(
    schedule="multiStep", min=1e-4, max=1e-2, soft_start=0.2, milestones=[0.5, 0.8], gamma=0.25
)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0, 1e-4),
        (0.05, 2.575e-3),  # 1e-4 + 9.9e-3 / 4
        (0.1, 5.05e-3),
        (0.2, 1e-2),
        (0.499, 1e-2),
        (0.5, 2.5e-3),
        (0.79, 2.5e-3),
        (0.8, 6.25e-4),
        (1, 6.25e-4),
    ],
)
def test_multi_step_rises_in_a_line_and_falls_at_its_milestones(progress: float, expected: float) -> None:
    assert learning_rate(progress, MULTI_STEP) == pytest.approx(expected)


def _tlt_soft_start(
    progress: float, start: float, base: float, end: float, points: list[float], divider: float
) -> float:
    """NVIDIA's MultiGPULearningRateScheduler (tao_tensorflow1_backend), written down from its description."""
    if progress < end:
        return (1 - progress / end) * start + progress / end * base
    for point in points:
        if progress > point:
            base /= divider
    return base


@pytest.mark.parametrize(
    ("start", "base", "end", "points", "divider"),
    [
        (1e-6, 1e-5, 0.1, [0.7], 10.0),  # its sample spec resnet18_annealing_lr
        (2e-5, 2e-2, 0.1, [0.8, 0.9], 10.0),
        (3e-4, 5e-4, 0.056, [0.33, 0.66, 0.88], 10.0),
        (1e-3, 2e-2, 0.15, [0.3, 0.6, 0.6], 3.0),  # equal points divide twice
    ],
)
def test_multi_step_is_tlts_soft_start_at_every_step_but_those_at_its_points(
    start: float, base: float, end: float, points: list[float], divider: float
) -> None:
    spec = LearningRate(
        schedule="multiStep", min=start, max=base, soft_start=end, milestones=points, gamma=1 / divider
    )
    steps = 1000
    different = {
        step / steps
        for step in range(steps)
        if learning_rate(step / steps, spec)
        != pytest.approx(_tlt_soft_start(step / steps, start, base, end, points, divider), rel=1e-9)
    }
    assert different == set(points)  # TLT divides at the step after the point


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 1e-2), (0.25, 5e-3), (0.375, 3.5355339e-3), (0.5, 2.5e-3), (1, 6.25e-4)],
)
def test_exponential_falls_by_gamma_over_every_step_size(progress: float, expected: float) -> None:
    # at 0.375 one and a half steps have passed: 1e-2 * 0.5^1.5
    spec = LearningRate(schedule="exponential", max=1e-2, gamma=0.5, step_size=0.25)
    assert learning_rate(progress, spec) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 1e-3), (0.05, 5.5e-3), (0.1, 1e-2), (0.25, 5e-3), (0.5, 2.5e-3)]
)
def test_a_step_schedule_takes_a_warm_up(progress: float, expected: float) -> None:
    spec = LearningRate(schedule="step", min=1e-3, max=1e-2, soft_start=0.1, gamma=0.5, step_size=0.25)
    assert learning_rate(progress, spec) == pytest.approx(expected)


def test_a_warm_up_starts_at_a_hundredth_unless_min_is_given() -> None:
    spec = LearningRate(schedule="step", max=1e-2, soft_start=0.1)
    assert learning_rate(0, spec) == pytest.approx(1e-4)


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
        {"schedule": "multiStep", "milestones": [0.5], "min": 1e-6},
        {"schedule": "step", "min": 1e-6, "softStart": 0},
        {"schedule": "multiStep"},
        {"schedule": "step", "milestones": [0.5]},
        {"schedule": "multiStep", "milestones": [0.5], "stepSize": 0.3},
        {"schedule": "multiStep", "milestones": [0.8, 0.5]},
        {"schedule": "multiStep", "milestones": [0.1, 0.5], "softStart": 0.1},
        {"schedule": "exponential", "annealing": 0.7},
        {"schedule": "cosine", "annealing": 0.7},
        {"schedule": "cosine", "stepSize": 0.1},
        {"gamma": 0.5},
        {"stepSize": 0.5},
        {"softStart": 0.8},
        {"annealing": 0.05},
    ],
)
def test_a_field_that_the_schedule_does_not_use_or_that_contradicts_another_is_refused(fields: dict) -> None:
    expected = "softStart <|milestones (with|in)|min only with softStart|.* only with schedule"
    with pytest.raises(ValidationError, match=f"expected ({expected})"):
        LearningRate.model_validate(fields)
