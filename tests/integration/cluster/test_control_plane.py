"""The cluster that other tests stand on: it starts, it is private, and it ends without a trace."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import patience
from cluster import ControlPlane, control_plane, fixtures, kwok, paths, records


def test_namespace_is_created_and_gets_a_service_account(control_plane_cluster: ControlPlane) -> None:
    control_plane_cluster.kubectl("create", "namespace", "claims")

    control_plane_cluster.kubectl(
        "wait", "--for=create", patience.KUBECTL, "serviceaccount/default", "--namespace=claims"
    )

    assert control_plane_cluster.kubectl("get", "namespace", "claims", "-o", "name") == "namespace/claims\n"


def test_two_control_planes_run_side_by_side_and_share_nothing(control_plane_cluster: ControlPlane) -> None:
    with control_plane() as other:
        other.kubectl("create", "namespace", "only-there")

        found = control_plane_cluster.kubectl("get", "namespace", "only-there", "--ignore-not-found")

        assert found == ""
        assert other.network.slot != control_plane_cluster.network.slot
        assert other.server != control_plane_cluster.server


def test_leaving_the_block_ends_every_process_and_deletes_the_folder() -> None:
    with fixtures.skipping(), control_plane() as plane:
        started = plane.record.processes()
        assert set(started) == {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}

    assert [name for name, pid in started.items() if records.start_time(pid) is not None] == []
    assert not plane.directory.exists()


def test_cluster_of_a_killed_process_is_ended_by_the_next_command() -> None:
    with fixtures.skipping(), control_plane():
        pass  # says why it cannot, where it cannot
    code = "import cluster\nwith cluster.control_plane() as p: print(p.directory, flush=True); input()"
    starter = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(paths.SOURCES.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        directory = Path(next(line for line in starter.stdout if not line.startswith("cluster:")).strip())
        pids = list(records.Record(directory).processes().values())
        starter.send_signal(signal.SIGKILL)
    assert len(pids) == 4

    records.end_abandoned()

    assert [pid for pid in pids if records.start_time(pid) is not None] == []
    assert not directory.exists()


def test_recycled_pid_is_not_taken_for_a_process_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    record = records.create("mine", "object-store")
    record.spawn("sleep", "sleep", "60")
    pid = record.processes()["sleep"]
    content = record._read()
    content["processes"].append({"name": "recycled", "pid": os.getpid(), "started": 1})
    record._write(content)

    records.undo(record)

    assert records.start_time(pid) is None
    assert records.start_time(os.getpid()) is not None


def test_hundreds_of_simulated_pods_run_on_kwok_nodes(control_plane_cluster: ControlPlane) -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "many", "namespace": "default"},
        "spec": {
            "replicas": 300,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {
                "metadata": {"labels": {"app": "many"}},
                "spec": {"containers": [{"name": "main", "image": "none"}]},
            },
        },
    }
    with kwok(control_plane_cluster) as simulator:
        simulator.add_nodes(3)
        control_plane_cluster.apply(deployment)
        control_plane_cluster.kubectl("rollout", "status", "deployment/many", patience.KUBECTL)
        ready = control_plane_cluster.kubectl(
            "get", "deployment/many", "-o", "jsonpath={.status.readyReplicas}"
        )
        control_plane_cluster.kubectl("delete", "deployment/many", "--cascade=foreground")
        control_plane_cluster.kubectl("delete", "node", "--selector=type=kwok")

    assert ready == "300"
