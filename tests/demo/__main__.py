"""``make demo``: a digits detector is trained, pruned, retrained and exported on a real Kubernetes.

Starts a cluster (or uses the one that KUBECONFIG names), installs the operator from manifests/base as a pod,
puts the sample data on the volume, applies the four resources of manifests/samples/digits at once, watches.
Every step looks first at what is there already: after Ctrl-C, or for a second run, start it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiException

from cluster import abilities, existing, paths, steps
from cluster.__main__ import attach, up
from cluster.control_plane import Cluster
from cluster.errors import ClusterError, UnavailableError
from cluster.existing import ExistingCluster
from cluster.images import Images, load_images
from cluster.node import Node
from demo import install, loader, table

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "manifests" / "samples" / "digits"
NAME = "demo"
NAMESPACE = "digits"
CLAIM = "tlt-data"
EVERY_S = 2.0


def main() -> int:
    """Runs the demo; exit code 0 when all four resources succeeded."""
    started = time.monotonic()
    try:
        cluster, images = find_cluster()
        install.operator(cluster, images)
        volume = install.namespace(cluster, NAMESPACE, CLAIM)
        loader.load(cluster, images.runner, NAMESPACE, CLAIM, paths.CACHE / "demo" / "digits")
        apply_samples(cluster)
        resources = watch(cluster)
    except UnavailableError as error:
        print(f"\nNo Kubernetes can be started here: {error}")
        print("The same manifests run without one, on this machine:\n")
        print("  .venv/bin/tlt sample-data digits .tlt/volumes/tlt-data/digits")
        print("  .venv/bin/tlt run manifests/samples/digits\n")
        return 2
    except (ClusterError, ApiException) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped watching; the cluster goes on. `make demo` picks it up, `make demo-down` ends it.")
        return 130
    return conclude(cluster, resources, volume, time.monotonic() - started)


def find_cluster() -> tuple[Node | ExistingCluster, Images]:
    """The cluster to use, with both images in it."""
    if existing.is_named():
        cluster = existing.existing_cluster()
        return cluster, cluster.images
    if "KUBECONFIG" in os.environ:
        steps.say(
            "KUBECONFIG is set, but not TLT_OPERATOR_IMAGE and TLT_RUNNER_IMAGE: using a cluster of our own"
        )
    abilities.require_node()
    _, machine = attach(NAME)
    if machine is None or not machine.is_healthy():
        steps.say("starting Kubernetes on this machine (the first time it is compiled: several minutes)")
        up(NAME, "node", no_images=True)
        _, machine = attach(NAME)
    if machine is None:
        raise ClusterError("the cluster was started, but its node is not there; try `make demo-down` first")
    return machine, load_images(machine)


def apply_samples(cluster: Cluster) -> None:
    """The four resources, all at once; those of a finished earlier run are replaced."""
    finished = table.fetch(cluster, NAMESPACE)
    if finished and all(table.is_finished(item) for item in finished):
        steps.say("removing the finished resources of an earlier run")
        cluster.kubectl("delete", "trainingjobs,prunejobs,exportjobs", "--all", "-n", NAMESPACE)
    steps.say("applying train, prune, retrain and export at once")
    for file in sorted(SAMPLES.glob("*.yaml")):
        documents = [item for item in yaml.safe_load_all(file.read_text()) if item]
        for item in documents:
            if item["apiVersion"].startswith("tlt.dev/"):
                cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(item))


def watch(cluster: Cluster) -> list[dict[str, Any]]:
    """Shows the resources until all are finished."""
    with table.Live() as live:
        while True:
            resources = table.fetch(cluster, NAMESPACE)
            live.show(resources)
            if resources and all(table.is_finished(item) for item in resources):
                return resources
            time.sleep(EVERY_S)


def conclude(cluster: Cluster, resources: list[dict[str, Any]], volume: Path | None, seconds: float) -> int:
    """Prints the tables as kubectl does, the mAPs and where everything is."""
    print()
    for kinds in ("trainingjobs", "prunejobs", "exportjobs"):
        print(cluster.kubectl("get", kinds, "-n", NAMESPACE))
    for line in table.summary(resources):
        print(line)
    if volume is not None:
        print(f"\nThe volume pvc://{CLAIM} of this cluster is the folder {volume}")
    failed = [item for item in resources if item["status"]["phase"] != "Succeeded"]
    print(f"\n{len(resources) - len(failed)} of {len(resources)} succeeded, in {seconds:.0f} s.")
    print(f"Look around: export KUBECONFIG={cluster.kubeconfig}; kubectl get tlt -n {NAMESPACE}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: {error}")
