"""ExportJob: write a detector as plugin-free ONNX, build engines from it, and prove that it still detects."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule
from tlt_api.common import CpuResources, Fraction, JobSpec, ModelSource


class Batch(ApiModel):
    """Batch sizes for which an engine is built; the ONNX model takes any."""

    min: Annotated[int, Field(ge=1, le=1024)] = 1
    """Smallest."""
    opt: Annotated[int, Field(ge=1, le=1024)] = 1
    """The one that the engine is tuned for."""
    max: Annotated[int, Field(ge=1, le=1024)] = 1
    """Largest."""

    rules = (
        Rule(
            cel="self.min <= self.opt && self.opt <= self.max",
            check=lambda self: self.min <= self.opt <= self.max,
            message="expected min <= opt <= max",
            given="'min %s, opt %s, max %s'.format([self.min, self.opt, self.max])",
        ),
    )


class Engine(ApiModel):
    """An engine to build from each precision."""

    builder: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt-rtx"
    """tensorrt builds for the GPU of its node; tensorrt-rtx builds on any node."""
    compute_capabilities: Annotated[
        list[Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]$", max_length=8)]], Field(max_length=16)
    ] = []
    """GPU generations of one engine, for example "8.6". Absent: all from 8.0 on. 7.5 takes fp16 only."""

    rules = (
        Rule(
            cel="self.builder == 'tensorrt-rtx' || size(self.computeCapabilities) == 0",
            check=lambda self: self.builder == "tensorrt-rtx" or not self.compute_capabilities,
            message="expected computeCapabilities only with tensorrt-rtx: tensorrt builds for its own GPU",
            given="self.builder",
        ),
    )


class Verification(ApiModel):
    """The exported model is run in ONNX Runtime on the validation images and compared with Keras."""

    max_metric_drop: Fraction = 0.01
    """The mAP that may be lost; more and the job fails."""
    max_images: Annotated[int, Field(ge=1, le=100000)] = 500
    """Validation images used at most."""


class ExportJobSpec(JobSpec):
    """What to export, and in which forms."""

    resources: CpuResources = CpuResources()
    """What the pod gets."""
    model: ModelSource
    """The trained or pruned model."""
    precisions: Annotated[list[Literal["fp32", "fp16"]], Field(min_length=1, max_length=2)] = ["fp32"]
    """Precisions of the ONNX models."""
    batch: Batch = Batch()
    """Batch sizes of engines."""
    engine: Engine | None = None
    """Engines to build; absent means ONNX only."""
    verification: Verification = Verification()
    """Comparison with the Keras model."""

    rules = (
        Rule(
            cel="!has(self.engine) || self.engine.builder != 'tensorrt' || self.resources.gpus > 0",
            check=lambda self: (
                self.engine is None or self.engine.builder != "tensorrt" or self.resources.gpus > 0
            ),
            message="expected spec.resources.gpus of at least 1 with builder tensorrt: it builds on a GPU",
            given="'%s'.format([self.resources.gpus])",
        ),
        Rule(
            cel="self.precisions.all(p, self.precisions.exists_one(q, p == q))",
            check=lambda self: len(set(self.precisions)) == len(self.precisions),
            message="expected each of spec.precisions once",
            given="self.precisions",
        ),
    )
