"""One node for a control plane: containerd, kubelet, kube-proxy and CoreDNS in the cluster's network
namespace.

Called by the e2e ring's fixtures, by the demo and by `python -m cluster up --level node`. Needs root on
Linux. containerd's content folder belongs to the slot and outlives the node, so that the next one has the
images already.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import patience

from . import abilities, binaries, images, paths, records, steps
from .control_plane import Cluster, ControlPlane
from .errors import ClusterError
from .network import Network

POD_USER = 65532
NAME = "tlt-node"
_PATH_LIMIT = 70
_CGROUPS = Path("/sys/fs/cgroup")


class Node(Cluster):
    """A running node, with the surface of its cluster."""

    def __init__(self, plane: ControlPlane, record: records.Record) -> None:
        super().__init__(plane.kubeconfig, plane.server)
        self.control_plane = plane
        self.record = record
        self.directory = record.directory
        self.network = plane.network
        self.name = NAME

    @property
    def host_address(self) -> str:
        """An address of this host that pods reach."""
        return self.network.host

    def ctr_command(self, *arguments: str | Path) -> list[str | Path]:
        """A command of containerd's own client, in the namespace that the kubelet uses."""
        return _ctr(self.record, *arguments)

    def ctr(self, *arguments: str | Path) -> str:
        """Runs containerd's own client and returns what it printed."""
        return steps.run(*self.ctr_command(*arguments))

    def is_healthy(self) -> bool:
        """Return True if all its processes run and the API server calls it ready."""
        running = set(self.record.processes())
        return running >= {"containerd", "coredns", "kube-proxy", "kubelet"} and _is_ready(self)

    def set_gpus(self, count: int) -> None:
        """Makes scheduler and kubelet believe in that many `nvidia.com/gpu`."""
        values = {"nvidia.com/gpu": str(count)}
        self.api.patch("Node", NAME, None, {"status": {"capacity": values, "allocatable": values}}, "status")

    def persistent_volume(
        self, claim_name: str, namespace: str, size: str = "10Gi", folder: Path | None = None
    ) -> Path:
        """Makes a claim bound to a folder of this host that pods may write to.

        Args:
            claim_name: of the PersistentVolumeClaim.
            namespace: of the claim; must exist.
            size: as Kubernetes writes it.
            folder: on this host; by default one that is deleted with the node.

        Returns:
            The folder.
        """
        folder = folder or self.directory / "volumes" / namespace / claim_name
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, POD_USER, POD_USER)
        modes = ["ReadWriteOnce", "ReadWriteMany"]
        volume = f"{namespace}.{claim_name}"
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": volume},
                "spec": {
                    "capacity": {"storage": size},
                    "accessModes": modes,
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                    "hostPath": {"path": str(folder)},
                    "claimRef": {"name": claim_name, "namespace": namespace},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim_name, "namespace": namespace},
                "spec": {
                    "accessModes": modes,
                    "storageClassName": "",
                    "volumeName": volume,
                    "resources": {"requests": {"storage": size}},
                },
            },
        )
        return folder


@contextlib.contextmanager
def node(plane: ControlPlane) -> Iterator[Node]:
    """A node for the time of a `with` block. The control plane must have been started with `with_node=True`.

    Raises:
        UnavailableError: this machine lacks an ability.
        ClusterError: a part did not start.
    """
    machine = start(plane)
    try:
        yield machine
    finally:
        machine.close()
        records.undo(machine.record)


def start(plane: ControlPlane) -> Node:
    """Starts a node that this process owns until `record.keep()`; undoes it where that fails."""
    abilities.require_node()
    if not plane.with_node:
        raise ClusterError(
            "this control plane cannot be reached by pods; start it with control_plane(with_node=True)"
        )
    programs = {part: binaries.binary(part) for part in ("kubelet", "kube-proxy", "coredns")}
    name = f"{plane.name}.node"
    if len(str(records.FOLDER / name)) > _PATH_LIMIT:
        raise ClusterError(
            f"{records.FOLDER / name} is too long: unix sockets below it would pass 107 characters; "
            "set TLT_CACHE to a shorter path"
        )
    record = records.create(name, "node")
    try:
        record.note(network=plane.network.slot)
        machine = Node(plane, record)
        _start_containerd(machine)
        images.load_pause(machine)
        _start_dns(machine, programs["coredns"])
        _start_proxy(machine, programs["kube-proxy"])
        _start_kubelet(machine, programs["kubelet"])
        return machine
    except BaseException:
        records.undo(record)
        raise


def _ctr(record: records.Record, *arguments: str | Path) -> list[str | Path]:
    return ["ctr", "--address", record.directory / "containerd.sock", "--namespace", "k8s.io", *arguments]


def _start_containerd(machine: Node) -> None:
    record, directory = machine.record, machine.directory
    content = paths.CACHE / "containerd" / str(machine.network.slot)
    content.mkdir(parents=True, exist_ok=True)
    (directory / "cni").mkdir()
    # ptp, not a bridge: pods are routed, so service addresses work between them without br_netfilter.
    plugin = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(directory / "cni" / "addresses"),
            "ranges": [[{"subnet": machine.network.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    plugins = [plugin, {"type": "portmap", "capabilities": {"portMappings": True}}]
    conflist = {"cniVersion": "0.4.0", "name": machine.network.name, "plugins": plugins}
    (directory / "cni" / "10-tlt.conflist").write_text(json.dumps(conflist, indent=1))
    (directory / "containerd.toml").write_text(f"""\
version = 2
root = "{content}"
state = "{directory / "state"}"
[grpc]
address = "{directory / "containerd.sock"}"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
# Without CAP_SYS_RESOURCE runc may not lower an OOM score, and dies of it:
# "can't get final child's PID from pipe: EOF".
restrict_oom_score_adj = true
disable_apparmor = true
sandbox_image = "{images.PAUSE}"
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{directory / "runc"}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory / "cni"}"
""")
    record.spawn(
        "containerd", *machine.network.inside("containerd", "--config", directory / "containerd.toml")
    )

    def answers() -> bool:
        record.check("containerd")
        return bool(steps.run(*machine.ctr_command("version"), check=False).count("Server:"))

    steps.until("containerd to answer", answers, patience.SECONDS)


def _start_dns(machine: Node, program: Path) -> None:
    """CoreDNS as a process of the node, behind the `kube-dns` service."""
    network, user = machine.network, "system:tlt-dns"
    kubeconfig = machine.control_plane.authority.kubeconfig("coredns", machine.server, user)
    # Names outside the cluster do not exist here: pods reach nothing beyond the host.
    corefile = machine.directory / "Corefile"
    corefile.write_text(f"""\
cluster.local:53 in-addr.arpa:53 {{
    bind {network.node}
    errors
    kubernetes {{
        kubeconfig {kubeconfig} tlt
        pods insecure
    }}
}}
.:53 {{
    bind {network.node}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
""")
    ports = [
        {"name": name, "port": 53, "protocol": protocol}
        for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    in_system = {"name": "kube-dns", "namespace": "kube-system"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user}
    readable = (
        ("", ["endpoints", "namespaces", "pods", "services"]),
        ("discovery.k8s.io", ["endpointslices"]),
    )
    rules = [
        {"apiGroups": [group], "resources": kinds, "verbs": ["list", "watch"]} for group, kinds in readable
    ]
    machine.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": user},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": user},
            "roleRef": role,
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": in_system,
            "spec": {"clusterIP": network.dns_service, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**in_system, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [network.node]}],
        },
    )
    machine.record.spawn("coredns", *network.inside(program, "-conf", corefile))


def _start_proxy(machine: Node, program: Path) -> None:
    kubeconfig = machine.control_plane.authority.kubeconfig("kube-proxy", machine.server, "system:kube-proxy")
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": machine.network.pods,
        "hostnameOverride": NAME,
        "oomScoreAdj": 0,
        # The limits of connection tracking are the machine's, not a test's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    file = machine.directory / "kube-proxy.yaml"
    file.write_text(json.dumps(config, indent=1))
    machine.record.spawn("kube-proxy", *machine.network.inside(program, f"--config={file}"))


def _start_kubelet(machine: Node, program: Path) -> None:
    network, directory, authority = machine.network, machine.directory, machine.control_plane.authority
    authority.issue("kubelet-server", hosts=[network.node, NAME])
    kubeconfig = authority.kubeconfig("kubelet", machine.server, f"system:node:{NAME}", ["system:nodes"])
    _make_cgroups(network.name)
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "x509": {"clientCAFile": str(authority.certificate("ca"))},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(authority.certificate("kubelet-server")),
        "tlsPrivateKeyFile": str(authority.key("kubelet-server")),
        "containerRuntimeEndpoint": f"unix://{directory / 'containerd.sock'}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{network.name}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDNS": [network.dns_service],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "podLogsDir": str(directory / "pod-logs"),
        "volumePluginDir": str(directory / "volume-plugins"),
        # A test machine's disk is as full as it is; images are ours to delete.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
    }
    file = directory / "kubelet.yaml"
    file.write_text(json.dumps(config, indent=1))
    machine.record.spawn(
        "kubelet",
        *network.inside(
            program,
            f"--config={file}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={directory / 'kubelet'}",
            f"--cert-dir={directory / 'kubelet-pki'}",
            f"--hostname-override={NAME}",
            f"--node-ip={network.node}",
        ),
    )

    def ready() -> bool:
        for part in ("containerd", "coredns", "kube-proxy", "kubelet"):
            machine.record.check(part)
        return _is_ready(machine)

    steps.until("the node to be ready", ready, patience.SECONDS)
    steps.until(
        "the cluster's DNS to answer on its service address", lambda: _dns_answers(network), patience.SECONDS
    )


def _dns_answers(network: Network) -> bool:
    """Asks for the API server's address as a pod would: an answer needs kube-proxy and CoreDNS."""
    labels = b"".join(
        bytes([len(word)]) + word for word in b"kubernetes.default.svc.cluster.local".split(b".")
    )
    query = bytes.fromhex("1234 0100 0001 0000 0000 0000") + labels + bytes.fromhex("00 0001 0001")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        try:
            client.sendto(query, (network.dns_service, 53))
            return socket.inet_aton(network.api_service) in client.recv(512)
        except OSError:
            return False


def _is_ready(machine: Node) -> bool:
    condition = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    return machine.kubectl("get", "node", NAME, "--ignore-not-found", "-o", condition, check=False) == "True"


def _cgroup_roots() -> list[Path]:
    """Return the folders in which cgroups are made: one for v2, one a controller for v1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [
        folder
        for folder in sorted(_CGROUPS.iterdir())
        if (folder / "cgroup.procs").exists() and not folder.is_symlink()
    ]


def _make_cgroups(name: str) -> None:
    for root in _cgroup_roots():
        if (root / "cgroup.subtree_control").exists() and root == _CGROUPS:
            controllers = (root / "cgroup.controllers").read_text().split()
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers))
        (root / name).mkdir(exist_ok=True)


def _kill_cgroups(name: str) -> None:
    """Ends every process in our cgroups (all containers) and removes the cgroups."""
    tops = [root / name for root in _cgroup_roots() if (root / name).exists()]
    deadline = time.monotonic() + patience.SECONDS
    while pids := {pid for top in tops for folder in _cgroups_below(top) for pid in _pids_in(folder)}:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"expected the containers' processes to end within {patience.SECONDS} s, "
                f"but these remain: {sorted(pids)}"
            )
        time.sleep(0.05)


def _cgroups_below(top: Path) -> list[Path]:
    """A cgroup and all in it; containerd removes some meanwhile, which os.walk, unlike rglob, passes over."""
    return [Path(folder) for folder, _, _ in os.walk(top)]


def _pids_in(cgroup: Path) -> list[int]:
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):  # removed before it was opened, or read
            return []
        raise


def _remove_cgroups(name: str) -> None:
    for top in [root / name for root in _cgroup_roots() if (root / name).exists()]:
        for folder in sorted(_cgroups_below(top), key=lambda each: -len(each.parts)):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


def _unmount_below(directory: Path) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            steps.run("umount", "--lazy", point)


@records.undone_by("node")
def _undo(record: records.Record) -> None:
    slot = record.facts.get("network")
    record.stop("kubelet", "kube-proxy", "coredns")
    if isinstance(slot, int):
        name = Network(slot).name
        _kill_cgroups(name)
        if "containerd" in record.processes():
            # Its content folder is used again: the next node must not find containers of this one.
            for kind in ("tasks", "containers"):
                leftover = steps.run(*_ctr(record, kind, "ls", "-q"), check=False).split()
                if leftover:
                    steps.run(*_ctr(record, kind, "rm", *leftover), check=False)
        record.stop_all()
        _remove_cgroups(name)
    record.stop_all()
    _unmount_below(record.directory)
    _forget(record)
    record.remove()


def _forget(record: records.Record) -> None:
    """Removes what the kubelet and CNI left in folders that all nodes of a machine share."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(f"{record.directory}/"):
            link.unlink()
    for result in Path("/var/lib/cni/results").glob(f"tlt{record.facts.get('network')}-*-eth0"):
        sandbox = result.name.split("-")[1]
        result.unlink()
        result.with_name(f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
