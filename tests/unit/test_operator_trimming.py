"""What the cache keeps of Jobs and pods is all that a snapshot takes from them."""

from __future__ import annotations

from typing import Any

from tlt_operator.cluster.cache import OwnedObjects, _job, _pod
from tlt_operator.objects import ATTEMPT, INDEX, OWNER_KIND, OWNER_NAME, OWNER_UID, SUSPENDED_BY_US
from tlt_operator.observe import job_state, pod_state

TIME = "2026-11-30T10:00:00Z"
LABELS = {OWNER_KIND: "TrainingJob", OWNER_NAME: "cars", OWNER_UID: "u1", ATTEMPT: "2"}
METADATA: dict[str, Any] = {
    "name": "cars-train-2",
    "namespace": "team",
    "uid": "j1",
    "resourceVersion": "7",
    "creationTimestamp": TIME,
    "deletionTimestamp": TIME,
    "deletionGracePeriodSeconds": 120,
    "labels": {**LABELS, "kueue.x-k8s.io/queue-name": "gpus"},
    "annotations": {SUSPENDED_BY_US: "true", INDEX: "3", "tlt.dev/run-spec": "x" * 5_000},
    "ownerReferences": [{"uid": "u1", "controller": True, "kind": "TrainingJob", "name": "cars"}],
    "managedFields": [{"manager": "somebody"}],
}


def _conditions(*types: str) -> list[dict[str, str]]:
    common = {"status": "True", "reason": "Why", "message": "because", "lastTransitionTime": TIME}
    return [{"type": type_, **common} for type_ in types]


JOB = {
    "metadata": METADATA,
    "spec": {
        "completionMode": "Indexed",
        "parallelism": 4,
        "suspend": True,
        "ttlSecondsAfterFinished": 60,
        "template": {"spec": {"containers": [{"name": "runner"}]}},
    },
    "status": {
        "startTime": TIME,
        "completionTime": TIME,
        "ready": 3,
        "active": 1,
        "conditions": _conditions("Complete", "Suspended"),
    },
}
TERMINATED = {"exitCode": 137, "reason": "OOMKilled", "message": "{}", "finishedAt": TIME}
POD = {
    "metadata": {**METADATA, "labels": LABELS, "deletionGracePeriodSeconds": 0},
    "spec": {"nodeName": "gpu-1", "containers": [{"name": "runner"}], "volumes": []},
    "status": {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "disk",
        "podIP": "10.0.0.1",
        "conditions": _conditions("PodScheduled", "DisruptionTarget"),
        "containerStatuses": [
            {"name": "mesh", "state": {"running": {}}},
            {"name": "runner", "imageID": "sha256:0", "state": {"terminated": TERMINATED}},
        ],
    },
}


def _kept(objects: OwnedObjects, body: dict[str, Any]) -> Any:
    objects.put(body)
    return objects.get("team", "cars-train-2")


def test_a_trimmed_job_has_the_state_of_the_whole_one() -> None:
    whole = job_state(JOB)
    default = job_state({"metadata": {"name": ""}})
    # Every attribute has a value of its own here, so that one that was lost would show.
    assert [name for name in whole.__dict__ if getattr(whole, name) == getattr(default, name)] == []
    assert job_state(_kept(OwnedObjects(_job), JOB)) == whole


def test_a_trimmed_pod_has_the_state_of_the_whole_one() -> None:
    whole = pod_state(POD, "u1")
    default = pod_state({"metadata": {"name": ""}}, "u1")
    assert [name for name in whole.__dict__ if getattr(whole, name) == getattr(default, name)] == []
    kept = _kept(OwnedObjects(_pod), POD)
    assert pod_state(kept, "u1") == whole
    assert len(str(kept)) < 1_500
