"""Access to an API server as the product has it: the operator by a kubeconfig, a runner by a pod's token."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import kopf
import yaml
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

from tlt_runner.status.apiserver import ApiServer

if TYPE_CHECKING:
    from cluster.control_plane import ControlPlane


def connection_of(kubeconfig: Path) -> kopf.ConnectionInfo:
    """Return the connection of :func:`tlt_operator.login.log_in` for this kubeconfig."""
    configuration = Configuration()
    load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    scheme, _, token = (configuration.get_api_key_with_prefix("BearerToken") or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


def kubeconfig_of(plane: ControlPlane, account: str, path: Path) -> Path:
    """Write a kubeconfig for a ServiceAccount of the namespace tlt-system."""
    token = plane.kubectl("create", "token", account, "-n", "tlt-system", "--duration=2h").strip()
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(config))
    return path


def apiserver_of(
    plane: ControlPlane, namespace: str, pod: str, folder: Path, address: tuple[str, int] | None = None
) -> ApiServer:
    """Return a runner's access as a pod of this name, which is created; ``address`` leads to the server."""
    container = {"name": "runner", "image": "runner"}
    body = {
        "kind": "Pod",
        "metadata": {"name": pod, "namespace": namespace},
        "spec": {"serviceAccountName": "tlt-runner", "containers": [container]},
    }
    plane.api.create(body)
    # The policy reads the pod's name from the token, so the token is bound to the pod, as a kubelet's is.
    bound = ("--bound-object-kind", "Pod", "--bound-object-name", pod)
    token = folder / "token"
    token.write_text(plane.kubectl("create", "token", "-n", namespace, "tlt-runner", *bound))
    server = urllib.parse.urlsplit(plane.server)
    host, port = address or (server.hostname or "", server.port or 443)
    return ApiServer(host, port, token, plane.authority.certificate("ca"))
