"""Promises of the operator that hold whatever happens, checked on objects as the API server has them.

The simulated cluster (:mod:`.simulation`) and tests on a real API server share them. A :class:`Ledger` is
told every Job that was created and every version of a resource that was seen, and collects what is wrong;
:func:`at_rest` judges the cluster once its surroundings are healed and time has passed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import jsonschema

from tlt_api import crdgen
from tlt_api.conditions import TERMINAL
from tlt_api.failures import CLASSES, Cause, Reason
from tlt_api.references import raw_parent
from tlt_api.resources import KINDS
from tlt_api.status import HISTORY_LIMIT, Phase
from tlt_operator.objects import ATTEMPT, OWNER_KIND

Body = Mapping[str, Any]

_WAITING_FAILURES = {Reason.IMAGE_PULL_FAILED, Reason.POD_REJECTED, Reason.START_TIMEOUT}
"""Reasons that a resource fails by only after spec.runPolicy.startTimeoutSeconds, or never."""
_DEPENDENCY_FAILURES = {Reason.DEPENDENCY_FAILED, Reason.DEPENDENCY_UNUSABLE}
_LATE_SECONDS = 120.0
"""Time that a promised report may be late."""
_UNCOUNTED_INTERRUPTIONS = 10
"""Interruptions in a row that never end a resource."""


class Ledger:
    """Record of what was seen of each resource and Job, by uid."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """What is wrong, in the order in which it was seen."""
        self.deserved: dict[str, set[str]] | None = None
        """Reasons, by the resource's uid, with which its runs have ended; None where they are not known."""
        self.clock: Callable[[], float] | None = None
        """Seconds of the cluster; None where waits are not judged."""
        self.clocks_agree = True
        """False once an operator's clock was set."""
        self.operators = 0
        """Operators so far: each begins with its own clock, whatever that shows."""
        self._created: dict[str, float] = {}
        self._overdue: dict[str, float] = {}
        self._statuses: dict[str, Mapping[str, Any]] = {}
        self._jobs: Counter[tuple[str, int]] = Counter()
        self._owners: dict[str, str] = {}
        self._pardoned: set[tuple[str, int]] = set()
        self._failed_names: set[tuple[str, str]] = set()

    def job_created(self, job: Body) -> None:
        """Note a Job of ours: there is one for each attempt of a resource."""
        metadata = job["metadata"]
        owner = controller_uid(metadata)
        attempt = int(metadata["labels"][ATTEMPT])
        self._jobs[owner, attempt] += 1
        self._owners[metadata["uid"]] = owner
        if self._jobs[owner, attempt] > 1 and (owner, attempt) not in self._pardoned:
            self._wrong(f"Job {metadata['name']}: {self._jobs[owner, attempt]} Jobs of one attempt")

    def job_removed_by_hand(self, job: Body, recorded: bool) -> None:
        """Note a Job that somebody deleted; one that no status had recorded yet is made again."""
        metadata = job["metadata"]
        if not recorded:
            self._pardoned.add((controller_uid(metadata), int(metadata["labels"][ATTEMPT])))

    def run_reported(self, uid: str, promised: int | None) -> None:
        """Note a report of progress, with the seconds within which the next one was promised."""
        if self.clock:
            self._overdue[uid] = self.clock() + _LATE_SECONDS + promised if promised is not None else math.inf

    @property
    def jobs(self) -> Counter[tuple[str, int]]:
        """Jobs created, by the uid of their resource and the attempt."""
        return self._jobs

    def resource_seen(self, body: Body) -> None:
        """Note a version of a resource, in the order in which it got them."""
        metadata, status = body["metadata"], body.get("status") or {}
        uid, name = metadata["uid"], f"{body['kind']}/{metadata['name']}"
        if self.clock:
            self._created.setdefault(uid, self.clock())
        before = self._statuses.get(uid, {})
        if status == before:
            return
        self._statuses[uid] = status
        for problem in schema_problems(body["kind"], status):
            self._wrong(f"{name}: status against the CRD: {problem}")
        attempt, earlier = status.get("attempt") or 0, before.get("attempt") or 0
        if attempt < earlier:
            self._wrong(f"{name}: attempt {earlier} -> {attempt}")
        attempts = [entry["attempt"] for entry in status.get("history") or ()]
        if attempts != sorted(attempts) or len(attempts) > HISTORY_LIMIT:
            self._wrong(f"{name}: history of attempts {attempts}")
        if attempts and attempts[-1] > attempt:
            self._wrong(f"{name}: attempt {attempts[-1]} has ended, and attempt {attempt} is the current one")
        owner = self._owners.get(status.get("jobUid") or "", uid)
        if owner != uid:
            self._wrong(f"{name}: Job {status.get('jobName')} was adopted from the resource {owner}")
        self._check_end(name, body, before, status)
        self._check_stall(name, body, before, status)

    def _check_stall(self, name: str, body: Body, before: Body, status: Body) -> None:
        """Check that a run is stalled no sooner than its next report is overdue, and restarted if wanted."""
        was, stalls = _stalls(before), _stalls(status)
        if self.clock is None or stalls == was:
            return
        due = self._overdue.get(body["metadata"]["uid"], math.inf)
        if (stalls[0] and not was[0] or stalls[1] > was[1]) and self.clock() < due:
            self._wrong(f"{name}: stalled {due - self.clock()} s before its next report is overdue")
        if stalls[1] > was[1] and (body["spec"].get("runPolicy") or {}).get("stall") != "Restart":
            self._wrong(f"{name}: restarted after a stall, which runPolicy does not ask for")

    def _check_end(self, name: str, body: Body, before: Body, status: Body) -> None:
        was, phase = before.get("phase"), status.get("phase")
        taken_up = (status.get("observedRetry") or 0) > (before.get("observedRetry") or 0)
        if was in TERMINAL and phase != was and not (was == Phase.FAILED and taken_up):
            self._wrong(f"{name}: {was} -> {phase}")
        if phase == Phase.FAILED and was != Phase.FAILED:
            self._failed_names.add((body["kind"], body["metadata"]["name"]))
            if problem := self._undeserved(body):
                self._wrong(f"{name}: Failed by {problem}")

    def _undeserved(self, body: Body) -> str:
        """Return why a resource should not have failed; empty if it should have."""
        status, spec = body["status"], body["spec"]
        failure = status.get("failure") or {}
        reason = Reason(failure["reason"])
        text = f"{reason}: {failure.get('message')}"
        limit = (spec.get("runPolicy") or {}).get("startTimeoutSeconds")
        if reason in _WAITING_FAILURES or CLASSES[reason].cause == Cause.SURROUNDINGS:
            waited = self.clock() - self._created[body["metadata"]["uid"]] if self.clock else math.inf
            # A clock that was set makes a wait a tenth shorter; times in a status have no fractions.
            is_judged = self.clocks_agree or self.operators == 1
            early = limit is not None and is_judged and waited < limit / 1.1 - 1
            return text if limit is None or early else ""
        if CLASSES[reason].cause == Cause.INTERRUPTION:
            known = [Reason(e["reason"]) for e in status["history"] if e["reason"] in set(Reason)]
            interruptions = [item for item in known if CLASSES[item].cause == Cause.INTERRUPTION]
            return "" if len(interruptions) > _UNCOUNTED_INTERRUPTIONS else text
        if reason in _DEPENDENCY_FAILURES:
            return "" if raw_parent(body) in self._failed_names else text
        if self.deserved is not None and reason not in self.deserved.get(body["metadata"]["uid"], ()):
            return f"{text}, which no run of it ended by"
        return ""

    def _wrong(self, problem: str) -> None:
        self.problems.append(problem)


def at_rest(resources: Iterable[Body], jobs: Iterable[Body], pods: Iterable[Body]) -> list[str]:
    """Return what is wrong in a cluster whose surroundings are healed and in which every run ends by itself.

    Each resource has ended, or is suspended by its user, or waits for another resource that has not
    succeeded. Nothing runs that no resource owns.
    """
    resources = list(resources)
    phases = {(r["kind"], r["metadata"]["name"]): (r.get("status") or {}).get("phase") for r in resources}
    # Of resources that have not ended and do not wait for an output themselves.
    held = {
        _output(r)
        for r in resources
        if phases[r["kind"], r["metadata"]["name"]] not in TERMINAL
        and _ready(r).get("reason") != "OutputInUse"
    }
    uids = {resource["metadata"]["uid"] for resource in resources}
    wrong = []
    for resource in resources:
        problem = _stuck(resource, phases.get, _output(resource) in held)
        if problem:
            wrong.append(f"{resource['kind']}/{resource['metadata']['name']} is stuck: {problem}")
    for job in jobs:
        if (
            OWNER_KIND in (job["metadata"].get("labels") or {})
            and controller_uid(job["metadata"]) not in uids
        ):
            wrong.append(f"Job {job['metadata']['name']} is an orphan")
    for pod in pods:
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            wrong.append(f"pod {pod['metadata']['name']} still runs")
    return wrong


def _stuck(resource: Body, phase_of: Callable[[tuple[str, str]], str | None], is_held: bool) -> str:
    phase = (resource.get("status") or {}).get("phase")
    if phase in TERMINAL or (phase == Phase.SUSPENDED and resource["spec"].get("suspend")):
        return ""
    ready, parent = _ready(resource), raw_parent(resource)
    reason = ready.get("reason")
    if reason == "WaitingForDependency" and parent and phase_of(parent) not in TERMINAL:
        return ""
    if reason == "OutputInUse" and is_held:
        return ""
    return f"{phase}, {reason}: {ready.get('message')}"


def _ready(resource: Body) -> Body:
    conditions = (resource.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == "Ready"), {})


def _output(resource: Body) -> str:
    return str(resource["spec"]["output"]["uri"])


def _stalls(status: Body) -> tuple[bool, int]:
    """Return whether a status says that its run makes no progress, and how many attempts ended by that."""
    conditions = status.get("conditions") or ()
    says = any((c["type"], c["status"], c["reason"]) == ("Stalled", "True", "NoProgress") for c in conditions)
    return says, len([entry for entry in status.get("history") or () if entry["reason"] == "Stalled"])


def controller_uid(metadata: Body) -> str:
    """Return the uid of the controller of an object; empty if it has none."""
    owners = [ref["uid"] for ref in metadata.get("ownerReferences") or () if ref.get("controller")]
    return owners[0] if owners else ""


def schema_problems(kind: str, status: Body) -> Sequence[str]:
    """Return what an API server would refuse in a status, or drop without saying so."""
    # Simulated histories meet the same statuses again and again.
    return _schema_problems(kind, json.dumps(status))


@lru_cache(maxsize=10_000)
def _schema_problems(kind: str, status: str) -> list[str]:
    body = json.loads(status)
    found = [f"{'.'.join(map(str, e.path))}: {e.message}" for e in _validator(kind).iter_errors(body)]
    return found + [f"unknown field {name}" for name in set(body) - set(_schema(kind)["properties"])]


@cache
def _schema(kind: str) -> dict[str, Any]:
    definition = crdgen.custom_resource_definition(KINDS[kind])
    version: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema: dict[str, Any] = version["properties"]["status"]
    return schema


@cache
def _validator(kind: str) -> Any:
    return jsonschema.Draft4Validator(_schema(kind))
