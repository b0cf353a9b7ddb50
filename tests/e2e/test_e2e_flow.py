"""The whole flow on a real node: four resources applied at once; the figures that the product promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import patience
from demo import loader
from e2e.product import Product, make_namespace
from tlt_runner.data.sample_digits import Scenes

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples" / "digits"
NAMESPACE = "flow"


@pytest.fixture(scope="module")
def flow(product: Product) -> dict[str, dict[str, Any]]:
    """The statuses after the four samples were applied at once, children first, and all have finished."""
    make_namespace(product, NAMESPACE, Scenes())
    for file in ("export", "retrain", "prune", "train"):
        document = yaml.safe_load((SAMPLES / f"{file}.yaml").read_text())
        product.cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(document))
    names = {
        "train": ("TrainingJob", "digits"),
        "prune": ("PruneJob", "digits-pruned"),
        "retrain": ("TrainingJob", "digits-retrained"),
        "export": ("ExportJob", "digits"),
    }
    return {
        step: product.wait_finished(kind, name, NAMESPACE, limit_s=2 * patience.MINUTES)
        for step, (kind, name) in names.items()
    }


pytestmark = pytest.mark.timeout(5 * patience.MINUTES)


def test_all_four_resources_succeed_at_the_first_attempt(flow: dict[str, dict[str, Any]]) -> None:
    assert {step: (status["phase"], status["attempt"]) for step, status in flow.items()} == {
        step: ("Succeeded", 1) for step in ("train", "prune", "retrain", "export")
    }


def test_the_base_model_reaches_the_promised_map(flow: dict[str, dict[str, Any]]) -> None:
    assert flow["train"]["metrics"]["mAP"] >= 0.85
    assert len(flow["train"]["metrics"]["perClass"]) == 10


def test_pruning_takes_at_least_two_fifths_of_the_parameters(flow: dict[str, dict[str, Any]]) -> None:
    assert flow["prune"]["pruning"]["ratio"] <= 0.6


def test_retraining_comes_back_to_the_base_models_map(flow: dict[str, dict[str, Any]]) -> None:
    assert flow["retrain"]["metrics"]["mAP"] >= flow["train"]["metrics"]["mAP"] - 0.03


def test_onnx_in_fp32_and_fp16_is_as_good_as_keras(flow: dict[str, dict[str, Any]]) -> None:
    exports = {item["precision"]: item for item in flow["export"]["exports"]}
    assert set(exports) == {"fp32", "fp16"}
    for export in exports.values():
        assert abs(export["mAPDrop"]) <= 0.01


def test_every_artifact_is_on_the_volume_with_its_digest(
    product: Product, flow: dict[str, dict[str, Any]]
) -> None:
    artifacts = {item["name"]: item for status in flow.values() for item in status["artifacts"]}
    assert {"best", "last", "model", "plan", "onnx-fp32", "onnx-fp16"} <= set(artifacts)
    assert any(name.startswith("engine-") for name in artifacts)
    sums = "\n".join(
        f"{item['sha256']}  /data/{item['uri'].removeprefix('pvc://tlt-data/')}"
        for item in artifacts.values()
    )
    code = "import hashlib, sys\nfor line in sys.stdin.read().splitlines():\n" + (
        "    digest, name = line.split('  ')\n"
        "    assert hashlib.sha256(open(name, 'rb').read()).hexdigest() == digest, name\n"
    )
    with loader.pod(product.cluster, product.images.runner, NAMESPACE, "tlt-data"):
        checked = loader.execute(product.cluster, NAMESPACE, code, sums.encode())
    assert checked.returncode == 0, checked.stderr.decode()


def test_kubectl_get_shows_epoch_map_and_phase(product: Product, flow: dict[str, dict[str, Any]]) -> None:
    header, *rows = product.cluster.kubectl("get", "tj", "-n", NAMESPACE).splitlines()
    assert header.split()[:4] == ["NAME", "PHASE", "EPOCH", "MAP"]
    for row in rows:
        cells = row.split()
        assert cells[1] == "Succeeded"
        assert int(cells[2]) > 0
        assert float(cells[3]) > 0.5


def test_every_transition_left_an_event(product: Product, flow: dict[str, dict[str, Any]]) -> None:
    events = product.list("Event", NAMESPACE)
    mine = {e["reason"] for e in events if e["involvedObject"]["name"] == "digits-pruned"}
    assert {"WaitingForDependency", "Succeeded"} <= mine, mine
