"""``tlt convert``: prepare a TrainingJob's data set and report what was found; nothing is trained."""

from __future__ import annotations

from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.errors import RunnerError


def run(run: RunSpec, context: Context) -> None:
    """Prepare the data set.

    Raises:
        RunnerError: ``InvalidSpec`` for another kind than TrainingJob; whatever :func:`prepare` raises.
    """
    if not isinstance(run.spec, TrainingJobSpec):
        raise RunnerError(
            Reason.INVALID_SPEC, f"convert: expected a TrainingJob, got {run.owner.kind}/{run.owner.name}"
        )
    prepare(
        run.spec.dataset,
        context.storage,
        run.spec.output.uri,
        context.reporter,
        context.stop,
        run.spec.model.anchors,
    )
