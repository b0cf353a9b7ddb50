"""The conditions of a resource, and the phase that follows from them.

A :class:`State` says in which of seven states a resource is and why; :func:`build` spells it out as
conditions that kstatus (Flux, Argo CD, ``kubectl wait``) understands:

    state        Ready  Reconciling  Stalled  Suspended  Complete  Failed
    pending      False  True         False    False      False     False
    queued       False  True         False    False      False     False
    running      False  True         False    False      False     False
    retrying     False  True         False    False      False     False
    suspended    False  False        False    True       False     False
    succeeded    True   False        False    False      True      False
    failed       False  False        True     False      False     True

``Blocked`` is True while something outside keeps the attempt's pod from starting; since when is its
transition time. The first four states differ in the reason of Reconciling only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tlt_api.status import Condition, Phase

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"
SUSPENDED = "Suspended"
COMPLETE = "Complete"
FAILED = "Failed"
BLOCKED = "Blocked"

TERMINAL = (Phase.SUCCEEDED, Phase.FAILED)
"""Phases that stay, whatever becomes of Jobs and pods."""

WAITING_FOR_POD = "WaitingForPod"
WAITING_FOR_DEPENDENCY = "WaitingForDependency"
RUNNING = "Running"
STOPPING = "Stopping"
RETRYING = "Retrying"
_PHASE_OF_REASON = {
    WAITING_FOR_DEPENDENCY: Phase.PENDING,
    RUNNING: Phase.RUNNING,
    STOPPING: Phase.RUNNING,
    RETRYING: Phase.RETRYING,
}
"""Every other reason of Reconciling is one for which an attempt is Queued."""

_TRUE_IN: dict[str, frozenset[Phase]] = {
    READY: frozenset({Phase.SUCCEEDED}),
    RECONCILING: frozenset({Phase.PENDING, Phase.QUEUED, Phase.RUNNING, Phase.RETRYING}),
    STALLED: frozenset({Phase.FAILED}),
    SUSPENDED: frozenset({Phase.SUSPENDED}),
    COMPLETE: frozenset({Phase.SUCCEEDED}),
    FAILED: frozenset({Phase.FAILED}),
}


@dataclass(frozen=True)
class Block:
    """What keeps a pod from starting.

    Attributes:
        reason: One word.
        message: What is wrong.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class State:
    """The state of a resource.

    Attributes:
        phase: Which state.
        reason: Why, one word; where the resource is reconciling it decides the phase.
        message: Why, one sentence.
        block: What keeps the pod from starting, if anything does.
    """

    phase: Phase
    reason: str
    message: str
    block: Block | None = None


def build(previous: Sequence[Condition], state: State, generation: int, now: str) -> list[Condition]:
    """The conditions of a state. ``lastTransitionTime`` is kept where the status did not change."""
    before = {condition.type: condition for condition in previous}
    result = []
    for type_, phases in _TRUE_IN.items():
        status: Literal["True", "False"] = "True" if state.phase in phases else "False"
        told = status == "True" or type_ == READY
        reason, message = (state.reason, state.message) if told else (f"Not{type_}", "")
        result.append(_condition(before.get(type_), type_, status, reason, message, generation, now))
    return [*result, _blocked(before.get(BLOCKED), state.block, generation, now)]


def stalled(
    previous: Sequence[Condition], reason: str, message: str, generation: int, now: str
) -> list[Condition]:
    """The previous conditions with Stalled set, for a run that goes on although it cannot be looked after."""
    before = {condition.type: condition for condition in previous}
    before[STALLED] = _condition(before.get(STALLED), STALLED, "True", reason, message, generation, now)
    return list(before.values())


def phase(conditions: Sequence[Condition]) -> Phase:
    """The phase that follows from conditions."""
    true = {condition.type: condition for condition in conditions if condition.status == "True"}
    if COMPLETE in true:
        return Phase.SUCCEEDED
    if FAILED in true:
        return Phase.FAILED
    if SUSPENDED in true:
        return Phase.SUSPENDED
    if RECONCILING in true:
        return _PHASE_OF_REASON.get(true[RECONCILING].reason, Phase.QUEUED)
    return Phase.PENDING


def find(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of a type."""
    return next((condition for condition in conditions if condition.type == type_), None)


def _blocked(before: Condition | None, block: Block | None, generation: int, now: str) -> Condition:
    if block is None:
        return _condition(before, BLOCKED, "False", "NotBlocked", "", generation, now)
    # Another obstacle is another transition: each has its own time to go away.
    same = before if before and before.reason == block.reason else None
    return _condition(same, BLOCKED, "True", block.reason, block.message, generation, now)


def _condition(
    before: Condition | None,
    type_: str,
    status: Literal["True", "False"],
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> Condition:
    kept = before is not None and before.status == status
    return Condition(
        type=type_,
        status=status,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before and kept else now,
        reason=reason,
        message=message[:32768],
    )
