"""Puts the sample data on a volume: through a pod that unpacks what it is sent, as any cluster allows."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries, steps
from cluster.control_plane import Cluster
from cluster.errors import ClusterError
from tlt_runner.data import digits


@dataclass(frozen=True)
class Scenes:
    """What to generate: ``images`` square scenes of ``side`` pixels."""

    images: int = 400
    side: int = 192
    seed: int = 7


_POD = "load-sample-data"
_MARKER = "digits/.complete"
# All of stdin is read before anything can fail: kubectl waits for ever for a reader that is gone.
_UNPACK = """import io, sys, tarfile
archive = io.BytesIO(sys.stdin.buffer.read())
tarfile.open(fileobj=archive).extractall("/data")"""
_LOOK = f"import pathlib, sys; sys.exit(not pathlib.Path('/data/{_MARKER}').exists())"


def load(
    cluster: Cluster, image: str, namespace: str, claim: str, folder: Path, scenes: Scenes | None = None
) -> None:
    """Generate digits scenes into ``folder``; copy them to the claim's ``digits/``, unless they are there."""
    scenes = scenes or Scenes()
    with pod(cluster, image, namespace, claim):
        if execute(cluster, namespace, _LOOK, None).returncode == 0:
            steps.say("the sample data are on the volume already")
            return
        steps.say(f"generating {scenes.images} scenes of handwritten digits")
        digits.generate(
            folder,
            images=scenes.images,
            width=scenes.side,
            height=scenes.side,
            seed=scenes.seed,
            classes=None,
        )
        steps.say("copying them to the volume")
        done = execute(cluster, namespace, _UNPACK, _archive(folder))
        if done.returncode != 0:
            raise ClusterError(f"copying the sample data failed: {done.stderr.decode(errors='replace')}")


def _archive(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname="digits")
        archive.addfile(tarfile.TarInfo(_MARKER))
    return buffer.getvalue()


def execute(
    cluster: Cluster, namespace: str, code: str, data: bytes | None
) -> subprocess.CompletedProcess[bytes]:
    command = ("exec", "-i", "-n", namespace, _POD, "--", "python", "-c", code)
    program = [str(binaries.binary("kubectl")), "--kubeconfig", str(cluster.kubeconfig), *command]
    return subprocess.run(program, input=data or b"", capture_output=True, check=False, timeout=120)


@contextlib.contextmanager
def pod(cluster: Cluster, image: str, namespace: str, claim: str) -> Iterator[None]:
    """A pod of the runner's image with the claim at /data, for the time of a with block."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "load",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import time; time.sleep(3600)"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": security,
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
    }
    metadata = {"name": _POD, "namespace": namespace}
    cluster.kubectl("delete", "pod", _POD, "-n", namespace, "--ignore-not-found")
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    try:
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{_POD}", "-n", namespace, "--timeout=180s")
        yield
    finally:
        cluster.kubectl("delete", "pod", _POD, "-n", namespace, "--wait=false")
