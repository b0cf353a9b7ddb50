"""The operator beside others: N objects of each kind, from creation to the end of the last, on one cluster.

``python benchmarks/operator_peers.py N`` starts a control plane with simulated nodes (kwok) and creates

    N batch Jobs                  nothing but Kubernetes
    N TrainingJobs                this operator
    N JobSets                     JobSet
    N PyTorchJobs                 Kubeflow training-operator, one worker each
    N TrainJobs                   Kubeflow Trainer with JobSet, a runtime of one step
    N batch Jobs again            how much the machine has changed meanwhile

each with the same pod and with only its own controllers running. A turn ends when all N are done; its
objects are deleted before the next one begins. One object goes first, outside of the measurement: what
happens once in the life of a process is not measured.

Prints one line of JSON. ``ratio`` is to the mean of both turns of batch Jobs. CPU and memory are those of
processes; requests are those that the API server counted from all clients, less the benchmark's own and less
what keeps simulated nodes alive. The first run builds the others from their Go modules (versions:
``peers/controllers.py``), which takes minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import operator_load as load
import yaml
from peers import controllers
from peers.controllers import JOBSET, TRAINER, TRAINING_OPERATOR, Peer

import patience
from cluster.kwok import STAGES, kwok
from operator_ring.access import kubeconfig_of

Body = dict[str, Any]

_READS = ("GET", "LIST")
_WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION")
_HEARTBEATS = ("leases", "nodes", "nodes/status")
_RUNTIME = "one-step"
_TRAINER = "trainer.kubeflow.org/v1alpha1"


@dataclass(frozen=True)
class Kind:
    """A kind of object: how the n-th of a namespace looks and when it is done."""

    name: str
    path: str
    """Path of its resource in the API, with ``{}`` for the namespace."""
    body: Callable[[str, int], Body]
    done: Callable[[Body], bool]
    peers: tuple[Peer, ...] = ()
    """Controllers that it needs, none for those of Kubernetes."""
    ours: bool = False
    common: tuple[tuple[str, Callable[[str], Body]], ...] = ()
    """Paths and bodies of objects that a namespace needs once."""


def has_condition(name: str) -> Callable[[Body], bool]:
    """Return a check that a condition is true."""

    def check(body: Body) -> bool:
        conditions = body.get("status", {}).get("conditions") or ()
        return any(item["type"] == name and item["status"] == "True" for item in conditions)

    return check


def batch_job(namespace: str, number: int) -> Body:
    """Return the n-th batch Job."""
    return load.plain(namespace, number)


def _job_template(namespace: str, number: int) -> Body:
    """Return the template of a Job of JobSet, with the same pod."""
    # JobSet's webhook would set the completion mode.
    return {"spec": {**batch_job(namespace, number)["spec"], "completionMode": "Indexed"}}


def _jobset_spec(**replicated_job: Any) -> Body:
    """Return the spec of a JobSet with one Job, with the defaults that JobSet's webhook would set."""
    return {
        "successPolicy": {"operator": "All"},
        "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "replicatedJobs": [{"replicas": 1, **replicated_job}],
    }


def jobset(namespace: str, number: int) -> Body:
    """Return the n-th JobSet."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": f"j{number}", "namespace": namespace},
        "spec": _jobset_spec(name="train", template=_job_template(namespace, number)),
    }


def pytorchjob(namespace: str, number: int) -> Body:
    """Return the n-th PyTorchJob."""
    template = batch_job(namespace, number)["spec"]["template"]
    # The name that training-operator demands.
    template["spec"]["containers"][0]["name"] = "pytorch"
    worker = {"replicas": 1, "restartPolicy": "Never", "template": template}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": f"j{number}", "namespace": namespace},
        "spec": {"pytorchReplicaSpecs": {"Worker": worker}},
    }


def trainingruntime(namespace: str) -> Body:
    """Return the runtime of all TrainJobs of a namespace: their pod."""
    template = _job_template(namespace, 0)
    # The name that Trainer demands, and the label by which it knows the step that trains.
    template["spec"]["template"]["spec"]["containers"][0]["name"] = "node"
    template["metadata"] = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    return {
        "apiVersion": _TRAINER,
        "kind": "TrainingRuntime",
        "metadata": {"name": _RUNTIME, "namespace": namespace},
        "spec": {
            "mlPolicy": {"numNodes": 1},
            "template": {"spec": _jobset_spec(name="node", template=template)},
        },
    }


def trainjob(namespace: str, number: int) -> Body:
    """Return the n-th TrainJob."""
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": _RUNTIME}
    return {
        "apiVersion": _TRAINER,
        "kind": "TrainJob",
        "metadata": {"name": f"j{number}", "namespace": namespace},
        "spec": {"runtimeRef": reference},
    }


BATCH_JOB = Kind("Job", "/apis/batch/v1/namespaces/{}/jobs", batch_job, has_condition("Complete"))
KINDS = (
    Kind(
        "TrainingJob",
        "/apis/tlt.dev/v1alpha1/namespaces/{}/trainingjobs",
        load.training,
        load.has_phase("Succeeded"),
        ours=True,
    ),
    Kind(
        "JobSet",
        "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{}/jobsets",
        jobset,
        has_condition("Completed"),
        peers=(JOBSET,),
    ),
    Kind(
        "PyTorchJob",
        "/apis/kubeflow.org/v1/namespaces/{}/pytorchjobs",
        pytorchjob,
        has_condition("Succeeded"),
        peers=(TRAINING_OPERATOR,),
    ),
    Kind(
        "TrainJob",
        f"/apis/{_TRAINER}/namespaces/{{}}/trainjobs",
        trainjob,
        has_condition("Complete"),
        peers=(TRAINER, JOBSET),
        common=((f"/apis/{_TRAINER}/namespaces/{{}}/trainingruntimes", trainingruntime),),
    ),
)
TURNS = (BATCH_JOB, *KINDS, BATCH_JOB)


def stages(folder: Path) -> Path:
    """Write kwok's stages for pods of Jobs and of PyTorchJobs, which have no Job in between."""
    documents = [stage for stage in yaml.safe_load_all(STAGES.read_text()) if stage]
    complete = next(stage for stage in documents if stage["metadata"]["name"] == "pod-complete")
    for expression in complete["spec"]["selector"]["matchExpressions"]:
        if expression["key"] == ".metadata.ownerReferences.[].kind":
            expression["values"].append("PyTorchJob")
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def requests_a_job(counted: Counter[str], sent: Counter[str], count: int) -> dict[str, float]:
    """Return reads and writes a job, of all clients but the benchmark.

    Args:
        counted: requests that the API server answered, by verb and resource ("GET jobs").
        sent: requests of the benchmark, by method.
        count: number of jobs.
    """
    result = {}
    for name, verbs in (("reads", _READS), ("writes", _WRITES)):
        total = -sum(sent[verb] for verb in verbs)
        for request, number in counted.items():
            verb, _, resource = request.partition(" ")
            # Without a resource: health checks and metrics.
            if verb in verbs and resource and resource not in _HEARTBEATS:
                total += number
        result[name] = round(total / count, 2)
    return result


def with_ratios(rows: list[Body]) -> list[Body]:
    """Return the turns with the ratio of their seconds to the mean of those of batch Jobs."""
    plain = statistics.mean(row["seconds"] for row in rows if row["kind"] == BATCH_JOB.name)
    return [{"kind": row["kind"], "ratio": round(row["seconds"] / plain, 2), **row} for row in rows]


async def first_done(server: load.Server, kind: Kind, path: str, name: str) -> None:
    """Wait until the object that goes first is done, not as long as for all: nothing else is to do."""
    try:
        async with asyncio.timeout(patience.SECONDS):
            await server.until_all(path, [name], kind.done)
    except TimeoutError:
        status = (await server.request("GET", f"{path}/{name}")).get("status")
        raise TimeoutError(
            f"expected {kind.name} {name} to be done within {patience.SECONDS} s, got the status {status}; "
            "the ends of its controllers' logs are above"
        ) from None


async def turn(bench: load.Bench, kind: Kind, namespace: str, count: int) -> Body:
    """Create N objects of a kind, wait until all are done, and delete them."""
    server, plane = bench.server, bench.plane
    path = kind.path.format(namespace)
    await bench.namespace(namespace)
    for common_path, body in kind.common:
        await server.request("POST", common_path.format(namespace), body(namespace))
    bodies = [kind.body(namespace, number) for number in range(count + 1)]
    names = [body["metadata"]["name"] for body in bodies]
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(bench.operator()) if kind.ours else None
        if operator:
            await bench.started(operator)
        for peer in kind.peers:
            account = kubeconfig_of(plane, peer.name, plane.directory / f"{peer.name}.kubeconfig")
            stack.enter_context(controllers.running(plane, peer, account))
        await server.create(path, bodies[count:])
        await first_done(server, kind, path, names[count])
        await asyncio.sleep(2)
        sent = server.sent.copy()
        running = [peer.name for peer in kind.peers]
        async with bench.cost(namespace, operator, running) as cost:
            await server.create(path, bodies[:count])
            await server.until_all(path, names[:count], kind.done)
        sent = server.sent - sent
        pids = {name: plane.record.processes()[name] for name in running}
        if operator:
            pids["operator"] = operator.pid
        memory = {name: round(load.resident_mb(pid), 1) for name, pid in pids.items()}
        # A runtime of Trainer is deleted by its controller, so that goes on meanwhile.
        plane.kubectl("delete", "namespace", namespace, "--timeout=900s")
    assert cost.cpu is not None and cost.requests is not None
    milliseconds = {part: round(1000 * seconds / count, 1) for part, seconds in cost.cpu.items()}
    row = {
        "kind": kind.name,
        "versions": {peer.name: peer.version for peer in kind.peers},
        "seconds": round(cost.seconds, 1),
        "api_server_cpu_ms_a_job": milliseconds["kube-apiserver"],
        "controller_cpu_ms_a_job": {name: milliseconds[name] for name in pids},
        "controller_resident_mb": memory,
        "requests_a_job": requests_a_job(cost.requests, sent, count),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


async def compare(count: int) -> Body:
    """Run all turns on one control plane."""
    for peer in controllers.PEERS:
        controllers.built(peer)
    begin = time.monotonic()
    async with load.bench(profiles=None) as bench:
        controllers.install(bench.plane)
        with kwok(bench.plane, stages(bench.folder)) as simulator:
            simulator.add_nodes(2 * count // load.PODS_PER_NODE + 2)
            rows = []
            for number, kind in enumerate(TURNS):
                namespace = f"turn-{number}-{kind.name.lower()}"
                rows.append(await turn(bench, kind, namespace, count))
    return {
        "benchmark": "operator_peers",
        "objects": count,
        "seconds": round(time.monotonic() - begin),
        "turns": with_ratios(rows),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", nargs="?", type=int, default=1000, metavar="N")
    print(json.dumps(asyncio.run(compare(parser.parse_args().count))))


if __name__ == "__main__":
    main()
