"""Access to an API server by a kubeconfig of a test, through the official client's reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import kopf
import yaml
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

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
