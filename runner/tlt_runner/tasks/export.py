"""``tlt export``: a detector to plugin-free ONNX, verified against Keras, and engines built from it.

Called by :mod:`tlt_runner.process` with the RunSpec of an ExportJob. Files are published and listed as soon
as they are whole; verification comes before the engines, so that a precision that lost too much costs no
build. A job that fails by its mAP leaves its ONNX files and figures behind, to look into.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tlt_api.exportjob import ExportJobSpec, Verification
from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.status import ExportStatus
from tlt_runner.context import Context
from tlt_runner.data import records
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.evaluate import Detect, keras_detector
from tlt_runner.export import engine, onnx, precision, verify
from tlt_runner.files import sha256_of
from tlt_runner.tasks import inputs

log = logging.getLogger(__name__)

VERIFICATION_BATCH = 4
"""Images of a batch in verification, for Keras and ONNX Runtime alike."""
RANDOM_BATCHES = 2
"""Batches of random images that are compared where there are no validation data."""


def run(spec: ExportJobSpec, run: RunSpec, context: Context) -> None:
    """Export, verify, build engines.

    Raises:
        RunnerError: MetricDrop, NoLabels, ExportFailed, EngineBuildFailed; or what is wrong with spec, model
            or records.
    """
    source = inputs.given_model(run)
    # A missing builder is reported before the model is read and converted.
    if spec.engine:
        engine.check_capabilities(spec.engine)
    # Keras is compared with ONNX Runtime on the same CPU; a GPU is the engine builder's.
    tf.config.set_visible_devices([], "GPU")
    path = context.storage.fetch(source.uri, source.sha256)
    model = detector.load(path)
    # Before the conversion, which takes minutes: data of other classes are refused at once.
    data = _records(run, context, model.config)
    files = _export(model, sha256_of(path), spec, context)
    exports = _verify(model, files, data, spec, context)
    # Before the engines, whose builds take longest: a precision that lost too much is not built.
    _refuse_drops(exports, spec.verification, has_data=data is not None)
    _build(files, spec, context)


def _records(run: RunSpec, context: Context, config: DetectorConfig) -> Records | None:
    """Return the validation data if the model's origin is known; they must have been made for this model."""
    if run.inputs.records is None:
        log.warning("the model comes from a file: no validation data, so mAP is not compared")
        return None
    data = records.load_records(context.storage, run.inputs.records.uri, run.inputs.records.digest)
    inputs.require_same_data(config, data.manifest)
    return data


def _export(
    model: FasterRCNN, digest: str, spec: ExportJobSpec, context: Context
) -> dict[str, onnx.OnnxFile]:
    """Convert the model once, derive each precision from it, and publish the files: precision -> file."""
    full = onnx.to_onnx(model, digest)
    files: dict[str, onnx.OnnxFile] = {}
    for step, name in enumerate(spec.precisions):
        context.begin("export", step)
        exported = precision.CONVERSIONS[name](full)
        files[name] = onnx.write(exported, context.scratch / f"model-{name}.onnx")
        context.publish(files[name].path, f"onnx-{name}", spec.output.uri)
    return files


def _verify(
    model: FasterRCNN,
    files: Mapping[str, onnx.OnnxFile],
    data: Records | None,
    spec: ExportJobSpec,
    context: Context,
) -> list[ExportStatus]:
    """Compare every precision with Keras on the same images; report each result as soon as it is there."""
    # Keras first: every precision is compared with its detections.
    context.begin("verify", 0)
    reference = _results(keras_detector(model), model.config, data, spec)
    if reference.metrics:
        context.reporter.report(reference.metrics)
    pre_nms = onnx.sorted_boxes(model.config)
    exports: list[ExportStatus] = []
    for step, (name, file) in enumerate(files.items(), start=1):
        context.begin("verify", step)
        detect = verify.OnnxDetector(file.path)
        results = _results(detect, model.config, data, spec)
        latency = verify.latency_milliseconds(detect, verify.image_shape(model.config))
        confidence = spec.verification.confidence
        status = verify.status_of(name, reference, results, file.size_bytes, latency, pre_nms, confidence)
        if status.not_compared:
            log.warning("%s: mAP is not compared: %s", name, status.not_compared)
        exports.append(status)
        context.reporter.report(exports[-1])
    return exports


def _results(
    detect: Detect, config: DetectorConfig, data: Records | None, spec: ExportJobSpec
) -> verify.Results:
    """Run a detector over the validation data, or over random images where there are none."""
    # No labelled images: only the outputs are compared with those of Keras, not mAP.
    if data is None:
        images = verify.random_images(0, RANDOM_BATCHES, VERIFICATION_BATCH, *verify.image_shape(config))
        return verify.run_random(detect, images)
    validation: Iterable[Mapping[str, Any]] = batches.validation_batches(
        data, VERIFICATION_BATCH, spec.verification.max_images, channels=config.channels
    )
    return verify.evaluate_detector(detect, validation, config.class_names)


def _refuse_drops(exports: Sequence[ExportStatus], gate: Verification, *, has_data: bool) -> None:
    """Fail the run if a precision lost more mAP than allowed, or if none could be compared.

    Args:
        exports: Results; drops are absolute, from 0 to 1.
        gate: Largest drop, and the number of images.
        has_data: True if there are validation data. A model from a file has none: its status says so, and
            its outputs are compared on random images alone.

    Raises:
        RunnerError: MetricDrop, naming all such precisions; NoLabels, where the validation images have no
            object that counts.
    """
    limit = gate.max_metric_drop
    if has_data and any(item.m_ap_drop is None for item in exports):
        raise RunnerError(
            Reason.NO_LABELS,
            f"expected to lose at most {limit:g} of mAP, but mAP is empty: the first {gate.max_images} "
            "validation images have no object that counts in evaluation (difficult ones do not)",
            "Raise spec.verification.maxImages, or train on data with such validation objects.",
        )
    too_much = [
        f"{item.precision} has mAP {item.m_ap:.4f} of {item.m_ap + item.m_ap_drop:.4f} in Keras"
        + (f" (lost {item.comparison})" if item.comparison else "")
        for item in exports
        if item.m_ap is not None and item.m_ap_drop is not None and item.m_ap_drop > limit
    ]
    if too_much:
        raise RunnerError(
            Reason.METRIC_DROP, f"expected to lose at most {limit:g} of mAP, got: {'; '.join(too_much)}"
        )
    if has_data and gate.confidence is not None:
        _refuse_uncertain(exports, limit, gate.confidence)


def _refuse_uncertain(exports: Sequence[ExportStatus], limit: float, confidence: float) -> None:
    """Fail the run if the images do not show, with this confidence, that no precision lost too much.

    Raises:
        RunnerError: MetricDrop, naming all such precisions.
    """
    uncertain = [
        f"{item.precision} lost {item.comparison or 'an amount that one image cannot bound'}"
        for item in exports
        if item.m_ap_drop_interval is None or item.m_ap_drop_interval[1] > limit
    ]
    if uncertain:
        raise RunnerError(
            Reason.METRIC_DROP,
            f"expected to lose at most {100 * limit:g} points of mAP with {100 * confidence:g} % confidence, "
            f"got: {'; '.join(uncertain)}",
            "Raise spec.verification.maxImages or the number of validation images, which narrows the "
            "interval, raise maxMetricDrop, or leave confidence out to let the measured loss decide.",
        )


def _build(files: Mapping[str, onnx.OnnxFile], spec: ExportJobSpec, context: Context) -> None:
    """Build an engine from each file and publish it, if the spec asks for engines."""
    if spec.engine is None:
        return
    for step, (name, file) in enumerate(files.items()):
        context.begin("build", step)
        target = context.scratch / f"model-{name}.engine"
        engine.build_engine(file.path, target, spec.engine, spec.batch)
        # TensorRT has no check of an engine that works without loading it on a GPU.
        if spec.engine.builder == "tensorrt-rtx":
            log.info("%s: %s", target.name, engine.check_engine(target))
        context.publish(target, f"engine-{name}", spec.output.uri)
