"""Assumptions of the e2e ring: real pods on a real node behave as they do elsewhere."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import patience
from cluster import Images, Node, ObjectStore, steps

Pod = Callable[..., str]


@pytest.fixture
def node(node_cluster: Node) -> Node:
    if not isinstance(node_cluster, Node):
        pytest.skip("these are claims about the node of tests/cluster, and KUBECONFIG names another cluster")
    return node_cluster


@pytest.fixture
def namespace(node: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.replace("_", "-")[:50].rstrip("-")
    node.kubectl("create", "namespace", name)
    node.kubectl("wait", "--for=create", patience.KUBECTL, "serviceaccount/default", "--namespace", name)
    yield name
    node.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def start(node: Node, namespace: str, cluster_images: Images) -> Pod:
    def start_pod(name: str, code: str, *, volumes: tuple[dict, ...] = (), **container: object) -> str:
        main = {
            "name": "main",
            "image": cluster_images.operator,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", code],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **container,
        }
        spec = {"restartPolicy": "Never", "containers": [main], "volumes": list(volumes)}
        metadata = {"name": name, "namespace": namespace}
        node.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        return name

    return start_pod


def _status(node: Node, namespace: str, pod: str) -> dict:
    body = node.api.get("Pod", pod, namespace)
    assert body is not None, f"the pod {pod} does not exist"
    return body["status"]


def _ended(node: Node, namespace: str, pod: str) -> dict:
    """The state in which a pod's container ended, with its log for the reader of a failure."""

    def has_ended() -> bool:
        return _status(node, namespace, pod)["phase"] in ("Succeeded", "Failed")

    steps.until(f"the pod {pod} to end", has_ended, patience.SECONDS)
    state = _status(node, namespace, pod)["containerStatuses"][0]["state"]["terminated"]
    return {**state, "log": node.kubectl("logs", pod, "--namespace", namespace)}


def test_pod_reaches_the_api_server_by_its_service_name(node: Node, namespace: str, start: Pod) -> None:
    code = """
import ssl, urllib.request
trust = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
with urllib.request.urlopen("https://kubernetes.default.svc/readyz", context=trust) as response:
    print(response.read().decode())
"""
    ended = _ended(node, namespace, start("caller", code))

    assert (ended["exitCode"], ended["log"]) == (0, "ok\n"), ended


def test_service_name_of_a_pod_resolves_and_connects_to_it(node: Node, namespace: str, start: Pod) -> None:
    start(
        "server",
        "import http.server as h; h.HTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()",
    )
    node.kubectl("label", "pod", "server", "app=server", "--namespace", namespace)
    node.kubectl("expose", "pod", "server", "--port=80", "--target-port=8080", "--namespace", namespace)
    node.kubectl("wait", "--for=condition=Ready", patience.KUBECTL, "pod/server", "--namespace", namespace)
    code = """
import time, urllib.error, urllib.request
for attempt in range(500):
    try:
        print(urllib.request.urlopen("http://server/", timeout=2).status)
        break
    except (urllib.error.URLError, OSError) as error:
        time.sleep(0.2)
else:
    raise SystemExit(f"the service did not answer: {error}")
"""
    ended = _ended(node, namespace, start("client", code))

    assert (ended["exitCode"], ended["log"]) == (0, "200\n"), ended


def test_host_reads_what_the_pod_user_wrote_to_a_claim(node: Node, namespace: str, start: Pod) -> None:
    folder = node.persistent_volume("results", namespace, "1Gi")
    code = "import os, pathlib; pathlib.Path('/results/who').write_text(str(os.getuid()))"
    volume = {"name": "results", "persistentVolumeClaim": {"claimName": "results"}}

    ended = _ended(
        node,
        namespace,
        start("writer", code, volumes=(volume,), volumeMounts=[{"name": "results", "mountPath": "/results"}]),
    )

    assert ended["exitCode"] == 0, ended
    assert (folder / "who").read_text() == "65532"
    assert (folder / "who").stat().st_uid == 65532


def test_second_pod_waits_while_the_only_gpu_is_taken(node: Node, namespace: str, start: Pod) -> None:
    node.set_gpus(1)
    one_gpu = {"limits": {"nvidia.com/gpu": "1"}}
    start("first", "import time; time.sleep(600)", resources=one_gpu)
    node.kubectl("wait", "--for=condition=Ready", patience.KUBECTL, "pod/first", "--namespace", namespace)

    start("second", "print('never')", resources=one_gpu)
    node.kubectl(
        "wait", "--for=condition=PodScheduled=false", patience.KUBECTL, "pod/second", "--namespace", namespace
    )

    status = _status(node, namespace, "second")
    assert status["phase"] == "Pending"
    assert "Insufficient nvidia.com/gpu" in status["conditions"][0]["message"]


def test_container_beyond_its_memory_limit_is_reported_as_oom_killed(
    node: Node, namespace: str, start: Pod
) -> None:
    limits = {"limits": {"memory": "64Mi"}}

    ended = _ended(node, namespace, start("eater", "bytearray(512 << 20)", resources=limits))

    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_object_put_by_a_pod_is_a_file_on_the_host(
    node: Node, namespace: str, start: Pod, s3: ObjectStore
) -> None:
    bucket = s3.make_bucket("artifacts")
    bucket.joinpath("given.txt").write_text("from the host")
    # The operator image has no S3 client: the standard library signs the two requests.
    environment = [{"name": name, "value": value} for name, value in s3.environment.items()]
    code = Path(__file__).with_name("s3_client.py").read_text()

    ended = _ended(node, namespace, start("client", code, env=environment))

    assert (ended["exitCode"], ended["log"]) == (0, "from the host\n"), ended
    assert bucket.joinpath("made.txt").read_text() == "from a pod"
