"""Throughput and time to the end, with a clock that is told the time."""

from tlt_api.status import Progress
from tlt_runner.training.meter import Meter
from tlt_runner.training.watch import Step


def step(in_epoch: int, loss: float) -> Step:
    return Step(in_epoch, in_epoch, 1e-3, {"total": loss})


class Clock:
    """Seconds that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_to_the_end_follows_the_pace_of_this_attempt() -> None:
    seen: list[Progress] = []
    clock = Clock()
    meter = Meter(seen.append, epochs=10, steps=5, images=4, clock=clock)
    meter.epoch(4, 0)  # resumed after four epochs
    for number in range(1, 6):
        clock.now += 3
        meter.step(step(number, 1.5))
    clock.now += 5  # evaluation
    meter.epoch(5, 0)
    assert seen[-1].eta_seconds == 5 * 20
    assert (seen[-1].epoch, seen[-1].step, seen[-1].stage) == (5, 0, "train")


def test_throughput_leaves_out_the_step_that_compiles() -> None:
    seen: list[Progress] = []
    clock = Clock()
    meter = Meter(seen.append, epochs=1, steps=3, images=4, clock=clock)
    meter.epoch(0, 0)
    clock.now += 60
    meter.step(step(1, 3.0))
    clock.now += 2
    meter.step(step(2, 1.0))
    assert seen[-1].images_per_second == 2.0
    assert seen[-1].loss == 2.0
