"""``tlt evaluate``: judge a TrainingJob's model on its validation data, without training.

Called by :mod:`tlt_runner.process` with the RunSpec of a TrainingJob. What is judged is the best model that
the training published; where there is none yet, the model that the training would start from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.status import Progress
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.records import Records
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation import detectors
from tlt_runner.evaluation.evaluate import evaluate
from tlt_runner.storage import join
from tlt_runner.training.checkpoint import model_file

log = logging.getLogger(__name__)


def run(run: RunSpec, context: Context) -> None:
    """Evaluate and report the metrics.

    Raises:
        RunnerError: InvalidSpec where there is no model; ModelMismatch where it was made for other classes or
            another image size; Interrupted; whatever data and storage raise.
    """
    spec = run.spec
    if not isinstance(spec, TrainingJobSpec):
        raise RunnerError(
            Reason.INVALID_SPEC, f"evaluate: expected a TrainingJob, got {run.owner.kind}/{run.owner.name}"
        )
    model = _model(run, spec, context)
    records = prepare(
        spec.dataset, context.storage, spec.output.uri, context.reporter, context.stop, spec.model.anchors
    )
    _check(model, records)
    judged = batches.validation_batches(
        records, spec.training.batch_size_per_gpu, records.manifest.most_objects
    )
    metrics = evaluate(
        detectors.of_keras(model),
        _until_stopped(judged, context),
        records.manifest.class_names,
        spec.evaluation.iou_threshold,
        spec.evaluation.average_precision,
    )
    context.reporter.report(metrics)


def _model(run: RunSpec, spec: TrainingJobSpec, context: Context) -> FasterRCNN:
    best, source = join(spec.output.uri, "best.keras"), run.inputs.model
    if context.storage.exists(best):
        path = context.storage.fetch(best)
        _tell_of(best, path, run)
        return detector.load(path)
    if source is None:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a trained model to evaluate, got none: {best} does not exist, and spec.model.from "
            "names none",
            "Train first, or name a model in spec.model.from.",
        )
    log.info("%s does not exist: evaluating %s, from which the training starts", best, source.uri)
    given = detector.load(context.storage.fetch(source.uri, source.sha256))
    return detector.with_config(given, given.config.retrained_by(spec.model, spec.dataset))


def _tell_of(uri: str, path: Path, run: RunSpec) -> None:
    """Say whose model it is. Another run's is judged, too: a resource that is made anew has another uid."""
    origin = model_file.origin_of(path)
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


def _check(model: FasterRCNN, records: Records) -> None:
    config, manifest = model.config, records.manifest
    made_for = (config.class_names, config.width, config.height)
    given = (manifest.class_names, manifest.width, manifest.height)
    if made_for != given:
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"expected data of classes {', '.join(made_for[0])} and {made_for[1]} x {made_for[2]} pixels "
            f"(width x height), as the model; got {', '.join(given[0])} and {given[1]} x {given[2]}",
        )


def _until_stopped(inputs: Iterable[Mapping[str, Any]], context: Context) -> Iterator[Mapping[str, Any]]:
    for step, batch in enumerate(inputs):
        context.stop.raise_if("while evaluating; the next attempt begins anew")
        context.reporter.progress(Progress(stage="evaluate", step=step))
        yield batch
