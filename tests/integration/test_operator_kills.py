"""SIGKILL right after every single write, on a real API server: one Job per attempt, and the same end."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from pathlib import Path

import patience
from cluster.control_plane import ControlPlane
from operator_ring.fault_proxy import FaultProxy
from operator_ring.live import Api, Kubelet, OperatorProcess, until
from operator_ring.manifests import BEST, SHA, made


def play_kubelet(api: Api, namespace: str, stop: threading.Event) -> None:
    """Let attempt 1 of the training run out of memory, and everything else succeed."""
    kubelet = Kubelet(api, namespace)
    while not stop.wait(0.2):
        for name in api.jobs(namespace):
            phase = kubelet.pod(name)["status"].get("phase")
            if phase == "Pending":
                kubelet.run(name)
            elif phase == "Running" and name == "traffic-train-1":
                kubelet.end(name, 137, "OOMKilled")
            elif phase == "Running":
                kubelet.end(name, 0, "Completed", json.dumps(BEST))


def test_an_operator_that_dies_after_each_of_its_writes_makes_one_job_per_attempt(
    api: Api, namespace: str, control_plane_cluster: ControlPlane, tmp_path: Path
) -> None:
    admin = control_plane_cluster.kubeconfig
    stop = threading.Event()
    mine = Api(admin)
    kubelet = threading.Thread(target=play_kubelet, args=(mine, namespace, stop), daemon=True)
    with FaultProxy(admin) as proxy:
        kubeconfig = proxy.kubeconfig(admin, tmp_path / "kubeconfig")
        operator = OperatorProcess(kubeconfig, tmp_path / "log", TLT_NAMESPACES=namespace)
        policy = {"ttlSecondsAfterFinished": 3600}
        training = made(namespace, runPolicy=policy)
        prune = made(namespace, "PruneJob", "small", runPolicy=policy)
        api.create(prune)
        api.create(training)
        kubelet.start()
        with operator:
            proxy.victim = lambda: operator.pid if operator.is_running() else None

            def finished() -> bool:
                if not operator.is_running():
                    operator.kill()
                    operator.start()
                times_to_live = [
                    job["spec"].get("ttlSecondsAfterFinished") for job in api.jobs(namespace).values()
                ]
                return api.status(prune).get("phase") == "Succeeded" and times_to_live == [3600] * 3

            until(
                "the flow to end",
                finished,
                lambda: (api.jobs(namespace), api.status(prune)),
                patience.MINUTES,
            )
            proxy.victim = None
        stop.set()
        kubelet.join()
        mine.close()
    jobs = {key: count for key, count in proxy.writes.items() if key.startswith("POST batch/v1")}
    path = f"POST batch/v1/namespaces/{namespace}/jobs"
    assert jobs == {f"{path} traffic-train-1": 1, f"{path} traffic-train-2": 1, f"{path} small-prune-1": 1}
    # Three Jobs and their times to live, a status for each Job and each end: the least that there can be.
    assert proxy.deaths >= 12
    status = api.status(training)
    assert (status["phase"], status["attempt"], status["retries"]) == ("Succeeded", 2, 1)
    assert [entry["reason"] for entry in status["history"]] == ["OutOfMemory"]
    assert api.status(prune)["inputs"]["model"]["sha256"] == SHA
    events = Counter(
        (item["involvedObject"]["name"], item["reason"])
        for item in api.list("Event", namespace)
        if item["source"].get("component") == "tlt-operator"
    )
    for transition in (
        ("traffic", "Retrying"),
        ("traffic", "Succeeded"),
        ("small", "Succeeded"),
    ):
        assert events[transition] == 1, events


def test_an_operator_killed_at_random_moments_makes_one_job_per_attempt(
    api: Api, namespace: str, control_plane_cluster: ControlPlane, tmp_path: Path
) -> None:
    names = [f"j{number}" for number in range(10)]
    moments = random.Random(7)
    with OperatorProcess(
        control_plane_cluster.kubeconfig, tmp_path / "log", TLT_NAMESPACES=namespace
    ) as operator:
        manifests = [made(namespace, name=name) for name in names]
        for manifest in manifests:
            api.create(manifest)
        for _ in range(5):
            until(
                "the operator to be up", lambda: operator.get(operator.health_address, "/healthz")[0] == 200
            )
            time.sleep(moments.uniform(0, 0.8))
            operator.kill()
            operator.start()
        for manifest in manifests:
            until("its Job to be noted", lambda manifest=manifest: api.status(manifest).get("jobUid"))
        statuses = {name: api.status(manifest) for name, manifest in zip(names, manifests, strict=True)}
        jobs = api.jobs(namespace)
    uids = {name: job["metadata"]["uid"] for name, job in jobs.items()}
    assert {status["jobName"]: status["jobUid"] for status in statuses.values()} == uids
    assert set(uids) == {f"{name}-train-1" for name in names}


def test_an_operator_that_was_cut_off_from_the_api_server_goes_on_afterwards(
    api: Api, namespace: str, control_plane_cluster: ControlPlane, tmp_path: Path
) -> None:
    admin = control_plane_cluster.kubeconfig
    kubelet = Kubelet(api, namespace)
    before, meanwhile = made(namespace, name="before"), made(namespace, name="meanwhile")
    with FaultProxy(admin) as proxy:
        kubeconfig = proxy.kubeconfig(admin, tmp_path / "kubeconfig")
        with OperatorProcess(kubeconfig, tmp_path / "log", TLT_NAMESPACES=namespace) as operator:
            api.create(before)
            api.until_phase(before, "Queued")
            pod = kubelet.pod("before-train-1")["metadata"]["name"]
            proxy.cut()
            kubelet.run("before-train-1")
            kubelet.end("before-train-1", 0, "Completed", json.dumps(BEST))
            api.create(meanwhile)
            time.sleep(3)
            assert api.status(before)["phase"] == "Queued"
            assert operator.is_running()
            proxy.down = False
            assert api.until_phase(before, "Succeeded")["artifacts"] == BEST["artifacts"]
            api.until_phase(meanwhile, "Queued")
            assert operator.is_running()
    assert kubelet.pod("before-train-1")["metadata"]["name"] == pod


def test_two_operators_at_once_make_one_job_per_attempt(
    api: Api, namespace: str, control_plane_cluster: ControlPlane, tmp_path: Path
) -> None:
    admin = control_plane_cluster.kubeconfig
    manifests = [made(namespace, name=f"j{number}") for number in range(8)]
    kubelet = Kubelet(api, namespace)
    with (
        OperatorProcess(admin, tmp_path / "one", TLT_NAMESPACES=namespace) as one,
        OperatorProcess(admin, tmp_path / "two", TLT_NAMESPACES=namespace) as two,
    ):
        for operator in (one, two):
            until("the operator", lambda it=operator: it.get(it.health_address, "/healthz")[0] == 200)
        for manifest in manifests:
            api.create(manifest)
        for manifest in manifests:
            until("its Job to be noted", lambda it=manifest: api.status(it).get("jobUid"))
            kubelet.run(f"{manifest['metadata']['name']}-train-1")
            kubelet.end(f"{manifest['metadata']['name']}-train-1", 12)
        for manifest in manifests:
            until(
                "attempt 2",
                lambda it=manifest: api.status(it)["attempt"] == 2 and api.status(it).get("jobUid"),
            )
        assert one.is_running() and two.is_running()
    jobs = {name: job["metadata"]["uid"] for name, job in api.jobs(namespace).items()}
    assert set(jobs) == {f"j{number}-train-{attempt}" for number in range(8) for attempt in (1, 2)}
    for manifest in manifests:
        status = api.status(manifest)
        assert status["jobUid"] == jobs[status["jobName"]]
        assert [entry["attempt"] for entry in status["history"]] == [1]
        assert status["retries"] == 1
