"""Death of the operator at every request of a flow, reads included, by the product's own loop."""

from __future__ import annotations

import pytest

from operator_ring.manifests import resource
from operator_ring.simulation import Death, World
from tlt_operator.objects import ATTEMPT, OWNER_NAME
from tlt_operator.snapshot import Key

TRAFFIC, SMALL = Key("TrainingJob", "default", "traffic"), Key("PruneJob", "default", "small")
CODES = {"traffic": [12, 0], "small": [40, 0]}
"""Exit codes of the attempts: out of memory, and storage that was away."""


def play(death: Death | None) -> World:
    """Play a flow of two resources, a suspension included, with one death; return the world at rest."""
    world = World()
    world.start_operator().link.death = death
    world.cluster.add(resource(runPolicy={"ttlSecondsAfterFinished": 60}))
    world.cluster.add(resource("PruneJob", "small"))
    for turn in range(14):
        world.let_pass(0.5 if turn % 2 else 20)
        # Suspended for a while, in the middle of an attempt.
        if turn in (4, 7) and (body := world.cluster.resources.get(TRAFFIC)):
            world.cluster.edit(TRAFFIC, suspend=not body["spec"].get("suspend", False))
        world.cluster.end_stopped_pods(75)
        world.cluster.collect_garbage()
        world.cluster.control_jobs()
        world.cluster.remove_pods()
        world.cluster.start_pods()
        for name, codes in CODES.items():
            for pod in world.cluster.running_pods(name) if turn % 3 == 2 else ():
                labels = pod["metadata"]["labels"]
                world.cluster.end(pod, codes[min(int(labels[ATTEMPT]), len(codes)) - 1])
                assert labels[OWNER_NAME] == name
        if not world.operators:
            world.start_operator()
        # After a death, what follows the end is the same for all.
        ends = {world.cluster.status(key).get("phase") for key in (TRAFFIC, SMALL)}
        if death is not None and world.operators[0].link.death is None and ends == {"Succeeded"}:
            break
    return world


@pytest.fixture(scope="module")
def requests() -> int:
    """Number of requests of the flow."""
    counter = Death(10**6, after=False)
    play(counter).close()
    return 10**6 - counter.requests


def test_a_death_at_any_request_leaves_one_job_per_attempt_and_the_same_end(requests: int) -> None:
    assert requests > 30
    # After a request is carried out is before the next one is: together these are all places to die at.
    for death in [Death(1, after=False), *(Death(number, after=True) for number in range(1, requests + 1))]:
        place = str(death)
        world = play(death)
        try:
            world.cluster.heal()
            # The rest, if the death has delayed it.
            if {"Succeeded"} != {world.cluster.status(key).get("phase") for key in (TRAFFIC, SMALL)}:
                assert world.come_to_rest() == [], place
            assert world.problems() == [], place
            traffic, small = world.cluster.status(TRAFFIC), world.cluster.status(SMALL)
            assert (traffic["phase"], small["phase"]) == ("Succeeded", "Succeeded"), place
            assert set(world.ledger.jobs.values()) == {1}, place
        finally:
            world.close()
