"""The learning rate as a pure function of progress; called by the loop before every step."""

from __future__ import annotations

import math

from tlt_api.training import LearningRate


def learning_rate(progress: float, spec: LearningRate, replicas: int = 1) -> float:
    """Return the learning rate at a progress from 0 to 1, of all replicas together.

    Args:
        progress: Fraction of the training's steps that are taken.
        spec: The schedule, for one replica if its scaling is linear.
        replicas: Devices that take a share of each batch.
    """
    return _SCHEDULES[spec.schedule](min(max(progress, 0.0), 1.0), spec) * scale(spec, replicas)


def scale(spec: LearningRate, replicas: int) -> int:
    """Return the factor on the rate: the replicas with linear scaling (Goyal et al. 2017), else 1."""
    return replicas if spec.scaling == "linear" else 1


def _soft_start_annealing(progress: float, spec: LearningRate) -> float:
    """Exponential rise from min to max, a plateau, exponential fall back to min."""
    low, high = spec.effective_min, spec.max
    # Rise: the logarithm of the rate grows linearly, so low must be above 0 (the API sees to it).
    if progress < spec.effective_soft_start:
        return low * (high / low) ** (progress / spec.effective_soft_start)
    # With annealing from 1 on there is no fall, which would be divided by 0.
    if progress <= spec.effective_annealing or spec.effective_annealing >= 1.0:
        return high
    return float(
        high * (low / high) ** ((progress - spec.effective_annealing) / (1.0 - spec.effective_annealing))
    )


def _cosine(progress: float, spec: LearningRate) -> float:
    """Linear rise from min to max, half a cosine back to min (Loshchilov and Hutter 2017, no restarts)."""
    low, high = spec.effective_min, spec.max
    # Nothing but the rise, at whose end the fall would be divided by 0.
    if progress < spec.effective_soft_start or spec.effective_soft_start >= 1.0:
        return high * _warm_up(progress, spec)
    fallen = (progress - spec.effective_soft_start) / (1.0 - spec.effective_soft_start)
    return low + (high - low) * (1.0 + math.cos(math.pi * fallen)) / 2.0


def _step(progress: float, spec: LearningRate) -> float:
    """``max * gamma^floor(progress / stepSize)``, after a linear warm-up."""
    # 1e-9, because in floats 0.3 / 0.1 is a little less than 3.
    steps = math.floor(progress / spec.effective_step_size + 1e-9)
    return float(spec.max * spec.effective_gamma**steps) * _warm_up(progress, spec)


def _multi_step(progress: float, spec: LearningRate) -> float:
    """``max * gamma^n`` with n milestones reached, after a linear warm-up.

    It is both detectron2's WarmupMultiStepLR and TLT's soft_start, whose rate is divided one step later.
    """
    # 1e-9 as above: step 7 of 10 has reached the milestone 0.7.
    reached = sum(milestone <= progress + 1e-9 for milestone in spec.milestones or [])
    return float(spec.max * spec.effective_gamma**reached) * _warm_up(progress, spec)


def _exponential(progress: float, spec: LearningRate) -> float:
    """``max * gamma^(progress / stepSize)`` (TLT's step, which forgot the floor), after a linear warm-up."""
    decay = spec.effective_gamma ** (progress / spec.effective_step_size)
    return float(spec.max * decay) * _warm_up(progress, spec)


def _warm_up(progress: float, spec: LearningRate) -> float:
    """Return the factor of a linear warm-up: from min / max at the start to 1 at its end, then 1."""
    if progress >= spec.effective_soft_start:
        return 1.0
    start = spec.effective_min / spec.max
    return start + (1.0 - start) * progress / spec.effective_soft_start


_SCHEDULES = {
    "softStartAnnealing": _soft_start_annealing,
    "cosine": _cosine,
    "step": _step,
    "multiStep": _multi_step,
    "exponential": _exponential,
}
