"""Two operators with a Lease on a real API server: one works, and the other one follows it, come what may."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import patience
from cluster.control_plane import ControlPlane
from operator_ring.live import Api, Kubelet, OperatorProcess, until
from operator_ring.manifests import BEST, made

ROOT = Path(__file__).parents[2]
BASE = ROOT / "manifests" / "base"
TAKE_OVER_SECONDS = 15

Start = Callable[[str], OperatorProcess]


@pytest.fixture
def start(operator_kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Start an operator of this namespace that takes part in the Lease; its log has the given name."""
    with ExitStack() as stack:

        def started(name: str) -> OperatorProcess:
            operator = OperatorProcess(
                operator_kubeconfig,
                tmp_path / name,
                TLT_NAMESPACES=namespace,
                TLT_LEASE_NAMESPACE="tlt-system",
            )
            return stack.enter_context(operator)

        yield started


def role(operator: OperatorProcess) -> str:
    """Return what an operator says of itself; empty if it does not answer."""
    _, text = operator.get(operator.health_address, "/healthz")
    return str(json.loads(text)["role"]) if text else ""


def until_role(operator: OperatorProcess, wanted: str) -> float:
    """Wait until an operator has a role; return the seconds that it took."""
    began = time.monotonic()
    until(f"an operator to be {wanted}", lambda: role(operator) == wanted, operator.log, patience.MINUTES)
    return time.monotonic() - began


def pair(start: Start) -> tuple[OperatorProcess, OperatorProcess]:
    """Return a leader and a standby."""
    leader = start("leader")
    until_role(leader, "leader")
    standby = start("standby")
    until_role(standby, "standby")
    return leader, standby


def metric(operator: OperatorProcess, pattern: str) -> list[str]:
    """Return the values of the metrics whose line begins with a pattern."""
    _, text = operator.get(operator.metrics_address, "/metrics")
    return re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)


def test_a_standby_takes_over_from_a_killed_leader_and_goes_on_with_its_job(
    api: Api, namespace: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, standby = pair(start)
    kubelet, training = Kubelet(api, namespace), made(namespace)
    api.create(training)
    kubelet.run("traffic-train-1")
    api.until_phase(training, "Running")
    assert (metric(leader, "tlt_leader"), metric(standby, "tlt_leader")) == (["1.0"], ["0.0"])
    # Ready, so that a rolling update proceeds; it writes nothing.
    assert standby.get(standby.health_address, "/readyz")[0] == 200
    assert metric(standby, r"tlt_operator_api_requests_total\{[^}]*verb=\"(?:create|patch|update)\"\}") == []
    leader.kill()
    seconds = until_role(standby, "leader")
    with capsys.disabled():
        print(f"\ntakeover after SIGKILL: {seconds:.1f} s")
    assert seconds < TAKE_OVER_SECONDS
    kubelet.end("traffic-train-1", 0, "Completed", json.dumps(BEST))
    assert api.until_phase(training, "Succeeded")["attempt"] == 1
    assert list(api.jobs(namespace)) == ["traffic-train-1"]


def test_a_frozen_leader_ends_when_it_wakes_up_and_there_is_one_job_an_attempt(
    api: Api, namespace: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, standby = pair(start)
    kubelet, first = Kubelet(api, namespace), made(namespace)
    api.create(first)
    kubelet.run("traffic-train-1")
    api.until_phase(first, "Running")
    os.kill(leader.pid, signal.SIGSTOP)
    seconds = until_role(standby, "leader")
    # A loop that does not run answers no probe: the kubelet would restart it.
    with pytest.raises(TimeoutError), socket.create_connection(leader.health_address, timeout=3) as probe:
        probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        probe.recv(1)
    # While it sleeps, things happen of which it will hear when it wakes up.
    kubelet.end("traffic-train-1", 137, "OOMKilled")
    second = made(namespace, name="second", output={"uri": "pvc://runs/second"})
    api.create(second)
    kubelet.run("traffic-train-2")
    api.until_phase(first, "Running")
    os.kill(leader.pid, signal.SIGCONT)
    began = time.monotonic()
    until("the former leader to end", lambda: not leader.is_running(), leader.log, patience.MINUTES)
    with capsys.disabled():
        print(f"\ntakeover from a frozen one: {seconds:.1f} s; its end: {time.monotonic() - began:.1f} s")
    assert leader.stop() == 1
    assert "lost the Lease tlt-system/tlt-operator" in leader.log()
    kubelet.run("second-train-1")
    for job in ("traffic-train-2", "second-train-1"):
        kubelet.end(job, 0, "Completed", json.dumps(BEST))
    assert api.until_phase(first, "Succeeded")["attempt"] == 2
    api.until_phase(second, "Succeeded")
    assert set(api.jobs(namespace)) == {"traffic-train-1", "traffic-train-2", "second-train-1"}


def test_a_leader_that_is_asked_to_end_hands_over_at_once(
    api: Api, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, standby = pair(start)
    assert leader.stop() == 0
    assert "released the Lease" in leader.log()
    seconds = until_role(standby, "leader")
    with capsys.disabled():
        print(f"\nhand-over after SIGTERM: {seconds:.1f} s")
    # Sooner than the Lease of a leader that died would have been free.
    assert seconds < 10


def test_a_leader_whose_lease_is_taken_away_ends(api: Api, start: Start) -> None:
    leader, standby = pair(start)
    api.patch("Lease", "tlt-operator", "tlt-system", {"spec": {"holderIdentity": "somebody"}})
    until("the leader to end", lambda: not leader.is_running(), leader.log, patience.MINUTES)
    assert leader.stop() == 1
    assert "it is held by somebody" in leader.log()
    until_role(standby, "leader")


def test_requests_of_the_operator_name_it(api: Api, namespace: str, start: Start) -> None:
    until_role(start("alone"), "leader")
    api.create(made(namespace))
    # The API server takes the manager's name from the User-Agent, where a request does not name one.
    jobs: dict[str, Any] = until("a Job", lambda: api.jobs(namespace))
    managers = {entry["manager"] for entry in jobs["traffic-train-1"]["metadata"]["managedFields"]}
    assert "tlt-operator" in managers


def test_every_metric_that_is_documented_is_served(api: Api, namespace: str, start: Start) -> None:
    operator = start("alone")
    until_role(operator, "leader")
    api.create(made(namespace))
    # Ours, and kopf's: its watches are counted and have an age.
    created = r'tlt_operator_api_requests_total\{code="201",resource="jobs",verb="create"\}'
    assert until("the Job to be counted", lambda: metric(operator, created)) == ["1.0"]
    _, text = operator.get(operator.metrics_address, "/metrics")
    documented = re.findall(r"^\| `(tlt_\w+)`", (ROOT / "docs" / "watching.md").read_text(), re.MULTILINE)
    assert len(documented) > 10
    assert set(documented) <= set(re.findall(r"^# TYPE (tlt_\w+)", text, re.MULTILINE))
    for watched in ("trainingjobs", "prunejobs", "exportjobs", "jobs", "pods"):
        pattern = rf'tlt_operator_watch_age_seconds\{{namespace="{namespace}",resource="{watched}"\}}'
        (age,) = metric(operator, pattern)
        assert float(age) < 480


def test_the_api_server_accepts_every_manifest(installed: ControlPlane) -> None:
    output = installed.kubectl("apply", "-k", BASE, "--dry-run=server")
    for name in (
        "poddisruptionbudget.policy/tlt-operator",
        "deployment.apps/tlt-operator",
        "service/tlt-operator-metrics",
        "role.rbac.authorization.k8s.io/tlt-operator-lease",
    ):
        assert name in output
    assert "Warning" not in output


@pytest.mark.parametrize(
    ("allowed", "verb", "what", "where"),
    [
        (True, "update", "leases.coordination.k8s.io/tlt-operator", "tlt-system"),
        (True, "create", "leases.coordination.k8s.io", "tlt-system"),
        (False, "update", "leases.coordination.k8s.io/another", "tlt-system"),
        (False, "delete", "leases.coordination.k8s.io/tlt-operator", "tlt-system"),
        (False, "list", "leases.coordination.k8s.io", "tlt-system"),
        (False, "update", "leases.coordination.k8s.io/tlt-operator", "kube-system"),
        (False, "create", "leases.coordination.k8s.io", "default"),
    ],
)
def test_the_operator_may_use_its_own_lease_and_no_other(
    installed: ControlPlane, allowed: bool, verb: str, what: str, where: str
) -> None:
    account = "system:serviceaccount:tlt-system:tlt-operator"
    answer = installed.kubectl("auth", "can-i", verb, what, "-n", where, "--as", account, check=False)
    assert answer.strip().splitlines()[-1] == ("yes" if allowed else "no")
