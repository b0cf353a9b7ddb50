"""TLT's soft-start annealing: the learning rate as a pure function of progress."""

from __future__ import annotations

from tlt_api.training import LearningRate


def learning_rate(progress: float, spec: LearningRate) -> float:
    """The learning rate at a progress from 0 to 1.

    It rises exponentially from min to max until spec.soft_start, stays, and falls exponentially back to min
    from spec.annealing on.
    """
    if progress < spec.soft_start:
        return spec.min * (spec.max / spec.min) ** (progress / spec.soft_start)
    if progress <= spec.annealing or spec.annealing >= 1.0:
        return spec.max
    fall = min(1.0, (progress - spec.annealing) / (1.0 - spec.annealing))
    return spec.max * (spec.min / spec.max) ** fall
