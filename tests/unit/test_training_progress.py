"""Throughput and time to the end in the status, with a clock that the test sets."""

import pytest

from tlt_api.status import Metrics, Progress
from tlt_runner.training.callbacks.aggregate import Aggregate
from tlt_runner.training.callbacks.base import CallbackList, Step
from tlt_runner.training.callbacks.progress import Pace, ProgressReport, Smoothed


class Run:
    """A training whose time the test sets."""

    def __init__(self, epochs: int, steps: int, interval: int = 1) -> None:
        self.now = 100.0
        self.steps = steps
        self.reports: list[Progress] = []
        aggregate = Aggregate(4, lambda: self.now, steps)
        progress = ProgressReport(
            self.reports.append,
            aggregate,
            epochs=epochs,
            steps=steps,
            clock=lambda: self.now,
            evaluation_interval=interval,
        )
        self.callbacks = CallbackList([aggregate, progress])

    def epoch(self, finished: int, seconds: list[float], start: int = 0, loss: float = 1.0) -> None:
        self.callbacks.on_epoch_begin(finished, start)
        for number, taken in enumerate(seconds, start):
            self.now += taken
            step = Step(finished * self.steps + number, number + 1, 1e-3, {"total": loss})
            self.callbacks.on_step_end(step)

    def evaluation(self, number: int, seconds: float) -> None:
        self.callbacks.on_evaluation_begin()
        self.now += seconds
        self.callbacks.on_evaluation_end(Metrics(), number)

    @property
    def last(self) -> Progress:
        assert self.callbacks.failures == [0, 0]
        return self.reports[-1]


def test_the_step_that_compiles_counts_neither_for_throughput_nor_for_the_time_to_the_end() -> None:
    run = Run(epochs=1, steps=10)
    run.epoch(0, [60, 2, 2])
    assert run.last.images_per_second == 2.0
    assert run.last.eta_seconds == 7 * 2


def test_an_epoch_of_one_step_is_reported() -> None:
    run = Run(epochs=3, steps=1)
    run.epoch(0, [60], loss=0.5)
    assert (run.last.step, run.last.loss, run.last.learning_rate) == (1, 0.5, 1e-3)
    assert run.last.images_per_second is None  # the only step has compiled


def test_future_evaluations_count_with_the_duration_of_past_ones() -> None:
    run = Run(epochs=10, steps=5)
    run.epoch(4, [60, 3, 3, 3, 3])  # resumed after four epochs
    assert run.last.eta_seconds == 25 * 3  # how long an evaluation takes is not known yet
    run.evaluation(25, 7)
    run.callbacks.on_epoch_begin(5, 0)
    assert run.last.eta_seconds == 25 * 3 + 5 * 7
    assert (run.last.epoch, run.last.step, run.last.steps, run.last.stage) == (5, 0, 5, "train")


def test_the_time_left_counts_the_evaluations_of_the_interval_and_the_last_one() -> None:
    run = Run(epochs=8, steps=4, interval=3)
    run.epoch(2, [60, 1, 1, 1])
    run.evaluation(12, 10)
    run.callbacks.on_epoch_begin(3, 0)
    assert run.last.eta_seconds == 20 * 1 + 2 * 10  # after epochs 6 and 8


def test_a_running_evaluation_counts_as_still_to_come() -> None:
    run = Run(epochs=3, steps=2)
    run.epoch(0, [60, 1])
    run.evaluation(2, 10)
    run.epoch(1, [1, 1])
    run.callbacks.on_evaluation_begin()
    assert run.last.eta_seconds == 2 * 1 + 2 * 10


def test_steps_of_an_earlier_attempt_are_not_counted_as_left() -> None:
    run = Run(epochs=2, steps=10)
    run.epoch(0, [60, 2, 2], start=6)
    assert run.last.step == 9
    assert run.last.eta_seconds == 11 * 2


def test_the_reported_loss_is_the_mean_of_the_last_fifty_steps() -> None:
    run = Run(epochs=2, steps=60)
    run.epoch(0, [60] + [2] * 59, loss=5.0)
    run.epoch(1, [2] * 25, loss=1.0)
    assert run.last.loss == 3.0


def test_a_pause_between_epochs_does_not_count_as_a_step() -> None:
    run = Run(epochs=3, steps=2)
    run.epoch(0, [60, 1])
    run.now += 1000  # a checkpoint on a slow volume
    run.epoch(1, [1, 1])
    assert run.last.eta_seconds == 2 * 1


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ([60, 2, 2, 0], [4, 2, 2, 0]),  # a device that computes at once: two steps before the first report
        ([60, 2, 2, 2], [2, 2, 2, 2]),  # one that computes while the next step is prepared
    ],
)
def test_the_last_step_of_an_epoch_has_the_throughput_of_the_others(
    first: list[float], others: list[float]
) -> None:
    run = Run(epochs=3, steps=4)
    for finished, seconds in enumerate([first, others, others]):
        run.epoch(finished, seconds)
        # Four images in two seconds, at the end of every epoch.
        assert run.last.step == 4
        assert run.last.images_per_second == 2.0
        assert run.last.eta_seconds == 2 * 4 * (2 - finished)


def test_epochs_of_two_steps_have_the_throughput_of_both() -> None:
    run = Run(epochs=4, steps=2)
    run.epoch(0, [60, 0.005])
    assert (run.last.images_per_second, run.last.eta_seconds) == (None, None)  # 800 images/s otherwise
    run.epoch(1, [3, 0.005])
    # 3.005 seconds in this and the step before for two steps: 8 images.
    assert run.last.images_per_second == pytest.approx(8 / 3.005, abs=0.01)
    assert run.last.eta_seconds == round(4 * 3.005 / 2)


def test_a_slow_step_counts_as_ten_typical_ones_at_most() -> None:
    run = Run(epochs=1, steps=1000)
    run.epoch(0, [60, 30])  # compiles twice
    assert run.last.eta_seconds is None
    run = Run(epochs=1, steps=1000)
    run.epoch(0, [60, 30, *[0.1] * 98])
    # One step of 10 * 0.1 seconds, the others of 0.1. The last report is the last one of those every 2 s.
    taken = run.last.step
    assert taken is not None
    assert run.last.eta_seconds == round((1000 - taken) * (1.0 + 0.1 * (taken - 2)) / (taken - 1))
    assert run.last.eta_seconds < 110  # seconds, where a mean of all steps says 370


def test_the_pace_follows_the_last_thirty_seconds() -> None:
    pace = Pace()
    for _ in range(100):
        pace.add(1, 1.0)
    for _ in range(60):
        pace.add(1, 0.5)
    assert pace.seconds_per_step() == pytest.approx(0.5)


def test_the_pace_of_long_steps_is_that_of_the_last_twenty() -> None:
    pace = Pace()
    for seconds in (*[100.0] * 20, *[60.0] * 10):
        pace.add(1, seconds)
    # Ten of 100 and ten of 60 seconds.
    assert pace.seconds_per_step() == pytest.approx(80.0)


def test_smoothing_is_a_mean_first_and_an_exponential_average_later() -> None:
    smoothed = Smoothed(remembered=4)
    for value in (1.0, 2.0, 3.0, 6.0):
        smoothed.add(value)
    assert smoothed.value == pytest.approx(3.0)
    smoothed.add(7.0)
    assert smoothed.value == pytest.approx(4.0)


def test_a_finished_run_has_no_time_left() -> None:
    run = Run(epochs=2, steps=1)
    run.callbacks.on_train_end(2)
    assert (run.last.epoch, run.last.eta_seconds) == (2, 0)


def test_a_step_is_promised_within_twenty_median_steps_but_not_sooner_than_five_minutes() -> None:
    run = Run(epochs=1, steps=100)
    run.epoch(0, [60, 2, 2, 2])
    assert run.last.next_within_seconds == 300
    run = Run(epochs=1, steps=100)
    run.epoch(0, [60, 30, 30, 300, 30])  # one that waited for a volume is no typical one
    assert run.last.next_within_seconds == 20 * 30


def test_what_compiles_or_lies_between_epochs_may_take_half_an_hour() -> None:
    run = Run(epochs=3, steps=2)
    run.callbacks.on_epoch_begin(0, 0)
    assert run.last.next_within_seconds == 1800
    run.epoch(0, [60, 1])
    assert (run.last.step, run.last.next_within_seconds) == (2, 1800)  # an evaluation follows
    run.callbacks.on_evaluation_begin()
    assert run.last.next_within_seconds == 1800


def test_a_pause_between_epochs_may_take_five_evaluations() -> None:
    run = Run(epochs=3, steps=2)
    run.epoch(0, [60, 1])
    run.evaluation(2, 700)
    run.epoch(1, [1, 1])
    assert run.last.next_within_seconds == 5 * 700


def test_each_batch_of_an_evaluation_is_a_sign_of_life_every_two_seconds() -> None:
    run = Run(epochs=3, steps=2)
    run.epoch(0, [60, 1])
    run.callbacks.on_evaluation_begin()
    before = len(run.reports)
    for _ in range(10):
        run.now += 0.5
        run.callbacks.on_evaluation_batch_end()
    assert len(run.reports) - before == 2  # after 2 and 4 seconds
    assert (run.last.stage, run.last.next_within_seconds) == ("evaluate", 1800)


def test_a_finished_run_promises_nothing() -> None:
    run = Run(epochs=1, steps=2)
    run.epoch(0, [60, 1])
    run.callbacks.on_train_end(1)
    assert run.last.next_within_seconds is None
