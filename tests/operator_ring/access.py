"""Access to an API server by a kubeconfig of a test, through the official client's reader."""

from __future__ import annotations

from pathlib import Path

import kopf
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config


def connection_of(kubeconfig: Path) -> kopf.ConnectionInfo:
    """What :func:`tlt_operator.login.log_in` gives, for this file instead of the environment's."""
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
