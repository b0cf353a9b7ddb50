"""ExportJob: export a detector as plugin-free ONNX, build engines from it, and verify its mAP."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from tlt_api.base import ApiModel, Rule
from tlt_api.common import CpuResources, Fraction, JobSpec, ModelSource

# Only what the exporter can do (docs/adr/0001-pydantic-models-are-the-api.md).
Precision = Literal["fp32", "fp16"]


class Batch(ApiModel):
    """Batch sizes for which an engine is built; the ONNX model accepts any."""

    min: Annotated[int, Field(ge=1, le=1024)] = 1
    """Minimum batch size of an engine."""
    opt: Annotated[int, Field(ge=1, le=1024)] = 1
    """Batch size for which an engine is optimised."""
    max: Annotated[int, Field(ge=1, le=1024)] = 1
    """Maximum batch size of an engine."""

    rules = (
        Rule(
            # TensorRT refuses an optimisation profile in any other order.
            cel="self.min <= self.opt && self.opt <= self.max",
            check=lambda self: self.min <= self.opt <= self.max,
            message="expected min <= opt <= max",
            given="'min %s, opt %s, max %s'.format([self.min, self.opt, self.max])",
        ),
    )


class Engine(ApiModel):
    """TensorRT engine to build from the ONNX model of each precision."""

    builder: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt-rtx"
    """Engine builder: tensorrt builds for the GPU of its node; tensorrt-rtx builds on any node."""
    compute_capabilities: Annotated[
        list[Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]$", max_length=8)]], Field(max_length=16)
    ] = []
    """CUDA compute capabilities that one engine supports, for example "8.6"; with builder tensorrt-rtx only.
    Defaults to all from 8.0 on. 7.5 requires fp16."""

    rules = (
        Rule(
            cel="self.builder == 'tensorrt-rtx' || size(self.computeCapabilities) == 0",
            check=lambda self: self.builder == "tensorrt-rtx" or not self.compute_capabilities,
            message="expected computeCapabilities only with tensorrt-rtx: tensorrt builds for its own GPU",
            given="self.builder",
        ),
    )


class Verification(ApiModel):
    """Comparison of the exported model in ONNX Runtime with the Keras model on the validation images."""

    max_metric_drop: Fraction = 0.01
    """Maximum loss of mAP against the Keras model; the job fails above it, and where the validation images
    have no object to compare by. A model from a uri has no validation images: status.exports[].notCompared
    says so, and the job succeeds."""
    confidence: Annotated[float, Field(ge=0.5, le=0.999)] | None = None
    """Confidence with which the loss of mAP must be at most maxMetricDrop: the job fails if the upper end of
    the loss's interval (status.exports[].mAPDropInterval) is above it. The fewer the validation images, the
    wider the interval. If absent, the measured loss decides, whatever its interval."""
    max_images: Annotated[int, Field(ge=1, le=100000)] = 500
    """Maximum number of validation images to verify on."""


class ExportJobSpec(JobSpec):
    """Export of a trained detector as ONNX and, optionally, as TensorRT engines."""

    resources: CpuResources = CpuResources()
    """Compute resources of the pod."""
    model: ModelSource
    """Trained or pruned model to export."""
    precisions: Annotated[list[Precision], Field(min_length=1, max_length=len(get_args(Precision)))] = [
        "fp32"
    ]
    """Precisions to export; each gives one ONNX model."""
    batch: Batch = Batch()
    """Batch sizes for which an engine is built; the ONNX model accepts any."""
    engine: Engine | None = None
    """TensorRT engine to build from the ONNX model of each precision. ONNX only if absent."""
    verification: Verification = Verification()
    """Comparison of the exported model in ONNX Runtime with the Keras model on the validation images."""

    rules = (
        Rule(
            # TensorRT chooses its kernels by timing them on the GPU.
            cel="!has(self.engine) || self.engine.builder != 'tensorrt' || self.resources.gpus > 0",
            check=lambda self: (
                self.engine is None or self.engine.builder != "tensorrt" or self.resources.gpus > 0
            ),
            message="expected spec.resources.gpus of at least 1 with builder tensorrt: it builds on a GPU",
            given="'%s'.format([self.resources.gpus])",
        ),
        Rule(
            # Files and status have one export for each precision.
            cel="self.precisions.all(p, self.precisions.exists_one(q, p == q))",
            check=lambda self: len(set(self.precisions)) == len(self.precisions),
            message="expected each of spec.precisions once",
            given="self.precisions",
        ),
    )
