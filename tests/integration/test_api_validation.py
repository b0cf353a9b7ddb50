"""``tlt validate`` and a real API server give the same verdict, and read YAML alike."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import binaries, steps
from cluster.control_plane import ControlPlane
from cluster.errors import ClusterError
from manifest_texts import PRUNE, TRAIN
from tlt_api.resources import KINDS
from tlt_runner import admission, kubectl_yaml, manifests
from violations import ALL, Violation


def refusal(cluster: ControlPlane, text: str) -> str | None:
    """Return what the API server says against a manifest, or None if it takes it."""
    try:
        cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=text)
    except ClusterError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("kind", "violation"), ALL, ids=lambda item: item if isinstance(item, str) else item.message
)
def test_a_broken_rule_has_one_message_for_both(
    installed: ControlPlane, kind: str, violation: Violation
) -> None:
    (problem,) = admission.problems(kind, violation.body)
    answer = refusal(installed, json.dumps(violation.body)) or ""
    assert problem.message in answer, answer


def _metadata(text: str) -> str:
    return TRAIN.replace("{name: digits}", f"{{name: digits, {text}}}")


def _name(text: str) -> str:
    return TRAIN.replace("{name: digits}", f"{{name: {text}}}")


def _mapping(text: str) -> str:
    return TRAIN.replace("{one: one}", f"{{{text}}}")


def _spec(text: str) -> str:
    return f"{TRAIN}  {text}\n"


MANIFESTS = {
    "valid": TRAIN,
    **{
        f"name {text}": _name(text)
        for text in ("my_job", "Cars", '"../../evil"', "-a", "a-", '"7"', "7", "n")
    },
    **{f"name of {length}": _name("x" * length) for length in (40, 41, 254)},
    "name with a dot": _name("a.b"),
    **{
        f"metadata {text}": _metadata(text)
        for text in (
            "namespace: My_Team",
            "namespace: default",
            "labels: {team: a b}",
            "labels: {team: a.B-c_1}",
            "labels: {team: ''}",
            "labels: {-team: a}",
            "labels: {example.com/team: a}",
            "labels: {Example.com/team: a}",
            "labels: {a/b/c: a}",
            "labels: {team: 1}",
            "labels: {team: no}",
            "labels: {team: }",
            "labels: {7: a}",
            "annotations: {Example.com/x: any text}",
            "annotations: {x: 0.5}",
            "annotations: {a//b: x}",
            "nmae: x",
        )
    },
    "label of 64": _metadata("labels: {team: " + "a" * 64 + "}"),
    **{
        f"mapping {text}": _mapping(text)
        for text in (
            "0: zero",
            "no: x",
            "n: x",
            "y: x",
            "'n': x",
            '"no": x',
            "yes: x",
            "on: x",
            "off: x",
            "true: x",
            "010: x",
            "1.0: x",
            "1e3: x",
            "1:30: x",
            "2026-01-01: x",
            "one: 1",
            "one: no",
            "one: n",
            "one: 2026-01-01",
            "one: ",
            "one: one, two: ",
            "~: x",
            "'': x",
            "one: ''",
        )
    },
    "no mapping": _mapping(""),
    **{
        f"spec {text}": _spec(text)
        for text in (
            "training: {epochs: 3.0}",
            "training: {epochs: 3.5}",
            'training: {epochs: "3"}',
            "training: {epochs: 1e1}",
            "training: {epochs: 0x10}",
            "training: {epochs: 010}",
            "training: {epochs: 0}",
            "training: {epochs: yes}",
            "training: {epochs: }",
            "training: ",
            "training: {epoch: 3}",
            "training: []",
            "training: {learningRate: {max: 1}}",
            "training: {learningRate: {max: .5}}",
            "training: {learningRate: {max: 5e-6}}",
            "training: {learningRate: {max: '0.1'}}",
            "training: {learningRate: {max: 1.0, min: 2}}",
            "suspend: no",
            "suspend: n",
            "suspend: 'no'",
            "suspend: 0",
            "model: {freezeBlocks: [0, 1.0]}",
            "model: {freezeBlocks: [0, 1.5]}",
            "model: {freezeBlocks: [0, ]}",
            "model: {freezeBlocks: [0, null]}",
            "model: {backbone: ResNet18}",
            "model: {from: }",
            "model: {from: {trainingJobRef: {name: My_Job}}}",
            "podTemplate: {nodeSelector: {gpu: yes}}",
            "podTemplate: {nodeSelector: {gpu: 'yes'}}",
            "podTemplate: {env: [{name: A, value: 1}]}",
            "podTemplate: {env: [{name: A-B, value: x}]}",
            "podTemplate: {env: [{name: A}]}",
            "resources: {gpus: 17}",
            "resources: {memory: 3}",
            "resources: {memory: 3Gi}",
            "resources: {memory: 3 GB}",
            "storage: {s3: {endpoint: 'minio:9000'}}",
        )
        if not text.startswith("resources")
    },
    **{
        f"resources {text}": TRAIN.replace("{gpus: 0}", text)
        for text in (
            "{gpus: 17}",
            "{gpus: 16}",
            "{memory: 3}",
            "{memory: 3Gi}",
            "{memory: 3 GB}",
            "{cpu: 1e3}",
        )
    },
    **{
        f"output {text}": TRAIN.replace("pvc://data/out", text)
        for text in (
            '"pvc://data\\n"',
            "/data/out",
            "pvc://Data/x",
            "s3://bucket/a/",
            "pvc://data//x",
            "''",
            "7",
        )
    },
    "no output": TRAIN.replace("  output: {uri: pvc://data/out}\n", ""),
    "no spec": TRAIN.partition("spec:")[0],
    "an empty spec": TRAIN.partition("spec:")[0] + "spec: {}\n",
    "another field beside the spec": TRAIN + "specs: {}\n",
    "a status": TRAIN + "status: {phase: Running}\n",
    "prune": PRUNE,
    "a whole threshold": PRUNE.replace("0.5", "1"),
    "a threshold of l2": PRUNE.replace("0.5", "1\n  normalizer: l2"),
}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS)
def test_the_verdict_is_that_of_the_api_server(installed: ControlPlane, tmp_path: Path, text: str) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(text)
    problems = manifests.read(file).problems
    answer = refusal(installed, text)
    assert bool(problems) == (answer is not None), (problems, answer)


def test_a_key_that_stands_twice_is_refused_although_kubectl_drops_one_silently(
    installed: ControlPlane, tmp_path: Path
) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(_mapping("one: a, one: b"))
    (problem,) = manifests.read(file).problems
    assert "the key 'one' stands twice" in problem
    assert refusal(installed, file.read_text()) is None


def test_an_address_of_this_machine_is_refused_by_a_cluster_as_said(
    installed: ControlPlane, tmp_path: Path
) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(TRAIN.replace("pvc://data/digits", "file:///data/digits"))
    (document,) = manifests.read(file).documents
    answer = refusal(installed, file.read_text()) or ""
    assert "spec.dataset.uri" in answer
    assert document.local[0].startswith("spec.dataset.uri: ")


SCALARS = (
    *(
        [
            "0",
            "no",
            "No",
            "NO",
            "yes",
            "y",
            "n",
            "Y",
            "N",
            "on",
            "off",
            "On",
            "OFF",
            "true",
            "True",
            "TRUE",
            "false",
            "010",
            "0o10",
            "0x10",
            "0b11",
            "1_000",
            "1.0",
            "1.50",
        ]
    ),
    *(
        [
            "1e3",
            "1E3",
            "1.",
            "5e-6",
            ".5",
            "+1",
            "-1",
            "1:30",
            "12:30:45",
            "1:30.5",
            "2026-01-01",
            "2026-01-01T10:00:00Z",
            "=",
            "<",
            "0777",
            "08",
        ]
    ),
    *(
        [
            "-0",
            "0.0",
            "1.0e+3",
            "12e03",
            "0x1p3",
            "_1",
            "1__0",
            "+.5",
            "00",
            "0_1",
            "190:20:30",
            "a",
            "0.1",
            "1e21",
            "123456789.125",
            "0.0000001",
        ]
    ),
    *(
        [
            "1e5",
            "1e6",
            "123456.7",
            "1234567",
            "0.0001",
            "0.00001",
            "3.0e20",
            "5e-324",
            "-",
            "-.5",
            "1_0.5",
            "yEs",
            "nO",
            "oN",
            "Null",
        ]
    ),
)


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_scalar_is_read_as_kubectl_reads_it(scalar: str) -> None:
    text = f"apiVersion: tlt.dev/v1\nkind: X\nmetadata: {{name: a}}\nm:\n  {scalar}: z\nv: {scalar}\n"
    kubectl = binaries.binary("kubectl")
    try:
        answer = steps.run(
            kubectl, "annotate", "--local", "-f", "-", "-o", "json", "a=b", stdin=text, check=True
        )
    except ClusterError:
        with pytest.raises(yaml.YAMLError):
            _read(text)
        return
    expected = json.loads(answer)
    assert _read(text) == {"m": expected["m"], "v": expected["v"]}


def _read(text: str) -> dict[str, Any]:
    body = yaml.load(text, Loader=kubectl_yaml.Loader)
    return {name: body[name] for name in ("m", "v")}


def test_kinds_of_the_api_are_all_there() -> None:
    assert {kind for kind, _ in ALL} == set(KINDS)
