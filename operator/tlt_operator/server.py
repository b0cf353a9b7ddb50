"""HTTP servers of ``/healthz``, ``/readyz`` and ``/metrics``, in the event loop that does the work.

A loop that is blocked does not answer, and the kubelet restarts the operator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from tlt_operator import metrics
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.settings import Settings

Handler = Callable[[web.Request], Awaitable[web.Response]]


async def start(controller: Controller, health: Health, settings: Settings) -> list[web.AppRunner]:
    """Start both servers and return their runners, which the caller cleans up."""

    async def healthz(request: web.Request) -> web.Response:
        problems = health.problems()
        return web.json_response({"ok": not problems, "problems": problems}, status=503 if problems else 200)

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
        await _serve({"/healthz": healthz, "/readyz": readyz}, settings.health_port),
        await _serve({"/metrics": exposition}, settings.metrics_port),
    ]


async def _serve(handlers: Mapping[str, Handler], port: int) -> web.AppRunner:
    app = web.Application()
    for path, handler in handlers.items():
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
