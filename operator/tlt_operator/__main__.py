"""Process of ``tlt-operator``: it starts the parts, and ends when one of them does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import kopf

from tlt_api.resources import KINDS, Kind
from tlt_operator import handlers, metrics, server, settings
from tlt_operator.cluster.client import ApiError, Client
from tlt_operator.cluster.http import HttpClient
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.login import log_in

log = logging.getLogger("tlt_operator")

_POLL_SECONDS = 5


def main() -> None:
    """Entry point; exit code 1 for settings or credentials that cannot be used."""
    if len(sys.argv) > 1:
        print(f"usage: tlt-operator (no arguments)\n\n{settings.usage()}")
        sys.exit(0 if sys.argv[1:] == ["--help"] else 2)
    try:
        chosen = settings.from_environment(os.environ)
        connection = log_in()
    except (settings.SettingsError, kopf.LoginError) as error:
        sys.exit(f"tlt-operator: {error}")
    logging.basicConfig(level=chosen.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    namespaces = ", ".join(chosen.namespaces) or "all namespaces"
    log.info("serves %s at %s; runner image %s", namespaces, connection.server, chosen.runner_image)
    # Until kopf takes the signals over: the first process of a container ignores SIGTERM without a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(run(chosen))


async def run(chosen: settings.Settings) -> None:
    """Run the operator until a signal ends it."""
    async with HttpClient(log_in, chosen.request_timeout_seconds) as client:
        health = Health(chosen.sweep_seconds)
        controller = Controller(client, chosen, health)
        health.longest_wait = controller.queue.longest_wait
        # Before the wait for the CRDs: without an answer to its liveness probe, the pod would be restarted.
        runners = await server.start(controller, health, chosen)
        await _wait_for_kinds(client, chosen)
        health.ready = True
        work = asyncio.create_task(controller.run(), name="controller")
        # kopf, at its end, cancels every task that is younger than itself: the controller must be older.
        await asyncio.sleep(0)
        watch = asyncio.create_task(handlers.watch(controller, health, chosen.namespaces), name="watch")
        done, pending = await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        controller.queue.close()
        for runner in runners:
            await runner.cleanup()
        # An error of the part that ended ends the process: Kubernetes restarts it.
        for task in done:
            task.result()


async def _wait_for_kinds(client: Client, chosen: settings.Settings) -> None:
    """Wait until the CRDs exist: watches of unknown kinds never start.

    One namespace that can be listed is enough: another one without a RoleBinding must not keep it waiting.
    """
    for kind in KINDS.values():
        while not any(
            [await _is_listed(client, kind, namespace) for namespace in chosen.namespaces or (None,)]
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
