"""Rate at which the operator turns resources into Jobs, against creating the same Jobs directly.

``python benchmarks/operator_throughput.py [N]`` starts a control plane (no node), creates N Jobs with the
operator's own client, eight at a time; then N TrainingJobs for the operator, and waits until each has its Job
noted in ``status.jobUid``. One JSON line: both rates, their ratio, latency from creation to Job, memory, CPU
and writes per resource, and the time a restarted operator takes until it has looked at everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cluster.control_plane import ControlPlane, control_plane  # noqa: E402
from operator_ring.access import connection_of  # noqa: E402
from operator_ring.live import Api, OperatorProcess, until  # noqa: E402
from operator_ring.manifests import resource  # noqa: E402
from tlt_api.resources import parse  # noqa: E402
from tlt_api.runspec import for_attempt  # noqa: E402
from tlt_api.status import Inputs  # noqa: E402
from tlt_operator.cluster.http import HttpClient  # noqa: E402
from tlt_operator.objects import job as job_object  # noqa: E402
from tlt_operator.settings import Settings  # noqa: E402

_CONCURRENCY = 8


def manifest(namespace: str, number: int) -> dict[str, Any]:
    """The n-th TrainingJob."""
    body = resource(name=f"j{number}", resources={"gpus": 0})
    body["metadata"]["namespace"] = namespace
    return body


async def create_jobs(kubeconfig: Path, namespace: str, count: int) -> float:
    """Create the Jobs directly, and return the seconds it took."""
    limit = asyncio.Semaphore(_CONCURRENCY)
    async with HttpClient(lambda: connection_of(kubeconfig)) as client:

        async def create(number: int) -> None:
            body = manifest(namespace, number)
            body["metadata"]["uid"] = "0"
            parsed = parse(body)
            job = job_object.build(for_attempt(parsed, parsed.spec, Inputs(), 1), Settings())
            del job["metadata"]["ownerReferences"]
            async with limit:
                await client.create_job(job)

        begin = time.monotonic()
        await asyncio.gather(*(create(number) for number in range(count)))
        return time.monotonic() - begin


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metric(operator: OperatorProcess, name: str) -> float:
    """The sum of a metric's samples."""
    _, text = operator.get(operator.metrics_address, "/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def measure(plane: ControlPlane, api: Api, log: Path, count: int) -> dict[str, Any]:
    """All figures."""
    for name in ("direct", "operated"):
        api.create({"kind": "Namespace", "metadata": {"name": name}})
        api.create({"kind": "ServiceAccount", "metadata": {"name": "tlt-runner", "namespace": name}})
    direct = asyncio.run(create_jobs(plane.kubeconfig, "direct", count))
    with OperatorProcess(plane.kubeconfig, log, TLT_NAMESPACES="operated") as operator:
        until("the operator", lambda: operator.get(operator.health_address, "/healthz")[0] == 200)
        time.sleep(3)
        idle, started = resident_mb(operator.pid), cpu_seconds(operator.pid)

        def noted() -> list[dict[str, Any]] | None:
            time.sleep(0.5)
            items = api.list("TrainingJob", "operated")
            return items if all(item.get("status", {}).get("jobUid") for item in items) else None

        begin = time.monotonic()
        for number in range(count):
            api.create(manifest("operated", number))
        submitted = time.monotonic() - begin
        items = until("all Jobs", noted, limit_s=600)
        operated = time.monotonic() - begin
        jobs = api.jobs("operated")
        assert len(jobs) == len(items) == count
        writes = metric(operator, 'tlt_operator_writes_total{outcome="ok"')
        looks = metric(operator, 'tlt_operator_reconciles_total{outcome="ok"')
        look = metric(operator, "tlt_operator_reconcile_seconds_sum")
        busy, cpu = resident_mb(operator.pid), cpu_seconds(operator.pid) - started
        operator.kill()
        operator.start()
        begin = time.monotonic()
        until(
            "a look at everything",
            lambda: metric(operator, 'tlt_operator_reconciles_total{outcome="ok"') >= count,
            limit_s=600,
        )
        restart = time.monotonic() - begin
    lags = sorted(_moment(jobs[f"{i['metadata']['name']}-train-1"]) - _moment(i) for i in items)
    return {
        "benchmark": "operator_throughput",
        "resources": count,
        "direct_jobs_per_second": round(count / direct, 1),
        "operator_jobs_per_second": round(count / operated, 1),
        "ratio": round(direct / operated, 3),
        "submit_seconds": round(submitted, 1),
        "create_to_job_seconds_p50": statistics.median(lags),
        "create_to_job_seconds_p99": lags[int(0.99 * (len(lags) - 1))],
        "writes_per_resource": round(writes / count, 2),
        "looks_per_resource": round(looks / count, 1),
        "milliseconds_per_look": round(1000 * look / looks, 1),
        "cpu_milliseconds_per_resource": round(1000 * cpu / count, 1),
        "resident_mb_idle": round(idle, 1),
        "resident_mb": round(busy, 1),
        "restart_to_all_seen_seconds": round(restart, 1),
    }


def _moment(body: dict[str, Any]) -> float:
    return datetime.fromisoformat(body["metadata"]["creationTimestamp"]).timestamp()


def main() -> None:
    """Run it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with control_plane() as plane, TemporaryDirectory() as folder:
        plane.kubectl("apply", "-k", ROOT / "crds")
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        api = Api(plane.kubeconfig)
        print(json.dumps(measure(plane, api, Path(folder) / "log", count)))
        api.close()


if __name__ == "__main__":
    main()
