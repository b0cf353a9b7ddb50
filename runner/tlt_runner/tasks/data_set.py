"""The data set of a TrainingJob, prepared for a task that does not train."""

from __future__ import annotations

from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.preparation import prepare as preparation
from tlt_runner.data.records import Records


def prepare(spec: TrainingJobSpec, context: Context) -> Records:
    """Make the records of the spec's data set below its output, or find them made.

    Raises:
        RunnerError: Whatever :func:`tlt_runner.data.preparation.prepare.prepare` raises.
    """
    return preparation.prepare(
        spec.dataset, context.storage, spec.output.uri, context.reporter, context.stop, spec.model.anchors
    )
