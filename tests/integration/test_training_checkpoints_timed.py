"""Checkpoints within an epoch: due by time, written while steps go on, whole before the run ends."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.runspec import Owner
from tlt_api.status import Metrics
from tlt_api.training import Evaluation, Training
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.errors import InterruptedRunError, RunnerError
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage
from tlt_runner.training import loop
from tlt_runner.training.callbacks.base import Callback
from tlt_runner.training.checkpoint import state
from tlt_runner.training.checkpoint import writer as writing
from tlt_runner.training.checkpoint.artifacts import Checkpoints
from tlt_runner.training.checkpoint.manifest import Manifest
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.trainer import FIGURES

OWNER = Owner(kind="TrainingJob", namespace="default", name="tiny", uid="one")
STEPS, MINUTES = 10, 3
PATIENCE_S = 60.0
"""For what must happen; a test that fails waits as long."""


class Training10:
    """A training of one epoch of ten steps, each of which takes a minute and adds 1 to the only variable."""

    replicas = 1

    def __init__(self, folder: Path, minutes: float = MINUTES, publishes: bool = True) -> None:
        self.output, self.scratch = folder / "out", folder / "scratch"
        self.scratch.mkdir()
        self.variable = np.zeros(1, np.float32)
        self.taken, self.fails_at = 0, 0
        self.after_step: Callable[[int], None] = lambda taken: None
        self.evaluate: Callable[[], Metrics] = lambda: Metrics(m_ap=0.5)
        self.storage = Storage(scratch=self.scratch)
        context = Context(self.storage, LocalReporter(None), self.scratch, Stop())
        self.writer = writing.CheckpointWriter(
            context,
            Checkpoints(context, f"file://{self.output}", OWNER),
            model=SimpleNamespace(),  # type: ignore[arg-type]
            variables=[self.variable],
            keep=0,
            publishes=publishes,
            minutes=minutes,
            clock=lambda: 60.0 * self.taken,
        )

    def step(self, batch: Any, number: int, learning_rate: float) -> tf.Tensor:
        self.taken += 1
        self.variable += 1  # in place, as a device does
        self.after_step(self.taken)
        loss = float("nan") if self.taken == self.fails_at else 2.0
        return tf.constant([loss if name == "total" else 1.0 for name in FIGURES])

    def images_named(self, batch: Any) -> str:
        return "images a, b"

    def batches(self, epoch: int, first_step: int) -> Iterable[dict[str, Any]]:
        return [{} for _ in range(first_step, STEPS)]

    def train(self) -> None:
        work = loop.Work(self.batches, STEPS, lambda: self.evaluate(), self.writer, lambda: False)
        start = Position(run="one", batch_size=1)
        trainer: Any = self
        loop.train(trainer, work, Training(epochs=1), Evaluation(), start, Callback())

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.output / "checkpoint.json").read_text())


@pytest.fixture(autouse=True)
def models_without_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(model: Any, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("weights", b"")

    monkeypatch.setattr(writing.detector, "save", save)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, float]]:
    """Step, value of the variable and sum of losses of every state that is written, in order."""
    states: list[tuple[int, float, float]] = []

    def write(path: Path, position: Position, variables: Any) -> None:
        states.append((position.step, float(variables[0][0]), position.loss_sum))
        plain(path, position, variables)

    plain = state.write
    monkeypatch.setattr(state, "write", write)
    return states


def test_a_checkpoint_is_due_by_time_and_holds_the_losses_of_its_steps(
    tmp_path: Path, written: list[Any]
) -> None:
    one = Training10(tmp_path)
    # Every step waits until the checkpoint before it is written: which ones are due is the clock's decision.
    one.after_step = lambda taken: one.writer.finish()
    one.train()
    assert written == [(3, 3.0, 6.0), (6, 6.0, 12.0), (9, 9.0, 18.0), (0, 10.0, 0.0)]


@pytest.mark.parametrize(("minutes", "publishes"), [(0, True), (3, False)])
def test_none_is_written_within_an_epoch(
    tmp_path: Path, written: list[Any], minutes: float, publishes: bool
) -> None:
    Training10(tmp_path, minutes, publishes).train()
    assert [step for step, _, _ in written] == ([0] if publishes else [])


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, released, plain = Training10(tmp_path), Event(), state.write
    states: list[tuple[int, float, int]] = []

    def slow(path: Path, position: Position, variables: Any) -> None:
        assert released.wait(PATIENCE_S), "the training waits for the checkpoint"
        states.append((position.step, float(variables[0][0]), one.taken))
        plain(path, position, variables)

    monkeypatch.setattr(state, "write", slow)
    one.after_step = lambda taken: released.set() if taken == 8 else None
    one.train()
    step, value, taken = states[0]
    assert (step, value) == (3, 3.0)
    assert taken >= 8
    assert one.taken == STEPS


def test_a_checkpoint_that_fails_ends_the_training_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Training10(tmp_path)

    def full(local: Path, uri: str) -> Any:
        raise RunnerError(Reason.STORAGE_UNAVAILABLE, "the volume is full")

    monkeypatch.setattr(one.storage, "publish", full)
    with pytest.raises(RunnerError, match="the volume is full"):
        one.train()


def test_an_interrupted_evaluation_ends_once_the_checkpoint_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, interrupted, plain = Training10(tmp_path, minutes=0), Event(), state.write

    def slow(path: Path, position: Position, variables: Any) -> None:
        assert interrupted.wait(PATIENCE_S), "the evaluation waits for the checkpoint"
        plain(path, position, variables)

    def evaluate() -> Metrics:
        interrupted.set()
        raise InterruptedRunError("stopped while evaluating")

    monkeypatch.setattr(state, "write", slow)
    one.evaluate = evaluate
    with pytest.raises(InterruptedRunError):
        one.train()
    assert (one.manifest.position.epoch, one.manifest.position.epoch_finished) == (1, False)


@pytest.mark.parametrize("ending", [InterruptedRunError("stopped"), ValueError("an error of the evaluation")])
def test_interrupted_is_only_said_of_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: Exception
) -> None:
    one, started = Training10(tmp_path, minutes=0), Event()

    def full(local: Path, uri: str) -> Any:
        assert started.wait(PATIENCE_S)
        raise RunnerError(Reason.STORAGE_UNAVAILABLE, "the volume is full")

    def evaluate() -> Metrics:
        started.set()
        raise ending

    monkeypatch.setattr(one.storage, "publish", full)
    one.evaluate = evaluate
    expected = "the volume is full" if isinstance(ending, InterruptedRunError) else "of the evaluation"
    with pytest.raises(Exception, match=expected):
        one.train()


@pytest.mark.parametrize("minutes", [0, 3])
def test_a_loss_that_is_not_finite_is_found_at_the_same_step_whether_a_checkpoint_is_due_or_not(
    tmp_path: Path, written: list[Any], minutes: float
) -> None:
    # Workers without checkpoints have begun step 4 when they read the loss of step 3: so must the chief, for
    # which a checkpoint is due after step 3.
    one = Training10(tmp_path, minutes)
    one.fails_at = 3
    with pytest.raises(RunnerError, match="not finite at step 3 "):
        one.train()
    assert (one.taken, written) == (4, [])


def test_memory_that_a_checkpoint_lacks_is_not_blamed_on_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(path: Path, position: Position, variables: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(state, "write", exhausted)
    with pytest.raises(RunnerError, match="a checkpoint needs 0 MiB of the host's memory") as caught:
        Training10(tmp_path).train()
    assert caught.value.reason == Reason.OUT_OF_MEMORY
