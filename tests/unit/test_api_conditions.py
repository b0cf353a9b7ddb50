"""Conditions and phase: one derives from the other, and the operator and ``tlt run`` write the same."""

from __future__ import annotations

import itertools

from tlt_api import conditions
from tlt_api.status import Condition, Phase


def condition(built: list[Condition], type_: str) -> Condition:
    found = conditions.find(built, type_)
    assert found
    return found


def test_the_phase_follows_from_the_conditions() -> None:
    reasons = {
        Phase.PENDING: conditions.WAITING_FOR_DEPENDENCY,
        Phase.RUNNING: conditions.RUNNING,
        Phase.RETRYING: conditions.RETRYING,
    }
    for phase in Phase:
        state = conditions.State(phase, reasons.get(phase, "Whatever"), "m")
        assert conditions.phase(conditions.build([], state, 1, "2026-01-01T00:00:00Z")) == phase
    assert conditions.phase([]) == Phase.PENDING


def test_a_transition_time_is_kept_while_the_status_stays() -> None:
    running = conditions.State(Phase.RUNNING, conditions.RUNNING, "m")
    retrying = conditions.State(Phase.RETRYING, conditions.RETRYING, "other")
    done = conditions.State(Phase.SUCCEEDED, "Succeeded", "m")
    built: list[Condition] = []
    for state, now in zip((running, retrying, done), ("t1", "t2", "t3"), strict=True):
        built = conditions.build(built, state, 1, now)
    assert condition(built, "Ready").last_transition_time == "t3"
    assert condition(built, "Failed").last_transition_time == "t1"
    assert condition(built, "Reconciling").last_transition_time == "t3"


def test_another_obstacle_has_a_time_of_its_own() -> None:
    built: list[Condition] = []
    for reason, now in (("Unschedulable", "t1"), ("ImagePullFailed", "t2"), ("ImagePullFailed", "t3")):
        block = conditions.Block(reason, "m")
        built = conditions.build(built, conditions.State(Phase.QUEUED, reason, "m", block), 1, now)
    assert condition(built, "Blocked").last_transition_time == "t2"


def test_ready_reconciling_and_stalled_are_never_true_together() -> None:
    for phase in Phase:
        built = conditions.build([], conditions.State(phase, "R", "m"), 1, "t")
        true = {c.type for c in built if c.status == "True"}
        pairs = itertools.combinations(("Ready", "Reconciling", "Stalled"), 2)
        assert not any(true.issuperset(pair) for pair in pairs)
