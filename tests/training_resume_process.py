"""One attempt of a training, ended at will: used by test_training_resume, and run by it to be killed.

The only thing that is added to the product's task is that every step's loss is written down.
"""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tlt_api.runreport import RunReport
from tlt_api.runspec import RunSpec
from tlt_api.status import Progress
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage
from tlt_runner.tasks import train
from tlt_runner.training.trainer import FIGURES, Trainer


class Ending:
    """The point at which an attempt is ended: after a step, or in an epoch's evaluation."""

    def __init__(
        self,
        *,
        stop_after: int = -1,
        kill_after: int = -1,
        stop_in_evaluation: int = -1,
        timed_in: str | None = None,
    ) -> None:
        self.stop = Stop()
        # The manifest, if the kill is to wait until it names a checkpoint within an epoch.
        self.timed_in = timed_in
        self.stop_after, self.kill_after = stop_after, kill_after
        self.stop_in_evaluation = stop_in_evaluation

    def after_step(self, number: int) -> None:
        if -1 < self.kill_after <= number and (self.timed_in is None or _is_within_epoch(self.timed_in)):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.stop_after:
            self.stop.request()

    def in_evaluation(self, epoch: int) -> None:
        if epoch == self.stop_in_evaluation:
            self.stop.request()


def _is_within_epoch(manifest: str) -> bool:
    path = Path(manifest)
    return path.exists() and json.loads(path.read_text())["position"]["step"] > 0


class Reporter(LocalReporter):
    """Sees evaluations begin."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(None)
        self._ending = ending

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        if progress.stage == "evaluate":
            self._ending.in_evaluation((progress.epoch or 0) + 1)


def attempt(run: RunSpec, scratch: Path, losses: Path, ending: Ending) -> RunReport:
    """Train until the end, or until the ending; losses are appended as ``step loss`` lines."""

    class Recorded(Trainer):
        def step(self, batch: dict[str, Any], number: int, learning_rate: float) -> tf.Tensor:
            figures = super().step(batch, number, learning_rate)
            with losses.open("a") as file:
                print(number, float(figures[FIGURES.index("total")]), file=file)
            ending.after_step(number)
            return figures

    scratch.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(ending)
    context = Context(Storage(scratch=scratch), reporter, scratch, ending.stop)
    plain, train.Trainer = train.Trainer, Recorded  # type: ignore[misc]
    try:
        train.run(run.spec, run, context)
    finally:
        train.Trainer = plain  # type: ignore[misc]
    return reporter.snapshot()


def main(arguments: Sequence[str]) -> None:
    """Run an attempt in its own process."""
    run_file, scratch, losses, ending = arguments
    run = RunSpec.from_json(Path(run_file).read_bytes())
    attempt(run, Path(scratch), Path(losses), Ending(**json.loads(ending)))
