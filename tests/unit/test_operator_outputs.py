"""Two live resources with one output: the later one waits, says for whom, and starts once it may."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from operator_ring.manifests import ended, resource
from operator_ring.memory_kube import Body, MemoryKube, refusal
from operator_ring.scenario import condition, play
from operator_ring.simulated_time import SimulatedTime
from tlt_api.resources import Kind
from tlt_operator import controller
from tlt_operator.cluster.client import ApiError, ConflictError
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.index import Index
from tlt_operator.settings import Settings
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
        body("a", EARLY), body("b", LATE, status={"phase": "Running", "attempt": 1, "jobUid": "j"}),
        (True, False),
    ),
    "one whose Job was refused, and that was suspended then": (
        body("a", EARLY, suspend=True, status={"phase": "Suspended", "attempt": 1}), body("b", LATE),
        (False, False),
    ),
    "one whose second Job was refused, and that was suspended then": (
        body("a", EARLY, suspend=True, status={"phase": "Suspended", "attempt": 2}), body("b", LATE),
        (False, True),
    ),
    "one that waits for a parent": (
        body("a", EARLY, status={"phase": "Pending"}), body("b", LATE), (False, False),
    ),
    "one that was created suspended": (body("a", EARLY, suspend=True), body("b", LATE), (False, False)),
    "one that was suspended while it ran": (
        body("a", EARLY, suspend=True, status={"phase": "Suspended", "attempt": 1, "jobUid": "j"}),
        body("b", LATE),
        (False, True),
    ),
    "a failed one that is taken up again, and waits": (
        body("a", EARLY, status={"phase": "Queued", "attempt": 1, "conditions": WAITING}),
        body("b", LATE, status={"phase": "Running", "attempt": 1, "jobUid": "j"}),
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


def test_former_writers_are_remembered_by_output_and_the_oldest_is_forgotten() -> None:
    index = Index()
    index.update(body("b", LATE))
    for number in range(1001):
        former = Key("TrainingJob", "default", f"former-{number}")
        index.outputs.note_former(former, str(number), {"output": {"uri": "pvc://runs/x"}})
    names = {(key.name, uid) for key, uid in index.outputs.former(B)}
    assert len(names) == 1000
    assert ("former-0", "0") not in names
    for key, uid in index.outputs.former(B):
        index.outputs.former_ended(key, uid)
    assert index.outputs.former(B) == []


# --- with the operator


async def turn(cluster: MemoryKube, index: Index) -> None:
    """Reconcile all resources until nothing is written, as the watches report what happens."""
    for _ in range(20):
        before = cluster.writes
        for key in list(cluster.resources):
            for item in cluster.resources.values():
                index.update(item)
            await controller.reconcile_once(cluster, key, cluster.settings, index, lambda: cluster.now)
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
async def test_an_output_is_taken_before_the_watch_tells_of_the_job(cluster: MemoryKube) -> None:
    index = Index()
    first = cluster.add(resource(name="one", output=SHARED))
    second = cluster.add(resource(name="two", output=SHARED))
    # The first one waited for a parent, and lets others pass, when its watch last told of it.
    index.update(cluster.resources[first] | {"status": {"phase": "Pending"}})
    index.update(cluster.resources[second])
    for key in (second, first):
        await controller.reconcile_once(cluster, key, cluster.settings, index, lambda: cluster.now)
    assert list(cluster.jobs) == ["two-train-1"]
    assert condition(cluster, first, "Blocked")["reason"] == "OutputInUse"


@play
async def test_a_pod_of_a_deleted_one_keeps_its_output_until_it_has_ended(cluster: MemoryKube) -> None:
    index = Index()
    first = cluster.add(resource(name="one", output=SHARED))
    second = cluster.add(resource(name="two", output=SHARED))
    await turn(cluster, index)
    cluster.run_pod("one-train-1")
    deleted = cluster.resources.pop(first)
    assert index.remove(first, deleted["metadata"]["uid"]) == {second}
    await turn(cluster, index)
    assert "one writes to" in condition(cluster, second, "Blocked")["message"]
    # Its Job is collected, and its pod writes a last checkpoint.
    del cluster.jobs["one-train-1"]
    await turn(cluster, index)
    assert "one writes to" in condition(cluster, second, "Blocked")["message"]
    cluster.pods.clear()
    await turn(cluster, index)
    assert list(cluster.jobs) == ["two-train-1"]


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


@play
async def test_the_pod_of_a_deleted_resource_writes_its_checkpoint_before_the_next_one_starts(
    cluster: MemoryKube,
) -> None:
    first = cluster.add(resource(name="one", output=SHARED))
    await cluster.settle()
    cluster.run_pod("one-train-1")
    await cluster.settle()
    pods = dict(cluster.pods)
    assert _writers_of(cluster, "one-train-1") == ""
    cluster.remove(first)
    cluster.pods |= pods  # its grace period
    second = cluster.add(resource(name="two", output=SHARED))
    assert await cluster.settle() == 30
    assert cluster.jobs == {}
    assert condition(cluster, second, "Blocked")["reason"] == "OutputInUse"
    cluster.pods.clear()
    await cluster.settle()
    assert _writers_of(cluster, "two-train-1") == ""  # nobody else is there: what one claimed is free


@play
async def test_a_runner_is_told_which_other_resources_have_its_output(cluster: MemoryKube) -> None:
    first = cluster.add(resource(name="one", output=SHARED))
    await cluster.settle()
    cluster.finish("one-train-1", ended(20))
    await cluster.settle()
    cluster.add(resource(name="two", output=SHARED))
    await cluster.settle()
    assert _writers_of(cluster, "two-train-1") == cluster.resources[first]["metadata"]["uid"]


def _writers_of(cluster: MemoryKube, job: str) -> str:
    [container] = cluster.jobs[job]["spec"]["template"]["spec"]["containers"]
    [value] = [item["value"] for item in container["env"] if item["name"] == "TLT_OUTPUT_WRITERS"]
    return str(value)


async def looks(cluster: MemoryKube, index: Index, *keys: Key) -> None:
    """Reconcile resources in turn, whatever comes of it, as the watches report what happens."""
    for _ in range(5):
        for key in keys:
            with contextlib.suppress(ConflictError):
                await controller.reconcile_once(cluster, key, cluster.settings, index, lambda: cluster.now)
            for item in cluster.resources.values():
                index.update(item)
        cluster.wait(60)


@play
async def test_one_that_is_suspended_in_the_moment_of_its_start_gives_its_claim_back(
    cluster: MemoryKube,
) -> None:
    index = Index()
    first = cluster.add(resource(name="a", output=SHARED))
    second = cluster.add(resource(name="b", output=SHARED))
    for item in cluster.resources.values():
        index.update(item)
    ask = cluster.is_current

    async def suspended_meanwhile(*args: Any) -> bool:
        cluster.is_current = ask  # type: ignore[method-assign]
        cluster.edit(first, suspend=True)
        return await ask(*args)

    cluster.is_current = suspended_meanwhile  # type: ignore[method-assign]
    await looks(cluster, index, first, second)
    assert cluster.status(first)["phase"] == "Suspended"
    assert list(cluster.jobs) == ["b-train-1"]


@pytest.mark.parametrize("lost", [False, True])
def test_one_whose_job_was_never_created_lets_others_pass_and_waits_for_them_then(lost: bool) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        index = Index()
        first = cluster.add(resource(name="a", output=SHARED))
        index.update(cluster.resources[first])
        error = ApiError(0, "timeout") if lost else refusal(403, "exceeded quota: small")
        cluster.refuse_jobs = error
        with contextlib.suppress(ApiError):
            await looks(cluster, index, first)
        cluster.edit(first, suspend=True)
        second = cluster.add(resource(name="b", output=SHARED))
        index.update(cluster.resources[second])
        cluster.refuse_jobs = None
        await looks(cluster, index, first, second)
        assert list(cluster.jobs) == ["b-train-1"]
        cluster.edit(first, suspend=False)
        await looks(cluster, index, first, second)
        assert list(cluster.jobs) == ["b-train-1"]
        assert condition(cluster, first, "Blocked")["reason"] == "OutputInUse"
        cluster.finish("b-train-1", ended(0))
        await looks(cluster, index, first, second)
        assert list(cluster.jobs) == ["b-train-1", "a-train-1"]

    asyncio.run(scenario(MemoryKube()))


class Listed(MemoryKube):
    """Cluster that refuses some lists of metadata, and fails to make others."""

    def __init__(self, **errors: list[ApiError]) -> None:
        super().__init__()
        self.errors = errors

    async def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[Body]:
        self.reads["metadata"] += 1
        errors = self.errors.get(namespace or "", [])
        if errors:
            raise errors.pop(0) if errors[0].code != 403 else errors[0]
        async for item in super().list_metadata(kind, namespace):
            yield item


async def started(cluster: MemoryKube, count: int) -> None:
    for _ in range(600):
        if len(cluster.jobs) == count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"expected {count} Jobs, got {list(cluster.jobs)}")


def scene(cluster: MemoryKube) -> tuple[Key, Key]:
    """Add a resource that runs, and an earlier one that waits for its output."""
    waiting = cluster.add(resource(name="alpha", output=SHARED))
    running = cluster.add(resource(name="zulu", output=SHARED))
    cluster.resources[running]["status"] = {
        "phase": "Running",
        "attempt": 1,
        "jobName": "zulu-train-1",
        "jobUid": "j",
    }
    return waiting, running


@contextlib.asynccontextmanager
async def at_work(cluster: MemoryKube, *namespaces: str) -> AsyncIterator[controller.Controller]:
    work = controller.Controller(cluster, Settings(workers=2, namespaces=namespaces), Health(300))
    work.stand_by()
    work.lead()
    task = asyncio.create_task(work.run())
    try:
        yield work
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        work.queue.close()


@pytest.mark.parametrize("failures", [0, 2])
def test_nothing_starts_until_the_one_that_holds_its_output_was_reported(failures: int) -> None:
    async def scenario() -> None:
        cluster = Listed(**{"": [ApiError(500, "etcd is slow") for _ in range(failures)]})
        waiting, running = scene(cluster)
        async with at_work(cluster) as operator:
            operator.resource_changed(cluster.resources[waiting])
            await asyncio.sleep(5)
            assert cluster.jobs == {}
            operator.resource_changed(cluster.resources[running])
            await asyncio.sleep(5)
            assert "alpha-train-1" not in cluster.jobs
            assert condition(cluster, waiting, "Reconciling")["reason"] == "OutputInUse"
            # From now on nothing is awaited, nor listed.
            other = cluster.add(resource(name="other", output={"uri": "pvc://runs/other"}))
            lists, jobs = cluster.reads["metadata"], len(cluster.jobs)
            operator.resource_changed(cluster.resources[other])
            await started(cluster, jobs + 1)
            assert cluster.reads["metadata"] == lists

    simulated(scenario())


def test_one_that_the_watch_never_reports_delays_the_others_only() -> None:
    async def scenario() -> None:
        cluster = MemoryKube()
        waiting, running = scene(cluster)
        other = cluster.add(resource(name="other", output={"uri": "pvc://runs/other"}))
        gone = cluster.add(resource(name="gone"))
        async with at_work(cluster) as operator:
            await asyncio.sleep(1)
            cluster.remove(gone)
            for key in (waiting, other):
                operator.resource_changed(cluster.resources[key])
            await asyncio.sleep(60)
            assert "other-train-1" in cluster.jobs
            assert "alpha-train-1" not in cluster.jobs
            # A look at one that no watch has reported.
            unreported = cluster.add(resource(name="unreported", output=SHARED))
            operator.queue.add(unreported)
            await asyncio.sleep(10)
            assert "unreported-train-1" not in cluster.jobs
            assert condition(cluster, unreported, "Reconciling")["reason"] == "OutputInUse"

    simulated(scenario())


def test_a_namespace_that_may_not_be_listed_keeps_no_other_from_starting() -> None:
    async def scenario() -> None:
        down = [ApiError(500, "no quorum") for _ in range(1000)]
        cluster = Listed(shut=[ApiError(403, "forbidden")], down=down)
        key = cluster.add(resource())
        async with at_work(cluster, "down", "shut", "default") as operator:
            operator.resource_changed(cluster.resources[key])
            await started(cluster, 1)
            await asyncio.sleep(5)
            outputs = operator.index.outputs
            assert not outputs.postpones(Key("TrainingJob", "shut", "a"))
            assert outputs.postpones(Key("TrainingJob", "down", "a"))

    simulated(scenario())


def simulated(scenario: Coroutine[Any, Any, None]) -> None:
    loop = SimulatedTime()
    try:
        loop.run_until_complete(scenario)
    finally:
        loop.close()


@play
async def test_of_two_that_wait_for_a_former_writer_one_starts(cluster: MemoryKube) -> None:
    """Both find no holder, and both await the list of the former one's pods before either claims."""
    index = Index()
    former = cluster.add(resource(name="former", output=SHARED))
    index.update(cluster.resources[former])
    deleted = cluster.resources.pop(former)
    index.remove(former, deleted["metadata"]["uid"])
    keys = [cluster.add(resource(name=name, output=SHARED)) for name in ("one", "two")]
    # Neither is ready to start as far as the other can see: each lets the other pass.
    for key in keys:
        index.update(cluster.resources[key] | {"status": {"phase": "Pending"}})
    together = asyncio.Barrier(2)

    class Slow(MemoryKube):
        async def list_pods(self, *args: Any, **options: Any) -> Any:
            if args[2] == "former":
                await together.wait()
            return await super().list_pods(*args, **options)

    cluster.__class__ = Slow
    answers = await asyncio.gather(
        *(
            controller.reconcile_once(cluster, key, cluster.settings, index, lambda: cluster.now)
            for key in keys
        ),
        return_exceptions=True,
    )
    assert len(cluster.jobs) == 1
    assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [ConflictError]


@play
async def test_a_later_attempt_waits_for_the_pods_of_a_former_writer(cluster: MemoryKube) -> None:
    index = Index()
    second = cluster.add(resource(name="two", output=SHARED))
    await turn(cluster, index)
    cluster.finish("two-train-1", ended(20))
    await turn(cluster, index)
    assert cluster.status(second)["phase"] == "Failed"
    first = cluster.add(resource(name="one", output=SHARED))
    await turn(cluster, index)
    cluster.run_pod("one-train-1")
    cluster.resources[second]["spec"]["retry"] = 1
    deleted = cluster.resources.pop(first)
    index.remove(first, deleted["metadata"]["uid"])
    await turn(cluster, index)
    assert "two-train-2" not in cluster.jobs
    assert "one writes to" in condition(cluster, second, "Blocked")["message"]
    cluster.pods.pop("one-train-1-abcde")
    cluster.jobs.pop("one-train-1")
    await turn(cluster, index)
    assert "two-train-2" in cluster.jobs


@play
async def test_a_new_operator_knows_ended_writers_whose_pods_live_and_survives_strange_pods(
    cluster: MemoryKube,
) -> None:
    ended_one = cluster.add(resource(name="one", output=SHARED))
    await cluster.settle()
    cluster.run_pod("one-train-1")
    await cluster.settle()
    cluster.resources[ended_one]["status"]["phase"] = "Failed"
    later = cluster.add(resource(name="two", output=SHARED))
    pod = cluster.pods["one-train-1-abcde"]
    for number, text in enumerate(["x", "[]", '{"spec": {"output": "a"}}', '{"spec": 1}']):
        strange = json.loads(json.dumps(pod))
        strange["metadata"] |= {"name": f"strange-{number}", "uid": f"strange-{number}"}
        strange["metadata"]["labels"]["tlt.dev/owner-uid"] = f"nobody-{number}"
        strange["metadata"]["annotations"] = {"tlt.dev/run-spec": text}
        cluster.pods[strange["metadata"]["name"]] = strange
    successor = Controller(cluster, Settings(), Health(300))
    for body in cluster.resources.values():
        successor.resource_changed(body)
    successor.cache.owned("jobs").put(cluster.jobs["one-train-1"])
    for body in cluster.pods.values():
        successor.cache.owned("pods").put(body)
    await successor._note_former_writers(None)
    assert [former for former, _ in successor.index.outputs.former(later)] == [ended_one]
    successor.queue.close()


def test_one_address_at_two_endpoints_is_one_for_the_claim_and_two_for_the_wait() -> None:
    index = Index()
    bodies = [
        resource(
            name=name,
            output={"uri": "s3://runs/one"},
            storage={"s3": {"endpoint": endpoint, "secretRef": {"name": "keys"}}},
        )
        for name, endpoint in (("one", "http://minio:9000"), ("two", "http://minio:9000/"))
    ]
    for body in bodies:
        body["metadata"] |= {"uid": f"uid-{body['metadata']['name']}", "resourceVersion": "1"}
        index.update(body)
    two = Key("TrainingJob", "default", "two")
    assert index.outputs.sharing(two) == set()
    assert index.sharing_output(two) == ("uid-one",)
    index.remove(Key("TrainingJob", "default", "one"), "uid-one")
    assert index.sharing_output(two) == ()
