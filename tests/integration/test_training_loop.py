"""The loop's decisions: when to evaluate, keep, stop early; and memory that does not suffice."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.status import Metrics
from tlt_api.training import EarlyStopping, Evaluation, LearningRate, Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.errors import RunnerError
from tlt_runner.training import loop
from tlt_runner.training.callbacks.base import All, Step
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.mixed_precision import LOWEST_SCALE
from tlt_runner.training.trainer import FIGURES, Trainer

CONFIG = DetectorConfig.model_validate(
    {
        "classNames": ["car"],
        "height": 64,
        "width": 64,
        "backbone": "resnet10",
        "widthMultiplier": 0.125,
        "anchors": {"scales": [24], "ratios": [1.0]},
        "proposals": {"miniBatch": 8, "training": {"preNms": 12, "postNms": 4}},
        "roi": {"poolSize": 2, "miniBatch": 4},
        "maxObjects": 1,
    }
)
STILL = LearningRate(min=1e-12, max=1e-12)
"""Nothing moves: the loss does not fall but by the draws."""


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(detector.build(CONFIG, 1), Training(), tf.distribute.get_strategy())


class Losses(All):
    """Watches the losses of steps and the mAP of evaluations."""

    def __init__(self, losses: list[float], told: list[float | None]) -> None:
        super().__init__([])
        self._seen, self._told = losses, told

    def step(self, step: Step) -> None:
        self._seen.append(step.figures["total"])

    def evaluated(self, metrics: Metrics, number: int) -> None:
        self._told.append(metrics.m_ap)


class Run:
    """One training with a given course of mAP, and what the loop kept of it."""

    def __init__(self, course: list[float | None], stopping: bool = False) -> None:
        self._course = iter(course)
        self._stopping = stopping
        self.losses: list[float] = []
        self.told: list[float | None] = []
        self.evaluated = 0
        self.best: list[int] = []
        self.last: list[int] = []
        self.saved: list[Position] = []

    def work(self) -> loop.Work:
        return loop.Work(
            batches=self._batches,
            steps=1,
            evaluate=self._evaluate,
            save_best=lambda position: self.best.append(position.epoch),
            save_last=lambda position: self.last.append(position.epoch),
            save_position=self.saved.append,
            stopping=lambda: self._stopping,
        )

    def train(
        self,
        trainer: Trainer,
        spec: Training,
        judged: Evaluation | None = None,
        start: Position | None = None,
    ) -> Position:
        start = start or Position(run="one", batch_size=1)
        return loop.train(
            trainer, self.work(), spec, judged or Evaluation(), start, Losses(self.losses, self.told)
        )

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


def test_the_best_model_is_kept_whenever_it_gets_better(trainer: Trainer) -> None:
    run = Run([0.2, 0.1, 0.3, 0.3])
    end = run.train(trainer, Training(epochs=4, learning_rate=STILL))
    assert run.best == [1, 3]
    assert end.best is not None
    assert (end.best.m_ap, end.best.epoch) == (0.3, 3)


def test_without_an_object_to_judge_by_the_newest_model_is_kept(trainer: Trainer) -> None:
    run = Run([None, None, None])
    run.train(trainer, Training(epochs=3, learning_rate=STILL))
    assert run.best == [1, 2, 3]


def test_an_epoch_is_saved_before_it_is_evaluated(trainer: Trainer) -> None:
    run = Run([0.1, 0.2, 0.3])
    run.train(trainer, Training(epochs=3, learning_rate=STILL))
    assert [(one.epoch, one.closed) for one in run.saved] == [(1, False), (2, False), (3, False)]


def test_an_epoch_that_was_killed_in_its_evaluation_is_evaluated_first(trainer: Trainer) -> None:
    run = Run([0.5, 0.2])
    start = Position(run="one", batch_size=1, epoch=1, closed=False)
    end = run.train(trainer, Training(epochs=2, learning_rate=STILL), start=start)
    assert (run.evaluated, run.best, run.last) == (2, [1], [1, 2])
    assert end.best is not None
    assert (end.best.m_ap, end.best.epoch, end.closed) == (0.5, 1, True)


def test_the_last_epoch_is_evaluated_though_no_step_is_left(trainer: Trainer) -> None:
    run = Run([0.5])
    start = Position(run="one", batch_size=1, epoch=2, closed=False)
    run.train(trainer, Training(epochs=2, learning_rate=STILL), start=start)
    assert (run.best, run.last) == ([2], [2])


def test_an_epoch_whose_model_was_published_as_the_best_is_not_evaluated_again(trainer: Trainer) -> None:
    run = Run([0.1])
    known = Metrics(m_ap=0.5, epoch=1)
    start = Position(run="one", batch_size=1, epoch=1, closed=False, best=known, stale=1)
    spec = Training(epochs=2, learning_rate=STILL, early_stopping=EarlyStopping(patience=2))
    end = run.train(trainer, spec, start=start)
    assert (run.evaluated, run.last, end.best) == (1, [1, 2], known)
    assert run.told == [0.5, 0.1]  # those who watch have heard of both
    assert end.stale == 1  # of epoch 2 alone


def test_the_mean_loss_of_an_epoch_has_the_steps_of_earlier_attempts(trainer: Trainer) -> None:
    run = Run([0.1])
    start = Position(run="one", batch_size=1, step=3, loss_sum=300.0)
    early = EarlyStopping(monitor="loss", patience=1)
    end = run.train(trainer, Training(epochs=1, learning_rate=STILL, early_stopping=early), start=start)
    assert end.reached == pytest.approx(-(300.0 + run.losses[0]) / 4, rel=1e-9)
    assert (end.loss_sum, end.step) == (0.0, 0)


def test_a_stop_in_an_epoch_keeps_the_losses_so_far(trainer: Trainer) -> None:
    run = Run([], stopping=True)
    start = Position(run="one", batch_size=1, step=3, loss_sum=300.0)
    with pytest.raises(RunnerError, match="step 3 of the next"):
        run.train(trainer, Training(epochs=1, learning_rate=STILL), start=start)
    assert [(one.step, one.loss_sum, one.closed) for one in run.saved] == [(3, 300.0, True)]
    assert not run.losses


def test_training_ends_after_evaluations_without_a_better_map(trainer: Trainer) -> None:
    run = Run([0.5, 0.4, 0.4, 0.9])
    spec = Training(epochs=9, learning_rate=STILL, early_stopping=EarlyStopping(patience=2))
    assert run.train(trainer, spec).epoch == 3
    assert run.last[-1] == 3


def test_small_rises_count_as_better_once_they_add_up_to_the_least(trainer: Trainer) -> None:
    run = Run([0.5, 0.55, 0.62, 0.63, 0.64, 0.99])
    early = EarlyStopping(patience=2, min_delta=0.1)
    end = run.train(trainer, Training(epochs=9, learning_rate=STILL, early_stopping=early))
    assert end.epoch == 5
    assert run.best == [1, 2, 3, 4, 5]  # the best model is the best, by however little


def test_the_last_epoch_is_evaluated_and_kept_whatever_the_intervals(trainer: Trainer) -> None:
    run = Run([0.1, 0.2])
    run.train(
        trainer,
        Training(epochs=5, learning_rate=STILL, checkpoint_interval=4),
        Evaluation(interval_epochs=3),
    )
    assert run.evaluated == 2
    assert run.last == [4, 5]


def test_a_training_that_stops_by_its_loss_still_has_a_best_model(trainer: Trainer) -> None:
    run = Run([0.1])
    early = EarlyStopping(monitor="loss", patience=1)
    spec = Training(epochs=50, learning_rate=STILL, early_stopping=early)
    end = run.train(trainer, spec, Evaluation(interval_epochs=50))
    assert end.epoch < 50
    assert run.best == run.last[-1:] == [end.epoch]


def test_memory_that_does_not_suffice_is_named_with_the_batch_size(trainer: Trainer) -> None:
    def exhausted(epoch: int, first_step: int) -> Iterable[dict[str, Any]]:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]")

    run = Run([])
    run._batches = exhausted  # type: ignore[method-assign]
    with pytest.raises(RunnerError, match="batchSizePerGPU 4 does not fit.*OOM when") as caught:
        run.train(trainer, Training())
    assert caught.value.reason == Reason.OUT_OF_MEMORY
    assert "batchSizePerGPU 2 with gradientAccumulationSteps 2" in caught.value.hint


@pytest.mark.parametrize("text", ["RESOURCE_EXHAUSTED: Out of memory", "CUDNN_STATUS_ALLOC_FAILED"])
def test_memory_that_does_not_suffice_for_an_evaluation_is_named_whatever_tensorflow_calls_it(
    trainer: Trainer, text: str
) -> None:
    def exhausted() -> Metrics:
        raise tf.errors.InternalError(None, None, text)

    run = Run([])
    run._evaluate = exhausted  # type: ignore[method-assign]
    start = Position(run="one", batch_size=1, epoch=1, closed=False)  # killed in its evaluation
    with pytest.raises(RunnerError, match=text) as caught:
        run.train(trainer, Training(), start=start)
    assert caught.value.reason == Reason.OUT_OF_MEMORY
    assert "batchSizePerGPU 2 with gradientAccumulationSteps 2" in caught.value.hint


def test_another_error_goes_on_as_it_is(trainer: Trainer) -> None:
    def broken() -> Metrics:
        raise tf.errors.InternalError(None, None, "no kernel image")

    run = Run([])
    run._evaluate = broken  # type: ignore[method-assign]
    with pytest.raises(tf.errors.InternalError, match="no kernel image"):
        run.train(trainer, Training(), start=Position(run="one", batch_size=1, epoch=1, closed=False))


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


def test_a_step_that_was_left_out_is_told_and_has_no_gradient_norm() -> None:
    run, steps = Run([0.1]), list[Step]()
    watch = All([])
    watch.step = steps.append  # type: ignore[method-assign]
    left_out: Any = Figured({"total": 3.0, "gradient_norm": math.inf, "loss_scale": 1024.0})
    end = loop.train(
        left_out,
        run.work(),
        Training(epochs=1, early_stopping=EarlyStopping(monitor="loss", patience=1)),
        Evaluation(),
        Position(run="one", batch_size=1),
        watch,
    )
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
def test_what_no_smaller_scale_cures_ends_the_training(figures: dict[str, float]) -> None:
    beyond: Any = Figured(figures)
    with pytest.raises(RunnerError, match="not finite at step 1") as caught:
        Run([]).train(beyond, Training(epochs=1))
    assert caught.value.reason == Reason.NAN_LOSS
