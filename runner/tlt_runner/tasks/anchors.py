"""``tlt anchors``: prepare a TrainingJob's data set and propose anchors for its boxes; nothing is trained."""

from __future__ import annotations

from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.errors import RunnerError
from tlt_runner.training.initial_model import fitted_anchors


def run(run: RunSpec, context: Context) -> None:
    """Report the proposed anchors beside those of the spec, whose number they have.

    Raises:
        RunnerError: ``InvalidSpec`` for another kind than TrainingJob; whatever :func:`prepare` raises.
    """
    spec = run.spec
    if not isinstance(spec, TrainingJobSpec):
        raise RunnerError(
            Reason.INVALID_SPEC, f"anchors: expected a TrainingJob, got {run.owner.kind}/{run.owner.name}"
        )
    records = prepare(
        spec.dataset, context.storage, spec.output.uri, context.reporter, context.stop, spec.model.anchors
    )
    context.reporter.report(fitted_anchors(records, spec))
