"""Puts the sample data on a volume: through a pod that unpacks what it is sent, as any cluster allows."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import patience
from cluster import binaries, steps
from cluster.control_plane import Cluster
from cluster.errors import ClusterError
from tlt_runner.data import sample_digits
from tlt_runner.data.sample_digits import Scenes

_POD = "load-sample-data"
# All of stdin is read before anything can fail: kubectl waits for ever for a reader that is gone.
_UNPACK = """import io, shutil, sys, tarfile
archive = io.BytesIO(sys.stdin.buffer.read())
shutil.rmtree("/data/digits", ignore_errors=True)
tarfile.open(fileobj=archive).extractall("/data")"""


def load(
    cluster: Cluster, image: str, namespace: str, claim: str, folder: Path, scenes: Scenes | None = None
) -> None:
    """Generate digits scenes into ``folder``; copy them to the claim's ``digits/``, unless they are there."""
    scenes = scenes or Scenes()
    with pod(cluster, image, namespace, claim):
        look = f"import pathlib, sys; sys.exit(not pathlib.Path('/data/{_marker(scenes)}').exists())"
        if execute(cluster, namespace, look, None).returncode == 0:
            steps.say("the sample data are on the volume already")
            return
        steps.say(f"generating {scenes.images} scenes of handwritten digits")
        shutil.rmtree(folder, ignore_errors=True)
        sample_digits.generate(folder, **asdict(scenes))
        steps.say("copying them to the volume")
        done = execute(cluster, namespace, _UNPACK, _archive(folder, _marker(scenes)))
        if done.returncode != 0:
            raise ClusterError(f"copying the sample data failed: {done.stderr.decode(errors='replace')}")


def _marker(scenes: Scenes) -> str:
    """Last in the archive: where it is, these scenes are whole."""
    return f"digits/.complete-{scenes.images}-{scenes.width}x{scenes.height}-{scenes.seed}"


def _archive(folder: Path, marker: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname="digits")
        archive.addfile(tarfile.TarInfo(marker))
    return buffer.getvalue()


def execute(
    cluster: Cluster, namespace: str, code: str, data: bytes | None
) -> subprocess.CompletedProcess[bytes]:
    """Run Python code in the loader's pod, with ``data`` as its standard input."""
    command = ("exec", "-i", "-n", namespace, _POD, "--", "python", "-c", code)
    program = [str(binaries.binary("kubectl")), "--kubeconfig", str(cluster.kubeconfig), *command]
    try:
        return subprocess.run(
            program, input=data or b"", capture_output=True, check=False, timeout=patience.SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{_POD} in {namespace} did not answer within {patience.SECONDS} s") from None


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
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{_POD}", "-n", namespace, patience.KUBECTL)
        yield
    finally:
        cluster.kubectl("delete", "pod", _POD, "-n", namespace, "--wait=false")
