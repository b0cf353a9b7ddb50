"""Process of ``tlt-operator``: start the parts, serve probes and metrics, end when a part does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

import kopf
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from tlt_api.resources import KINDS, Kind
from tlt_operator import handlers, metrics
from tlt_operator.cluster.client import ApiError, Client
from tlt_operator.cluster.http import HttpClient
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.login import log_in
from tlt_operator.settings import Settings, SettingsError, from_environment, usage

log = logging.getLogger("tlt_operator")

_POLL_SECONDS = 5

Handler = Callable[[web.Request], Awaitable[web.Response]]


def main() -> None:
    """Run the command ``tlt-operator``; exit code 1 for settings or credentials that cannot be used."""
    # All settings come from the environment, as a Deployment gives them.
    if len(sys.argv) > 1:
        print(f"usage: tlt-operator (no arguments)\n\n{usage()}")
        sys.exit(0 if sys.argv[1:] == ["--help"] else 2)
    try:
        settings = from_environment(os.environ)
        # Credentials are tried at once, for a message that says what is missing. kopf and the client log in
        # by themselves later.
        connection = log_in()
    except (SettingsError, kopf.LoginError) as error:
        sys.exit(f"tlt-operator: {error}")
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # kopf has a line for every event of every resource at INFO.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    namespaces = ", ".join(settings.namespaces) or "all namespaces"
    log.info("serves %s at %s; runner image %s", namespaces, connection.server, settings.runner_image)
    # Until kopf takes the signals over: the first process of a container ignores SIGTERM without a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(run(settings))


async def run(settings: Settings) -> None:
    """Run the operator until a signal ends it."""
    async with HttpClient(log_in, settings.request_timeout_seconds) as client:
        health = Health(settings.sweep_seconds)
        controller = Controller(client, settings, health)
        health.longest_wait = controller.queue.longest_wait
        # Before the wait for the CRDs: without an answer to its liveness probe, the pod would be restarted.
        runners = await _serve_probes_and_metrics(controller, health, settings)
        await _wait_for_kinds(client, settings)
        # From here on, the readiness probe passes.
        health.ready = True
        work = asyncio.create_task(controller.run(), name="controller")
        # kopf, at its end, cancels every task that is younger than itself: the controller must be older.
        await asyncio.sleep(0)
        watch = asyncio.create_task(handlers.watch(controller, health, settings.namespaces), name="watch")
        done, pending = await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        # Before the client closes: a reconciliation that is under way still uses its connections.
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        controller.queue.close()
        for runner in runners:
            await runner.cleanup()
        # An error of the part that ended ends the process: Kubernetes restarts it.
        for task in done:
            task.result()


async def _serve_probes_and_metrics(
    controller: Controller, health: Health, settings: Settings
) -> list[web.AppRunner]:
    """Start the servers of ``/healthz`` and ``/readyz``, and of ``/metrics``; the caller cleans up.

    They run in the event loop that does the work: a loop that is blocked does not answer, and the kubelet
    restarts the operator.
    """

    # Liveness: a restart by the kubelet may help against each of these problems.
    async def healthz(request: web.Request) -> web.Response:
        problems = health.problems()
        return web.json_response({"ok": not problems, "problems": problems}, status=503 if problems else 200)

    # Readiness: kinds that are not served yet are no reason for a restart.
    async def readyz(request: web.Request) -> web.Response:
        status = 200 if health.ready else 503
        return web.json_response({"ok": health.ready, "problems": health.waiting()}, status=status)

    async def exposition(request: web.Request) -> web.Response:
        # Gauges are computed when they are read; phases without a resource disappear by the clear.
        metrics.QUEUE_DEPTH.set(len(controller.queue))
        metrics.RESOURCES.clear()
        for (kind, phase), count in controller.index.counts().items():
            metrics.RESOURCES.labels(kind, phase).set(count)
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [
        await _listen({"/healthz": healthz, "/readyz": readyz}, settings.health_port),
        await _listen({"/metrics": exposition}, settings.metrics_port),
    ]


async def _listen(routes: Mapping[str, Handler], port: int) -> web.AppRunner:
    app = web.Application()
    for path, handler in routes.items():
        app.router.add_get(path, handler)
    # No access log: probes come every few seconds.
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


async def _wait_for_kinds(client: Client, settings: Settings) -> None:
    """Wait until the CRDs exist: watches of unknown kinds never start.

    One namespace that can be listed is enough: another one without a RoleBinding must not keep it waiting.
    """
    for kind in KINDS.values():
        while not any(
            [await _is_listed(client, kind, namespace) for namespace in settings.namespaces or (None,)]
        ):
            await asyncio.sleep(_POLL_SECONDS)


async def _is_listed(client: Client, kind: Kind, namespace: str | None) -> bool:
    try:
        # The first item of the first page is enough; an empty list is an answer too.
        async for _ in client.list_metadata(kind, namespace):
            break
    except ApiError as error:
        metrics.UNLISTED.labels(kind.name, namespace or "").inc()
        log.warning("cannot list %s in %s yet: %s", kind.plural, namespace or "the cluster", error)
        return False
    return True


if __name__ == "__main__":
    main()
