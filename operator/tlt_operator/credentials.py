"""Where the API server is and who we are there: the pod's service account, or else ``KUBECONFIG``.

Called by ``__main__``; both our own client and kopf use what is found here.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class CredentialsError(RuntimeError):
    """There are no credentials, or they cannot be used."""


@dataclass(frozen=True)
class Credentials:
    """Access to an API server.

    Attributes:
        server: Its address.
        ca_data: PEM of the authority that signed its certificate; None means the system's.
        insecure: Whether its certificate is not checked.
        token: A bearer token that does not change.
        token_file: File with a bearer token that is renewed from time to time.
        certificate_data: PEM of a client certificate.
        private_key_data: PEM of its key.
    """

    server: str
    ca_data: str | None = None
    insecure: bool = False
    token: str | None = None
    token_file: Path | None = None
    certificate_data: str | None = None
    private_key_data: str | None = None

    def current_token(self) -> str | None:
        """The bearer token as of now."""
        return self.token_file.read_text().strip() if self.token_file else self.token

    def ssl_context(self) -> ssl.SSLContext:
        """TLS settings for connections to the server."""
        context = ssl.create_default_context(cadata=self.ca_data)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_data and self.private_key_data:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # ssl reads files only
                file.write(self.certificate_data + "\n" + self.private_key_data)
                file.flush()
                context.load_cert_chain(file.name)
        return context


def find(environment: Mapping[str, str] = os.environ) -> Credentials:
    """The pod's service account where there is one, else the current context of ``KUBECONFIG``.

    Raises:
        CredentialsError: Neither is there, or the kubeconfig cannot be used.
    """
    if (SERVICE_ACCOUNT / "token").exists() and "KUBERNETES_SERVICE_HOST" in environment:
        return _service_account(environment)
    path = environment.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    if not Path(path).exists():
        raise CredentialsError(
            f"expected a service account ({SERVICE_ACCOUNT}) or a kubeconfig ({path}), got neither"
        )
    return from_kubeconfig(Path(path))


def _service_account(environment: Mapping[str, str]) -> Credentials:
    host = environment["KUBERNETES_SERVICE_HOST"]
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    return Credentials(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        ca_data=(SERVICE_ACCOUNT / "ca.crt").read_text(),
        token_file=SERVICE_ACCOUNT / "token",
    )


def from_kubeconfig(path: Path) -> Credentials:
    """The current context of a kubeconfig file.

    Raises:
        CredentialsError: The file names no such context, or its user logs in by a program (exec).
    """
    config = yaml.safe_load(path.read_text()) or {}
    name = config.get("current-context")
    context = _named(config, "contexts", name, path).get("context") or {}
    cluster = _named(config, "clusters", context.get("cluster"), path).get("cluster") or {}
    user = _named(config, "users", context.get("user"), path).get("user") or {}
    if "exec" in user or "auth-provider" in user:
        raise CredentialsError(
            f"{path}: expected a user with token or client certificate, got one that logs in by a program; "
            "run in the cluster, or use a service account's token"
        )
    token_file = user.get("tokenFile")
    return Credentials(
        server=cluster["server"].rstrip("/"),
        ca_data=_data(cluster, "certificate-authority", path),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        token=user.get("token"),
        token_file=path.parent / token_file if token_file else None,
        certificate_data=_data(user, "client-certificate", path),
        private_key_data=_data(user, "client-key", path),
    )


def _named(config: Mapping[str, Any], part: str, name: str | None, path: Path) -> Mapping[str, Any]:
    entries: list[Mapping[str, Any]] = config.get(part) or []
    found = next((entry for entry in entries if entry.get("name") == name), None)
    if found is None:
        there = ", ".join(str(entry.get("name")) for entry in entries) or "none"
        raise CredentialsError(f"{path}: {part}: expected an entry {name!r}, got: {there}")
    return found


def _data(entry: Mapping[str, Any], key: str, path: Path) -> str | None:
    if entry.get(f"{key}-data"):
        return base64.b64decode(entry[f"{key}-data"]).decode()
    return (path.parent / entry[key]).read_text() if entry.get(key) else None
