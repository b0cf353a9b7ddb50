"""Load of the operator on a cluster: time, requests and CPU of N TrainingJobs against N plain batch Jobs.

``python benchmarks/operator_load.py [jobs] [N]`` starts a control plane with simulated nodes (kwok), creates
N batch Jobs and waits until each is Complete; then, on the same cluster, N TrainingJobs with the same pods,
until each has Succeeded. Other loads:

    steady N    N TrainingJobs at 20 a second: time from creation to Job
    growth N    N TrainingJobs that run, then end: cost of one more at each size, memory, cold starts
    blocked N   N TrainingJobs over quota, at rest
    running N   N TrainingJobs that report progress, at the pace that the operator asks for
    all N       all of them: N jobs, N / 2 steady, 5 N in growth (1,000 of them report progress), N blocked

Each prints one line of JSON, then a table: what is wanted, what was measured, and whether it holds. The exit
code is 1 if a figure does not hold. CPU is that of processes; requests are those that the API server counted,
less those of the benchmark, and those that the operator counted. ``--profile FOLDER`` adds profiles of the
API server (pprof).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cluster.control_plane import ControlPlane, control_plane  # noqa: E402
from cluster.kwok import STAGES, kwok  # noqa: E402
from operator_ring.access import connection_of, kubeconfig_of  # noqa: E402
from operator_ring.live import OperatorProcess, until  # noqa: E402
from operator_ring.manifests import resource  # noqa: E402
from tlt_api.resources import parse  # noqa: E402
from tlt_api.runspec import PROGRESS_SECONDS, PROGRESS_VARIABLE, for_attempt  # noqa: E402
from tlt_api.status import Inputs  # noqa: E402
from tlt_operator.objects import job as job_object  # noqa: E402
from tlt_operator.settings import Settings  # noqa: E402

PODS_PER_NODE = 200
_CREATORS = 8
"""Requests at once with which the benchmark creates its objects."""
_LIMIT_S = 1800
_JOBS = "/apis/batch/v1/namespaces/{}/jobs"
_TRAININGS = "/apis/tlt.dev/v1alpha1/namespaces/{}/trainingjobs"
_LOADS = ("jobs", "steady", "growth", "blocked", "running")
_SERVERS = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "kwok")

Body = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """Figure with an upper limit.

    Attributes:
        name: Words for a person.
        wanted: Largest value that is good enough.
        got: Measured value.
        unit: Unit of both; empty for a number.
        below: True if the value has to be less than the limit.
    """

    name: str
    wanted: float
    got: float
    unit: str = ""
    below: bool = False

    @property
    def holds(self) -> bool:
        """True if the value is good enough."""
        return self.got < self.wanted if self.below else self.got <= self.wanted

    @property
    def limit(self) -> str:
        """Limit as text."""
        return f"{'<' if self.below else '<='} {self.wanted:g} {self.unit}".strip()

    def to_json(self) -> Body:
        """Return the figure as JSON data."""
        return {"figure": self.name, "wanted": self.limit, "got": self.got, "holds": self.holds}


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table in Markdown."""
    rows = ["| figure | wanted | got | holds |", "|---|---|---|---|"]
    rows += [
        f"| {item.name} | {item.limit} | {item.got:g} {item.unit}".rstrip()
        + f" | {'yes' if item.holds else '**no**'} |"
        for item in figures
    ]
    return "\n".join(rows)


def missed(figures: Sequence[Figure]) -> str:
    """Return one sentence about the figures that do not hold; empty if all do."""
    missing = [item for item in figures if not item.holds]
    if not missing:
        return ""
    each = "; ".join(f"{item.name}: wanted {item.limit}, got {item.got:g}" for item in missing)
    return f"{len(missing)} of {len(figures)} figures do not hold: {each}"


class Server:
    """Requests to the API server, as its administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        connection = connection_of(plane.kubeconfig)
        self._address = connection.server
        self._ssl: ssl.SSLContext = connection.as_ssl_context()
        self.sent: Counter[str] = Counter()
        """Requests for objects so far, by method."""

    async def __aenter__(self) -> Server:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def text(self, method: str, path: str, body: Body | None = None, **headers: str) -> str:
        """Send a request and return the answer's text; the API server's refusal is an error."""
        if path.startswith("/api"):
            self.sent[method] += 1
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json", **headers}
        async with self._session.request(
            method, self._address + path, data=data, headers=headers, ssl=self._ssl
        ) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]}")
            return text

    async def request(self, method: str, path: str, body: Body | None = None) -> Body:
        """Send a request and return the answer's JSON."""
        answer: Body = json.loads(await self.text(method, path, body))
        return answer

    async def create(self, path: str, bodies: list[Body], per_second: float | None = None) -> None:
        """Create objects, eight at a time, or a number each second."""
        limit = asyncio.Semaphore(_CREATORS)
        begin = time.monotonic()

        async def create(number: int, body: Body) -> None:
            if per_second:
                await asyncio.sleep(max(0.0, begin + number / per_second - time.monotonic()))
            async with limit:
                await self.request("POST", path, body)

        await asyncio.gather(*(create(number, body) for number, body in enumerate(bodies)))

    async def list(self, path: str) -> list[Body]:
        """List objects, page by page."""
        items: list[Body] = []
        token = ""
        while True:
            page = await self.request("GET", f"{path}?limit=500&continue={token}")
            items += page["items"] or []
            token = page["metadata"].get("continue") or ""
            if not token:
                return items

    async def until_all(self, path: str, names: list[str], done: Callable[[Body], bool]) -> None:
        """Wait until each of the named objects is done.

        With few requests, one object at a time and the last one first: mostly, the rest is done then, too.
        """
        end = time.monotonic() + _LIMIT_S
        pending = names[-1:]
        while pending:
            while not done(await self.request("GET", f"{path}/{pending[-1]}")):
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"{pending[-1]} is not done after {_LIMIT_S} s, nor {len(pending)} others"
                    )
                await asyncio.sleep(0.2)
            wanted = set(names)
            pending = [
                item["metadata"]["name"]
                for item in await self.list(path)
                if item["metadata"]["name"] in wanted and not done(item)
            ]

    async def requests(self) -> Counter[str]:
        """Return the requests that the API server has answered, by verb and resource."""
        counts: Counter[str] = Counter()
        for line in (await self.text("GET", "/metrics")).splitlines():
            if line.startswith("apiserver_request_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                name = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                counts[f"{labels['verb']} {name}"] += round(float(line.rsplit(" ", 1)[1]))
        return counts


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@dataclass
class Cost:
    """Cost of a part of the benchmark: seconds, CPU seconds by process, requests by verb and resource."""

    seconds: float = 0.0
    cpu: dict[str, float] | None = None
    requests: Counter[str] | None = None


@dataclass
class Bench:
    """A control plane with the product installed, and an operator that can be started."""

    plane: ControlPlane
    server: Server
    kubeconfig: Path
    folder: Path
    profiles: Path | None

    @contextlib.asynccontextmanager
    async def cost(
        self, name: str, operator: OperatorProcess | None = None, controllers: Sequence[str] = ()
    ) -> AsyncIterator[Cost]:
        """Measure what happens within, with the named processes beside the control plane's own."""
        cost = Cost()
        parts = (*_SERVERS, *controllers)
        pids = {part: pid for part, pid in self.plane.record.processes().items() if part in parts}
        if operator:
            pids["operator"] = operator.pid
        print(f"{name} begins", file=sys.stderr, flush=True)
        requests = await self.server.requests()
        cpu = {part: cpu_seconds(pid) for part, pid in pids.items()}
        profile = asyncio.create_task(self._profile(name)) if self.profiles else None
        begin = time.monotonic()
        yield cost
        cost.seconds = time.monotonic() - begin
        print(f"{name}: {cost.seconds:.1f} s", file=sys.stderr, flush=True)
        cost.cpu = {part: cpu_seconds(pid) - cpu[part] for part, pid in pids.items()}
        cost.requests = await self.server.requests() - requests
        if profile:
            await profile

    async def _profile(self, name: str, seconds: int = 15) -> None:
        assert self.profiles
        path = f"/debug/pprof/profile?seconds={seconds}"
        async with self.server._session.get(self.server._address + path, ssl=self.server._ssl) as answer:
            (self.profiles / f"{name}.pprof").write_bytes(await answer.read())

    def operator(self, **settings: str) -> OperatorProcess:
        """Return the operator's process with the rights of its ServiceAccount, not started yet."""
        return OperatorProcess(
            self.kubeconfig, self.folder / "operator.log", **{"TLT_SWEEP_SECONDS": "300", **settings}
        )

    async def started(self, operator: OperatorProcess) -> None:
        """Wait until an operator is ready and at rest."""
        until("the operator", lambda: operator.get(operator.health_address, "/readyz")[0] == 200, limit_s=120)
        await asyncio.sleep(3)

    async def namespace(self, name: str) -> None:
        """Create a namespace with the runner's ServiceAccount."""
        await self.server.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        path = f"/api/v1/namespaces/{name}/serviceaccounts"
        await self.server.request("POST", path, {"metadata": {"name": "tlt-runner"}})


@contextlib.asynccontextmanager
async def bench(profiles: Path | None) -> AsyncIterator[Bench]:
    """Start a control plane and install the product on it, without the operator's pod."""
    with control_plane() as plane, TemporaryDirectory() as folder:
        base = ROOT / "manifests" / "base"
        plane.kubectl("apply", "-k", ROOT / "crds")
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        plane.kubectl("create", "namespace", "tlt-system")
        plane.kubectl("apply", "-n", "tlt-system", "-f", base / "operator-rbac.yaml")
        for name in ("runner-clusterrole", "runner-policy"):
            plane.kubectl("apply", "-f", base / f"{name}.yaml")
        kubeconfig = kubeconfig_of(plane, "tlt-operator", Path(folder) / "kubeconfig")
        async with Server(plane) as server:
            yield Bench(plane, server, kubeconfig, Path(folder), profiles)


def training(namespace: str, number: int) -> Body:
    """Return the n-th TrainingJob. Its data are in a bucket: pods with claims would wait for volumes."""
    body = resource(
        name=f"j{number}", resources={"gpus": 0}, output={"uri": f"s3://runs/{namespace}-{number}"}
    )
    body["spec"]["dataset"] = {**body["spec"]["dataset"], "uri": "s3://data/traffic"}
    body["metadata"]["namespace"] = namespace
    return body


def plain(namespace: str, number: int) -> Body:
    """Return a batch Job with the pod of the n-th TrainingJob, of which the operator knows nothing."""
    body = training(namespace, number)
    body["metadata"]["uid"] = "0"
    parsed = parse(body)
    job = job_object.build(for_attempt(parsed, parsed.spec, Inputs(), 1), Settings())
    del job["metadata"]["ownerReferences"]
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        metadata["labels"] = {k: v for k, v in metadata["labels"].items() if not k.startswith("tlt.dev/")}
    return job


def job_is_complete(body: Body) -> bool:
    """Tell whether a batch Job is Complete."""
    conditions = body.get("status", {}).get("conditions") or ()
    return any(item["type"] == "Complete" and item["status"] == "True" for item in conditions)


def has_phase(*phases: str) -> Callable[[Body], bool]:
    """Return a check of a TrainingJob's phase."""
    return lambda body: body.get("status", {}).get("phase") in phases


def metric(operator: OperatorProcess, name: str) -> float:
    """Return the sum of a metric's samples."""
    _, text = operator.get(operator.metrics_address, "/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def requests_of(operator: OperatorProcess) -> tuple[float, float]:
    """Return the reads and the writes of the operator so far: watches and its Lease are neither."""
    _, text = operator.get(operator.metrics_address, "/metrics")
    reads = writes = 0.0
    for line in text.splitlines():
        if line.startswith("tlt_operator_api_requests_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["resource"] == "leases" or labels["verb"] == "watch":
                continue
            number = float(line.rsplit(" ", 1)[1])
            if labels["verb"] in ("get", "list"):
                reads += number
            else:
                writes += number
    return reads, writes


def moment(text: str) -> float:
    """Return a time in seconds."""
    return datetime.fromisoformat(text).timestamp()


def created(body: Body) -> float:
    """Return the time of an object's creation, to the second."""
    return moment(body["metadata"]["creationTimestamp"])


async def create_to_job(bench: Bench, namespace: str) -> list[float]:
    """Return the seconds from each TrainingJob's creation to that of its Job, in order."""
    jobs = {job["metadata"]["name"]: job for job in await bench.server.list(_JOBS.format(namespace))}
    items = await bench.server.list(_TRAININGS.format(namespace))
    return sorted(created(jobs[item["status"]["jobName"]]) - created(item) for item in items)


def beyond(operated: Counter[str], direct: Counter[str], own: dict[str, int], count: int) -> dict[str, float]:
    """Return the requests a job that plain Jobs do not cause, by verb and resource."""
    difference = Counter(operated)
    difference.subtract(direct)
    difference.subtract(own)
    return {
        name: round(number / count, 2)
        for name, number in sorted(difference.items())
        if abs(number) >= count / 20
    }


async def jobs(bench: Bench, count: int) -> Body:
    """Compare N plain Jobs with N TrainingJobs, from creation to the end of the last."""
    for name in ("direct", "operated"):
        await bench.namespace(name)
    names = [f"j{number}-train-1" for number in range(count)]
    path = _JOBS.format("direct")
    with kwok(bench.plane) as simulator:
        simulator.add_nodes(2 * count // PODS_PER_NODE + 2)
        # Of each kind one first: what happens once in the life of a process is not measured.
        await bench.server.create(path, [plain("direct", count)])
        await bench.server.until_all(path, [f"j{count}-train-1"], job_is_complete)
        async with bench.cost("direct") as direct:
            await bench.server.create(path, [plain("direct", number) for number in range(count)])
            await bench.server.until_all(path, names, job_is_complete)
        with bench.operator() as operator:
            await bench.started(operator)
            path = _TRAININGS.format("operated")
            await bench.server.create(path, [training("operated", count)])
            await bench.server.until_all(path, [f"j{count}"], has_phase("Succeeded"))
            await asyncio.sleep(2)
            idle = resident_mb(operator.pid)
            reads, writes = requests_of(operator)
            async with bench.cost("operated", operator) as operated:
                await bench.server.create(path, [training("operated", number) for number in range(count)])
                await bench.server.until_all(path, [f"j{n}" for n in range(count)], has_phase("Succeeded"))
                # What follows the last end is part of the cost.
                await asyncio.sleep(2)
            all_reads, all_writes = requests_of(operator)
            looks = metric(operator, 'tlt_operator_reconciles_total{outcome="ok"')
            conflicts = metric(operator, 'tlt_operator_reconciles_total{outcome="conflict"')
            busy = resident_mb(operator.pid)
    lags = await create_to_job(bench, "operated")
    assert len(lags) == count + 1 and direct.cpu and direct.requests and operated.cpu and operated.requests
    size = len(json.dumps((await bench.server.request("GET", f"{path}/j0")), separators=(",", ":")))
    # The two seconds after the last end are not part of the time.
    ratio = round((operated.seconds - 2) / direct.seconds, 2)
    own_cpu = round(1000 * operated.cpu["operator"] / count, 1)
    return {
        "benchmark": "operator_load jobs",
        "jobs": count,
        "figures": [
            Figure(f"{count} TrainingJobs against {count} batch Jobs, time", 1.5, ratio),
            Figure("writes a job, Events included", 5, round((all_writes - writes) / count, 2)),
            Figure("reads a job", 2, round((all_reads - reads) / count, 2)),
            Figure("operator's CPU a job", 8, own_cpu, "ms"),
        ],
        "ratio": ratio,
        "seconds_plain": round(direct.seconds, 1),
        "seconds": round(operated.seconds - 2, 1),
        "create_to_job_seconds_p50": lags[len(lags) // 2],
        "create_to_job_seconds_p99": lags[int(0.99 * (len(lags) - 1))],
        "requests_a_job": beyond(operated.requests, direct.requests, {"POST trainingjobs": count}, count),
        "cpu_ms_a_job": {part: round(1000 * value / count, 1) for part, value in operated.cpu.items()},
        "cpu_ms_a_plain_job": {part: round(1000 * value / count, 1) for part, value in direct.cpu.items()},
        "looks_a_job": round(looks / count, 2),
        "conflicts_a_job": round(conflicts / count, 2),
        "resident_mb_idle": round(idle, 1),
        "resident_mb": round(busy, 1),
        "bytes_of_a_resource": size,
    }


async def steady(bench: Bench, count: int) -> Body:
    """Create TrainingJobs at 20 a second: the time from creation to Job, by Job events, to milliseconds."""
    await bench.namespace("operated")
    path = _TRAININGS.format("operated")
    with kwok(bench.plane) as simulator, bench.operator() as operator:
        simulator.add_nodes(count // PODS_PER_NODE + 2)
        await bench.started(operator)
        seen: dict[str, float] = {}
        watch = asyncio.create_task(_watch_jobs(bench.server, "operated", seen))
        await bench.server.create(path, [training("operated", count)])
        await bench.server.until_all(path, [f"j{count}"], has_phase("Succeeded"))
        sent: dict[str, float] = {}
        begin = time.monotonic()

        async def one(number: int) -> None:
            await asyncio.sleep(max(0.0, begin + number / 20 - time.monotonic()))
            await bench.server.request("POST", path, training("operated", number))
            sent[f"j{number}-train-1"] = time.monotonic()

        async with bench.cost("steady", operator) as cost:
            await asyncio.gather(*(one(number) for number in range(count)))
            await bench.server.until_all(path, [f"j{n}" for n in range(count)], has_phase("Succeeded"))
        watch.cancel()
    lags = sorted(max(0.0, seen[name] - at) for name, at in sent.items())
    assert cost.cpu
    p99 = round(lags[int(0.99 * (len(lags) - 1))], 3)
    return {
        "benchmark": "operator_load steady",
        "jobs": count,
        "figures": [Figure("creation to Job at 20 a second, p99", 2, p99, "s", below=True)],
        "created_a_second": 20,
        "create_to_job_seconds_p50": round(lags[len(lags) // 2], 3),
        "create_to_job_seconds_p99": p99,
        "cpu_ms_a_job": {part: round(1000 * value / count, 1) for part, value in cost.cpu.items()},
    }


async def _watch_jobs(server: Server, namespace: str, seen: dict[str, float]) -> None:
    """Note when the watch reports each new Job."""
    path = f"{server._address}{_JOBS.format(namespace)}?watch=1"
    accept = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with server._session.get(
        path, ssl=server._ssl, headers=accept, timeout=timeout, read_bufsize=2**20
    ) as answer:
        async for line in answer.content:
            event = json.loads(line)
            seen.setdefault(event["object"]["metadata"]["name"], time.monotonic())


@contextlib.contextmanager
def stages_without_an_end(folder: Path) -> Iterator[Path]:
    """Write kwok's stages for pods that run until they are deleted."""
    stages = [stage for stage in yaml.safe_load_all(STAGES.read_text()) if stage]
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump_all(s for s in stages if s["metadata"]["name"] != "pod-complete"))
    yield path


async def growth(bench: Bench, count: int) -> Body:
    """Add running TrainingJobs up to N: the cost of one more at each size, memory, and cold starts."""
    await bench.namespace("operated")
    path = _TRAININGS.format("operated")
    sizes = [size for size in (100, 200, 500, 1000, 2000, 3000, 4000, 5000) if size < count] + [count]
    curve: list[Body] = []
    reports: Body = {}
    with bench.operator() as operator:
        with stages_without_an_end(bench.folder) as stages, kwok(bench.plane, stages) as simulator:
            simulator.add_nodes(count // PODS_PER_NODE + 2)
            await bench.started(operator)
            done = 0
            for size in sizes:
                # The last hundred before each size is measured; the rest comes first.
                for first, last, measured in ((done, size - 100, False), (max(done, size - 100), size, True)):
                    if last <= first:
                        continue
                    numbers = range(first, last)
                    async with bench.cost(f"growth-{size}", operator) as cost:
                        await bench.server.create(path, [training("operated", number) for number in numbers])
                        await bench.server.until_all(path, [f"j{n}" for n in numbers], has_phase("Running"))
                        await asyncio.sleep(1)
                    if measured:
                        assert cost.cpu
                        row = {"resources": size, "resident_mb": round(resident_mb(operator.pid), 1)}
                        for part in ("operator", "kube-apiserver"):
                            row[f"{part}_cpu_ms"] = round(1000 * cost.cpu[part] / len(numbers), 1)
                        curve.append(row)
                        print(json.dumps(row), file=sys.stderr)
                done = size
                # Of a small benchmark, all of them.
                if size == min(1000, count):
                    await asyncio.sleep(5)
                    reports = await _reports(bench, operator, 30)
                    print(json.dumps(reports), file=sys.stderr)
            rest = await _rest(bench, operator, 20)
            memory = resident_mb(operator.pid)
            running_start = await _cold_start(operator, count)
        # Pods that end.
        with kwok(bench.plane):
            names = [f"j{number}" for number in range(count)]
            await bench.server.until_all(path, names, has_phase("Succeeded"))
        finished_start = await _cold_start(operator, count)
    figures = [
        Figure(f"resident memory with {count} running", 150, round(memory, 1), "MB", below=True),
        Figure(f"a new operator has looked at {count} running", 30, running_start["seconds"], "s"),
        Figure(
            "resident memory of a new operator, running", 150, running_start["resident_mb"], "MB", below=True
        ),
        Figure(f"a new operator has looked at {count} finished", 30, finished_start["seconds"], "s"),
        Figure(
            "resident memory of a new operator, finished",
            150,
            finished_start["resident_mb"],
            "MB",
            below=True,
        ),
        Figure("writes of a new operator, finished", 0, finished_start["writes"]),
        Figure(
            "operator's CPU for one more, larger half of sizes against smaller",
            1.25,
            steepness(curve),
        ),
        *_figures_of(reports),
    ]
    return {
        "benchmark": "operator_load growth",
        "resources": count,
        "figures": figures,
        "curve": curve,
        "progress": reports,
        "resident_mb": round(memory, 1),
        "cores_at_rest": rest,
        "cold_start_running": running_start,
        "cold_start_finished": finished_start,
    }


def steepness(curve: Sequence[Body]) -> float:
    """Return the mean cost of one more resource at the larger half of sizes against smaller half."""
    costs = [row["operator_cpu_ms"] for row in curve]
    if len(costs) < 2:
        return 1.0
    half = len(costs) // 2
    return round(statistics.mean(costs[-half:]) / max(statistics.mean(costs[:half]), 0.1), 2)


async def _cold_start(operator: OperatorProcess, count: int) -> Body:
    """Kill the operator and start it anew: until it has looked at everything, and what that costs."""
    operator.kill()
    operator.start()
    begin = time.monotonic()
    until(
        "a look at everything",
        lambda: metric(operator, 'tlt_operator_reconciles_total{outcome="ok"') >= count,
        limit_s=_LIMIT_S,
    )
    seconds = time.monotonic() - begin
    # What a look was put off for, by a second or two, is part of it.
    await asyncio.sleep(5)
    return {
        "seconds": round(seconds, 1),
        "writes": requests_of(operator)[1],
        "cpu_seconds": round(cpu_seconds(operator.pid), 1),
        "resident_mb": round(resident_mb(operator.pid), 1),
    }


def _figures_of(reports: Body) -> list[Figure]:
    """Return the figures of runs that report progress."""
    before, during = reports["cores_without_reports"], reports["cores"]
    cost = 100 * (during["kube-apiserver"] - before["kube-apiserver"])
    return [
        Figure(
            f"{reports['running']} that report: API server",
            10,
            round(cost, 1),
            "% of a core",
            below=True,
        ),
        Figure("their reports: writes of the operator", 0, reports["writes_of_the_operator"]),
    ]


async def _rest(bench: Bench, operator: OperatorProcess | None, seconds: float) -> dict[str, float]:
    """Return the cores that each process uses while nothing is created."""
    async with bench.cost("rest", operator) as cost:
        await asyncio.sleep(seconds)
    assert cost.cpu
    return {part: round(value / cost.seconds, 4) for part, value in cost.cpu.items()}


async def blocked(bench: Bench, count: int) -> Body:
    """Rest with N TrainingJobs whose pods a quota refuses, against the same control plane without them."""
    await bench.namespace("operated")
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await bench.server.request("POST", "/api/v1/namespaces/operated/resourcequotas", quota)
    path = _TRAININGS.format("operated")
    with bench.operator() as operator:
        await bench.started(operator)
        before = await _rest(bench, operator, 30)
        await bench.server.create(path, [training("operated", number) for number in range(count)])
        await bench.server.until_all(path, [f"j{n}" for n in range(count)], has_phase("Queued"))

        def is_blocked(body: Body) -> bool:
            conditions = body.get("status", {}).get("conditions") or ()
            return any(item["type"] == "Blocked" and item["status"] == "True" for item in conditions)

        begin = time.monotonic()
        await bench.server.until_all(path, [f"j{n}" for n in range(count)], is_blocked)
        told = time.monotonic() - begin
        # The Job controller itself tries again, and posts Events, with a backoff of up to ten minutes.
        await asyncio.sleep(60)
        during = await _rest(bench, operator, 60)
        operator.stop()
        alone = await _rest(bench, None, 60)
    # The tries of the Job controller go on without the operator.
    extra = 100 * (during["kube-apiserver"] - alone["kube-apiserver"])
    own = round(100 * during["operator"], 2)
    return {
        "benchmark": "operator_load blocked",
        "resources": count,
        "figures": [
            Figure(f"{count} over quota: API server", 2, round(extra, 1), "% of a core", below=True),
            Figure(f"{count} over quota: operator", 1, own, "% of a core", below=True),
        ],
        "seconds_until_all_say_so": round(told, 1),
        "cores_without_resources": before,
        "cores": during,
        "cores_without_operator": alone,
    }


async def _reports(bench: Bench, operator: OperatorProcess, seconds: float) -> Body:
    """Let all running TrainingJobs report progress, each at the pace that its RunSpec names."""
    path = _TRAININGS.format("operated")
    before = await _rest(bench, operator, 20)
    paces = await _paces(bench, "operated")
    reports = 0

    async def report(job: str, pace: float) -> None:
        nonlocal reports
        name = job.removesuffix("-train-1")
        await asyncio.sleep(pace * random.random())
        while True:
            begin = time.monotonic()
            reports += 1
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            progress = {"stage": "train", "epoch": 1, "epochs": 80, "step": reports, "steps": 10**6}
            progress |= {"loss": 1 / reports, "learningRate": 0.01, "lastUpdateTime": now}
            body = {
                "apiVersion": "tlt.dev/v1alpha1",
                "kind": "TrainingJob",
                "metadata": {"name": name},
                "status": {"progress": progress},
            }
            address = f"{path}/{name}/status?fieldManager=tlt-runner&force=true"
            await bench.server.text(
                "PATCH", address, body, **{"Content-Type": "application/apply-patch+yaml"}
            )
            await asyncio.sleep(max(0.0, begin + pace - time.monotonic()))

    tasks = [asyncio.create_task(report(*item)) for item in paces.items()]
    await asyncio.sleep(10)
    first, writes = reports, requests_of(operator)[1]
    during = await _rest(bench, operator, seconds)
    sent, writes = reports - first, requests_of(operator)[1] - writes
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "running": len(paces),
        "seconds_between_reports_median": statistics.median(paces.values()),
        "reports_a_second": round(sent / seconds, 1),
        "writes_of_the_operator": writes,
        "cores_without_reports": before,
        "cores": during,
    }


async def running(bench: Bench, count: int, seconds: float) -> Body:
    """Let N running TrainingJobs report progress."""
    await bench.namespace("operated")
    path = _TRAININGS.format("operated")
    with (
        stages_without_an_end(bench.folder) as stages,
        kwok(bench.plane, stages) as simulator,
        bench.operator() as operator,
    ):
        simulator.add_nodes(count // PODS_PER_NODE + 2)
        await bench.started(operator)
        await bench.server.create(path, [training("operated", number) for number in range(count)])
        await bench.server.until_all(path, [f"j{n}" for n in range(count)], has_phase("Running"))
        await asyncio.sleep(10)
        reports = await _reports(bench, operator, seconds)
        return {"benchmark": "operator_load running", "figures": _figures_of(reports), **reports}


async def _paces(bench: Bench, namespace: str) -> dict[str, float]:
    """Return the seconds between two reports that each Job's environment asks for."""
    paces = {}
    for job in await bench.server.list(_JOBS.format(namespace)):
        variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
        asked = [float(item["value"]) for item in variables if item["name"] == PROGRESS_VARIABLE]
        paces[job["metadata"]["name"]] = asked[0] if asked else PROGRESS_SECONDS
    return paces


def plot(line: Path, picture: Path) -> None:
    """Draw the cost of one more resource at each size, from the line that `growth` printed."""
    from matplotlib.figure import Figure

    curve = json.loads(line.read_text().splitlines()[-1])["curve"]
    sizes = [row["resources"] for row in curve]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for part in ("kube-apiserver", "operator"):
        axes.plot(sizes, [row[f"{part}_cpu_ms"] for row in curve], marker="o", label=f"CPU of {part}")
    axes.set(xlabel="TrainingJobs in the cluster", ylabel="ms for one more", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(picture, metadata={"Date": None})


def main() -> None:
    """Run the load that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("load", nargs="?", default="jobs", help=", ".join((*_LOADS, "all")))
    parser.add_argument("count", nargs="?", type=int, default=1000)
    parser.add_argument("--profile", type=Path, help="folder for profiles of the API server")
    parser.add_argument("--plot", type=Path, nargs=2, help="draw the output of growth: its file, and an SVG")
    parser.add_argument("--seconds", type=float, default=60, help="time of `running`")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(*arguments.plot)
        return
    if arguments.load.isdigit():
        arguments.load, arguments.count = "jobs", int(arguments.load)
    if arguments.load not in (*_LOADS, "all"):
        parser.error(f"expected {', '.join(_LOADS)} or all, got {arguments.load}")
    if arguments.profile:
        arguments.profile.mkdir(parents=True, exist_ok=True)

    figures: list[Figure] = []
    for load, count in loads(arguments.load, arguments.count):
        result = asyncio.run(run(load, count, arguments))
        figures += result["figures"]
        result["figures"] = [item.to_json() for item in result["figures"]]
        print(json.dumps(result), flush=True)
    print(table(figures))
    sys.exit(missed(figures) or None)


def loads(load: str, count: int) -> list[tuple[str, int]]:
    """Return the loads that a command names, each with its number of resources."""
    if load == "all":
        return [("jobs", count), ("steady", max(count // 2, 1)), ("growth", 5 * count), ("blocked", count)]
    return [(load, count)]


async def run(load: str, count: int, arguments: argparse.Namespace) -> Body:
    """Run one load on a new control plane."""
    async with bench(arguments.profile) as it:
        match load:
            case "jobs":
                return await jobs(it, count)
            case "steady":
                return await steady(it, count)
            case "growth":
                return await growth(it, count)
            case "blocked":
                return await blocked(it, count)
            case "running":
                return await running(it, count, arguments.seconds)
            case other:
                raise ValueError(f"expected jobs, steady, growth, blocked or running, got {other}")


if __name__ == "__main__":
    main()
