"""Parts around the decision: queue, index, sweep, health, settings."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_ring.manifests import resource
from operator_ring.memory_kube import MemoryKube
from operator_ring.scenario import in_a_loop
from tlt_api.resources import Kind
from tlt_operator import settings
from tlt_operator.cluster.client import ApiError
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.index import Index
from tlt_operator.snapshot import Key
from tlt_operator.workqueue import Backoff, WorkQueue

A = Key("TrainingJob", "default", "a")
B = Key("TrainingJob", "default", "b")


# --- queue


@in_a_loop
async def test_a_key_that_is_added_twice_is_worked_on_once() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    for key in (A, B, A, A):
        queue.add(key)
    assert len(queue) == 2
    assert [(await queue.get())[0], (await queue.get())[0]] == [A, B]
    assert len(queue) == 0


@in_a_loop
async def test_a_key_that_is_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    queue.add(A)
    await queue.get()
    queue.add(A)
    assert len(queue) == 0  # never to two workers at a time
    queue.done(A)
    assert (await queue.get())[0] == A
    queue.done(A)
    assert len(queue) == 0


@in_a_loop
async def test_the_shorter_of_two_delays_counts() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    queue.add_after(A, 3600)
    queue.add_after(A, 0.01)
    queue.add_after(A, 3600)
    assert (await asyncio.wait_for(queue.get(), 60))[0] == A
    queue.close()


@in_a_loop
async def test_taking_a_key_cancels_its_delay() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    queue.add_after(A, 0.01)
    queue.add(A)
    await queue.get()
    queue.done(A)
    await asyncio.sleep(0.05)
    assert len(queue) == 0


@in_a_loop
async def test_failures_are_retried_with_growing_delays_until_one_success() -> None:
    queue: WorkQueue[Key] = WorkQueue(Backoff(base=1, limit=10))
    assert [queue.retry(A) for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert queue.retry(B) == 1
    assert queue.retry(B, at_least=7) == 7  # the server's Retry-After
    queue.forget_failures(A)
    assert queue.retry(A) == 1
    queue.close()


@given(st.lists(st.sampled_from(["add a", "add b", "get", "done"]), max_size=40))
def test_no_key_is_lost_and_none_is_worked_on_twice_at_a_time(steps: list[str]) -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue()
        active: list[str] = []
        dirty: set[str] = set()
        for step in steps:
            if step.startswith("add"):
                queue.add(step[-1])
                dirty.add(step[-1])
            elif step == "get" and len(queue):
                key, _ = await queue.get()
                assert key not in active
                active.append(key)
                dirty.discard(key)
            elif step == "done" and active:
                queue.done(active.pop())
        for key in active:
            queue.done(key)
        assert {(await queue.get())[0] for _ in range(len(queue))} == dirty

    asyncio.run(scenario())


# --- index


def stored(kind: str = "TrainingJob", name: str = "traffic", version: int = 1, **spec: Any) -> dict[str, Any]:
    body = resource(kind, name, **spec)
    body["metadata"] |= {"uid": f"u-{name}", "generation": 1, "resourceVersion": str(version)}
    return body


def test_a_dependant_is_woken_when_its_parent_appears_changes_phase_or_is_gone() -> None:
    index = Index()
    prune = Key("PruneJob", "default", "small")
    traffic = Key("TrainingJob", "default", "traffic")
    assert index.update(stored("PruneJob", "small")) == {prune}
    parent = stored()
    assert index.update(parent) == {traffic, prune}
    assert index.update(parent | {"status": {"phase": "Running"}}) == {traffic, prune}
    assert index.update(parent | {"status": {"phase": "Running", "attempt": 2}}) == {traffic}
    assert index.remove(traffic, "u-traffic") == {prune}
    assert index.remove(prune, "u-small") == set()
    assert len(index) == 0


def test_a_late_delete_event_does_not_remove_a_new_resource_of_the_same_name() -> None:
    index = Index()
    traffic = Key("TrainingJob", "default", "traffic")
    index.update(stored())
    assert index.remove(traffic, "u-of-the-one-before") == set()
    assert index.resource_version(traffic) == "1"


def test_progress_alone_wakes_no_resource() -> None:
    index = Index()
    index.update(stored())
    later = stored(version=2) | {"status": {"progress": {"epoch": 3}, "artifacts": [{"name": "best"}]}}
    assert index.update(later) == set()
    assert index.resource_version(Key("TrainingJob", "default", "traffic")) == "2"


def test_the_event_of_our_own_write_wakes_dependants_only() -> None:
    index = Index()
    traffic, small = Key("TrainingJob", "default", "traffic"), Key("PruneJob", "default", "small")
    index.update(stored("PruneJob", "small"))
    index.update(stored())
    index.note_own_write(traffic, "7")
    assert index.update(stored(version=7) | {"status": {"phase": "Succeeded"}}) == {small}
    index.note_own_write(traffic, "9")
    assert index.update(stored(version=8) | {"status": {"phase": "Failed"}}) == {traffic, small}


def test_an_unreadable_spec_still_has_a_parent_and_wakes() -> None:
    index = Index()
    body = stored(model={"from": {"pruneJobRef": {"name": "small"}}}, dataset=None)
    assert index.update(body) == {Key("TrainingJob", "default", "traffic")}
    assert Key("TrainingJob", "default", "traffic") in index.update(stored("PruneJob", "small"))


def test_ended_resources_are_settled_until_their_spec_changes() -> None:
    index = Index()
    done = stored() | {"status": {"phase": "Failed", "observedGeneration": 1}}
    index.update(done)
    assert index.unsettled() == set()
    done["metadata"]["generation"] = 2
    index.update(done)
    assert len(index.unsettled()) == 1
    assert index.counts() == {("TrainingJob", "Failed"): 1}


# --- sweep and health


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@in_a_loop
async def test_a_sweep_wakes_unfinished_resources_and_changes_that_the_watch_missed() -> None:
    cluster = MemoryKube()
    reported = cluster.add(resource(name="reported"))
    missed = cluster.add(resource(name="missed"))
    controller = Controller(cluster, settings.Settings(), Health(300))
    controller.index.update(cluster.resources[reported])
    controller.index.update(stored("PruneJob", "small", model={"trainingJobRef": {"name": "gone"}}))
    controller.index.update(stored(name="gone"))
    await controller.sweep.once()
    woken = {(await controller.queue.get())[0] for _ in range(len(controller.queue))}
    small = Key("PruneJob", "default", "small")
    assert woken == {reported, missed, small, Key("TrainingJob", "default", "gone")}
    assert Key("TrainingJob", "default", "gone") not in controller.index.uids()


@in_a_loop
async def test_what_is_noted_of_a_resource_goes_with_it_whoever_finds_that_it_is_gone() -> None:
    controller = Controller(MemoryKube(), settings.Settings(), Health(300))
    controller.index.update(stored(name="gone"))
    gone = Key("TrainingJob", "default", "gone")
    for _ in range(3):
        held = controller.index.rewrites.written(gone, {"phase": "Running"})
    assert held > 0
    await controller.sweep.once()
    assert controller.index.rewrites.written(gone, {"phase": "Running"}) == 0
    assert controller.index.rewrites.written(gone, {"phase": "Running"}) == 0


@in_a_loop
async def test_a_hold_that_is_over_is_not_kept() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    queue.hold(A, 0)
    queue.hold(B, 60)
    assert list(queue._held) == [B]


class Partial(MemoryKube):
    """Cluster whose namespace ``shut`` cannot be listed; ``meanwhile`` runs at the end of each list."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None

    async def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        if namespace == "shut":
            raise ApiError(403, "forbidden")
        async for metadata in super().list_metadata(kind, namespace):
            yield metadata
        self.meanwhile()


@in_a_loop
async def test_a_sweep_keeps_resources_created_while_it_lists() -> None:
    cluster = Partial()
    controller = Controller(cluster, settings.Settings(), Health(300))
    cluster.meanwhile = lambda: controller.index.update(stored())
    await controller.sweep.once()
    assert controller.index.uids() == {Key("TrainingJob", "default", "traffic"): "u-traffic"}


@in_a_loop
async def test_a_namespace_that_may_not_be_listed_does_not_keep_others_from_being_swept() -> None:
    cluster = Partial()
    listed = cluster.add(resource(name="listed"))
    controller = Controller(cluster, settings.Settings(namespaces=("default", "shut")), Health(300))
    shut = stored()
    shut["metadata"]["namespace"] = "shut"
    controller.index.update(shut)
    controller.index.update(stored(name="gone"))
    await controller.sweep.once()
    assert controller.index.uids() == {Key("TrainingJob", "shut", "traffic"): "u-traffic"}
    assert listed in {(await controller.queue.get())[0] for _ in range(len(controller.queue))}


@in_a_loop
async def test_a_sweep_that_may_list_nothing_fails() -> None:
    controller = Controller(Partial(), settings.Settings(namespaces=("shut",)), Health(300))
    with pytest.raises(ApiError):
        await controller.sweep.once()


def test_a_watch_that_is_silent_from_one_sweep_to_the_next_is_unhealthy() -> None:
    clock = Clock()
    health = Health(300, clock=clock)
    health.sweep_found_unreported({A})
    assert health.problems() == []  # the event may be on its way
    clock.now = 300
    health.sweep_ended()
    health.sweep_found_unreported({A, B})
    assert "TrainingJob/default/a" in health.problems()[0]
    health.watch_reported(A)
    assert health.problems() == []


def test_several_failures_or_a_long_wait_are_unhealthy_and_idleness_is_not() -> None:
    clock = Clock()
    health = Health(300, patience_seconds=600, clock=clock)
    clock.now = 800
    assert health.problems() == []
    health.failed("a")
    clock.now = 1401
    health.sweep_ended()
    assert health.problems() == [], "a restart does not cure one resource that always fails"
    health.failed("b")
    assert "every reconciliation has failed" in health.problems()[0]
    health.reconciled()
    assert health.problems() == []
    health.longest_wait = lambda: 601.0
    assert "waited for a worker" in health.problems()[0]


def test_a_sweep_that_no_longer_ends_is_unhealthy() -> None:
    clock = Clock()
    health = Health(10, clock=clock)
    clock.now = 100
    assert health.problems() == []  # the CRDs are awaited
    health.sweeps_begin()
    clock.now = 130
    assert health.problems() == []
    clock.now = 131
    assert "no sweep" in health.problems()[0]


@in_a_loop
async def test_sweeps_count_from_the_start_of_the_controller() -> None:
    clock = Clock()
    health = Health(10, clock=clock)
    controller = Controller(MemoryKube(), settings.Settings(workers=1, sweep_seconds=10_000), health)
    clock.now = 100
    work = asyncio.create_task(controller.run())
    await asyncio.sleep(0.01)
    assert health.problems() == []
    clock.now = 131
    assert "no sweep" in health.problems()[0]
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


@in_a_loop
async def test_an_error_of_one_resource_does_not_stop_the_others() -> None:
    cluster = MemoryKube()
    bad, good = cluster.add(resource(name="bad")), cluster.add(resource(name="good"))
    cluster.resources[bad]["status"] = {"phase": "NotAPhase"}
    controller = Controller(cluster, settings.Settings(workers=1), Health(300))
    work = asyncio.create_task(controller.run())
    controller.resource_changed(cluster.resources[bad])
    controller.resource_changed(cluster.resources[good])
    for _ in range(1000):
        if "good-train-1" in cluster.jobs:
            break
        await asyncio.sleep(0.01)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    controller.queue.close()
    assert list(cluster.jobs) == ["good-train-1"]


# --- settings


def test_settings_come_from_the_environment() -> None:
    chosen = settings.from_environment(
        {"TLT_NAMESPACES": "b, a,,a", "TLT_WORKERS": "3", "TLT_LOG_LEVEL": "debug"}
    )
    assert chosen.namespaces == ("a", "b")
    assert (chosen.workers, chosen.log_level) == (3, "DEBUG")
    assert settings.from_environment({}) == settings.Settings()


def test_every_setting_that_the_usage_names_is_read() -> None:
    names = [line.strip().split("=")[0] for line in settings.usage().splitlines()[1:]]
    values = {name: "warning" if name == "TLT_LOG_LEVEL" else "17" for name in names}
    chosen = settings.from_environment(values)
    assert len(names) == len(dataclasses.fields(chosen))
    assert not [f.name for f in dataclasses.fields(chosen) if getattr(chosen, f.name) == f.default]


@pytest.mark.parametrize(
    ("name", "value"),
    [("TLT_WORKERS", "many"), ("TLT_WORKERS", "0"), ("TLT_SWEEP_SECONDS", "-1"), ("TLT_LOG_LEVEL", "loud")],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(settings.SettingsError, match=name):
        settings.from_environment({name: value})
