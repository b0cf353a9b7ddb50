"""Faults of a real control plane and of operators on it, and the rounds in which they are made.

A :class:`Scene` is a control plane with two operators, of which the holder of the Lease works, each behind a
proxy of its own. A round makes a fault while runs are under way, ends it, waits until every run has ended,
and checks the invariants. The integration ring plays each fault once, ``make soak`` all of them at random.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException

import patience
from cluster.api import Body
from cluster.control_plane import ControlPlane
from cluster.errors import ClusterError
from operator_ring.fault_proxy import FaultProxy, Storm
from operator_ring.invariants import Ledger, at_rest
from operator_ring.live import NODE, Api, OperatorProcess, until
from operator_ring.manifests import BEST, made
from tlt_api.conditions import TERMINAL
from tlt_api.resources import KINDS
from tlt_api.times import to_wire, utc_now
from tlt_operator.objects import ATTEMPT, OWNER_NAME

_LEASE = "tlt-operator"
_LEASE_SECONDS = 10
_CODES = {"r0": [75], "r1": [40, 75], "r2": [12], "r3": [143]}
"""Exit codes of the first attempts of each training; later ones succeed."""
_NO_ANSWER = (ApiException, ClusterError)


class Node(threading.Thread):
    """Kubelet of all pods of a namespace, which end as ``_CODES`` says; it notes every status on the way."""

    def __init__(self, kubeconfig: Path, namespace: str, ledger: Ledger) -> None:
        super().__init__(daemon=True)
        self._api = Api(kubeconfig)
        self._namespace = namespace
        self._ledger = ledger
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.3):
            # The API server may be the part that is away.
            with contextlib.suppress(*_NO_ANSWER):
                for kind in KINDS:
                    for body in self._api.list(kind, self._namespace):
                        self._ledger.resource_seen(body)
                for pod in self._api.list("Pod", self._namespace):
                    with contextlib.suppress(ApiException):
                        self._step(pod)
        self._api.close()

    def _step(self, pod: Body) -> None:
        name, phase = pod["metadata"]["name"], pod["status"]["phase"]
        if pod["metadata"].get("deletionTimestamp"):
            if phase == "Running":
                self._end(pod, 75)
            self._api.delete("Pod", name, self._namespace, grace_period_seconds=0)
        elif phase == "Pending":
            if not pod["spec"].get("nodeName"):
                metadata = {"name": name, "namespace": self._namespace}
                target = {"kind": "Node", "name": NODE}
                self._api.create({"kind": "Binding", "metadata": metadata, "target": target}, parent="Pod")
            ready = [
                {"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")
            ]
            self._write(pod, "Running", {"running": {}}, ready)
        elif phase == "Running":
            labels = pod["metadata"]["labels"]
            codes = [*_CODES.get(labels[OWNER_NAME], []), *[0] * 50]
            self._end(pod, codes[int(labels[ATTEMPT]) - 1])

    def _end(self, pod: Body, code: int) -> None:
        message = json.dumps(BEST) if code == 0 else ""
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        unready = [{"type": kind, "status": "False"} for kind in ("Ready", "ContainersReady")]
        state = {"terminated": ended | {"finishedAt": to_wire(utc_now())}}
        self._write(pod, "Failed" if code else "Succeeded", state, unready)

    def _write(self, pod: Body, phase: str, state: Body, conditions: list[Body]) -> None:
        container = {
            "name": "runner",
            "image": "i",
            "imageID": "",
            "restartCount": 0,
            "ready": phase == "Running",
        }
        kept = [c for c in pod["status"].get("conditions") or () if c["type"] == "DisruptionTarget"]
        status = {"phase": phase, "conditions": [*conditions, *kept]}
        status["containerStatuses"] = [container | {"state": state}]
        self._api.patch("Pod", pod["metadata"]["name"], self._namespace, {"status": status}, "status")


@dataclass
class Replica:
    """Operator behind its proxy."""

    proxy: FaultProxy
    process: OperatorProcess
    paused: bool = False

    def is_leader(self) -> bool:
        return '"role": "leader"' in self.process.get(self.process.health_address, "/healthz")[1]


@dataclass
class Scene:
    """Control plane with two operators, in one namespace."""

    plane: ControlPlane
    api: Api
    namespace: str
    replicas: list[Replica]
    ledger: Ledger = field(default_factory=Ledger)
    _stop: threading.Event = field(default_factory=threading.Event)

    def leader(self) -> Replica:
        """Wait for the operator that works."""

        def found() -> Replica | None:
            running = [r for r in self.replicas if not r.paused and r.process.is_running()]
            return next((replica for replica in running if replica.is_leader()), None)

        return until("a leader", found, lambda: [replica.process.log()[-2000:] for replica in self.replicas])

    def restart_the_dead(self) -> None:
        """Start operators that have ended again, as a kubelet does, until the scene ends."""
        while not self._stop.wait(0.5):
            for replica in self.replicas:
                if not replica.process.is_running():
                    replica.process.start()

    def close(self) -> None:
        self._stop.set()


@contextlib.contextmanager
def scene(
    plane: ControlPlane, api: Api, namespace: str, kubeconfig: Path, folder: Path, **settings: str
) -> Iterator[Scene]:
    """Start two operators on a control plane, and a kubelet, for a namespace with the runner's account."""
    with contextlib.ExitStack() as stack:
        replicas, ledger = [], Ledger()
        for number in (1, 2):
            proxy = stack.enter_context(FaultProxy(kubeconfig))
            proxy.created = lambda body: ledger.job_created(body) if body["kind"] == "Job" else None
            path = proxy.kubeconfig(kubeconfig, folder / f"kubeconfig-{number}")
            names = {"TLT_NAMESPACES": namespace, "TLT_LEASE_NAMESPACE": namespace}
            more = {"TLT_LEASE_SECONDS": str(_LEASE_SECONDS), **names, **settings}
            process = OperatorProcess(path, folder / f"operator-{number}.log", **more)
            replicas.append(Replica(proxy, stack.enter_context(process)))
        it = Scene(plane, api, namespace, replicas, ledger)
        node = Node(plane.kubeconfig, namespace, ledger)
        node.start()
        supervisor = threading.Thread(target=it.restart_the_dead, daemon=True)
        supervisor.start()
        try:
            it.leader()
            yield it
        finally:
            it.close()
            supervisor.join()
            node.stopped.set()
            node.join()


# --- faults: each is made in a `with` block's time, and is over after it


def no_fault(it: Scene) -> None:
    time.sleep(1)


def operator_killed(it: Scene) -> None:
    for pause in (0.5, 1.0, 1.5):
        time.sleep(pause)
        it.leader().process.kill()


def api_server_restarted(it: Scene) -> None:
    with it.plane.without("kube-apiserver"):
        time.sleep(2)


def etcd_paused(it: Scene) -> None:
    with it.plane.paused("etcd"):
        time.sleep(5)


def storm_of_refusals(it: Scene) -> None:
    with _on_all(it, "storm", Storm(0.3, (429, 500, 409)), None):
        time.sleep(8)


def slow_answers(it: Scene) -> None:
    with _on_all(it, "delay_seconds", 1.0, 0.0):
        time.sleep(8)


def streams_cut(it: Scene) -> None:
    for _ in range(4):
        time.sleep(0.7)
        for replica in it.replicas:
            replica.proxy.cut_streams()


def streams_frozen(it: Scene) -> None:
    for replica in it.replicas:
        replica.proxy.freeze_streams()


def versions_forgotten(it: Scene) -> None:
    for replica in it.replicas:
        replica.proxy.gone_watches = 4
        replica.proxy.cut_streams()
    time.sleep(1)


def leader_paused(it: Scene) -> None:
    leader = it.leader()
    leader.paused = True
    os.kill(leader.process.pid, signal.SIGSTOP)
    try:
        it.leader()
        time.sleep(2)
    finally:
        os.kill(leader.process.pid, signal.SIGCONT)
        leader.paused = False


def leader_partitioned(it: Scene) -> None:
    leader = it.leader()
    leader.proxy.cut()
    try:
        until("another leader", lambda: it.leader() is not leader)
        time.sleep(1)
    finally:
        leader.proxy.down = False


def lease_taken(it: Scene) -> None:
    leader = it.leader()
    it.api.patch("Lease", _LEASE, it.namespace, {"spec": {"holderIdentity": "somebody"}})
    until("the former leader to end", lambda: it.leader() is not leader or not leader.is_leader())


def pods_deleted(it: Scene) -> None:
    for _ in range(3):
        time.sleep(0.7)
        for pod in it.api.list("Pod", it.namespace)[:2]:
            with contextlib.suppress(ApiException):
                it.api.delete("Pod", pod["metadata"]["name"], it.namespace)


def pods_taken_away(it: Scene) -> None:
    """Take pods away as a scheduler does: the condition DisruptionTarget, then their deletion."""
    for _ in range(3):
        time.sleep(0.7)
        for pod in it.api.list("Pod", it.namespace)[:2]:
            name = pod["metadata"]["name"]
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
            conditions = [*(pod["status"].get("conditions") or ()), condition]
            with contextlib.suppress(ApiException):
                it.api.patch("Pod", name, it.namespace, {"status": {"conditions": conditions}}, "status")
                it.api.delete("Pod", name, it.namespace)


def quota_away(it: Scene) -> None:
    name = "none"
    it.api.create(
        {
            "kind": "ResourceQuota",
            "metadata": {"name": name, "namespace": it.namespace},
            "spec": {"hard": {"pods": "0"}},
        }
    )
    time.sleep(4)
    it.api.delete("ResourceQuota", name, it.namespace)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "nothing": no_fault,
    "operator killed three times (SIGKILL)": operator_killed,
    "API server away for 2 s": api_server_restarted,
    "etcd paused for 5 s": etcd_paused,
    "429, 500 or 409 to 30 % of the requests for 8 s": storm_of_refusals,
    "answers 1 s late for 8 s": slow_answers,
    "watches cut in the middle of a line, four times": streams_cut,
    "watches frozen (open, without a byte)": streams_frozen,
    "410 to the next watches": versions_forgotten,
    "leader paused until another one leads": leader_paused,
    "leader cut off until another one leads": leader_partitioned,
    "Lease taken by somebody who does not renew it": lease_taken,
    "pods deleted": pods_deleted,
    "pods preempted": pods_taken_away,
    "quota of no pods for 4 s": quota_away,
}


@contextlib.contextmanager
def _on_all(it: Scene, attribute: str, value: Any, after: Any) -> Iterator[None]:
    for replica in it.replicas:
        setattr(replica.proxy, attribute, value)
    try:
        yield
    finally:
        for replica in it.replicas:
            setattr(replica.proxy, attribute, after)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a round: seconds from the end of the fault until rest, and what was wrong."""

    seconds: float
    problems: list[str]


def play(it: Scene, fault: Callable[[Scene], None], limit_s: float = patience.SECONDS) -> Outcome:
    """Make a fault while five runs are under way; wait until all have succeeded; return what was wrong."""
    manifests = [made(it.namespace, name=name, output={"uri": f"s3://runs/{name}"}) for name in _CODES]
    for manifest in manifests:
        manifest["spec"]["dataset"] = {**manifest["spec"]["dataset"], "uri": "s3://data/traffic"}
    prune = made(it.namespace, "PruneJob", "p", output={"uri": "s3://runs/p"})
    prune["spec"]["model"] = {"trainingJobRef": {"name": "r0"}}
    manifests.append(prune)
    before = len(it.ledger.problems)
    for manifest in manifests:
        it.api.create(manifest)
    fault(it)
    begin, phases = time.monotonic(), [""]
    while time.monotonic() - begin < limit_s:
        phases = [str(it.api.status(manifest).get("phase")) for manifest in manifests]
        if all(phase in TERMINAL for phase in phases):
            break
        time.sleep(0.2)
    seconds = time.monotonic() - begin
    # The last write of a round: Jobs that are to be deleted, for example.
    time.sleep(0.5)
    problems = it.ledger.problems[before:]
    resources = [body for manifest in manifests if (body := it.api.resource(manifest))]
    problems += at_rest(resources, it.api.list("Job", it.namespace), it.api.list("Pod", it.namespace))
    problems += [
        f"{body['metadata']['name']} failed: {body['status'].get('failure')}"
        for body in resources
        if body["status"].get("phase") == "Failed"
    ]
    for manifest in manifests:
        it.api.remove(manifest)
    until("the Jobs to be collected", lambda: not it.api.list("Job", it.namespace))
    until("the pods to be gone", lambda: not it.api.list("Pod", it.namespace))
    return Outcome(seconds, problems)
