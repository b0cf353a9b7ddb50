"""Manifests agree with the models, and generated parts are current."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tlt_api import manifestgen
from tlt_api.resources import KINDS, crd_name
from tlt_api.status import OPERATOR_FIELDS, RUNNER_FIELDS, JobStatus, OperatorStatus, RunnerStatus, wire_names

ROOT = Path(__file__).parents[2]
BASE = ROOT / "manifests" / "base"
PLURALS = {kind.plural for kind in KINDS.values()}


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def rules(file: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rules of the roles in a manifest that are about our kinds."""
    roles = [item for item in documents(file) if item["kind"] == kind]
    return [rule for role in roles for rule in role["rules"] if rule["apiGroups"] == ["tlt.dev"]]


@pytest.mark.parametrize("name", manifestgen.FILES)
def test_generated_parts_are_those_of_the_models(name: str) -> None:
    text = (ROOT / name).read_text()
    assert manifestgen.generated(text) == text, "run: make generate"


def test_a_kind_that_is_missing_in_a_manifest_is_added() -> None:
    text = "- apiGroups: [tlt.dev]\n  resources: [trainingjobs]  # generated: kinds\n  verbs: [get]\n"
    (rule,) = yaml.safe_load(manifestgen.generated(text))
    assert set(rule["resources"]) == PLURALS
    assert rule["verbs"] == ["get"]


def test_an_unknown_generated_part_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="got 'kindz'"):
        manifestgen.generated("resources: []  # generated: kindz\n")


def test_the_policy_keeps_runners_off_every_field_of_the_operator() -> None:
    (policy, _) = documents(BASE / "runner-policy.yaml")
    expressions = " ".join(item["expression"] for item in policy["spec"]["validations"])
    kept = re.findall(r"object\.\?status\.\?(\w+) == oldObject\.\?status\.\?\1\b", expressions)
    assert kept == wire_names(OperatorStatus)


def test_the_denial_of_the_policy_lists_every_field_of_the_runner() -> None:
    (policy, _) = documents(BASE / "runner-policy.yaml")
    message = policy["spec"]["validations"][-1]["message"]
    assert re.search(r"\((.*)\)", message)[1].split(", ") == wire_names(RunnerStatus)


def test_every_field_of_a_status_is_the_operators_or_the_runners() -> None:
    assert not OPERATOR_FIELDS & RUNNER_FIELDS
    for kind in KINDS.values():
        assert set(kind.status.model_fields) <= OPERATOR_FIELDS | RUNNER_FIELDS
    assert set(JobStatus.model_fields) >= OPERATOR_FIELDS


def test_the_roles_of_operator_and_runner_name_every_kind() -> None:
    read, write = rules(BASE / "operator-rbac.yaml", "ClusterRole")
    assert (set(read["resources"]), read["verbs"]) == (PLURALS, ["get", "list", "watch"])
    (report,) = rules(BASE / "runner-clusterrole.yaml", "ClusterRole")
    for rule in (write, report):
        assert set(rule["resources"]) == {f"{plural}/status" for plural in PLURALS}
        assert rule["verbs"] == ["patch"]


def test_every_crd_is_installed() -> None:
    (kustomization,) = documents(ROOT / "crds" / "kustomization.yaml")
    assert set(kustomization["resources"]) == {f"{crd_name(kind)}.yaml" for kind in KINDS.values()}
