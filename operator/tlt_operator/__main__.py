"""Process of ``tlt-operator``: start the parts, serve probes and metrics, end when a part does."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import uuid
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
from tlt_operator.lease import Leadership, LeaseLostError, Timing
from tlt_operator.login import log_in
from tlt_operator.settings import Settings, SettingsError, from_environment, usage
from tlt_operator.traffic import trace

log = logging.getLogger("tlt_operator")

_POLL_SECONDS = 5
_LEASE_NAME = "tlt-operator"
_LAST_SECONDS = 10.0
"""Longest time that parts have to end in; an operator without the Lease must not stay for longer."""

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
    try:
        asyncio.run(run(settings))
    # By design: the restart of the container begins anew, without remains of the former work.
    except LeaseLostError as error:
        sys.exit(f"tlt-operator: lost the Lease {settings.lease_namespace}/{_LEASE_NAME}: {error}")


async def run(settings: Settings) -> None:
    """Run the operator until a signal ends it."""
    # Modules and schemas stay as long as the process: no collection of garbage needs to visit them. The cache
    # is text, and garbage in cycles is rare: collections may be, too.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    async with HttpClient(log_in, settings.request_timeout_seconds, [trace()]) as client:
        health = Health(settings.sweep_seconds)
        controller = Controller(client, settings, health)
        health.longest_wait = controller.queue.longest_wait
        leadership = _leadership(client, settings, health)
        controller.stand_by()
        # Before the wait for the CRDs: without an answer to its liveness probe, the pod would be restarted.
        runners = await _serve_probes_and_metrics(controller, health, settings)
        await _wait_for_kinds(client, settings)
        # From here on, the readiness probe passes.
        health.ready = True
        work = asyncio.create_task(controller.run(), name="controller")
        lead = asyncio.create_task(_lead(leadership, controller, health), name="lease")
        lag = asyncio.create_task(_measure_lag(), name="lag")
        # kopf, at its end, cancels every task that is younger than itself: the others must be older.
        await asyncio.sleep(0)
        watch = asyncio.create_task(handlers.watch(controller, health, settings.namespaces), name="watch")
        done, pending = await asyncio.wait({work, lead, lag, watch}, return_when=asyncio.FIRST_COMPLETED)
        # Before the client closes: a reconciliation that is under way still uses its connections.
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_LAST_SECONDS)
        controller.queue.close()
        # Only now, with all work ended: another replica may begin in this moment.
        if leadership is not None:
            await leadership.release()
        for runner in runners:
            await runner.cleanup()
        # An error of the part that ended ends the process: Kubernetes restarts it.
        for task in done:
            task.result()


def _leadership(client: HttpClient, settings: Settings, health: Health) -> Leadership | None:
    """Return the claim to the Lease; None for an operator that is alone by its settings."""
    if not settings.lease_namespace:
        log.info("works without a Lease (TLT_LEASE_NAMESPACE is not set): it must be the only operator")
        return None
    # A name of its own for each process: the second life of a pod is not the first one.
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    timing = Timing.of(settings.lease_seconds)
    leadership = Leadership(client, settings.lease_namespace, _LEASE_NAME, identity, timing)
    client.may_write = leadership.may_write
    health.lease_trouble = lambda: leadership.trouble
    return leadership


async def _lead(leadership: Leadership | None, controller: Controller, health: Health) -> None:
    """Stand by until the Lease is held, then let the controller work for as long as it is.

    Raises:
        LeaseLostError: The Lease is lost, and the process must end.
    """
    if leadership is not None:
        health.role = "standby"
        metrics.LEADER.set(0)
        await leadership.acquire()
    health.role = "leader"
    metrics.LEADER.set(1)
    controller.lead()
    if leadership is None:
        await asyncio.Event().wait()
    else:
        await leadership.keep()


async def _measure_lag() -> None:
    """Measure once a second by how much the event loop is late, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 1
        await asyncio.sleep(1)
        metrics.LOOP_LAG_SECONDS.set(loop.time() - due)


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
        body = {"ok": not problems, "role": health.role, "problems": problems}
        return web.json_response(body, status=503 if problems else 200)

    # Readiness: kinds that are not served yet are no reason for a restart.
    async def readyz(request: web.Request) -> web.Response:
        problems = health.waiting()
        body = {"ok": not problems, "role": health.role, "problems": problems, "refused": health.refused()}
        return web.json_response(body, status=503 if problems else 200)

    async def exposition(request: web.Request) -> web.Response:
        # Gauges are computed when they are read; what is no more disappears by the clear.
        metrics.QUEUE_DEPTH.set(len(controller.queue))
        for (resource, namespace), age in health.watches.ages().items():
            metrics.WATCH_AGE_SECONDS.labels(resource, namespace).set(age)
        metrics.WATCH_REFUSED.clear()
        for resource, namespace in health.watches.refusals():
            metrics.WATCH_REFUSED.labels(resource, namespace).set(1)
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
