"""The pruning plan: which filters of which layer stay, and what that saves; made before anything happens.

:mod:`tlt_runner.pruning.planning` makes it, :mod:`tlt_runner.pruning.rebuild` carries it out. In between it
can be printed, written as JSON and read back.
"""

from __future__ import annotations

from pydantic import Field

from tlt_api.base import ApiModel
from tlt_api.prunejob import PruneTarget
from tlt_runner.pruning.importance import Equalization, Normalizer


class Options(ApiModel):
    """How to prune; names and meanings are those of a PruneJob's spec, apart from threshold and target."""

    normalizer: Normalizer = "max"
    """What a filter's norm is divided by."""
    equalization: Equalization = "union"
    """How the values of filters that go together are merged."""
    granularity: int = Field(default=8, ge=1)
    """The number of filters kept is rounded up to a multiple of this."""
    min_filters: int = Field(default=16, ge=1)
    """Filters that every layer keeps at least."""
    excluded_layers: tuple[str, ...] = ()
    """Layers that keep all their filters, and with them all that is tied to them."""


class LayerPlan(ApiModel):
    """What happens to one layer with filters.

    A layer with a reason in ``whole`` keeps all filters because its group must.
    """

    name: str
    """Name of the layer."""
    kind: str
    """Conv2D, DepthwiseConv2D or Dense."""
    group: int
    """Number of its group: layers of a group keep the same filters."""
    filters: int
    """Filters before."""
    kept: tuple[int, ...]
    """Filters that stay, ascending."""
    whole: str | None = None
    """Why all stay, where nothing was allowed to go."""


class PruningPlan(ApiModel):
    """Which filters stay."""

    version: int = 1
    """Version of this format."""
    threshold: float
    """Filters whose value was not above it were to go."""
    target: PruneTarget | None = None
    """The fraction to keep from which the threshold was found; absent where the threshold was given."""
    options: Options
    """How it was made."""
    layers: tuple[LayerPlan, ...]
    """Every layer with filters, in the order of the graph."""
    parameters_before: int
    """Parameters of the network as it was."""
    parameters_after: int
    """Parameters of what the plan makes of it."""
    flops_before: int
    """FLOPs for one image, two for each multiply-add of convolutions and dense layers."""
    flops_after: int
    """The same afterwards."""

    @property
    def parameters_kept(self) -> float:
        """Fraction of the parameters that stay."""
        return self.parameters_after / self.parameters_before

    @property
    def flops_kept(self) -> float:
        """Fraction of the FLOPs that stay."""
        return self.flops_after / self.flops_before if self.flops_before else 1.0

    def to_json(self) -> str:
        """The plan as JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def table(self) -> str:
        """The plan for people: one line a layer, then what it comes to."""
        width = max([len(layer.name) for layer in self.layers], default=5)
        lines = [f"{'layer':<{width}}  {'type':<15}  group  filters    kept"]
        for layer in self.layers:
            why = f"  ({layer.whole})" if layer.whole else ""
            counts = f"{layer.group:>5}  {layer.filters:>7}  {len(layer.kept):>6}"
            lines.append(f"{layer.name:<{width}}  {layer.kind:<15}  {counts}{why}")
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """One sentence: threshold, parameters, FLOPs."""
        found = " found for " + target_text(self.target) if self.target else ""
        return (
            f"threshold {self.threshold:g}{found}: keeps {self.parameters_after:,} of "
            f"{self.parameters_before:,} parameters ({self.parameters_kept:.1%}) and {self.flops_after:,} of "
            f"{self.flops_before:,} FLOPs ({self.flops_kept:.1%})"
        )


def target_text(target: PruneTarget) -> str:
    """``target.parameters 0.4``."""
    return ", ".join(f"target.{name} {value:g}" for name, value in target.to_wire().items())
