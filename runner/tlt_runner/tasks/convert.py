"""``tlt convert``: prepare a TrainingJob's data set and report on it; nothing is trained."""

from __future__ import annotations

from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.tasks.data_set import prepare


def run(spec: TrainingJobSpec, run: RunSpec, context: Context) -> None:
    """Prepare the data set."""
    prepare(spec, context)
