"""Cache of the operator and the watches that fill it: what is read live, what a stale cache may not do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from operator_ring.manifests import BEST, SHA, ended, resource
from operator_ring.memory_kube import Body, KilledError, MemoryKube
from operator_ring.scenario import condition, in_a_loop, play
from operator_ring.simulated_time import SimulatedTime
from tlt_operator.cluster.cache import CachedClient
from tlt_operator.cluster.client import ApiError, ConflictError, Owned
from tlt_operator.cluster.warning_events import WarningEvents
from tlt_operator.controller import reconcile_once
from tlt_operator.health import Health
from tlt_operator.index import Index, key_of
from tlt_operator.reconcile.attempts import progress_seconds
from tlt_operator.snapshot import Key
from tlt_operator.traffic import WatchSigns
from tlt_operator.watches import Watch, Watches

JOB = "traffic-train-1"


class Operator:
    """Operator whose watches report when a test says so."""

    def __init__(self, cluster: MemoryKube) -> None:
        self.cluster = cluster
        self.seconds = 1000.0
        self.cache = CachedClient(cluster, lambda: self.seconds)

    async def watches_report(self, *what: Owned) -> None:
        """Let the watches of Jobs or pods (or of all, with resources) report everything up to now."""
        if not what:
            for key, body in self.cluster.resources.items():
                self.cache.put_resource(key, body)
        for kind in what or ("jobs", "pods"):
            await Watch(self.cache, kind, None, lambda owner, ended: None)._list()

    async def look(self, key: Key) -> float | None:
        cluster = self.cluster
        look = await reconcile_once(self.cache, key, cluster.settings, cluster.index, lambda: cluster.now)
        return look.requeue_after


@play
async def test_a_life_takes_two_reads_and_five_writes(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    await operator.watches_report()
    await operator.look(key)
    for step in (lambda: cluster.run_pod(JOB), lambda: cluster.finish(JOB, ended(0, "Completed"))):
        step()
        await operator.watches_report()
        await operator.look(key)
        await operator.look(key)
    assert cluster.status(key)["phase"] == "Succeeded"
    assert cluster.reads == {"version": 1, "pods": 1}
    assert cluster.writes == 5


@play
async def test_our_own_write_is_seen_before_its_watch_reports_it(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    await operator.watches_report()
    created = json.loads(json.dumps(cluster.resources[key]))
    await operator.look(key)
    # The event of the creation arrives after the answer to the status write.
    operator.cache.put_resource(key, created)
    writes = cluster.writes
    await operator.look(key)
    assert cluster.writes == writes
    assert cluster.created_jobs == {JOB: 1}


@pytest.mark.parametrize("change", ["suspend", "remove"])
def test_no_job_is_created_for_a_resource_that_changed_since_it_was_reported(change: str) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        operator = Operator(cluster)
        key = cluster.add(resource())
        await operator.watches_report()
        if change == "suspend":
            cluster.edit(key, suspend=True)
        else:
            cluster.remove(key)
        with pytest.raises(ConflictError):
            await operator.look(key)
        # The next look reads it from the API server, although no watch has reported anything.
        await operator.look(key)
        assert cluster.created_jobs == {}
        assert change == "remove" or cluster.status(key)["phase"] == "Suspended"

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_resource_that_is_replaced_waits_for_the_pod_of_the_former_one(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    await operator.watches_report()
    await operator.look(key)
    # The watch of pods is late: it has not reported the pod, which writes its checkpoint at last.
    cluster.run_pod(JOB)
    pods = cluster.pods
    operator.cache.resource_deleted(key, cluster.resources[key]["metadata"]["uid"])
    cluster.remove(key)
    cluster.pods = pods
    cluster.add(resource())
    operator.cache.put_resource(key, cluster.resources[key])
    await operator.watches_report("jobs")
    with pytest.raises(ConflictError, match="has not ended"):
        await operator.look(key)
    await operator.look(key)
    assert cluster.created_jobs == {JOB: 1}
    cluster.pods.clear()
    await operator.watches_report("pods")
    await operator.look(key)
    assert cluster.created_jobs == {JOB: 2}


@play
async def test_a_status_that_is_refused_for_its_version_is_written_after_a_live_read(
    cluster: MemoryKube,
) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    await operator.watches_report()
    await operator.look(key)
    cluster.run_pod(JOB)
    await operator.watches_report("jobs", "pods")
    cluster.report(key, progress={"epoch": 1})
    with pytest.raises(ConflictError):
        await operator.look(key)
    await operator.look(key)
    assert cluster.status(key)["phase"] == "Running"
    assert cluster.status(key)["progress"] == {"epoch": 1}


@play
async def test_a_job_counts_as_deleted_only_when_the_api_server_says_so(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    await operator.watches_report()
    await operator.look(key)
    # The watch lists anew, from a moment before the Job.
    operator.cache.owned("jobs").remove("default", JOB)
    await operator.look(key)
    assert "history" not in cluster.status(key)
    cluster.remove_job(JOB)
    operator.cache.owned("jobs").remove("default", JOB)
    await operator.look(key)
    assert [entry["reason"] for entry in cluster.status(key)["history"]] == ["JobDeleted"]


@play
async def test_another_job_of_the_name_gets_no_ttl(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource(runPolicy={"ttlSecondsAfterFinished": 5}))
    await operator.watches_report()
    await operator.look(key)
    cluster.finish(JOB, ended(0))
    await operator.watches_report("jobs", "pods")
    others = cluster.jobs[JOB]
    others["metadata"] |= {"uid": "uid-of-another", "labels": {}, "ownerReferences": []}
    await operator.look(key)
    assert cluster.status(key)["phase"] == "Succeeded"
    assert "ttlSecondsAfterFinished" not in others["spec"]
    # It is known now: nobody tries again.
    writes = cluster.writes
    await operator.look(key)
    assert cluster.writes == writes


@play
async def test_the_end_of_a_job_that_arrives_before_that_of_its_pod_is_judged_by_the_pod(
    cluster: MemoryKube,
) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    await operator.watches_report()
    await operator.look(key)
    cluster.run_pod(JOB)
    await operator.watches_report()
    await operator.look(key)
    cluster.finish(JOB, ended(12, "OOMKilled"))
    await operator.watches_report("jobs")
    await operator.look(key)
    assert [entry["reason"] for entry in cluster.status(key)["history"]] == ["OutOfMemory"]


@play
async def test_what_a_parent_has_made_is_read_from_the_api_server(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    parent, prune = cluster.add(resource()), cluster.add(resource("PruneJob", "small"))
    await operator.watches_report()
    await operator.look(parent)
    cluster.report(parent, **BEST)
    cluster.finish(JOB, ended(0, "Completed"))
    await operator.watches_report()
    await operator.look(parent)
    # Between the report of the watch and the look, the parent is replaced by another of its name.
    cluster.remove(parent)
    cluster.add(resource())
    await operator.look(prune)
    assert cluster.created_jobs == {JOB: 1}


@play
async def test_an_operator_that_died_after_the_job_goes_on_with_the_inputs_of_that_job(
    cluster: MemoryKube,
) -> None:
    operator = Operator(cluster)
    parent, prune = cluster.add(resource()), cluster.add(resource("PruneJob", "small"))
    await operator.watches_report()
    await operator.look(parent)
    cluster.report(parent, **BEST)
    cluster.finish(JOB, ended(0, "Completed"))
    await operator.watches_report()
    await operator.look(parent)
    # The write after the next one is the status that would name the Job.
    cluster.kill_at = cluster.writes + 2
    with pytest.raises(KilledError):
        await operator.look(prune)
    assert "attempt" not in cluster.status(prune)
    cluster.remove(parent)
    successor = Operator(cluster)
    await successor.watches_report()
    await successor.look(prune)
    status = cluster.status(prune)
    assert (status["phase"], status["attempt"], status["jobName"]) == ("Queued", 1, "small-prune-1")
    assert status["jobUid"] == cluster.jobs["small-prune-1"]["metadata"]["uid"]
    assert status["inputs"]["model"]["sha256"] == SHA
    assert cluster.created_jobs["small-prune-1"] == 1


@play
async def test_a_name_that_is_taken_by_a_job_unknown_to_the_cache_is_waited_for(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    await operator.watches_report()
    # Without our labels, no watch reports it.
    metadata = {"name": JOB, "namespace": "default", "uid": "somebody", "resourceVersion": "1"}
    cluster.jobs[JOB] = {"metadata": metadata, "spec": {}}
    with pytest.raises(ConflictError):
        await operator.look(key)
    await operator.look(key)
    assert condition(cluster, key, "Reconciling")["reason"] == "JobNameTaken"
    del cluster.jobs[JOB]
    # No watch reports that, since none reports Jobs without our labels.
    await operator.look(key)
    assert cluster.created_jobs == {JOB: 1}


@in_a_loop
async def test_the_answer_to_a_read_that_arrives_after_a_deletion_is_not_kept() -> None:
    cache = CachedClient(MemoryKube())
    pods = cache.owned("pods")
    key = Key("TrainingJob", "default", "traffic")
    assert pods.put(job("a", 5)) == key
    assert pods.deleted(job("a", 7)) == key
    assert pods.put(job("a", 6)) is None
    assert pods.of_owner(key) == []
    successor = job("a", 8)
    successor["metadata"]["uid"] = "another"
    assert pods.put(successor) == key
    body = stored_resource = resource()
    body["metadata"] |= {"uid": "u", "resourceVersion": "3"}
    cache.put_resource(key, body)
    cache.resource_deleted(key, "u")
    cache.put_resource(key, stored_resource)
    assert cache._resources == {}


@in_a_loop
async def test_a_list_does_not_forget_what_was_created_after_it() -> None:
    jobs = CachedClient(MemoryKube()).owned("jobs")
    jobs.put(job("before", 5))
    jobs.put(job("after", 9))
    assert jobs.retain(None, set(), "7") == {Key("TrainingJob", "default", "traffic")}
    assert jobs.get("default", "before") is None
    assert jobs.get("default", "after") is not None


@play
async def test_conditions_of_others_stay(cluster: MemoryKube) -> None:
    operator = Operator(cluster)
    key = cluster.add(resource())
    other = {
        "type": "Audited",
        "status": "True",
        "reason": "Done",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    cluster.resources[key]["status"] = {"conditions": [other]}
    await operator.watches_report()
    await operator.look(key)
    assert condition(cluster, key, "Audited")["reason"] == "Done"
    writes = cluster.writes
    await operator.look(key)
    assert cluster.writes == writes


# --- Warning events


@play
async def test_one_list_of_warnings_serves_all_resources_of_a_namespace_for_half_a_minute(
    cluster: MemoryKube,
) -> None:
    operator = Operator(cluster)
    keys = [cluster.add(resource(name=f"j{number}")) for number in range(20)]
    await operator.watches_report()
    for key in keys:
        await operator.look(key)
    cluster.wait(60)
    for job in cluster.jobs.values():
        warning = {
            "reason": "FailedCreate",
            "message": "exceeded quota",
            "lastTimestamp": "2026-01-01T00:00:30Z",
        }
        cluster.warnings[job["metadata"]["uid"]] = [warning]
    for key in keys:
        await operator.look(key)
        assert condition(cluster, key, "Blocked")["reason"] == "QuotaExceeded"
    assert cluster.reads["warnings"] == 1
    operator.seconds += 29
    await operator.look(keys[0])
    assert cluster.reads["warnings"] == 1
    operator.seconds += 1
    await operator.look(keys[0])
    assert cluster.reads["warnings"] == 2


@play
async def test_a_warning_that_says_something_new_wakes_the_owner_of_its_job_and_nobody_else(
    cluster: MemoryKube,
) -> None:
    operator = Operator(cluster)
    keys = [cluster.add(resource(name=f"j{number}")) for number in range(3)]
    await operator.watches_report()
    for key in keys:
        await operator.look(key)
    assert await operator.cache.owners_of_news() == set(), "nobody has asked"
    cluster.wait(60)
    # From now on the resource is looked at when something new is said, and every ten minutes.
    assert [await operator.look(key) for key in keys] == [600, 600, 600]
    uid = cluster.jobs["j1-train-1"]["metadata"]["uid"]
    message = 'Error creating: pods "j1-train-1-{}" is forbidden: exceeded quota: none'
    quota = {"reason": "FailedCreate", "message": message.format("x7k2p")}
    cluster.warnings[uid] = [quota | {"lastTimestamp": "2026-01-01T00:01:00Z"}]
    operator.seconds += 30
    assert await operator.cache.owners_of_news() == {keys[1]}
    later = {"message": message.format("b9wq4"), "lastTimestamp": "2026-01-01T00:02:00Z"}
    cluster.warnings[uid] = [quota | later]
    operator.seconds += 30
    assert await operator.cache.owners_of_news() == set(), "the same of another pod"
    cluster.warnings[uid] = [quota | {"message": "denied by webhook"}]
    operator.seconds += 30
    assert await operator.cache.owners_of_news() == {keys[1]}
    # A list that is made for a look at one resource has news about another one.
    cluster.warnings[cluster.jobs["j2-train-1"]["metadata"]["uid"]] = [quota]
    operator.seconds += 30
    await operator.look(keys[0])
    assert await operator.cache.owners_of_news() == {keys[2]}
    reads = cluster.reads["warnings"]
    operator.seconds += 1000
    assert await operator.cache.owners_of_news() == set()
    assert cluster.reads["warnings"] == reads, "nobody has asked for a long time"


@in_a_loop
async def test_a_namespace_whose_events_cannot_be_listed_swallows_no_news_of_another_one() -> None:
    class Failing(MemoryKube):
        fails = False

        async def list_all_warnings(self, namespace: str) -> AsyncIterator[Body]:
            if namespace == "b" and self.fails:
                raise ApiError(429, "slow down")
            async for item in super().list_all_warnings(namespace):
                if namespace == "a":
                    yield item

    cluster, seconds = Failing(), 0.0
    events = WarningEvents(cluster, lambda: seconds)
    await events.about("a", "x")
    await events.about("b", "y")
    seconds = 31.0
    assert await events.refresh() == set()
    cluster.warnings = {"job-a": [{"reason": "FailedCreate", "message": "exceeded quota"}]}
    cluster.fails, seconds = True, 62.0
    assert await events.refresh() == {"job-a"}
    seconds = 93.0
    assert await events.refresh() == set()


# --- watches


class Scripted(MemoryKube):
    """Cluster whose watch of Jobs does what a test says: yield events, raise an error, or end."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[list[Body | ApiError]] = []
        self.begun_at: list[str] = []

    async def watch_owned(self, what: Owned, namespace: str | None, version: str) -> AsyncIterator[Body]:
        self.begun_at.append(version)
        if not self.script:
            await asyncio.Event().wait()
        for step in self.script.pop(0):
            if isinstance(step, ApiError):
                self._version += 5
                raise step
            yield step


def job(name: str, version: int, **status: Any) -> Body:
    labels = {"tlt.dev/owner-kind": "TrainingJob", "tlt.dev/owner-name": "traffic", "tlt.dev/owner-uid": "u"}
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": labels}
    return {"metadata": metadata | {"resourceVersion": str(version)}, "spec": {}, "status": status}


async def run_through(cluster: Scripted, cache: CachedClient) -> tuple[Watch, list[Key]]:
    """Run a watch until its script is done; return it, and the owners that it woke."""
    woken: list[Key] = []
    watch = Watch(cache, "jobs", None, lambda owner, ended: woken.append(owner))
    watch._backoff = type(watch._backoff)(base=0.0)
    task = asyncio.create_task(watch.run())
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not cluster.script
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return watch, woken


@in_a_loop
async def test_a_watch_goes_on_where_it_ended_and_lists_anew_after_410() -> None:
    cluster = Scripted()
    cluster.jobs["a"] = job("a", 1)
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    cluster.script = [
        [{"type": "ADDED", "object": job("b", 5)}, bookmark],
        [ApiError(0, "connection reset by peer")],
        [ApiError(410, "too old resource version")],
    ]
    cache = CachedClient(cluster)
    cluster._version = 3
    _, woken = await run_through(cluster, cache)
    # Listed at 3; ended after the bookmark of 7; the error changes nothing; the second list is of 13.
    assert cluster.begun_at == ["3", "7", "7", "13"]
    # b is in no list: it was deleted while nobody watched.
    assert await cache.get_job("default", "b") is None
    assert await cache.get_job("default", "a") is not None
    assert [key.name for key in woken] == ["traffic"] * 3  # a, b, b is gone


@in_a_loop
async def test_a_job_that_its_watch_reports_as_deleted_is_gone_and_wakes_its_owner() -> None:
    cluster = Scripted()
    cluster.jobs["a"] = job("a", 1)
    cluster.script = [[{"type": "DELETED", "object": job("a", 2)}]]
    cache = CachedClient(cluster)
    _, woken = await run_through(cluster, cache)
    assert [key.name for key in woken] == ["traffic"] * 2  # listed, deleted
    assert await cache.get_job("default", "a") is None


@in_a_loop
async def test_a_change_that_no_decision_needs_wakes_nobody() -> None:
    cluster = Scripted()
    cluster.jobs["a"] = job("a", 1)
    cluster.script = [
        [
            {"type": "MODIFIED", "object": job("a", 2, active=1)},
            {"type": "MODIFIED", "object": job("a", 3, active=1, ready=1)},
            {
                "type": "DELETED",
                "object": job("a", 4) | {"metadata": {**job("a", 4)["metadata"], "uid": "x"}},
            },
        ]
    ]
    cache = CachedClient(cluster)
    _, woken = await run_through(cluster, cache)
    assert len(woken) == 2  # listed, ready
    stored = await cache.get_job("default", "a")
    assert stored is not None
    assert stored["metadata"]["resourceVersion"] == "3"


@in_a_loop
async def test_until_everything_is_listed_the_api_server_itself_is_asked() -> None:
    cluster = MemoryKube()
    cluster.jobs["a"] = job("a", 1)
    cache = CachedClient(cluster)
    assert await cache.get_job("default", "a") is not None
    assert await cache.get_job("default", "b") is None
    assert cluster.reads == {"job": 2}
    watches = Watches(cache, ["default"], lambda owner, ended: None)
    task = asyncio.create_task(watches.run())
    await watches.synced(60)
    assert await cache.get_job("default", "b") is None
    assert cluster.reads == {"job": 2}
    assert await cache.get_job("elsewhere", "b") is None
    assert cluster.reads == {"job": 3}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_a_loop
async def test_the_age_of_a_watch_is_the_time_since_its_last_sign() -> None:
    seconds = 0.0
    cluster = MemoryKube()
    signs = WatchSigns(lambda: seconds)
    watch = Watch(CachedClient(cluster), "pods", None, lambda owner, ended: None, lambda: seconds, signs)
    await watch._list()
    seconds = 50.0
    assert signs.ages() == {("pods", ""): 50}
    watch._report("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    assert signs.ages() == {("pods", ""): 0}


class Unwatched(MemoryKube):
    """Cluster whose pods may be listed, and not watched."""

    def watch_owned(self, what: Owned, namespace: str | None, version: str) -> AsyncIterator[Body]:
        if what == "pods" and self.watch_error:
            raise self.watch_error
        return super().watch_owned(what, namespace, version)

    watch_error: ApiError | None = ApiError(403, "pods is forbidden: cannot watch")


async def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("does not happen")


@in_a_loop
async def test_pods_that_may_not_be_watched_are_read_from_the_api_server_and_named_by_health() -> None:
    cluster = Unwatched()
    operator = Operator(cluster)
    health = Health(300)
    key = cluster.add(resource())
    watch = Watch(operator.cache, "pods", None, lambda owner, ended: None, signs=health.watches)
    watch._backoff = type(watch._backoff)(base=0.1)
    task = asyncio.create_task(watch.run())
    pods = operator.cache.owned("pods")
    await wait_until(lambda: bool(health.refused()) and not pods.is_complete("default"))
    assert health.refused() == [
        "the watch of pods in the cluster is refused: 403: pods is forbidden: cannot watch"
    ]
    assert health.problems() == [], "a restart changes no rights"
    await operator.look(key)
    cluster.run_pod(JOB)
    assert len(await operator.cache.list_pods("default", key.kind, key.name)) == 1
    cluster.pods.clear()
    assert await operator.cache.list_pods("default", key.kind, key.name) == []
    assert pods.of_owner(key) == []
    cluster.watch_error = None
    await wait_until(lambda: pods.is_complete("default"))
    cluster.run_pod(JOB)
    await wait_until(lambda: not health.refused() and len(pods.of_owner(key)) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_a_loop
async def test_a_watch_that_fails_again_and_again_leaves_the_answers_to_the_api_server() -> None:
    cluster = Scripted()
    cluster.jobs["a"] = job("a", 1)
    cluster.script = [[ApiError(0, "connection refused")] for _ in range(4)]
    cache = CachedClient(cluster)
    watch, _ = await run_through(cluster, cache)
    assert cache.owned("jobs").is_complete("default")
    assert len(set(cluster.begun_at)) == 1, "it goes on where it ended"
    assert watch._signs.refusals() == {}
    cluster.script = [[ApiError(0, "connection refused")] for _ in range(5)]
    cluster.begun_at.clear()
    watch = Watch(cache, "jobs", None, lambda owner, ended: None)
    watch._backoff = type(watch._backoff)(base=0.001, limit=0.002)
    complete: list[bool] = []
    cache.owned("jobs").set_complete = lambda namespace, value: complete.append(value)  # type: ignore[method-assign]
    task = asyncio.create_task(watch.run())
    await wait_until(lambda: len(cluster.begun_at) == 6)
    task.cancel()
    assert complete == [True, False, True]
    # A Job of an incomplete cache may have changed.
    cache = CachedClient(cluster)
    cache.owned("jobs").put(job("a", 1))
    await cache.get_job("default", "a")
    assert cluster.reads["job"] == 1


@pytest.mark.parametrize("trouble", ["an end at once", "410 of the watch", "410 of the list"])
def test_a_watch_that_cannot_begin_waits_before_it_tries_again(trouble: str) -> None:
    tries = 0

    class Short(MemoryKube):
        async def list_owned(
            self, what: Owned, namespace: str | None
        ) -> AsyncIterator[tuple[list[Body], str]]:
            nonlocal tries
            tries += 1
            if trouble == "410 of the list":
                raise ApiError(410, "the continue token has expired")
            yield [], "1"

        async def watch_owned(self, what: Owned, namespace: str | None, version: str) -> AsyncIterator[Body]:
            nonlocal tries
            tries += 1
            if trouble == "410 of the watch":
                raise ApiError(410, "too old resource version")
            for event in ():
                yield event

    async def scenario() -> None:
        task = asyncio.create_task(
            Watch(CachedClient(Short()), "pods", None, lambda owner, ended: None).run()
        )
        for _ in range(200):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    # Time that passes only when there is nothing to do: on a busy machine the delays would be over.
    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        runner.run(scenario())
    assert tries <= 2


@in_a_loop
async def test_a_watch_that_told_something_begins_again_at_once() -> None:
    cluster = Scripted()
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    cluster.script = [[bookmark], [bookmark, ApiError(410, "too old resource version")], [bookmark]]
    task = asyncio.create_task(Watch(CachedClient(cluster), "jobs", None, lambda owner, ended: None).run())
    for _ in range(200):
        await asyncio.sleep(0)
    assert cluster.script == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_a_loop
async def test_a_live_list_forgets_the_pods_that_it_lacks_but_none_that_came_meanwhile() -> None:
    cluster = MemoryKube()
    cache = CachedClient(cluster)
    key = Key("TrainingJob", "default", "traffic")
    cache.owned("pods").put(job("gone", 5))

    async def list_pods(*_: Any, **__: Any) -> list[Body]:
        cache.owned("pods").put(job("new", 9))
        return []

    cluster.list_pods = list_pods  # type: ignore[method-assign]
    await cache.list_pods("default", key.kind, key.name, live=True)
    assert [pod["metadata"]["name"] for pod in cache.owned("pods").of_owner(key)] == ["new"]


# --- pace of progress


@pytest.mark.parametrize(("active", "seconds"), [(0, 5), (7, 5), (8, 6), (180, 120), (5000, 120)])
def test_all_runs_together_make_three_reports_in_two_seconds_up_to_a_limit(active: int, seconds: int) -> None:
    assert progress_seconds(active) == seconds


def test_only_resources_whose_job_runs_or_waits_pace_the_reports() -> None:
    index = Index()
    states: list[tuple[int, dict[str, Any]]] = [
        (0, {}),
        (0, {"phase": "Pending"}),
        (0, {"phase": "Suspended", "attempt": 1, "jobUid": "j-1"}),
        (0, {"phase": "Queued", "attempt": 1}),
        (1, {"phase": "Queued", "attempt": 1, "jobUid": "j-1"}),
        (1, {"phase": "Running", "attempt": 1, "jobUid": "j-1"}),
        (0, {"phase": "Retrying", "attempt": 1, "jobUid": "j-1"}),
        (1, {"phase": "Running", "attempt": 2, "jobUid": "j-2"}),
        (0, {"phase": "Succeeded", "attempt": 2, "jobUid": "j-2"}),
        (1, {"phase": "Running", "attempt": 2, "jobUid": "j-2"}),
    ]
    body = resource()
    body["metadata"] |= {"uid": "u-1"}
    for count, status in states:
        index.update(body | {"status": status})
        assert index.active == count, status
    index.remove(key_of(body), "u-1")
    assert index.active == 0
