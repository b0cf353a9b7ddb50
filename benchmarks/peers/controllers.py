"""Controllers of other projects, built from their published Go modules, as processes beside a control plane.

Called by ``operator_peers``. Versions stand in :data:`PEERS` and nowhere else. Each controller runs with the
configuration that its project publishes, changed in what a process outside of a cluster needs (ports,
certificates, no leader election) and in its favour (no limit of requests that could be felt). Admission
webhooks are served, as the controllers insist on it, but not registered: the API server calls none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import patience
import ports
from cluster import paths, steps
from cluster.control_plane import ControlPlane
from cluster.errors import UnavailableError

_REQUESTS_A_SECOND = 10_000
"""Limit of a controller's own requests: none of them comes near it."""
_CERTIFICATES = Path("/tmp/k8s-webhook-server")
"""Folder in which controller-runtime expects the webhook server's certificate, fixed in training-operator."""
_ACCOUNTS = "tlt-system"


@dataclass(frozen=True)
class Peer:
    """A published controller: its Go module and what of it is used."""

    name: str
    module: str
    version: str
    sum: str
    """Hash of the module as in go.sum."""
    package: str
    """Package of the controller, relative to the module."""
    crds: tuple[str, ...]
    """Manifests of its resources, relative to the module."""
    config: str | None = None
    """Published configuration file, relative to the module; None for a controller with flags only."""
    changes: Mapping[str, Any] | None = None
    """Changes of that configuration, beside ports and the limit of requests."""
    flags: tuple[str, ...] = ()
    """Flags; ``{health}`` and ``{webhooks}`` stand for ports, ``{qps}`` for the limit of requests."""
    secret: tuple[str, str] | None = None
    """Namespace and name of a Secret that it fills with certificates and does not start without."""


JOBSET = Peer(
    name="jobset",
    module="sigs.k8s.io/jobset",
    version="v0.10.1",
    sum="h1:u8QKifNsrWVrlRFe6w2ofYTqFT9ma2DRHxfeB2m9xyU=",
    package=".",
    crds=("config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",),
    config="config/components/manager/controller_manager_config.yaml",
    changes={"internalCertManagement": {"enable": False}},
    flags=("--zap-log-level=2",),
)
TRAINER = Peer(
    name="trainer",
    module="github.com/kubeflow/trainer/v2",
    version="v2.1.0",
    sum="h1:jRABD9ZYToamNH2atHze3L/VC/v6KCAqUEqsOQOjVTg=",
    package="./cmd/trainer-controller-manager",
    crds=(
        "manifests/base/crds/trainer.kubeflow.org_clustertrainingruntimes.yaml",
        "manifests/base/crds/trainer.kubeflow.org_trainingruntimes.yaml",
        "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml",
    ),
    config="manifests/base/manager/controller_manager_config.yaml",
    changes={"certManagement": {"enable": False}},
    flags=("--zap-log-level=2",),
)
TRAINING_OPERATOR = Peer(
    name="training-operator",
    module="github.com/kubeflow/training-operator",
    # The first minor version with a flag for the limit of requests: 1.8 is held to 20 a second, which alone
    # would make a thousand jobs take a minute and a half.
    version="v1.9.3",
    sum="h1:aaSHqskOtCY8Dn8sVd+l9p5XAczW6O0nYMPjVLAw/lc=",
    package="./cmd/training-operator.v1",
    crds=("manifests/base/crds/kubeflow.org_pytorchjobs.yaml",),
    flags=(
        "--enable-scheme=pytorchjob",
        # One by default, and five in Trainer's published configuration.
        "--controller-threads=5",
        "--kube-api-qps={qps}",
        "--kube-api-burst={qps}",
        "--metrics-bind-address=0",
        "--health-probe-bind-address=127.0.0.1:{health}",
        "--webhook-server-port={webhooks}",
    ),
    secret=("kubeflow", "training-operator-webhook-cert"),
)
PEERS = (JOBSET, TRAINING_OPERATOR, TRAINER)


def built(peer: Peer) -> Path:
    """Return the folder with a peer's ``manager``, ``crds`` and ``config.yaml``, built first where missing.

    Raises:
        UnavailableError: it must be built and there is no Go, or its module is not the pinned one.
        ClusterError: the download or the build failed.
    """
    folder = paths.CACHE / "peers" / f"{peer.name}-{peer.version}"
    if not folder.exists():
        with paths.exclusive(paths.CACHE / "peers" / ".lock"):
            if not folder.exists():
                _build(peer, folder)
    return folder


def _build(peer: Peer, folder: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise UnavailableError(f"building {peer.name} needs Go (1.26 or newer) on PATH, and there is none")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".build-") as temporary:
        source = _module(go, peer, Path(temporary))
        target = Path(temporary, "built")
        # Built in its own folder, so that its own go.mod and go.sum say what else goes into it.
        steps.long(
            f"building {peer.name} {peer.version} (once; cached in {folder.parent})",
            [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", target / "manager", peer.package],
            cwd=source,
            env={"CGO_ENABLED": "0", "GOWORK": "off"},
        )
        (target / "crds").mkdir()
        for crd in peer.crds:
            shutil.copyfile(source / crd, target / "crds" / Path(crd).name)
        if peer.config:
            shutil.copyfile(source / peer.config, target / "config.yaml")
        target.rename(folder)


def _module(go: str, peer: Peer, temporary: Path) -> Path:
    """Download a peer's module, if it is not there yet, and return its folder."""
    answer = steps.run(go, "-C", temporary, "mod", "download", "-json", f"{peer.module}@{peer.version}")
    module = json.loads(answer)
    if module["Sum"] != peer.sum:
        raise UnavailableError(
            f"expected {peer.module} {peer.version} with the hash {peer.sum}, got {module['Sum']}: where the "
            "version in benchmarks/peers/controllers.py was changed on purpose, change its sum there, too"
        )
    return Path(module["Dir"])


def install(plane: ControlPlane) -> None:
    """Install the resources of all peers, and for each a ServiceAccount that may do everything."""
    for peer in PEERS:
        plane.kubectl("apply", "--server-side", "-f", built(peer) / "crds")
        plane.kubectl("create", "serviceaccount", "-n", _ACCOUNTS, peer.name)
        subject = f"--serviceaccount={_ACCOUNTS}:{peer.name}"
        plane.kubectl("create", "clusterrolebinding", peer.name, "--clusterrole=cluster-admin", subject)
        if peer.secret:
            namespace, name = peer.secret
            plane.kubectl("create", "namespace", namespace)
            plane.kubectl("create", "secret", "generic", "-n", namespace, name)
    plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")


@contextlib.contextmanager
def running(plane: ControlPlane, peer: Peer, kubeconfig: Path) -> Iterator[None]:
    """Run a peer's controller for the time of a `with` block, ready from its start on.

    It is a process of the control plane's record, by its name.

    Raises:
        ClusterError: it stopped or did not become ready. The end of its log is printed then, as with any
            other error within the block.
    """
    folder = plane.directory / peer.name
    health, webhooks = ports.free_ports(2)
    command = [built(peer) / "manager", f"--kubeconfig={kubeconfig}"]
    command += [flag.format(health=health, webhooks=webhooks, qps=_REQUESTS_A_SECOND) for flag in peer.flags]
    _certificate(plane, folder / "certificates" / "serving-certs")
    if peer.config:
        path = folder / "config.yaml"
        published = yaml.safe_load((built(peer) / "config.yaml").read_text())
        path.write_text(yaml.safe_dump(configured(published, peer, health, webhooks)))
        command.append(f"--config={path}")
    # Some look for certificates in the folder for temporary files, wherever that is.
    environment = {"TMPDIR": str(_CERTIFICATES.parent)}
    plane.record.spawn(peer.name, *_with_certificates(folder / "certificates"), *command, env=environment)
    try:
        plane.record.check(peer.name)
        steps.until(f"{peer.name} to be ready", lambda: _is_ready(plane, peer, health), patience.SECONDS)
        yield
        plane.record.check(peer.name)
    except BaseException:
        # The folder goes with the control plane.
        log = (plane.directory / f"{peer.name}.log").read_text(errors="replace")
        print(f"The end of the log of {peer.name}:\n{log[-3000:]}", file=sys.stderr, flush=True)
        raise
    finally:
        plane.record.stop(peer.name)


def configured(published: Mapping[str, Any], peer: Peer, health: int, webhooks: int) -> dict[str, Any]:
    """Return a published configuration, changed for a process outside of a cluster."""
    changes: dict[str, Any] = {
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhooks},
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"qps": _REQUESTS_A_SECOND, "burst": _REQUESTS_A_SECOND},
        **(peer.changes or {}),
    }
    return {**published, **{name: {**published.get(name, {}), **change} for name, change in changes.items()}}


def _certificate(plane: ControlPlane, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    authority = plane.authority
    authority.issue("webhooks", hosts=["127.0.0.1"])
    shutil.copyfile(authority.certificate("webhooks"), folder / "tls.crt")
    shutil.copyfile(authority.key("webhooks"), folder / "tls.key")


def _with_certificates(folder: Path) -> list[str | Path]:
    """Return the start of a command that sees this folder where controllers look for certificates.

    As a mounted Secret would be, and for this one process: two benchmarks run beside each other.
    """
    if shutil.which("unshare") is None:
        raise UnavailableError("running peers needs unshare (package util-linux) on PATH, and there is none")
    _CERTIFICATES.mkdir(exist_ok=True)
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--mount", *user, "sh", "-ec", f'mount --bind "$0" {_CERTIFICATES}; exec "$@"', folder]


def _is_ready(plane: ControlPlane, peer: Peer, port: int) -> bool:
    plane.record.check(peer.name)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/readyz", timeout=patience.REQUEST) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
