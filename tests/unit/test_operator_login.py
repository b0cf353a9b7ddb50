"""Log-in to the API server: every kubeconfig, the pod's service account, and renewal of both."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kopf
import kubernetes.config.incluster_config as in_cluster
import kubernetes.config.kube_config as kube_config
import pytest
import yaml
from aiohttp import web

from tlt_api.resources import KINDS
from tlt_operator.cluster.client import ApiError
from tlt_operator.cluster.http import HttpClient
from tlt_operator.login import LIFETIME, log_in

SERVER = "https://api:6443"


def kubeconfig(path: Path, user: dict[str, Any], **cluster: Any) -> Path:
    """Write a kubeconfig with one context."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": SERVER, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Make these kubeconfigs those of the environment, as at the start of the process."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    def set_environment(*files: Path) -> None:
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", os.pathsep.join(map(str, files)))

    set_environment(tmp_path / "absent")
    return set_environment


def test_a_kubeconfig_gives_server_and_token(tmp_path: Path, use: Callable[..., None]) -> None:
    use(kubeconfig(tmp_path / "config", {"token": "t"}))
    connection = log_in()
    assert connection.server == SERVER
    assert connection.as_http_headers() == {"Authorization": "Bearer t"}


def test_a_token_file_is_read_again_at_every_log_in(tmp_path: Path, use: Callable[..., None]) -> None:
    use(kubeconfig(tmp_path / "config", {"tokenFile": "token"}))
    for token in ("one", "two"):
        (tmp_path / "token").write_text(f"{token}\n")
        assert log_in().as_http_headers() == {"Authorization": f"Bearer {token}"}


def test_a_client_certificate_may_be_data_or_files(tmp_path: Path, use: Callable[..., None]) -> None:
    (tmp_path / "key").write_text("K")
    data = base64.b64encode(b"C").decode()
    authority = {"certificate-authority-data": base64.b64encode(b"A").decode()}
    user = {"client-certificate-data": data, "client-key": "key"}
    use(kubeconfig(tmp_path / "config", user, **authority))
    connection = log_in()
    paths = (connection.certificate_path, connection.private_key_path, connection.ca_path)
    assert [Path(str(path)).read_text() for path in paths] == ["C", "K", "A"]
    assert connection.as_http_headers() == {}


def test_a_user_may_log_in_by_a_program(tmp_path: Path, use: Callable[..., None]) -> None:
    credential = '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"'
    program = tmp_path / "get-token"
    program.write_text(f"""#!/bin/sh\necho '{credential}, "status": {{"token": "'$1'"}}}}'\n""")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(program),
        "args": ["from-program"],
        "interactiveMode": "Never",
    }
    use(kubeconfig(tmp_path / "config", {"exec": plugin}))
    assert log_in().as_http_headers() == {"Authorization": "Bearer from-program"}


def test_several_kubeconfigs_are_merged_and_the_first_one_wins(
    tmp_path: Path, use: Callable[..., None]
) -> None:
    first = tmp_path / "first"
    first.write_text(yaml.safe_dump({"users": [{"name": "u", "user": {"token": "of-the-first"}}]}))
    use(first, kubeconfig(tmp_path / "second", {"token": "of-the-second"}))
    connection = log_in()
    assert (connection.server, connection.token) == (SERVER, "of-the-first")


def test_only_insecure_skip_tls_verify_turns_off_the_check_of_certificates(
    tmp_path: Path, use: Callable[..., None]
) -> None:
    use(kubeconfig(tmp_path / "config", {"token": "t"}, **{"insecure-skip-tls-verify": True}))
    assert log_in().as_ssl_context().verify_mode == ssl.CERT_NONE
    use(kubeconfig(tmp_path / "config", {"token": "t"}))
    assert log_in().as_ssl_context().verify_mode == ssl.CERT_REQUIRED


def test_a_pod_logs_in_by_its_service_account(
    tmp_path: Path, use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(kubeconfig(tmp_path / "config", {"token": "t"}))
    (tmp_path / "token").write_text("of-the-account")
    (tmp_path / "ca.crt").write_text("A")
    monkeypatch.setattr(in_cluster, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(in_cluster, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    connection = log_in()
    assert connection.server == "https://10.0.0.1:443"
    assert connection.token == "of-the-account"
    assert connection.ca_path == str(tmp_path / "ca.crt")


def test_missing_credentials_are_named(use: Callable[..., None]) -> None:
    with pytest.raises(kopf.LoginError, match=r"service account.*or a kubeconfig.*KUBECONFIG"):
        log_in()


def test_a_connection_expires_before_its_token_does(tmp_path: Path, use: Callable[..., None]) -> None:
    use(kubeconfig(tmp_path / "config", {"token": "t"}))
    expiration = log_in().expiration
    assert expiration is not None
    assert timedelta(0) < expiration - datetime.now(UTC) <= LIFETIME < timedelta(hours=1)


class Server:
    """API server that accepts one token, and counts log-ins and refusals."""

    def __init__(self) -> None:
        self.accepted = "first"
        self.offered = "first"
        self.log_ins = 0
        self.refusals = 0
        self.lifetime = timedelta(hours=1)
        self.address = ""

    def log_in(self) -> kopf.ConnectionInfo:
        self.log_ins += 1
        expiration = datetime.now(UTC) + self.lifetime
        return kopf.ConnectionInfo(server=self.address, token=self.offered, expiration=expiration)

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.accepted}":
            self.refusals += 1
            return web.json_response({"message": "Unauthorized"}, status=401)
        return web.json_response({"metadata": {"name": "traffic"}})


def against(scenario: Callable[[Server, HttpClient], Any]) -> Callable[[], None]:
    """Run a coroutine with a server and a client of it."""

    async def run() -> None:
        server = Server()
        app = web.Application()
        app.router.add_get("/{path:.*}", server.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with HttpClient(server.log_in) as client:
            await scenario(server, client)
        await runner.cleanup()

    def test() -> None:
        asyncio.run(run())

    test.__name__ = scenario.__name__
    return test


async def look(client: HttpClient) -> Any:
    return await client.get_resource(KINDS["TrainingJob"], "default", "traffic")


@against
async def test_one_log_in_serves_many_requests(server: Server, client: HttpClient) -> None:
    await asyncio.gather(*(look(client) for _ in range(10)))
    assert server.log_ins == 1


@against
async def test_an_expired_connection_is_renewed(server: Server, client: HttpClient) -> None:
    server.lifetime = timedelta(0)
    await look(client)
    await look(client)
    assert server.log_ins == 2


@against
async def test_a_token_that_is_no_longer_accepted_is_replaced_at_once(
    server: Server, client: HttpClient
) -> None:
    await look(client)
    server.accepted = server.offered = "second"
    assert (await look(client))["metadata"]["name"] == "traffic"
    assert (server.log_ins, server.refusals) == (2, 1)


@against
async def test_a_user_that_is_not_accepted_is_refused_after_one_new_log_in(
    server: Server, client: HttpClient
) -> None:
    server.accepted = "another"
    with pytest.raises(ApiError) as refused:
        await look(client)
    assert (refused.value.code, server.log_ins, server.refusals) == (401, 2, 2)


@against
async def test_a_log_in_that_fails_is_an_api_error(server: Server, client: HttpClient) -> None:
    def fail() -> kopf.ConnectionInfo:
        raise OSError("token is gone")

    async with HttpClient(fail) as cut_off:
        with pytest.raises(ApiError, match="token is gone") as refused:
            await look(cut_off)
    assert refused.value.code == 0
