"""Access of every test to an API server: the official client, authenticated as the user of a kubeconfig.

Called through `Cluster.api`, and by the operator's integration tests. Kinds are found by discovery, once
each; objects are plain dictionaries, as they are on the wire. What a person would type (apply, logs, exec)
goes through kubectl: `Cluster.kubectl`.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubernetes import client, config, dynamic
from kubernetes.dynamic.exceptions import NotFoundError
from kubernetes.dynamic.resource import Resource, Subresource
from urllib3.exceptions import HTTPError

import patience
from tlt_api.base import API_VERSION
from tlt_api.resources import KINDS

from .errors import ClusterError

Body = dict[str, Any]

_VERSIONS = {
    "EndpointSlice": "discovery.k8s.io/v1",
    "Job": "batch/v1",
    "Lease": "coordination.k8s.io/v1",
    "PriorityClass": "scheduling.k8s.io/v1",
    "RuntimeClass": "node.k8s.io/v1",
    "Workload": "kueue.x-k8s.io/v1beta2",
    **dict.fromkeys(KINDS, API_VERSION),
}
"""Where a kind's API version is not v1."""
_MERGE = "application/merge-patch+json"


class KubernetesApi:
    """Requests to an API server.

    Every method raises `kubernetes.client.ApiException` where the server refuses, with the HTTP status in
    `status`, and a ClusterError where the server does not answer.

    Args:
        kubeconfig: names the server and the user.
        local: whether the server is on this machine.
    """

    def __init__(self, kubeconfig: Path, *, local: bool = True) -> None:
        configuration = client.Configuration()
        config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        if local:
            # The client takes a proxy from the environment, and none leads back to this machine.
            configuration.proxy = None
        self._http = client.ApiClient(configuration)
        # The client keeps what it discovers in a file named after the server's address, and another cluster
        # gets the same port another day. Once the folder is gone, it keeps that in memory alone.
        with tempfile.TemporaryDirectory() as folder:
            self._client = dynamic.DynamicClient(self._http, cache_file=f"{folder}/discovery.json")
        self._resources: dict[tuple[str, str], Resource | Subresource] = {}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Body | None:
        """Get an object; None if it does not exist."""
        try:
            return self._send("get", kind, name=name, namespace=namespace)
        except NotFoundError:
            return None

    def list(self, kind: str, namespace: str | None = None, labels: str | None = None) -> list[Body]:
        """List the objects of a kind that a label selector chooses, in all namespaces by default."""
        answer = self._send("get", kind, namespace=namespace, label_selector=labels)
        # An empty list may come as null.
        items: list[Body] = answer["items"] or []
        return items

    def create(self, manifest: Mapping[str, Any], parent: str = "") -> Body:
        """Create an object; one without an apiVersion gets that of its kind.

        `parent` is the kind that the object is a subresource of: Pod for a Binding.
        """
        kind, metadata = manifest["kind"], manifest["metadata"]
        arguments = {
            "body": {"apiVersion": _version(kind), **manifest},
            "namespace": metadata.get("namespace"),
        }
        if parent:
            return self._send("create", parent, kind.lower(), name=metadata["name"], **arguments)
        return self._send("create", kind, **arguments)

    def patch(
        self, kind: str, name: str, namespace: str | None, changes: Mapping[str, Any], subresource: str = ""
    ) -> Body:
        """Merge changes into an object, or into its subresource."""
        where = {"name": name, "namespace": namespace}
        return self._send("patch", kind, subresource, body=changes, content_type=_MERGE, **where)

    def delete(self, kind: str, name: str, namespace: str | None = None, **options: Any) -> None:
        """Delete an object. `options` are query parameters, such as `propagation_policy`."""
        self._send("delete", kind, name=name, namespace=namespace, **options)

    def _send(self, verb: str, kind: str, subresource: str = "", **arguments: Any) -> Body:
        resource = self._resources.get((kind, subresource))
        if resource is None:
            resource = self._client.resources.get(api_version=_version(kind), kind=kind)
            if subresource:
                resource = resource.subresources[subresource]
            self._resources[kind, subresource] = resource
        # Not serialised: the client's wrapper of an answer takes several times as long as reading its JSON.
        try:
            answer = getattr(resource, verb)(serialize=False, _request_timeout=patience.REQUEST, **arguments)
        except HTTPError as error:
            raise ClusterError(f"expected an answer to {verb} {kind} {subresource}: {error}") from error
        body: Body = json.loads(answer.data)
        return body


def _version(kind: str) -> str:
    return _VERSIONS.get(kind, "v1")
