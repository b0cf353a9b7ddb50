"""Any history of users, cluster, network and operators: invariants at each step, and rest in the end.

``TLT_HISTORIES=2000`` in the environment plays that many histories, of twice the length.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from operator_ring.manifests import resource
from operator_ring.memory_kube import Body
from operator_ring.simulated_cluster import TROUBLES, Trouble
from operator_ring.simulation import ANSWERS, Answer, Death, Link, World
from tlt_api.failures import CLASSES
from tlt_operator.objects import QUEUE
from tlt_operator.snapshot import Key

KINDS = {"traffic": "TrainingJob", "small": "PruneJob"}
"""Resources of the histories: small prunes what traffic trains."""
CODES = sorted({c.exit_code for c in CLASSES.values() if c.exit_code is not None} | {1, 137, 143})

names = st.sampled_from(list(KINDS))
operators = st.integers(0, 1)
Watched = Literal["resources", "jobs", "pods"]


def key(name: str) -> Key:
    return Key(KINDS[name], "default", name)


class Histories(RuleBasedStateMachine):
    """Steps of users, the cluster, the network and operators, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.cluster = self.world.cluster

    @initialize(queued=st.booleans(), max_retries=st.sampled_from([0, 2]))
    def an_operator_starts_and_a_training_is_created(self, queued: bool, max_retries: int) -> None:
        self.world.start_operator()
        self.is_created("traffic", False, queued, max_retries, None)

    # --- time

    @rule(seconds=st.sampled_from([0.005, 0.02, 0.1, 0.5, 2, 10, 40, 200, 900]))
    def time_passes(self, seconds: float) -> None:
        self.world.let_pass(seconds)

    # --- users

    @rule(
        name=names,
        suspended=st.booleans(),
        queued=st.booleans(),
        max_retries=st.sampled_from([0, 2]),
        ttl=st.sampled_from([None, 0, 600]),
    )
    def is_created(self, name: str, suspended: bool, queued: bool, max_retries: int, ttl: int | None) -> None:
        """Create a resource; one of this name that is there is deleted a moment before."""
        self.is_deleted(name)
        self.cluster.publish()
        policy = {"maxRetries": max_retries} | ({} if ttl is None else {"ttlSecondsAfterFinished": ttl})
        output = {"uri": f"pvc://runs/{name}"}
        body = resource(KINDS[name], name, suspend=suspended, output=output, runPolicy=policy)
        if queued:
            body["metadata"]["labels"] = {QUEUE: "gpus"}
        self.cluster.add(body)

    @rule(name=names)
    def is_deleted(self, name: str) -> None:
        if key(name) in self.cluster.resources:
            self.cluster.remove(key(name))

    @rule(name=names)
    def is_suspended_or_resumed(self, name: str) -> None:
        body = self.cluster.resources.get(key(name))
        if body:
            self.cluster.edit(key(name), suspend=not body["spec"].get("suspend", False))

    @rule(name=names)
    def spec_retry_is_raised(self, name: str) -> None:
        body = self.cluster.resources.get(key(name))
        if body:
            self.cluster.edit(key(name), retry=body["spec"].get("retry", 0) + 1)

    @rule(name=names, foreground=st.booleans())
    def job_is_deleted_by_hand(self, name: str, foreground: bool) -> None:
        for job in self.cluster.jobs_of(name)[:1]:
            self.cluster.delete_job_by_hand(job["metadata"]["name"], foreground)

    @rule(name=names)
    def job_is_suspended_or_resumed_by_a_queue(self, name: str) -> None:
        for job in self.cluster.jobs_of(name)[:1]:
            self.cluster.set_suspended(job["metadata"]["name"], not job["spec"].get("suspend", False))

    # --- the cluster

    @rule()
    def the_cluster_works(self) -> None:
        for _ in range(3):
            self.world.let_pass(0.5)
            self.cluster.collect_garbage()
            self.cluster.control_jobs()
            self.cluster.start_pods()
            self.cluster.remove_pods()
        self.world.let_pass(0.5)

    @rule(part=st.sampled_from(["garbage collector", "Job controller", "kubelet", "removal of pods"]))
    def a_part_of_the_cluster_works(self, part: str) -> None:
        match part:
            case "garbage collector":
                self.cluster.collect_garbage()
            case "Job controller":
                self.cluster.control_jobs()
            case "kubelet":
                self.cluster.start_pods()
            case _:
                self.cluster.remove_pods()

    @rule(code=st.sampled_from([75, 0, 137, 12]))
    def pods_that_were_stopped_end(self, code: int) -> None:
        self.cluster.end_stopped_pods(code)

    @rule(name=names, code=st.one_of(st.just(0), st.sampled_from(CODES)))
    def run_ends(self, name: str, code: int) -> None:
        for pod in self.running_pods(name):
            self.cluster.end(pod, code)

    @rule(name=names, epoch=st.integers(1, 9))
    def run_reports_progress(self, name: str, epoch: int) -> None:
        for _ in self.running_pods(name):
            self.cluster.report(key(name), progress={"stage": "train", "epoch": epoch, "epochs": 9})

    @rule(
        name=names,
        cause=st.sampled_from(["PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"]),
    )
    def pod_is_taken_away(self, name: str, cause: str) -> None:
        for pod in self.running_pods(name):
            self.cluster.disrupt(pod, cause)

    @rule(name=names)
    def node_is_cut_off(self, name: str) -> None:
        for pod in self.running_pods(name):
            self.cluster.lose_node(pod)

    @rule()
    def lost_nodes_are_removed(self) -> None:
        self.cluster.forget_lost_pods()

    def running_pods(self, name: str) -> list[Body]:
        """Return the pod of a resource that runs, for which the cluster works if need be."""
        if key(name) not in self.cluster.resources:
            return []
        if not list(self.cluster.running_pods(name)):
            self.the_cluster_works()
        return list(self.cluster.running_pods(name))[:1]

    @rule(trouble=st.sampled_from(TROUBLES))
    def goes_away_or_comes_back(self, trouble: Trouble) -> None:
        self.cluster.troubles ^= {trouble}
        if trouble == "storage" and trouble in self.cluster.troubles:
            for name in KINDS:
                for pod in self.cluster.running_pods(name):
                    self.cluster.end(pod, 40)

    # --- operators

    @rule()
    def an_operator_starts(self) -> None:
        if len(self.world.operators) < 2:
            self.world.start_operator()

    @rule(number=operators)
    def an_operator_is_killed(self, number: int) -> None:
        for operator in self.world.operators[number : number + 1]:
            self.world.kill(operator)

    @rule(number=operators, requests=st.integers(1, 6), after=st.booleans())
    def an_operator_will_die_at_a_request(self, number: int, requests: int, after: bool) -> None:
        for link in self.links(number):
            link.death = Death(requests, after)

    @rule(number=operators)
    def an_operator_is_frozen_or_goes_on(self, number: int) -> None:
        for link in self.links(number):
            link.frozen = not link.frozen

    @rule(number=operators, hours=st.sampled_from([-24, -0.01, 0, 0.01, 24]))
    def the_clock_jumps(self, number: int, hours: float) -> None:
        for link in self.links(number):
            link.clock_error = timedelta(hours=hours)

    def links(self, number: int) -> list[Link]:
        return [operator.link for operator in self.world.operators[number : number + 1]]

    # --- network

    @rule(number=operators, answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=4))
    def the_next_requests_end_with(self, number: int, answers: list[Answer]) -> None:
        for link in self.links(number):
            link.answers += answers

    @rule(number=operators, latency=st.sampled_from([0.01, 0.3, 5]))
    def the_network_gets_slow_or_fast(self, number: int, latency: float) -> None:
        for link in self.links(number):
            link.latency = latency

    @rule(
        number=operators,
        what=st.sampled_from(["resources", "jobs", "pods"]),
        seconds=st.sampled_from([0.0, 1, 20, 300]),
    )
    def a_watch_is_late(self, number: int, what: Watched, seconds: float) -> None:
        for link in self.links(number):
            link.lag[what] = seconds

    @rule(number=operators, forgotten=st.booleans())
    def the_watches_are_cut(self, number: int, forgotten: bool) -> None:
        for link in self.links(number):
            link.cuts += 1
        if forgotten:
            self.cluster.forget_versions()

    @rule(
        number=operators,
        fate=st.lists(st.sampled_from(["drop", "double", "swap"]), min_size=1, max_size=3),
    )
    def the_next_events_of_our_kinds_are_spoilt(
        self, number: int, fate: list[Literal["drop", "double", "swap"]]
    ) -> None:
        for link in self.links(number):
            link.spoilt += fate

    # --- what holds

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.cluster.publish()
        assert self.world.problems() == []

    def teardown(self) -> None:
        try:
            assert self.world.problems() == []
            assert self.world.come_to_rest() == []
        finally:
            self.world.close()


_COUNT = int(os.environ.get("TLT_HISTORIES") or 0)
Histories.TestCase.settings = settings(
    max_examples=_COUNT or 60,
    stateful_step_count=60 if _COUNT else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_invariants_hold_in_any_history = Histories.TestCase
