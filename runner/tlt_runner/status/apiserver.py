"""Server-side apply of a status from inside a pod: one PATCH, with what Kubernetes mounts into every pod.

Only the standard library: the runner needs one verb of the API server, on one object. A connection serves
one request, and token and certificate authority are read for each, because the kubelet rotates them.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlt_api.base import API_VERSION, GROUP, VERSION
from tlt_api.resources import KINDS
from tlt_api.runspec import Owner
from tlt_api.status import RUNNER_FIELD_MANAGER
from tlt_api.version import user_agent

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_ANSWER_LIMIT = 4 * 1024 * 1024
"""Bytes of an answer that are read, at most: it holds a whole resource, which etcd bounds to less."""


class ApiServerError(Exception):
    """A report that the API server refused or that did not reach it.

    Attributes:
        status: The HTTP status, or None where there was no answer.
        retry_after: Seconds that it asks to wait.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class OwnerGoneError(ApiServerError):
    """A deleted resource, or another one of its name: there is nothing left to report to."""


@dataclass(frozen=True)
class ApiServer:
    """Address of the API server, and the credentials of this pod's service account.

    Attributes:
        host: Name or address.
        port: Port.
        token: File with the bearer token.
        authority: File with the certificate authority, PEM.
    """

    host: str
    port: int
    token: Path
    authority: Path

    @classmethod
    def of_this_pod(
        cls, environment: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT
    ) -> ApiServer | None:
        """Return the API server of the cluster that this process runs in.

        None outside of a cluster, or without a service account.
        """
        host = environment.get("KUBERNETES_SERVICE_HOST")
        token, authority = account / "token", account / "ca.crt"
        # Kubernetes sets these in every container; the token can be switched off
        # (automountServiceAccountToken).
        if not host or not token.is_file() or not authority.is_file():
            return None
        return cls(host, int(environment.get("KUBERNETES_SERVICE_PORT", "443")), token, authority)

    @property
    def cluster(self) -> str:
        """Digest of the cluster's certificate authority, by which two clusters are told apart."""
        return hashlib.sha256(self.authority.read_bytes()).hexdigest()[:16]

    def apply_status(self, owner: Owner, status: Mapping[str, Any], timeout: float) -> None:
        """Apply the runner's part of the owner's status.

        The owner's uid is a field of that status, which the policy compares: the API server ignores a
        uid in the metadata of a status request. Without the policy the answer tells, one report too late.

        Raises:
            OwnerGoneError: The owner is gone; another resource may have its name.
            ApiServerError: It did not arrive, or was refused.
        """
        path = (
            f"/apis/{GROUP}/{VERSION}/namespaces/{owner.namespace}/{KINDS[owner.kind].plural}/{owner.name}"
            f"/status?fieldManager={RUNNER_FIELD_MANAGER}&force=true"
        )
        # Server-side apply: the runner owns exactly the fields that it sends. What it left out since would be
        # removed, so every report is whole.
        body = {
            "apiVersion": API_VERSION,
            "kind": owner.kind,
            "metadata": {"name": owner.name, "namespace": owner.namespace},
            "status": {**status, "reportedFor": owner.uid},
        }
        # force=true: a field that another manager took over, for example by `kubectl edit`, is taken back; a
        # conflict would refuse the whole report.
        code, headers, answer = self._patch(path, json.dumps(body), timeout)
        # http.client follows no redirect: the token goes to no other server.
        if code >= 400:
            raise _refusal(owner, code, headers, answer)
        uid = (answer.get("metadata") or {}).get("uid")
        # A redirect, or a page of a proxy that answers 200: nothing is known of the owner, so try again.
        if uid is None:
            message = str(answer.get("message") or "no message")
            raise ApiServerError(f"HTTP {code}: expected the object that was sent, got {message}", code)
        if uid != owner.uid:
            raise OwnerGoneError(f"{owner.kind}/{owner.name} is another object now (uid {uid})", code)

    def _patch(self, path: str, body: str, timeout: float) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        try:
            # Anew for each request: the kubelet replaces both files while the pod runs.
            context = ssl.create_default_context(cafile=str(self.authority))
            headers = {
                "Authorization": f"Bearer {self.token.read_text().strip()}",
                "Content-Type": "application/apply-patch+yaml",
                "Accept": "application/json",
                "User-Agent": user_agent("tlt-runner"),
            }
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)
            try:
                connection.request("PATCH", path, body=body.encode(), headers=headers)
                response = connection.getresponse()
                text = response.read(_ANSWER_LIMIT)
            finally:
                connection.close()
        # TLS errors are OSErrors, too.
        except (OSError, http.client.HTTPException) as error:
            raise ApiServerError(f"{self.host}:{self.port}: {type(error).__name__}: {error}") from error
        return response.status, dict(response.headers.items()), _as_object(text)


def _refusal(owner: Owner, code: int, headers: Mapping[str, str], answer: dict[str, Any]) -> ApiServerError:
    """Return the error of an answer. A 404 or 422 need not mean that the owner is gone."""
    message = f"HTTP {code} {answer.get('reason') or ''}: {answer.get('message') or 'no message'}"
    # A 404 without the resource's name means that the API itself is missing, for example its CRD.
    missing = code == 404 and (answer.get("details") or {}).get("name") == owner.name
    # The words of the admission policy (manifests/base/runner-policy.yaml), which compares the uids.
    replaced = code == 422 and "a former resource of this name" in message
    if missing or replaced:
        return OwnerGoneError(message, code)
    # Seconds; the form with a date is not used by API servers.
    wait = headers.get("Retry-After") or ""
    return ApiServerError(message, code, float(wait) if wait.isdigit() else 0.0)


def _as_object(text: bytes) -> dict[str, Any]:
    try:
        # A proxy or a load balancer in between may answer in HTML.
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"message": text[:200].decode(errors="replace")}
