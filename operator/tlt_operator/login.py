"""Log-in to the API server: its address and our identity, by kopf, for both kopf and our client.

In a pod this is the service account, elsewhere the current context of ``KUBECONFIG`` (a list of files is
merged) or ``~/.kube/config``. The official client reads both: tokens, token files, client certificates, and
users that log in by a program (exec plug-ins, OIDC). Only a kubeconfig's ``proxy-url`` is not used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import aiohttp
import kopf

from tlt_api.version import user_agent

LIFETIME = timedelta(minutes=10)
"""Time until the next log-in: service account tokens are renewed every hour, other tokens maybe sooner."""

log = logging.getLogger(__name__)


def log_in() -> kopf.ConnectionInfo:
    """Log in. This blocks: it reads files, and may run a program that the kubeconfig names.

    Raises:
        kopf.LoginError: There is neither a service account nor a usable kubeconfig.
    """
    try:
        connection = kopf.login_via_client(logger=log, settings=kopf.OperatorSettings())
    except kopf.LoginError as error:
        raise kopf.LoginError(
            "expected a service account (in a pod) or a kubeconfig with a current context (KUBECONFIG, or "
            f"~/.kube/config), got: {error.__context__ or error}"
        ) from error
    if connection is None:
        raise kopf.LoginError("expected the Python package kubernetes to be installed, got none")
    # The official client keeps a token file's last newline, which no HTTP header may contain.
    token = connection.token and connection.token.strip()
    return replace(connection, token=token, expiration=datetime.now(UTC) + LIFETIME)


async def session(traces: Sequence[aiohttp.TraceConfig] = ()) -> kopf.AiohttpSession:
    """Log in and return a session for kopf, with our User-Agent and traces.

    Raises:
        kopf.LoginError: There is neither a service account nor a usable kubeconfig.
    """
    # In a thread: both read files.
    connection = await asyncio.to_thread(log_in)
    context = await asyncio.to_thread(connection.as_ssl_context)
    return kopf.AiohttpSession(
        server=connection.server,
        default_namespace=connection.default_namespace,
        expiration=connection.expiration,
        # As kopf makes its own: each watch keeps a connection. kopf closes the session.
        aiohttp_session=aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers={**connection.as_http_headers(), "User-Agent": user_agent("tlt-operator")},
            proxy=connection.proxy_url,
            trust_env=connection.trust_env,
            trace_configs=list(traces),
        ),
    )
