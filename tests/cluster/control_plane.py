"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes of this machine. No root
needed.

Called by the integration ring's fixtures, by `node`, and by `python -m cluster up`. Everything is private to
one cluster: folder, ports, certificates, and the slot its addresses come from.
"""

import contextlib
import functools
import json
import os
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import patience
import ports

from . import abilities, binaries, records, steps
from .certificates import Authority
from .network import Network

if TYPE_CHECKING:
    from .api import KubernetesApi

_NOWHERE = "192.0.2.1"


class Cluster:
    """Base class of every kind of cluster: a kubeconfig, and kubectl and the official client with it."""

    is_local = True

    def __init__(self, kubeconfig: Path, server: str) -> None:
        self.kubeconfig = kubeconfig
        self.server = server

    @functools.cached_property
    def api(self) -> "KubernetesApi":
        """Requests as the user of the kubeconfig."""
        # The import takes more than a second, and what starts clusters only does without.
        from .api import KubernetesApi

        return KubernetesApi(self.kubeconfig, local=self.is_local)

    def close(self) -> None:
        """Close the connections of `api`, where it was used."""
        if "api" in self.__dict__:
            self.api.close()

    def kubectl(self, *arguments: str | Path, stdin: str | None = None, check: bool = True) -> str:
        """Runs kubectl against this cluster and returns what it printed.

        Raises:
            ClusterError: kubectl failed and `check` is set.
        """
        return steps.run(
            binaries.binary("kubectl"), "--kubeconfig", self.kubeconfig, *arguments, stdin=stdin, check=check
        )

    def apply(self, *objects: Mapping[str, object]) -> None:
        """Applies objects given as dictionaries."""
        content = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(content))


class ControlPlane(Cluster):
    """A running control plane of ours."""

    def __init__(self, record: records.Record) -> None:
        self.record = record
        self.directory = record.directory
        self.name = record.name
        assert record.slot is not None
        self.network = Network(record.slot)
        super().__init__(self.directory / "kubeconfig", str(record.facts["server"]))

    @property
    def with_node(self) -> bool:
        """True if a node and pods can reach this API server."""
        return bool(self.record.facts["with_node"])

    @property
    def authority(self) -> Authority:
        """Signs more certificates for this cluster."""
        return Authority(self.directory / "pki")

    @contextlib.contextmanager
    def without(self, part: str) -> Iterator[None]:
        """Stops a part for the time of a `with` block, then starts it again as before."""
        pid = self.record.processes()[part]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        self.record.stop(part)
        try:
            yield
        finally:
            self.record.spawn(part, *(word.decode() for word in command))
            steps.until("the API server to be ready", lambda: _is_ready(self), patience.SECONDS)

    @contextlib.contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """Stops a part from running for the time of a `with` block (SIGSTOP); its connections stay open."""
        pid = self.record.processes()[part]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def is_healthy(self) -> bool:
        """Return True if all its processes run and the API server answers."""
        running = set(self.record.processes())
        return running >= {
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        } and _is_ready(self)


@contextlib.contextmanager
def control_plane(name: str | None = None, *, with_node: bool = False) -> Iterator[ControlPlane]:
    """A control plane for the time of a `with` block.

    Args:
        name: of its folder below `.cache/clusters/`; a private one by default.
        with_node: also makes the network that `node` and pods need (root).

    Raises:
        UnavailableError: this machine lacks an ability.
        ClusterError: a part did not start.
    """
    plane = start(name or _private_name(), with_node=with_node)
    try:
        yield plane
    finally:
        plane.close()
        records.undo(plane.record)


def start(name: str, *, with_node: bool = False) -> ControlPlane:
    """Starts a control plane that this process owns until `record.keep()`; undoes it where that fails."""
    abilities.require_control_plane()
    if with_node:
        abilities.require_node()
    programs = {part: binaries.binary(part) for part in (*_PARTS, "kubectl")}
    # containerd keeps images by slot. So clusters with a node use the first slots, which have them already;
    # those without one, of the integration ring that runs at the same time, start from the other end.
    slots = records.SLOTS if with_node else reversed(records.SLOTS)
    record = records.create(name, "control-plane", slots)
    try:
        _start(record, programs, with_node)
        return ControlPlane(record)
    except BaseException:
        records.undo(record)
        raise


@records.undone_by("control-plane")
def _undo(record: records.Record) -> None:
    record.stop_all()
    if record.facts.get("with_node") and record.slot is not None:
        Network(record.slot).delete()
    record.remove()


_PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_count = 0


def _private_name() -> str:
    global _count
    _count += 1
    return f"run-{os.getpid()}-{_count}"


def _start(record: records.Record, programs: Mapping[str, Path], with_node: bool) -> None:
    assert record.slot is not None
    network = Network(record.slot)
    record.note(with_node=with_node)
    if with_node:
        network.create()
    address = network.host if with_node else "127.0.0.1"
    port, etcd_port, peer_port = ports.free_ports(3, address)
    server = f"https://{address}:{port}"
    record.note(server=server)

    authority = Authority(record.directory / "pki")
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    authority.issue("kube-apiserver", hosts=[*names, "localhost", "127.0.0.1", address, network.api_service])
    authority.issue("apiserver-kubelet-client", "apiserver-kubelet-client", ["system:masters"])
    authority.issue("etcd", hosts=["127.0.0.1"])
    authority.issue("service-accounts")
    kubeconfig = authority.kubeconfig("admin", server, "admin", ["system:masters"])
    kubeconfig.rename(record.directory / "kubeconfig")

    ca, etcd_crt, etcd_key = authority.certificate("ca"), authority.certificate("etcd"), authority.key("etcd")
    etcd, peer = f"https://127.0.0.1:{etcd_port}", f"https://127.0.0.1:{peer_port}"
    record.spawn(
        "etcd",
        programs["etcd"],
        f"--data-dir={record.directory / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={etcd}",
        f"--advertise-client-urls={etcd}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        *(f"--{kind}trusted-ca-file={ca}" for kind in ("", "peer-")),
        *(f"--{kind}cert-file={etcd_crt}" for kind in ("", "peer-")),
        *(f"--{kind}key-file={etcd_key}" for kind in ("", "peer-")),
        *(f"--{kind}client-cert-auth" for kind in ("", "peer-")),
    )
    record.spawn(
        "kube-apiserver",
        programs["kube-apiserver"],
        f"--etcd-servers={etcd}",
        f"--etcd-cafile={ca}",
        f"--etcd-certfile={etcd_crt}",
        f"--etcd-keyfile={etcd_key}",
        f"--bind-address={address}",
        # Loopback is refused here; without a node nobody follows this address.
        f"--advertise-address={address if with_node else _NOWHERE}",
        f"--secure-port={port}",
        f"--service-cluster-ip-range={network.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        f"--client-ca-file={ca}",
        f"--tls-cert-file={authority.certificate('kube-apiserver')}",
        f"--tls-private-key-file={authority.key('kube-apiserver')}",
        f"--kubelet-certificate-authority={ca}",
        f"--kubelet-client-certificate={authority.certificate('apiserver-kubelet-client')}",
        f"--kubelet-client-key={authority.key('apiserver-kubelet-client')}",
        # Or `kubectl logs` tries to resolve the node's name.
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-signing-key-file={authority.key('service-accounts')}",
        f"--service-account-key-file={authority.certificate('service-accounts')}",
    )
    plane = ControlPlane(record)

    def api_server_is_ready() -> bool:
        record.check("etcd")
        record.check("kube-apiserver")
        return _is_ready(plane)

    steps.until("the API server to be ready", api_server_is_ready, patience.SECONDS)
    for part, user in (
        ("kube-controller-manager", "system:kube-controller-manager"),
        ("kube-scheduler", "system:kube-scheduler"),
    ):
        kubeconfig_of_part = authority.kubeconfig(part, server, user)
        extra = []
        if part == "kube-controller-manager":
            extra = [
                "--use-service-account-credentials",
                # A claim made beside its volume is bound at the next turn of this, every 15 s by default.
                "--pvclaimbinder-sync-period=1s",
                f"--root-ca-file={ca}",
                f"--service-account-private-key-file={authority.key('service-accounts')}",
            ]
        # The default limits of 20 and 50 requests a second make thousands of simulated pods take minutes.
        limits = ("--kube-api-qps=500", "--kube-api-burst=1000")
        alone = ("--leader-elect=false", "--secure-port=0")
        record.spawn(part, programs[part], f"--kubeconfig={kubeconfig_of_part}", *alone, *limits, *extra)
    steps.until("the default service account", lambda: _has_default_account(plane), patience.SECONDS)


def _is_ready(plane: ControlPlane) -> bool:
    context = ssl.create_default_context(cafile=str(plane.authority.certificate("ca")))
    try:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"{plane.server}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _has_default_account(plane: ControlPlane) -> bool:
    for part in _PARTS:
        plane.record.check(part)
    listed = plane.kubectl(
        "get", "serviceaccount", "default", "--ignore-not-found", "-o", "name", check=False
    )
    return bool(listed.strip())
