"""``tlt convert``: prepare a TrainingJob's data set and report on it; nothing is trained.

:func:`prepare` is also the first step of the other tasks that work on a data set without training.
"""

from __future__ import annotations

from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.preparation import prepare as preparation
from tlt_runner.data.records import Records


def run(spec: TrainingJobSpec, run: RunSpec, context: Context) -> None:
    """Prepare the data set."""
    prepare(spec, context)


def prepare(spec: TrainingJobSpec, context: Context) -> Records:
    """Make the records of the spec's data set below its output, or reuse those of an earlier run.

    Raises:
        RunnerError: Whatever :func:`tlt_runner.data.preparation.prepare.prepare` raises.
    """
    # A complete model has anchors of its own, known once it is loaded: the report compares none.
    anchors = spec.model.anchors if spec.model.from_ is None else None
    return preparation.prepare(
        spec.dataset, context.storage, spec.output.uri, context.reporter, context.stop, anchors
    )
