"""Any history of users, cluster, network and operators: invariants at each step, and rest in the end.

``TLT_HISTORIES=2000`` in the environment plays that many histories, of twice the length.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from operator_ring.manifests import resource
from operator_ring.memory_kube import Body
from operator_ring.simulated_cluster import TROUBLES, Trouble, is_queued
from operator_ring.simulation import ANSWERS, Answer, Death, Link, World
from tlt_api import conditions
from tlt_api.failures import CLASSES
from tlt_operator import observe, snapshot
from tlt_operator.cluster.cache import CachedClient
from tlt_operator.objects import QUEUE
from tlt_operator.reconcile import retry
from tlt_operator.snapshot import Key

KINDS = {"traffic": "TrainingJob", "small": "PruneJob", "twin": "TrainingJob"}
"""Resources of the histories: small prunes what traffic trains, twin writes to the output of traffic."""
CODES = sorted({c.exit_code for c in CLASSES.values() if c.exit_code is not None} | {0, 1, 137, 143})
RETRIED = [75, 76, 40, 12, 143]

names = st.sampled_from(["traffic", "traffic", "traffic", "small", "twin"])
policies = st.fixed_dictionaries(
    {"maxRetries": st.sampled_from([0, 2])},
    optional={
        "ttlSecondsAfterFinished": st.sampled_from([0, 600]),
        "startTimeoutSeconds": st.just(300),
        "stall": st.just("Restart"),
    },
)
nodes = st.sampled_from([1, 1, 2])
operators = st.integers(0, 1)
rarely = st.sampled_from([False, False, False, True])


def key(name: str) -> Key:
    return Key(KINDS[name], "default", name)


class Histories(RuleBasedStateMachine):
    """Steps of users, the cluster, the network and operators, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.cluster = self.world.cluster

    @initialize(queued=rarely, nodes=nodes, policy=policies)
    def an_operator_starts_and_a_training_is_created(
        self, queued: bool = False, nodes: int = 1, policy: Body | None = None
    ) -> None:
        self.world.start_operator()
        self.is_created("traffic", queued=queued, nodes=nodes, policy=policy)

    # --- time

    @rule(seconds=st.sampled_from([0.005, 0.02, 0.1, 0.5, 2, 10, 40, 200, 900]))
    def time_passes(self, seconds: float) -> None:
        self.world.let_pass(seconds)

    # --- users

    @rule(name=names, suspended=rarely, queued=rarely, nodes=nodes, policy=policies)
    def is_created(
        self,
        name: str,
        suspended: bool = False,
        queued: bool = False,
        nodes: int = 1,
        policy: Body | None = None,
    ) -> None:
        """Create a resource; one of this name that is there is deleted a moment before."""
        self.is_deleted(name)
        self.cluster.publish()
        output = {"uri": f"pvc://runs/{'traffic' if name == 'twin' else name}"}
        more = {"resources": {"nodes": nodes}} if KINDS[name] == "TrainingJob" else {}
        policy = {"maxRetries": 2} if policy is None else policy
        body = resource(KINDS[name], name, suspend=suspended, output=output, runPolicy=policy, **more)
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
    def job_is_suspended_or_resumed_by_hand(self, name: str) -> None:
        for job in [job for job in self.cluster.jobs_of(name)[:1] if not is_queued(job)]:
            self.cluster.set_suspended(job["metadata"]["name"], not job["spec"].get("suspend", False))

    # --- Kueue

    @rule(name=names, action=st.sampled_from(["admits", "admits", "evicts", "deactivates", "activates"]))
    def kueue(self, name: str, action: str) -> None:
        for job in [job for job in self.cluster.jobs_of(name)[:1] if is_queued(job)]:
            match action:
                case "admits":
                    self.cluster.admitted.add(job["metadata"]["uid"])
                    self.cluster.queue_jobs()
                case "activates":
                    self.cluster.activate(job)
                case _:
                    self.cluster.evict(job, deactivate=action == "deactivates")

    # --- the cluster

    @rule()
    def the_cluster_works(self) -> None:
        for _ in range(3):
            self.world.let_pass(0.5)
            self.cluster.collect_garbage()
            self.cluster.queue_jobs()
            self.cluster.control_jobs()
            self.cluster.start_pods()
            self.cluster.remove_pods()
        self.world.let_pass(0.5)

    @rule(
        part=st.sampled_from(["garbage collector", "Kueue", "Job controller", "kubelet", "removal of pods"])
    )
    def a_part_of_the_cluster_works(self, part: str) -> None:
        match part:
            case "garbage collector":
                self.cluster.collect_garbage()
            case "Kueue":
                self.cluster.queue_jobs()
            case "Job controller":
                self.cluster.control_jobs()
            case "kubelet":
                self.cluster.start_pods()
            case _:
                self.cluster.remove_pods()

    @rule(code=st.sampled_from([75, 0, 137, 12]))
    def pods_that_were_stopped_end(self, code: int) -> None:
        self.cluster.end_stopped_pods(code)

    @rule(name=names, code=st.one_of(st.sampled_from(RETRIED), st.sampled_from(CODES)))
    def run_ends(self, name: str, code: int) -> None:
        for pod in self.running_pods(name):
            self.cluster.end(pod, code)

    @rule(name=names, epoch=st.integers(1, 9), promised=st.sampled_from([None, 10, 60, 600]))
    def run_reports_progress(self, name: str, epoch: int, promised: int | None) -> None:
        for pod in self.running_pods(name):
            self.cluster.report_progress(pod, epoch, promised)

    @rule(name=names, promised=st.sampled_from([10, 60]), seconds=st.sampled_from([100, 300]))
    def run_hangs(self, name: str, promised: int, seconds: int) -> None:
        """Let a run promise its next report and be silent, while the operator looks."""
        self.run_reports_progress(name, 1, promised)
        for _ in range(seconds // 20):
            self.world.let_pass(20)

    @rule(
        name=names,
        cause=st.sampled_from(["PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"]),
    )
    def pod_is_taken_away(self, name: str, cause: str) -> None:
        for pod in self.running_pods(name):
            self.cluster.disrupt(pod, cause)

    @rule(name=names, removed=st.booleans())
    def node_goes(self, name: str, removed: bool) -> None:
        """Cut the node of a run off, or switch it off and delete its Node."""
        for pod in self.running_pods(name):
            node = pod["spec"]["nodeName"]
            self.cluster.remove_node(node) if removed else self.cluster.cut_off(node)

    @rule(removed=st.booleans())
    def nodes_come_back(self, removed: bool) -> None:
        """Connect nodes that were cut off, or delete them and bring other ones."""
        if not removed:
            self.cluster.reconnect()
            return
        for node in list(self.cluster.silent_nodes):
            self.cluster.remove_node(node)
        self.cluster.add_nodes()

    def running_pods(self, name: str) -> list[Body]:
        """Return the running pod of a resource; it is created and the cluster works if need be."""
        if key(name) not in self.cluster.resources:
            self.is_created(name)
        if not list(self.cluster.running_pods(name)):
            self.world.let_pass(15)
            for job in self.cluster.jobs_of(name)[:1]:
                self.cluster.admitted.add(job["metadata"]["uid"])
            self.the_cluster_works()
        return list(self.cluster.running_pods(name))[:1]

    @rule(trouble=st.sampled_from(TROUBLES), seconds=st.sampled_from([30, 2000]))
    def something_goes_away(self, trouble: Trouble, seconds: float) -> None:
        self.cluster.goes_away(trouble, seconds)

    # --- operators and the network

    @rule(starts=st.booleans(), number=operators)
    def an_operator_is_killed_or_starts(self, starts: bool, number: int) -> None:
        for operator in self.world.operators[number : number + 1]:
            self.world.kill(operator)
        if starts or not self.world.operators:
            self.world.start_operator()

    @rule()
    def a_second_operator_starts(self) -> None:
        if len(self.world.operators) < 2:
            self.world.start_operator()

    @rule(number=operators, requests=st.integers(1, 6), after=st.booleans())
    def an_operator_will_die_at_a_request(self, number: int, requests: int, after: bool) -> None:
        for link in self.links(number):
            link.death = Death(requests, after)

    @rule(number=operators, answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=4))
    def the_next_requests_end_with(self, number: int, answers: list[Answer]) -> None:
        for link in self.links(number):
            link.answers += answers

    @rule(
        number=operators,
        fate=st.one_of(
            st.tuples(st.just("frozen"), st.sampled_from([5, 60, 600])),
            st.tuples(
                st.sampled_from(["requests", "resources", "jobs", "pods"]), st.sampled_from([1, 20, 300])
            ),
            st.tuples(st.just("clock"), st.sampled_from([-86400, -36, 36, 86400])),
            st.tuples(st.just("cut"), st.just(0)),
            st.tuples(st.just("cut and forgotten"), st.just(0)),
            st.tuples(st.sampled_from(["drop", "double", "swap"]), st.integers(1, 3)),
        ),
    )
    def trouble_on_the_way(self, number: int, fate: tuple[str, int]) -> None:
        """Freeze an operator, let requests or events be late, move its clock, cut watches, spoil events."""
        what, amount = fate
        for link in self.links(number):
            match what:
                case "frozen":
                    link.freeze(self.world.loop.time() + amount)
                case "clock":
                    link.move_clock(amount)
                case "cut" | "cut and forgotten":
                    link.cut_watches()
                    if what != "cut":
                        self.cluster.forget_versions()
                case "drop" | "double" | "swap":
                    link.spoilt += [what] * amount
                case _:
                    link.delay(what, amount, self.world.loop.time() + 300)

    def links(self, number: int) -> list[Link]:
        return [operator.link for operator in self.world.operators[number : number + 1]]

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
    max_examples=_COUNT or 10,
    stateful_step_count=60 if _COUNT else 25,
    # CI plays the same histories each time; new ones are for whoever looks for faults, by TLT_HISTORIES.
    derandomize=not _COUNT,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_invariants_hold_in_any_history = Histories.TestCase


# --- mistakes of an operator, each with a history that shows it


def _a_run_goes_on_beside_the_next(machine: Histories) -> None:
    machine.the_cluster_works()
    machine.job_is_deleted_by_hand("traffic", foreground=False)
    machine.the_cluster_works()


def _a_resource_is_replaced(machine: Histories) -> None:
    machine.the_cluster_works()
    machine.is_created("traffic")
    machine.time_passes(2)


def _a_pod_is_preempted_three_times(machine: Histories) -> None:
    for _ in range(3):
        machine.pod_is_taken_away("traffic", "PreemptionByScheduler")
        machine.pods_that_were_stopped_end(75)
        machine.the_cluster_works()


def _storage_is_away(machine: Histories) -> None:
    machine.the_cluster_works()
    machine.something_goes_away("storage", 2000)
    machine.the_cluster_works()


def _a_failed_resource_is_looked_at_again(machine: Histories) -> None:
    machine.run_ends("traffic", 2)
    machine.the_cluster_works()
    machine.is_suspended_or_resumed("traffic")
    machine.the_cluster_works()


async def _no_pods(*_: object, **__: object) -> list[Body]:
    return []


MISTAKES = {
    "it starts a pod while another one runs": (
        _a_run_goes_on_beside_the_next,
        [(snapshot.Snapshot, "live_pods", ()), (CachedClient, "list_pods", _no_pods)],
    ),
    "it adopts any Job of the right name": (
        _a_resource_is_replaced,
        [(observe, "_controller", lambda metadata: "uid-13" if metadata["name"] else "")],
    ),
    "it counts an eviction as a failure": (
        _a_pod_is_preempted_three_times,
        [(retry, "counts", lambda entry, history: True)],
    ),
    "it fails for good while storage is away": (
        _storage_is_away,
        [(retry, "may_retry", lambda *_: False)],
    ),
    "a failure is not final": (
        _a_failed_resource_is_looked_at_again,
        [(conditions, "TERMINAL", ("Succeeded",))],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_invariants_show_that(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    history, changes = MISTAKES[mistake]
    problems: dict[bool, list[str]] = {}
    for mistaken in (False, True):
        if mistaken:
            for target, name, value in changes:
                monkeypatch.setattr(target, name, value)
        machine = Histories()
        machine.an_operator_starts_and_a_training_is_created()
        history(machine)
        problems[mistaken] = machine.world.problems() + machine.world.come_to_rest()
        machine.world.close()
    assert problems[False] == []
    assert problems[True] != []
