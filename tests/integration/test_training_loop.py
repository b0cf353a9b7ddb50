"""The loop's decisions: when to evaluate, keep, stop early; and memory that does not suffice."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tiny_detector import training_config
from tlt_api.failures import Reason
from tlt_api.status import Metrics
from tlt_api.training import EarlyStopping, Evaluation, LearningRate, Training
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.training import loop
from tlt_runner.training.callbacks.base import Callback, Step
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.mixed_precision import LOWEST_SCALE
from tlt_runner.training.trainer import FIGURES, Trainer

STILL = LearningRate(min=1e-12, max=1e-12)
"""Nothing moves: the loss does not fall but by the draws."""


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(detector.build(training_config(["car"]), 1), Training(), tf.distribute.get_strategy())


class Recorder(Callback):
    """Records the steps and the mAP of evaluations."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.scores: list[float | None] = []

    def on_step_end(self, step: Step) -> None:
        self.steps.append(step)

    def on_evaluation_end(self, metrics: Metrics, number: int) -> None:
        self.scores.append(metrics.m_ap)


class Run:
    """A training with given mAPs, and a record of the checkpoints that the loop saves."""

    def __init__(self, course: list[float | None], stopping: bool = False) -> None:
        self._course = iter(course)
        self._stopping = stopping
        self.recorder = Recorder()
        self.evaluated = 0
        self.best: list[int] = []
        self.last: list[int] = []
        self.saved: list[Position] = []
        self.recorded: list[int] = []
        self.finished = 0

    def work(self) -> loop.Work:
        return loop.Work(
            batches=self._batches,
            steps=1,
            evaluate=self._evaluate,
            saver=self,
            stop_requested=lambda: self._stopping,
        )

    def is_due(self) -> bool:
        return False

    def snapshot(self) -> None:
        raise AssertionError("none is due")

    def save_state(self, position: Position, snapshot: object = None) -> None:
        self.saved.append(position)

    def finish(self) -> None:
        self.finished += 1

    def save_epoch(
        self, position: Position, metrics: Metrics | None, *, is_best: bool, is_last: bool
    ) -> None:
        assert position.epoch_finished
        assert metrics is None or metrics.epoch == position.epoch
        if is_best:
            assert position.best == metrics
            self.best.append(position.epoch)
        if is_last:
            self.last.append(position.epoch)
        self.recorded.append(position.epoch)

    def train(
        self,
        trainer: Trainer,
        spec: Training,
        judged: Evaluation | None = None,
        start: Position | None = None,
    ) -> Position:
        start = start or Position(run="one", batch_size=1)
        return loop.train(trainer, self.work(), spec, judged or Evaluation(), start, self.recorder)

    def _batches(self, epoch: int, first_step: int) -> Iterable[dict[str, Any]]:
        return [
            {
                "image": np.full((1, 64, 64, 3), 99, np.float32),
                "boxes": np.array([[[8, 8, 40, 40]]], np.float32),
                "classes": np.array([[0]], np.int32),
                "id": tf.constant(["a"]),
            }
        ]

    def _evaluate(self) -> Metrics:
        self.evaluated += 1
        return Metrics(m_ap=next(self._course))


def test_every_improved_model_is_saved_as_the_best(trainer: Trainer) -> None:
    run = Run([0.2, 0.1, 0.3, 0.3])
    end = run.train(trainer, Training(epochs=4, learning_rate=STILL))
    assert run.best == [1, 3]
    assert end.best is not None
    assert (end.best.m_ap, end.best.epoch) == (0.3, 3)


@pytest.mark.parametrize("stopping", [None, EarlyStopping(monitor="mAP"), EarlyStopping(monitor="loss")])
def test_an_evaluation_that_measures_nothing_chooses_no_model(
    trainer: Trainer, stopping: EarlyStopping | None
) -> None:
    run = Run([0.5, None, 0.9])
    with pytest.raises(RunnerError, match="mAP is empty, so that there is no best model") as caught:
        run.train(trainer, Training(epochs=3, learning_rate=STILL, early_stopping=stopping))
    assert caught.value.reason == Reason.NO_LABELS
    assert (run.best, run.evaluated) == ([1], 2)
    # The epoch is saved: with corrected labels the training goes on from there.
    assert [item.epoch for item in run.saved] == [1, 2]


def test_the_first_known_map_replaces_a_best_of_an_earlier_release_without_one(trainer: Trainer) -> None:
    run = Run([0.0, 0.0])
    start = Position(run="one", batch_size=1, epoch=1, best=Metrics(epoch=1))
    run.train(trainer, Training(epochs=3, learning_rate=STILL), start=start)
    assert run.best == [2]


def test_an_epoch_is_saved_before_it_is_evaluated(trainer: Trainer) -> None:
    run = Run([0.1, 0.2, 0.3])
    run.train(trainer, Training(epochs=3, learning_rate=STILL))
    assert [(one.epoch, one.epoch_finished) for one in run.saved] == [(1, False), (2, False), (3, False)]


def test_an_attempt_after_a_kill_in_an_evaluation_evaluates_first(trainer: Trainer) -> None:
    run = Run([0.5, 0.2])
    start = Position(run="one", batch_size=1, epoch=1, epoch_finished=False)
    end = run.train(trainer, Training(epochs=2, learning_rate=STILL), start=start)
    assert (run.evaluated, run.best, run.last) == (2, [1], [1, 2])
    assert end.best is not None
    assert (end.best.m_ap, end.best.epoch, end.epoch_finished) == (0.5, 1, True)


def test_the_last_epoch_is_evaluated_though_no_step_is_left(trainer: Trainer) -> None:
    run = Run([0.5])
    start = Position(run="one", batch_size=1, epoch=2, epoch_finished=False)
    run.train(trainer, Training(epochs=2, learning_rate=STILL), start=start)
    assert (run.best, run.last) == ([2], [2])


def test_an_epoch_whose_evaluation_is_recorded_is_not_evaluated_again(trainer: Trainer) -> None:
    run = Run([0.1])
    best = Metrics(m_ap=0.5, epoch=1)
    start = Position(run="one", batch_size=1, epoch=1, epoch_finished=True, best=best)
    spec = Training(epochs=2, learning_rate=STILL, early_stopping=EarlyStopping(patience=2))
    end = run.train(trainer, spec, start=start.model_copy(update={"reached": 0.5}))
    assert (run.evaluated, run.last, end.best) == (1, [2], best)
    assert run.recorder.scores == [0.1]
    assert end.stale == 1  # of epoch 2 alone


def test_an_evaluation_without_a_better_model_or_a_checkpoint_is_recorded_too(trainer: Trainer) -> None:
    run = Run([0.5, 0.25, 0.125])
    run.train(trainer, Training(epochs=3, learning_rate=STILL, checkpoint_interval=3))
    assert (run.best, run.last, run.recorded) == ([1], [3], [1, 2, 3])


def test_the_mean_loss_of_an_epoch_has_the_steps_of_earlier_attempts(trainer: Trainer) -> None:
    run = Run([0.1])
    start = Position(run="one", batch_size=1, step=3, loss_sum=300.0)
    early = EarlyStopping(monitor="loss", patience=1)
    end = run.train(trainer, Training(epochs=1, learning_rate=STILL, early_stopping=early), start=start)
    assert end.reached == pytest.approx(-(300.0 + run.recorder.steps[0].figures["total"]) / 4, rel=1e-9)
    assert (end.loss_sum, end.step) == (0.0, 0)


def test_a_stop_in_an_epoch_saves_the_losses_so_far(trainer: Trainer) -> None:
    run = Run([], stopping=True)
    start = Position(run="one", batch_size=1, step=3, loss_sum=300.0)
    with pytest.raises(RunnerError, match="step 3 of the next"):
        run.train(trainer, Training(epochs=1, learning_rate=STILL), start=start)
    assert [(one.step, one.loss_sum, one.epoch_finished) for one in run.saved] == [(3, 300.0, True)]
    assert not run.recorder.steps


def test_training_ends_after_evaluations_without_a_better_map(trainer: Trainer) -> None:
    run = Run([0.5, 0.4, 0.4, 0.9])
    spec = Training(epochs=9, learning_rate=STILL, early_stopping=EarlyStopping(patience=2))
    assert run.train(trainer, spec).epoch == 3
    assert run.last[-1] == 3


def test_small_improvements_count_once_they_add_up_to_min_delta(trainer: Trainer) -> None:
    run = Run([0.5, 0.55, 0.62, 0.63, 0.64, 0.99])
    early = EarlyStopping(patience=2, min_delta=0.1)
    end = run.train(trainer, Training(epochs=9, learning_rate=STILL, early_stopping=early))
    assert end.epoch == 5
    assert run.best == [1, 2, 3, 4, 5]  # the best model is the best, by however little


def test_the_last_epoch_is_evaluated_and_saved_whatever_the_intervals(trainer: Trainer) -> None:
    run = Run([0.1, 0.2])
    run.train(
        trainer,
        Training(epochs=5, learning_rate=STILL, checkpoint_interval=4),
        Evaluation(interval_epochs=3),
    )
    assert run.evaluated == 2
    assert run.last == [4, 5]


def test_a_training_stopped_early_by_its_loss_still_has_a_best_model(trainer: Trainer) -> None:
    run = Run([0.1])
    early = EarlyStopping(monitor="loss", patience=1)
    spec = Training(epochs=50, learning_rate=STILL, early_stopping=early)
    end = run.train(trainer, spec, Evaluation(interval_epochs=50))
    assert end.epoch < 50
    assert run.best == run.last[-1:] == [end.epoch]


def test_exhausted_memory_is_reported_with_the_batch_size(trainer: Trainer) -> None:
    def exhausted(epoch: int, first_step: int) -> Iterable[dict[str, Any]]:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]")

    run = Run([])
    run._batches = exhausted  # type: ignore[method-assign]
    with pytest.raises(RunnerError, match="batchSizePerGPU 4 does not fit.*OOM when") as caught:
        run.train(trainer, Training())
    assert caught.value.reason == Reason.OUT_OF_MEMORY
    assert "batchSizePerGPU 2 with gradientAccumulationSteps 2" in caught.value.hint


@pytest.mark.parametrize("text", ["RESOURCE_EXHAUSTED: Out of memory", "CUDNN_STATUS_ALLOC_FAILED"])
def test_exhausted_memory_in_an_evaluation_is_reported_whatever_tensorflow_calls_it(
    trainer: Trainer, text: str
) -> None:
    def exhausted() -> Metrics:
        raise tf.errors.InternalError(None, None, text)

    run = Run([])
    run._evaluate = exhausted  # type: ignore[method-assign]
    start = Position(run="one", batch_size=1, epoch=1, epoch_finished=False)  # killed in its evaluation
    with pytest.raises(RunnerError, match=text) as caught:
        run.train(trainer, Training(), start=start)
    assert caught.value.reason == Reason.OUT_OF_MEMORY
    assert "batchSizePerGPU 2 with gradientAccumulationSteps 2" in caught.value.hint


def test_other_errors_are_raised_unchanged(trainer: Trainer) -> None:
    def broken() -> Metrics:
        raise tf.errors.InternalError(None, None, "no kernel image")

    run = Run([])
    run._evaluate = broken  # type: ignore[method-assign]
    with pytest.raises(tf.errors.InternalError, match="no kernel image"):
        run.train(trainer, Training(), start=Position(run="one", batch_size=1, epoch=1, epoch_finished=False))


class Figured:
    """A trainer whose steps have given figures: what float16 does, where no device computes in it."""

    replicas = 1

    def __init__(self, *figures: dict[str, float]) -> None:
        self._figures = list(figures)

    def step(self, batch: Any, number: int, learning_rate: float) -> tf.Tensor:
        figures = self._figures.pop(0)
        return tf.constant([figures.get(name, 1.0) for name in FIGURES])

    def images_named(self, batch: Any) -> str:
        return "images a"


def test_a_skipped_step_is_reported_without_a_gradient_norm() -> None:
    run = Run([0.1])
    left_out: Any = Figured({"total": 3.0, "gradient_norm": math.inf, "loss_scale": 1024.0})
    spec = Training(epochs=1, early_stopping=EarlyStopping(monitor="loss", patience=1))
    end, steps = run.train(left_out, spec), run.recorder.steps
    assert [(step.number, step.in_epoch, step.figures["total"]) for step in steps] == [(0, 1, 3.0)]
    assert "gradient_norm" not in steps[0].figures
    assert end.reached == -3.0  # the epoch's mean loss has the step


@pytest.mark.parametrize(
    "figures",
    [
        {"total": math.nan, "gradient_norm": math.nan, "loss_scale": 1024.0},
        {"total": math.inf, "loss_scale": 1024.0},
        {"gradient_norm": math.inf, "loss_scale": LOWEST_SCALE},
    ],
)
def test_a_loss_that_a_smaller_loss_scale_cannot_cure_ends_the_training(figures: dict[str, float]) -> None:
    beyond: Any = Figured(figures)
    with pytest.raises(RunnerError, match="not finite at step 1") as caught:
        Run([]).train(beyond, Training(epochs=1))
    assert caught.value.reason == Reason.NAN_LOSS
