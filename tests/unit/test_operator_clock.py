"""Clock of the operator: it goes with the wall clock, and does not jump with it."""

from __future__ import annotations

from datetime import timedelta

from operator_ring.manifests import START, resource
from operator_ring.simulation import World
from tlt_operator.clock import SteadyClock
from tlt_operator.snapshot import Key

TRAFFIC = Key("TrainingJob", "default", "traffic")


def test_a_jump_of_the_wall_clock_is_followed_by_a_tenth_of_the_time_that_passes() -> None:
    error, seconds = 0.0, 0.0
    clock = SteadyClock(lambda: START + timedelta(seconds=seconds + error), lambda: seconds)

    def shown() -> float:
        return (clock() - START).total_seconds()

    seconds = 10.0
    assert shown() == 10
    # An hour forwards: after another 100 s, 110 of them have passed.
    error = 3600.0
    seconds = 110.0
    assert shown() == 120
    # Set right again: 10 s ahead are given back in 100 s.
    error = 0.0
    seconds = 160.0
    assert shown() == 165
    seconds = 300.0
    assert shown() == 300
    # An hour backwards.
    error = -3600.0
    seconds = 400.0
    assert shown() == 390


def test_a_start_timeout_does_not_end_by_a_jump_of_the_clock() -> None:
    world = World()
    operator = world.start_operator()
    world.cluster.goes_away("capacity", 3600)
    world.cluster.add(resource(runPolicy={"startTimeoutSeconds": 300}))

    def let_pass(seconds: int) -> None:
        for _ in range(seconds // 10):
            world.let_pass(10)
            world.cluster.control_jobs()
            world.cluster.start_pods()

    let_pass(50)
    operator.link.move_clock(86400)
    let_pass(200)
    # 250 s, which count as 270 at most.
    assert world.cluster.status(TRAFFIC)["phase"] == "Queued"
    let_pass(60)
    assert world.cluster.status(TRAFFIC)["failure"]["reason"] == "StartTimeout"
    assert world.problems() == []
    world.close()
