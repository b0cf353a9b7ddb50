"""Conditions of a resource, and the phase that follows from them, for the operator and ``tlt run`` alike.

A :class:`State` says in which of seven phases a resource is and why; :func:`build` spells it out as
conditions that kstatus (Flux, Argo CD, ``kubectl wait``) understands:

    phase        Ready  Reconciling  Stalled  Suspended  Complete  Failed
    Pending      False  True         False    False      False     False
    Queued       False  True         False    False      False     False
    Running      False  True         False    False      False     False
    Retrying     False  True         False    False      False     False
    Suspended    False  False        False    True       False     False
    Succeeded    True   False        False    False      True      False
    Failed       False  False        True     False      False     True

``Blocked`` is True while something outside keeps the attempt's pod from starting; its transition time says
since when. The first four phases differ in the reason of Reconciling only. ``Stalled`` is also True in them
while a person has to act: a run without progress, or a pod whose node does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tlt_api.status import Condition, Failure, Phase

# Types of conditions; kstatus looks at Ready, Reconciling and Stalled.
READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"
SUSPENDED = "Suspended"
COMPLETE = "Complete"
FAILED = "Failed"
BLOCKED = "Blocked"

TERMINAL = (Phase.SUCCEEDED, Phase.FAILED)
"""Final phases: they stay, whatever happens to Jobs and pods."""

# Reasons of Reconciling that decide the phase.
NOT_STARTED = "NotStarted"
WAITING_FOR_DEPENDENCY = "WaitingForDependency"
WAITING_FOR_POD = "WaitingForPod"
WAITING_FOR_ADMISSION = "WaitingForAdmission"
OUTPUT_IN_USE = "OutputInUse"
RUNNING = "Running"
STOPPING = "Stopping"
RETRYING = "Retrying"
NODE_LOST = "NodeLost"
NO_PROGRESS = "NoProgress"
_PHASE_OF_REASON = {
    NOT_STARTED: Phase.PENDING,
    WAITING_FOR_DEPENDENCY: Phase.PENDING,
    RUNNING: Phase.RUNNING,
    STOPPING: Phase.RUNNING,
    NO_PROGRESS: Phase.RUNNING,
    RETRYING: Phase.RETRYING,
    NODE_LOST: Phase.RETRYING,
}
"""Phase for each reason of Reconciling; with any other reason an attempt is Queued."""

# The table of the module's docstring, a line each for its columns.
_TRUE_IN: dict[str, frozenset[Phase]] = {
    READY: frozenset({Phase.SUCCEEDED}),
    # Before Reconciling: of the two, kstatus takes the one that comes first.
    STALLED: frozenset({Phase.FAILED}),
    RECONCILING: frozenset({Phase.PENDING, Phase.QUEUED, Phase.RUNNING, Phase.RETRYING}),
    SUSPENDED: frozenset({Phase.SUSPENDED}),
    COMPLETE: frozenset({Phase.SUCCEEDED}),
    FAILED: frozenset({Phase.FAILED}),
}
_LONGEST_MESSAGE = 32768
"""Limit of metav1.Condition, which the CRD repeats: a longer message would have the whole status refused."""


@dataclass(frozen=True)
class Block:
    """Obstacle that keeps a pod from starting.

    Attributes:
        reason: Reason of the condition Blocked, one word.
        message: Description of the obstacle.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class State:
    """State of a resource.

    Attributes:
        phase: Phase of the resource.
        reason: Reason of the state, one word; for a resource that is reconciling it decides the phase.
        message: Explanation of the state, one sentence.
        block: Obstacle that keeps the pod from starting; None if there is none.
        stalled: True if the resource does not go on unless a person acts, though it has not failed.
    """

    phase: Phase
    reason: str
    message: str
    block: Block | None = None
    stalled: bool = False


def not_started(message: str) -> State:
    """Return the state of a resource that nothing keeps from running, before its first attempt."""
    return State(Phase.PENDING, NOT_STARTED, message)


def waiting_for_dependency(message: str) -> State:
    """Return the state of a resource whose reference has not succeeded yet."""
    return State(Phase.PENDING, WAITING_FOR_DEPENDENCY, message)


def running(attempt: int, job: str = "", problem: str = "") -> State:
    """Return the state of an attempt that runs; ``problem`` is something that is wrong although it runs."""
    message = (
        f"attempt {attempt} runs" + (f" as Job {job}" if job else "") + (f"; {problem}" if problem else "")
    )
    return State(Phase.RUNNING, RUNNING, message)


def suspended() -> State:
    """Return the state of a resource of which nothing runs because spec.suspend is true."""
    return State(Phase.SUSPENDED, SUSPENDED, "spec.suspend is true")


def interrupted(failure: Failure) -> State:
    """Return the state of a run that was interrupted and is resumed only by its user (``tlt run``)."""
    return State(Phase.SUSPENDED, failure.reason, failure.message)


def succeeded(attempt: int) -> State:
    """Return the state of a resource whose attempt succeeded."""
    return State(Phase.SUCCEEDED, "Succeeded", f"attempt {attempt} succeeded")


def failed(failure: Failure) -> State:
    """Return the state of a resource that failed for good."""
    return State(Phase.FAILED, failure.reason, failure.message or failure.reason)


def build(previous: Sequence[Condition], state: State, generation: int, now: str) -> list[Condition]:
    """Return the conditions of a state; ``lastTransitionTime`` is kept if the status did not change."""
    before = {condition.type: condition for condition in previous}
    result = []
    # Every type is there at all times: `kubectl wait --for=condition=Failed=false` must find its condition.
    for type_, phases in _TRUE_IN.items():
        holds = state.phase in phases or (type_ == STALLED and state.stalled)
        status: Literal["True", "False"] = "True" if holds else "False"
        # Ready carries the reason of every state, the other conditions only while they are True.
        explains = status == "True" or type_ == READY
        reason, message = (state.reason, state.message) if explains else (f"Not{type_}", "")
        result.append(_condition(before.get(type_), type_, status, reason, message, generation, now))
    return [*result, _blocked(before.get(BLOCKED), state.block, generation, now)]


def stalled(
    previous: Sequence[Condition], reason: str, message: str, generation: int, now: str
) -> list[Condition]:
    """Return the previous conditions with Stalled set, for a run that goes on with nobody to act on it."""
    before = {condition.type: condition for condition in previous}
    # The other conditions stay: they describe the run, which goes on.
    before[STALLED] = _condition(before.get(STALLED), STALLED, "True", reason, message, generation, now)
    return list(before.values())


def phase(conditions: Sequence[Condition]) -> Phase:
    """Return the phase that follows from conditions."""
    # From the conditions, not stored beside them: the two cannot disagree.
    true = {condition.type: condition for condition in conditions if condition.status == "True"}
    # Final conditions first: they outweigh whatever else was left True.
    if COMPLETE in true:
        return Phase.SUCCEEDED
    if FAILED in true:
        return Phase.FAILED
    if SUSPENDED in true:
        return Phase.SUSPENDED
    if RECONCILING in true:
        # Any other reason is that of an attempt that does not run yet: a quota, a name that is taken.
        return _PHASE_OF_REASON.get(true[RECONCILING].reason, Phase.QUEUED)
    return Phase.PENDING


def find(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """Return the condition of a type, or None."""
    return next((condition for condition in conditions if condition.type == type_), None)


def _blocked(before: Condition | None, block: Block | None, generation: int, now: str) -> Condition:
    # Without an obstacle the condition stays, as False.
    if block is None:
        return _condition(before, BLOCKED, "False", "NotBlocked", "", generation, now)
    # Another blocker is another transition: the start timeout runs for each of them separately.
    same_blocker = before if before and before.reason == block.reason else None
    return _condition(same_blocker, BLOCKED, "True", block.reason, block.message, generation, now)


def _condition(
    before: Condition | None,
    type_: str,
    status: Literal["True", "False"],
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> Condition:
    # kstatus and `kubectl wait` measure from the last change of True or False, not of reason or message.
    unchanged = before is not None and before.status == status
    return Condition(
        type=type_,
        status=status,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before and unchanged else now,
        reason=reason,
        message=message[:_LONGEST_MESSAGE],
    )
