"""Two live resources with one output: the later one waits, says for whom, and starts once it may."""

from __future__ import annotations

from typing import Any

import pytest

from operator_ring.manifests import ended, resource
from operator_ring.memory_kube import Body, MemoryKube
from operator_ring.scenario import condition, play
from tlt_operator import controller
from tlt_operator.index import Index
from tlt_operator.snapshot import Key

A, B = Key("TrainingJob", "default", "a"), Key("TrainingJob", "default", "b")


def body(name: str, created: str, **fields: Any) -> Body:
    """Return a resource as a watch reports it."""
    status = fields.pop("status", {})
    item = resource(name=name, **({"output": {"uri": "pvc://runs/x"}} | fields))
    item["metadata"] |= {"uid": name, "creationTimestamp": created}
    return item | {"status": status}


SHARED = {"uri": "pvc://runs/traffic"}
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"
WAITING = [{"type": "Reconciling", "status": "True", "reason": "OutputInUse"}]

CASES: dict[str, tuple[Body, Body, tuple[bool, bool]]] = {
    # two resources, and whether the first waits for the second, and the second for the first
    "the earlier one goes first": (body("a", EARLY), body("b", LATE), (False, True)),
    "whatever their names are": (body("a", LATE), body("b", EARLY), (True, False)),
    "of two of one second, the first by name": (body("a", EARLY), body("b", EARLY), (False, True)),
    "a trailing slash makes no other output": (
        body("a", EARLY, output={"uri": "pvc://runs/x/"}), body("b", LATE), (False, True),
    ),
    "another output": (body("a", EARLY, output={"uri": "pvc://runs/xy"}), body("b", LATE), (False, False)),
    "another object store": (
        body("a", EARLY, output={"uri": "s3://b/x"}, storage={"s3": {"endpoint": "http://one"}}),
        body("b", LATE, output={"uri": "s3://b/x"}, storage={"s3": {"endpoint": "http://two"}}),
        (False, False),
    ),
    "one that has ended": (body("a", EARLY, status={"phase": "Succeeded"}), body("b", LATE), (False, False)),
    "a later one that runs": (
        body("a", EARLY), body("b", LATE, status={"phase": "Running", "attempt": 1}), (True, False),
    ),
    "one that waits for a parent": (
        body("a", EARLY, status={"phase": "Pending"}), body("b", LATE), (False, False),
    ),
    "one that was created suspended": (body("a", EARLY, suspend=True), body("b", LATE), (False, False)),
    "one that was suspended while it ran": (
        body("a", EARLY, suspend=True, status={"phase": "Suspended", "attempt": 1}), body("b", LATE),
        (False, True),
    ),
    "a failed one that is taken up again, and waits": (
        body("a", EARLY, status={"phase": "Queued", "attempt": 1, "conditions": WAITING}),
        body("b", LATE, status={"phase": "Running", "attempt": 1}),
        (True, False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_who_waits_for_whom(case: str) -> None:
    first, second, waits = CASES[case]
    for order in ((first, second), (second, first)):
        index = Index()
        for item in order:
            index.update(item)
        answers = (index.outputs.holder(A), index.outputs.holder(B))
        assert answers == (B if waits[0] else None, A if waits[1] else None)


def test_an_output_of_another_namespace_is_another_output() -> None:
    index = Index()
    index.update(body("a", EARLY))
    other = body("b", LATE)
    other["metadata"]["namespace"] = "team"
    index.update(other)
    assert index.outputs.holder(Key("TrainingJob", "team", "b")) is None


def test_of_two_that_are_decided_at_once_one_claims_the_output() -> None:
    index = Index()
    index.update(body("a", EARLY, status={"phase": "Pending"}))
    index.update(body("b", LATE))
    assert index.outputs.holder(B) is None
    index.outputs.claim(B)  # its Job is being created; its status does not say so yet
    assert index.outputs.holder(A) == B
    index.update(body("b", LATE, status={"phase": "Failed", "attempt": 1}))
    assert index.outputs.holder(A) is None


def test_an_end_or_a_deletion_wakes_those_that_wait_for_the_output() -> None:
    index = Index()
    index.update(body("a", EARLY, status={"phase": "Running", "attempt": 1}))
    index.update(body("b", LATE))
    ended_body = body("a", EARLY, status={"phase": "Succeeded", "attempt": 1})
    ended_body["metadata"]["resourceVersion"] = "2"
    assert B in index.update(ended_body)
    assert index.remove(A, "a") == {B}
    assert index.outputs.sharing(B) == set()


# --- with the operator


async def turn(cluster: MemoryKube, index: Index) -> None:
    """Reconcile all resources until nothing is written, as the watches report what happens."""
    for _ in range(20):
        before = cluster.writes
        for key in list(cluster.resources):
            for item in cluster.resources.values():
                index.update(item)
            await controller.reconcile_once(
                cluster, key, cluster.settings, lambda: cluster.now, outputs=index.outputs
            )
        if cluster.writes == before:
            return
    raise AssertionError("does not come to rest")


@play
async def test_the_later_one_waits_and_starts_when_the_first_has_ended(cluster: MemoryKube) -> None:
    index = Index()
    first = cluster.add(resource(name="one", output=SHARED))
    second = cluster.add(resource(name="two", output=SHARED))
    await turn(cluster, index)
    assert list(cluster.jobs) == ["one-train-1"]
    assert cluster.status(second)["phase"] == "Queued"
    blocked = condition(cluster, second, "Blocked")
    assert (blocked["status"], blocked["reason"]) == ("True", "OutputInUse")
    assert "TrainingJob/one writes to pvc://runs/traffic" in blocked["message"]
    assert "attempt" not in cluster.status(second)
    cluster.finish("one-train-1", ended(0))
    await turn(cluster, index)
    assert cluster.status(first)["phase"] == "Succeeded"
    assert list(cluster.jobs) == ["one-train-1", "two-train-1"]
    assert condition(cluster, second, "Blocked")["status"] == "False"


@play
async def test_a_failed_one_that_is_taken_up_again_waits_for_the_one_that_runs(cluster: MemoryKube) -> None:
    index = Index()
    first = cluster.add(resource(name="one", output=SHARED))
    second = cluster.add(resource(name="two", output=SHARED))
    await turn(cluster, index)
    cluster.finish("one-train-1", ended(20))
    await turn(cluster, index)
    assert list(cluster.jobs) == ["one-train-1", "two-train-1"]
    cluster.edit(first, retry=1)
    await turn(cluster, index)
    assert "two writes to" in condition(cluster, first, "Blocked")["message"]
    assert "one-train-2" not in cluster.jobs
    # The one that runs goes on, to its next attempt too.
    cluster.finish("two-train-1", ended(75))
    await turn(cluster, index)
    assert "two-train-2" in cluster.jobs
    cluster.finish("two-train-2", ended(0))
    await turn(cluster, index)
    assert cluster.status(second)["phase"] == "Succeeded"
    assert "one-train-2" in cluster.jobs
    assert cluster.status(first)["history"][0]["retry"] == 1


@play
async def test_waiting_for_an_output_ends_with_the_start_timeout(cluster: MemoryKube) -> None:
    index = Index()
    cluster.add(resource(name="one", output=SHARED))
    second = cluster.add(resource(name="two", output=SHARED, runPolicy={"startTimeoutSeconds": 60}))
    await turn(cluster, index)
    cluster.wait(60)
    await turn(cluster, index)
    status = cluster.status(second)
    assert (status["phase"], status["failure"]["reason"], "history" in status) == (
        "Failed", "StartTimeout", False,
    )  # fmt: skip
    assert "TrainingJob/one" in status["failure"]["message"]
