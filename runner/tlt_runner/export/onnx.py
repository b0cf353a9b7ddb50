"""Converts the detector to a plugin-free ONNX file.

Called by ``tlt_runner.tasks.export``. The graph is the one that evaluation runs, with the conventions of
TensorRT, DeepStream and Triton for inputs and outputs: images are NCHW, boxes xyxy. The file is checked as
far as that needs no GPU: standard operators only, and none that TensorRT builds with a plugin or not at all.
Suppression is a loop that ends when nothing changes; ONNX's NonMaxSuppression is not built by TensorRT-RTX.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import tensorflow as tf
import tf2onnx
from keras import ops
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from tlt_api.failures import Reason
from tlt_runner.detector import kernels
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.model import FasterRCNN, with_config
from tlt_runner.errors import RunnerError

log = logging.getLogger(__name__)

OPSET = 17
"""Operator set of the file; TensorRT 8.6 and later, DeepStream 6.4 and later read it."""

REFUSED_OPS = frozenset(
    {"NonMaxSuppression", "RoiAlign", "If", "Scan", "NonZero", "Unique", "EfficientNMS_TRT"}
)
"""Operators that TensorRT-RTX builds not at all, or with plugins or sizes that depend on the data."""

MOST_SORTED = 3840
"""Most values that TensorRT's TopK returns; a file with more is refused by the builder."""

INPUT = "images"
OUTPUTS = ("boxes", "scores", "classes", "count")
BORDER = """Input: images, float32 [batch, C, H, W], 0 to 255: RGB, or with one channel the luma.
Outputs, D detections by falling score: boxes float32 [batch, D, 4], xyxy in pixels of the input;
scores float32 [batch, D]; classes int32 [batch, D]; count int32 [batch]. Places after count hold zeros
and class -1."""
"""Description of inputs and outputs, the file's doc_string."""
_PREFIX = "tlt."
_CATCH_ERRORS = "TF2ONNX_CATCH_ERRORS"


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file.

    Attributes:
        path: The file.
        size_bytes: Size of the file.
        operators: Operator -> number of its nodes, those of loops included.
    """

    path: Path
    size_bytes: int
    operators: dict[str, int]


def to_onnx(model: FasterRCNN, source_digest: str | None = None, opset: int = OPSET) -> ModelProto:
    """Convert the detector to a float32 ONNX model with the inputs and outputs of :data:`BORDER`.

    Boxes are **xyxy**, as DeepStream and Triton users expect; this is the only place that converts them from
    the detector's yxyx. At most :data:`MOST_SORTED` boxes enter the suppression of proposals, whatever the
    detector's ``proposals.inference.preNms``.

    Args:
        model: The detector.
        source_digest: SHA-256 of the model's file, for the metadata.
        opset: Operator set.

    Raises:
        RunnerError: ExportFailed, when an operator has no plugin-free form or the file is not valid.
    """
    config = _sortable(model.config)
    model = with_config(model, config)

    # Keras' model and the file's conventions: what verification and evaluation compare is the same graph.
    def detect(images: Any) -> dict[str, Any]:
        detections = model(images)
        top, left, bottom, right = (detections["boxes"][..., side] for side in range(4))
        return {**detections, "boxes": ops.stack([left, top, right, bottom], axis=-1)}

    # The batch is dynamic, height and width are not: anchors are constants of the graph.
    signature = [tf.TensorSpec((None, config.height, config.width, config.channels), tf.float32, name=INPUT)]
    try:
        with kernels.portable(), _optimizers_may_fail():
            exported, _ = tf2onnx.convert.from_function(
                tf.function(detect, input_signature=signature),
                input_signature=signature,
                opset=opset,
                inputs_as_nchw=[INPUT],
            )
    except MemoryError:
        # The pod's fault, not the model's.
        raise
    except Exception as error:
        # tf2onnx raises many types, for an operator or a shape that it cannot convert.
        raise RunnerError(Reason.EXPORT_FAILED, f"tf2onnx could not convert the detector: {error}") from error
    _describe(exported, config, source_digest)
    # Here already, so that a detector that cannot be exported fails before any precision is derived from it.
    check(exported)
    return exported


def sorted_boxes(config: DetectorConfig) -> int:
    """Return how many boxes enter the suppression of proposals in the exported file."""
    return min(config.proposals.inference.pre_nms, config.anchor_count, MOST_SORTED)


def _sortable(config: DetectorConfig) -> DetectorConfig:
    """Description with no more boxes before suppression than TensorRT can sort."""
    wanted, left = config.proposals.inference.pre_nms, sorted_boxes(config)
    if left == min(wanted, config.anchor_count):
        return config
    log.warning(
        "proposals.inference.preNms is %d in the model and %d in the exported file: TensorRT sorts no more",
        wanted,
        left,
    )
    inference = config.proposals.inference.model_copy(update={"pre_nms": left})
    proposals = config.proposals.model_copy(update={"inference": inference})
    return config.model_copy(update={"proposals": proposals})


def write(exported: ModelProto, path: Path) -> OnnxFile:
    """Check an ONNX model and write it.

    Raises:
        RunnerError: ExportFailed, when it is not valid or not plugin-free.
    """
    # Again: a conversion of the precision has rewritten the graph.
    check(exported)
    path.write_bytes(exported.SerializeToString())
    operators = dict(Counter(node.op_type for node in nodes(exported.graph)))
    size = path.stat().st_size
    log.info("wrote %s: %d bytes, %d nodes", path.name, size, sum(operators.values()))
    return OnnxFile(path, size, operators)


def check(exported: ModelProto) -> None:
    """Check that a model is valid ONNX, of standard operators only, and none that TensorRT refuses.

    Raises:
        RunnerError: ExportFailed, naming the operators.
    """
    used = {(node.domain, node.op_type) for node in nodes(exported.graph)}
    # An operator of another domain is an extension of one runtime, and a plugin in all others.
    foreign = sorted(f"{domain}::{name}" for domain, name in used if domain not in ("", "ai.onnx"))
    refused = sorted(name for _, name in used if name in REFUSED_OPS)
    if foreign or refused:
        raise RunnerError(
            Reason.EXPORT_FAILED,
            f"expected operators that TensorRT builds without a plugin, got {', '.join(foreign + refused)}",
        )
    try:
        onnx.checker.check_model(exported, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunnerError(Reason.EXPORT_FAILED, f"expected a valid ONNX model, got: {error}") from error


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Return the nodes of a graph, each followed by those of its loop's body."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def metadata(exported: ModelProto) -> dict[str, Any]:
    """Read the file's metadata.

    class_names, height, width, mode, color_mode, version; where known score_thresholds (of each class) and
    source_sha256.
    """
    stored = {item.key: item.value for item in exported.metadata_props}
    return {
        key.removeprefix(_PREFIX): json.loads(value)
        for key, value in stored.items()
        if key.startswith(_PREFIX)
    }


@contextmanager
def _optimizers_may_fail() -> Iterator[None]:
    """Let tf2onnx raise errors of its optimizers.

    To recover from them it would copy all weights before each pass: 5.9 instead of 4.3 GB for a resnet50 of
    full width, and 21 instead of 9 s.
    """
    # tf2onnx takes this option from the environment only.
    previous = os.environ.get(_CATCH_ERRORS)
    os.environ[_CATCH_ERRORS] = "FALSE"
    try:
        yield
    finally:
        if previous is None:
            del os.environ[_CATCH_ERRORS]
        else:
            os.environ[_CATCH_ERRORS] = previous


def _describe(exported: ModelProto, config: DetectorConfig, source_digest: str | None) -> None:
    """Set names, shapes and order of inputs and outputs, and the metadata."""
    exported.producer_name, exported.producer_version = "tlt", version("tlt-operator")
    exported.graph.name = "detector"
    exported.doc_string = BORDER
    # The batch is a name, not a number: a reader sees that this dimension is dynamic.
    detections = config.detections.max_detections
    shapes = {"boxes": ["batch", detections, 4], "scores": ["batch", detections]}
    shapes |= {"classes": ["batch", detections], "count": ["batch"]}
    kinds = {"boxes": TensorProto.FLOAT, "scores": TensorProto.FLOAT}
    # tf2onnx names outputs by the keys of the function's result, which these names are meant to be.
    missing = set(OUTPUTS) - {output.name for output in exported.graph.output}
    if missing:
        raise RunnerError(Reason.EXPORT_FAILED, f"expected outputs {OUTPUTS}, got none named {missing}")
    outputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.INT32), shapes[name])
        for name in OUTPUTS
    ]
    images = helper.make_tensor_value_info(
        INPUT, TensorProto.FLOAT, ["batch", config.channels, config.height, config.width]
    )
    # Inputs and outputs are declared anew, with our order and names of dimensions. Intermediate shapes would
    # keep tf2onnx's names of the batch dimension; readers infer them again.
    del exported.graph.output[:], exported.graph.input[:], exported.graph.value_info[:]
    exported.graph.output.extend(outputs)
    exported.graph.input.append(images)
    # Each value as JSON, because metadata are strings; metadata() reads them back.
    entries = {
        "class_names": config.class_names,
        "height": config.height,
        "width": config.width,
        "mode": config.mode,
        "color_mode": config.color_mode,
        "version": version("tlt-operator"),
    }
    entries |= {"score_thresholds": config.score_thresholds} if config.score_thresholds else {}
    entries |= {"source_sha256": source_digest} if source_digest else {}
    helper.set_model_props(exported, {f"{_PREFIX}{key}": json.dumps(value) for key, value in entries.items()})
