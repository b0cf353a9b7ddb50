"""The pruning plan: the filters of each layer that stay and what that saves, made before anything happens.

:mod:`tlt_runner.pruning.planning` makes it, :mod:`tlt_runner.pruning.rebuild` carries it out. In between it
can be printed, written as JSON and read back.
"""

from __future__ import annotations

from pydantic import Field

from tlt_api.base import ApiModel
from tlt_api.prunejob import PruneTarget
from tlt_runner.pruning.importance import Equalization, Normalizer


class Options(ApiModel):
    """Options of pruning, with the names and meanings of a PruneJob's spec, without threshold and target."""

    normalizer: Normalizer = "max"
    """Divisor of a layer's filter norms."""
    equalization: Equalization = "union"
    """Merging of the values of coupled filters."""
    granularity: int = Field(default=8, ge=1)
    """The number of filters kept is rounded up to a multiple of this."""
    min_filters: int = Field(default=16, ge=1)
    """Smallest number of filters that a layer keeps."""
    excluded_layers: tuple[str, ...] = ()
    """Layers that keep all their filters, and with them all layers of their groups."""


class LayerPlan(ApiModel):
    """The plan for one layer with filters."""

    name: str
    """Name of the layer."""
    kind: str
    """Conv2D, DepthwiseConv2D or Dense."""
    group: int
    """Number of its group: layers of a group keep the same filters."""
    filters: int
    """Number of filters before pruning."""
    kept: tuple[int, ...]
    """Indices of the filters that stay, ascending."""
    # Plans that users have stored say "whole".
    protection: str | None = Field(default=None, alias="whole")
    """Reason why all filters of the layer's group stay; absent where they may be pruned."""


class PruningPlan(ApiModel):
    """The filters that stay, and the size of the network before and after."""

    version: int = 1
    """Version of this format."""
    threshold: float
    """Filters with a value of at most this were to be pruned."""
    target: PruneTarget | None = None
    """The fraction to keep for which the threshold was searched; absent where the threshold was given."""
    options: Options
    """Options with which the plan was made."""
    layers: tuple[LayerPlan, ...]
    """Every layer with filters, in the order of the graph."""
    parameters_before: int
    """Parameters of the unpruned network."""
    parameters_after: int
    """Parameters of the pruned network."""
    flops_before: int
    """FLOPs of the unpruned network for one image: two a multiply-add of convolutions and dense layers."""
    flops_after: int
    """FLOPs of the pruned network for one image."""

    @property
    def parameters_kept(self) -> float:
        """Fraction of the parameters that stay."""
        return self.parameters_after / self.parameters_before

    @property
    def flops_kept(self) -> float:
        """Fraction of the FLOPs that stay."""
        return self.flops_after / self.flops_before if self.flops_before else 1.0

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def table(self) -> str:
        """Return the plan as text: one line a layer, then :meth:`summary`."""
        width = max([len(layer.name) for layer in self.layers], default=5)
        lines = [f"{'layer':<{width}}  {'type':<15}  group  filters    kept"]
        for layer in self.layers:
            reason = f"  ({layer.protection})" if layer.protection else ""
            counts = f"{layer.group:>5}  {layer.filters:>7}  {len(layer.kept):>6}"
            lines.append(f"{layer.name:<{width}}  {layer.kind:<15}  {counts}{reason}")
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """Return threshold, parameters and FLOPs in one sentence."""
        origin = " found for " + target_text(self.target) if self.target else ""
        return (
            f"threshold {self.threshold:g}{origin}: keeps {self.parameters_after:,} of "
            f"{self.parameters_before:,} parameters ({self.parameters_kept:.1%}) and {self.flops_after:,} of "
            f"{self.flops_before:,} FLOPs ({self.flops_kept:.1%})"
        )


def target_text(target: PruneTarget) -> str:
    """Return the target as text: ``target.parameters 0.4``."""
    return ", ".join(f"target.{name} {value:g}" for name, value in target.to_wire().items())
