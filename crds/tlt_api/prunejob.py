"""PruneJob: structured pruning, which removes whole filters from a trained detector by TLT's rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, exactly_one_of
from tlt_api.common import CpuResources, JobSpec, ModelSource, OpenFraction


class PruneTarget(ApiModel):
    """Size of the pruned model, for which the threshold is searched."""

    parameters: OpenFraction | None = None
    """Fraction of the model's parameters to keep."""
    flops: OpenFraction | None = None
    """Fraction of the model's FLOPs to keep."""

    rules = (exactly_one_of("parameters", "flops", hint="set one target"),)


class PruneJobSpec(JobSpec):
    """Structured pruning of a trained detector."""

    resources: CpuResources = CpuResources()
    """Compute resources of the pod."""
    model: ModelSource
    """Trained model to prune."""
    threshold: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Filters with a normalised norm <= threshold are removed; higher prunes more (TLT: pth). Must be below
    1 with normalizer max."""
    target: PruneTarget | None = None
    """Fraction of the parameters or FLOPs to keep, instead of a threshold."""
    normalizer: Literal["max", "l2"] = "max"
    """Normalisation of a filter's norm. max: norm / largest norm of the layer; l2: norm / 2-norm of the
    layer's norms * number of filters."""
    equalization: Literal["union", "intersection", "arithmeticMean", "geometricMean"] = "union"
    """Combination of the norms of filters that must be removed together (residual additions)."""
    granularity: Annotated[int, Field(ge=1, le=512)] = 8
    """Granularity of pruning: the number of filters kept in a layer is rounded up to a multiple of it."""
    min_filters: Annotated[int, Field(ge=1, le=4096)] = 16
    """Minimum number of filters kept in every layer."""
    excluded_layers: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=256)] = []
    """Names of layers that keep all their filters."""

    rules = (
        exactly_one_of("threshold", "target", hint="set the threshold of TLT, or the fraction to keep"),
        Rule(
            # After this normalisation a layer's largest norm is 1: a threshold of 1 would reach every filter.
            cel="!has(self.threshold) || self.normalizer == 'l2' || self.threshold < 1.0",
            check=lambda self: self.threshold is None or self.normalizer == "l2" or self.threshold < 1,
            message="expected threshold < 1 with normalizer max: no filter's norm exceeds the largest",
            given="'%s'.format([self.threshold])",
        ),
    )
