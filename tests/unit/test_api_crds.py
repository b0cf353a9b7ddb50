"""The committed CRDs are those of the models, and every sample is valid."""

from pathlib import Path

import pytest
import yaml

from tlt_api import crdgen, resources
from tlt_api.resources import KINDS, Kind

ROOT = Path(__file__).parents[2]
CLIENT_SIDE_APPLY_LIMIT = 256 * 1024


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_the_committed_crd_is_the_generated_one(kind: Kind) -> None:
    committed = (ROOT / "crds" / f"{resources.crd_name(kind)}.yaml").read_text()
    assert committed == crdgen.to_yaml(kind), "run make generate"
    assert len(committed) < CLIENT_SIDE_APPLY_LIMIT


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_every_field_of_the_spec_is_described(kind: Kind) -> None:
    spec = crdgen.custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    undescribed = [
        name
        for node in crdgen._walk(spec["properties"]["spec"])
        for name, child in node.get("properties", {}).items()
        if not child.get("description")
    ]
    assert undescribed == []


def sample_documents() -> list[dict[str, object]]:
    files = sorted((ROOT / "manifests" / "samples").rglob("*.yaml"))
    documents = [item for file in files for item in yaml.safe_load_all(file.read_text())]
    return [item for item in documents if str(item.get("apiVersion", "")).startswith("tlt.dev/")]


def test_every_sample_follows_the_models() -> None:
    samples = sample_documents()
    assert samples
    for document in samples:
        resources.parse(document)
