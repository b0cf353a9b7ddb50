"""``tlt evaluate``: evaluate a TrainingJob's model on its validation data, without training.

Evaluates the best model that the training published, or before there is one the model that the training would
start from. Called by :mod:`tlt_runner.process`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.input_pipeline import batches
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.evaluation import report
from tlt_runner.evaluation.evaluate import evaluate, keras_detector, require_measured
from tlt_runner.evaluation.protocols import Protocol
from tlt_runner.storage import join
from tlt_runner.tasks import inputs
from tlt_runner.tasks.convert import prepare
from tlt_runner.training.checkpoint import writer

log = logging.getLogger(__name__)


def run(spec: TrainingJobSpec, run: RunSpec, context: Context) -> None:
    """Evaluate and report the metrics.

    Raises:
        RunnerError: InvalidSpec where there is no model; ModelMismatch where it was made for other classes or
            another image size; Interrupted; whatever data and storage raise.
    """
    # The model first: if there is none, the data need not be prepared, which may take hours.
    model = _model(spec, run, context)
    records = prepare(spec, context)
    # The best model may be of an earlier spec, with other classes or another image size.
    inputs.require_same_data(model.config, records.manifest)
    # The published model detects with its own settings, and is evaluated with those of the spec's evaluation.
    model = detector.with_config(model, model.config.evaluated_by(spec.evaluation))
    validation = batches.validation_batches(
        records, spec.training.batch_size_per_gpu, channels=model.config.channels
    )
    measurement = evaluate(
        keras_detector(model),
        _with_progress(validation, context),
        records.manifest.class_names,
        Protocol.of(spec.evaluation),
    )
    metrics = measurement.metrics
    path = context.scratch / report.FILE_NAME
    # Beside the best model, which it describes; the model that a training starts from lies elsewhere.
    if context.storage.exists(inputs.best_model(spec)):
        uri = join(spec.output.uri, report.FILE_NAME)
        metrics = metrics.model_copy(update={"details_uri": uri})
        report.write(measurement, metrics, path)
        context.storage.publish(path, uri)
    context.reporter.report(metrics)
    # After the report: that nothing was measured stands in the status, too.
    require_measured(metrics, "the model is not judged")


def _model(spec: TrainingJobSpec, run: RunSpec, context: Context) -> FasterRCNN:
    """Load the best model; before there is one, the model that the training starts from."""
    best = inputs.best_model(spec)
    if context.storage.exists(best):
        path = context.storage.fetch(best)
        _log_origin(best, path, run)
        return detector.load(path)
    # Nothing is trained yet: the figures are those that a retraining starts from.
    initial = inputs.initial_model(spec, run)
    log.info("%s does not exist: evaluating %s, from which the training starts", best, initial.uri)
    model = detector.load(context.storage.fetch(initial.uri, initial.sha256))
    # Thresholds and the like are the spec's, as in the training that would start from this model.
    return detector.with_config(model, model.config.retrained_by(spec.model, spec.dataset))


def _log_origin(uri: str, path: Path, run: RunSpec) -> None:
    """Log which run made the model.

    The model of another run is evaluated, too: a resource that was made anew has another uid.
    """
    origin = writer.origin_of(path)
    if origin is None:
        log.warning("evaluating %s, which does not say which run it is of", uri)
    elif origin.run != run.owner.uid:
        log.warning(
            "evaluating %s, which is of another run: TrainingJob %s (uid %s), epoch %d",
            uri,
            origin.job,
            origin.run,
            origin.epoch,
        )
    else:
        log.info("evaluating %s of epoch %d", uri, origin.epoch)


def _with_progress(validation: Iterable[Mapping[str, Any]], context: Context) -> Iterator[Mapping[str, Any]]:
    """Yield the batches, and report each one before it is evaluated."""
    for step, batch in enumerate(validation):
        # Also the place where a stop ends the run: between two batches.
        context.begin("evaluate", step)
        yield batch
