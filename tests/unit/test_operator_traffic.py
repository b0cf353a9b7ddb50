"""Requests to the API server: counted, named, fenced by the Lease, and signs of life of the watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import kopf
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from tlt_api import version
from tlt_api.resources import KINDS
from tlt_operator import login
from tlt_operator.cluster.client import ApiError
from tlt_operator.cluster.http import HttpClient
from tlt_operator.health import SILENT_WATCH_SECONDS, Health
from tlt_operator.traffic import Request, WatchSigns, classify, trace

TRAININGS = "/apis/tlt.dev/v1alpha1/namespaces/team/trainingjobs"


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", f"{TRAININGS}/cars", {}, ("get", "trainingjobs", "team")),
        ("PATCH", f"{TRAININGS}/cars/status", {}, ("patch", "trainingjobs/status", "team")),
        ("GET", "/apis/tlt.dev/v1alpha1/trainingjobs", {"limit": "500"}, ("list", "trainingjobs", "")),
        ("GET", TRAININGS, {"watch": "true"}, ("watch", "trainingjobs", "team")),
        ("POST", "/apis/batch/v1/namespaces/team/jobs", {}, ("create", "jobs", "team")),
        ("DELETE", "/apis/batch/v1/namespaces/team/jobs/a", {}, ("delete", "jobs", "team")),
        ("GET", "/api/v1/pods", {"watch": "true"}, ("watch", "pods", "")),
        ("GET", "/api/v1/namespaces", {}, ("list", "namespaces", "")),
        ("GET", "/api/v1/namespaces/team", {}, ("get", "namespaces", "")),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", {}, ("update", "leases", "a")),
        ("GET", "/apis/tlt.dev/v1alpha1", {}, ("get", "other", "")),
        ("GET", "/version", {}, ("get", "other", "")),
    ],
)
def test_a_request_is_what_the_api_server_calls_it(
    method: str, path: str, query: dict[str, str], expected: tuple[str, str, str]
) -> None:
    assert classify(method, path, query) == Request(*expected)


def test_a_watch_that_is_not_opened_for_eight_minutes_is_dead_whatever_was_answered() -> None:
    now = [0.0]
    health = Health(300, clock=lambda: now[0])
    health.watches.opened("jobs", "")
    health.watches.opened("pods", "team")
    for now[0] in (200.0, 400.0, SILENT_WATCH_SECONDS + 1):
        health.watches.opened("jobs", "")
        health.sweep_ended()
    assert health.problems() == ["the watch of pods in team is dead for 481 s"]
    health.watches.opened("pods", "team")
    assert health.problems() == []


def test_a_standby_is_ready_and_one_that_cannot_use_the_lease_is_not() -> None:
    health = Health(300)
    assert health.waiting() == ["waits for the CRDs, or for the right to list our kinds"]
    health.ready = True
    assert health.waiting() == []
    health.lease_trouble = lambda: "cannot use the Lease"
    assert health.waiting() == ["cannot use the Lease"]


class Server:
    """API server that answers everything with a Job, and remembers what it was asked."""

    def __init__(self) -> None:
        self.agents: set[str] = set()
        self.methods: list[str] = []
        self.code = 200
        self.address = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.agents.add(request.headers["User-Agent"])
        self.methods.append(request.method)
        return web.json_response({"metadata": {"name": "a", "resourceVersion": "1"}}, status=self.code)

    def log_in(self) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=self.address)


def against(scenario: Callable[[Server], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a coroutine with a server."""

    async def run() -> None:
        server, app = Server(), web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await scenario(server)
        await runner.cleanup()

    def test() -> None:
        asyncio.run(run())

    test.__name__ = scenario.__name__
    return test


def counted(verb: str, resource: str, code: str) -> float:
    labels = {"verb": verb, "resource": resource, "code": code}
    return REGISTRY.get_sample_value("tlt_operator_api_requests_total", labels) or 0.0


@against
async def test_requests_are_counted_by_verb_resource_and_code_and_name_the_operator(server: Server) -> None:
    before = [counted("get", "trainingjobs", code) for code in ("200", "503", "0")]
    async with HttpClient(server.log_in, 5, [trace()]) as client:
        await client.get_resource(KINDS["TrainingJob"], "team", "cars")
        server.code = 503
        with pytest.raises(ApiError):
            await client.get_resource(KINDS["TrainingJob"], "team", "cars")
        server.address = "http://127.0.0.1:1"
    async with HttpClient(server.log_in, 5, [trace()]) as client:
        with pytest.raises(ApiError):
            await client.get_resource(KINDS["TrainingJob"], "team", "cars")
    after = [counted("get", "trainingjobs", code) for code in ("200", "503", "0")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 1]
    assert server.agents == {version.user_agent("tlt-operator")}


@against
async def test_a_client_without_the_lease_reads_and_writes_nothing(server: Server) -> None:
    async with HttpClient(server.log_in, 5) as client:
        client.may_write = lambda: False
        await client.get_resource(KINDS["TrainingJob"], "team", "cars")
        job = {"metadata": {"namespace": "team", "name": "a"}}
        with pytest.raises(ApiError, match="not sent, because the Lease is lost"):
            await client.create_job(job)
        with pytest.raises(ApiError, match="not sent"):
            await client.delete_job("team", "a", "u", "1")
        assert server.methods == ["GET"]
        # But for the Lease itself.
        await client.create_lease({"metadata": {"namespace": "tlt-system", "name": "tlt-operator"}})
        assert server.methods == ["GET", "POST"]


@against
async def test_a_write_is_not_repeated_after_a_new_log_in_without_the_lease(server: Server) -> None:
    async with HttpClient(server.log_in, 5) as client:
        # The Lease is lost while the first answer, a refusal, is awaited.
        answers = iter([True, False])
        client.may_write = lambda: next(answers)
        server.code = 401
        with pytest.raises(ApiError, match="not sent, because the Lease is lost"):
            await client.create_job({"metadata": {"namespace": "team", "name": "a"}})
        assert server.methods == ["POST"]


@against
async def test_kopfs_session_names_the_operator_and_gives_signs_of_life(server: Server) -> None:
    signs = WatchSigns(lambda: 7.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(login, "log_in", server.log_in)
        info = await login.session([trace(signs)])
    async with info.aiohttp_session as session:
        url = f"{server.address}/apis/batch/v1/jobs"
        async with session.get(url, params={"watch": "true"}):
            pass
        async with session.get(f"{server.address}{TRAININGS}/cars"):
            pass
    assert server.agents == {version.user_agent("tlt-operator")}
    assert signs.ages() == {("jobs", ""): 0.0}


def test_the_user_agent_says_program_version_and_kind_of_build(monkeypatch: pytest.MonkeyPatch) -> None:
    version.user_agent.cache_clear()
    monkeypatch.setattr(version, "version", lambda: "0.1.0")
    monkeypatch.setattr(version, "_is_editable", lambda: False)
    assert version.user_agent("tlt-runner") == "tlt-runner/0.1.0 (release)"
    version.user_agent.cache_clear()
