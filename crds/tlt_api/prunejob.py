"""PruneJob: take whole filters out of a trained detector, by TLT's rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, exactly_one_of
from tlt_api.common import CpuResources, JobSpec, ModelSource, OpenFraction


class PruneTarget(ApiModel):
    """How much to keep; the threshold that gives it is searched for."""

    parameters: OpenFraction | None = None
    """Fraction of the parameters to keep."""
    flops: OpenFraction | None = None
    """Fraction of the FLOPs to keep."""

    rules = (exactly_one_of("parameters", "flops", hint="aim at one of them"),)


class PruneJobSpec(JobSpec):
    """What to prune, and how much."""

    resources: CpuResources = CpuResources()
    """What the pod gets."""
    model: ModelSource
    """The trained model."""
    threshold: Annotated[float, Field(gt=0, le=1000)] | None = None
    """TLT's pth: filters whose normalised norm is not above it go. Higher is smaller. Below 1 with max."""
    target: PruneTarget | None = None
    """How much to keep, instead of a threshold."""
    normalizer: Literal["max", "l2"] = "max"
    """max: norm / largest norm of the layer. l2: norm / 2-norm of the layer's norms * number of filters."""
    equalization: Literal["union", "intersection", "arithmeticMean", "geometricMean"] = "union"
    """How the norms of filters that must go together (residual additions) are merged."""
    granularity: Annotated[int, Field(ge=1, le=512)] = 8
    """The number of filters kept is rounded up to a multiple of this."""
    min_filters: Annotated[int, Field(ge=1, le=4096)] = 16
    """Filters that every layer keeps at least."""
    excluded_layers: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=256)] = []
    """Layers (by name) that keep all their filters."""

    rules = (
        exactly_one_of("threshold", "target", hint="give TLT's threshold, or the fraction to keep"),
        Rule(
            cel="!has(self.threshold) || self.normalizer == 'l2' || self.threshold < 1.0",
            check=lambda self: self.threshold is None or self.normalizer == "l2" or self.threshold < 1,
            message="expected threshold < 1 with normalizer max: no filter's norm exceeds the largest",
            given="'%s'.format([self.threshold])",
        ),
    )
