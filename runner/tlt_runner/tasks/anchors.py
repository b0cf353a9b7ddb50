"""``tlt anchors``: prepare a TrainingJob's data set and propose anchors for its boxes; nothing is trained."""

from __future__ import annotations

from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.tasks.convert import prepare
from tlt_runner.training.initial_model import fitted_anchors


def run(spec: TrainingJobSpec, run: RunSpec, context: Context) -> None:
    """Report as many proposed anchors as the spec has, beside those of the spec."""
    records = prepare(spec, context)
    context.reporter.report(fitted_anchors(records, spec))
