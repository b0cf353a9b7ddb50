"""References between resources resolve in any order of arrival, and break for good where they must."""

from typing import Any

from tlt_api import resources
from tlt_api.failures import Reason
from tlt_api.references import Broken, Lookup, Resolved, Waiting, resolve
from tlt_api.resources import Resource

OUTPUT = {"uri": "pvc://d/out"}
DIGEST = "a" * 64


def training(name: str, after: str | None = None, **status: Any) -> Resource:
    model = {"from": {"pruneJobRef": {"name": after}}} if after else {}
    dataset = {
        "uri": "pvc://d/x",
        "targetClassMapping": {"a": "a"},
        "imageSize": {"width": 64, "height": 64},
    }
    return make("TrainingJob", name, {"dataset": dataset, "model": model, "output": OUTPUT}, status)


def prune(name: str, of: str, **status: Any) -> Resource:
    model = {"trainingJobRef": {"name": of}}
    return make("PruneJob", name, {"model": model, "threshold": 0.5, "output": OUTPUT}, status)


def export(name: str, model: dict[str, Any], **status: Any) -> Resource:
    return make("ExportJob", name, {"model": model, "output": OUTPUT}, status)


def make(kind: str, name: str, spec: dict[str, Any], status: dict[str, Any]) -> Resource:
    body = {"apiVersion": "tlt.dev/v1alpha1", "kind": kind, "spec": spec, "status": status}
    return resources.parse({**body, "metadata": {"name": name, "uid": f"uid-{name}"}})


def world(*members: Resource) -> Lookup:
    by_key = {(item.kind.name, item.name): item for item in members}
    return lambda kind, name: by_key.get((kind, name))


def succeeded(*names: str, **more: Any) -> dict[str, Any]:
    artifacts = [{"name": n, "uri": f"pvc://d/{n}.keras", "sha256": DIGEST, "sizeBytes": 1} for n in names]
    return {"phase": "Succeeded", "artifacts": artifacts, **more}


def test_a_training_from_scratch_has_no_input_model() -> None:
    result = resolve(training("t"), world())
    assert isinstance(result, Resolved)
    assert result.inputs.model is None


def test_a_child_waits_for_a_parent_that_does_not_exist_yet() -> None:
    result = resolve(prune("p", "t"), world())
    assert result == Waiting("waits for TrainingJob/t, which does not exist yet")


def test_a_child_waits_for_a_running_parent_and_records_its_uid() -> None:
    result = resolve(prune("p", "t"), world(training("t", phase="Running")))
    assert isinstance(result, Waiting)
    assert result.message == "waits for TrainingJob/t, which is Running"
    assert result.dependency is not None and result.dependency.uid == "uid-t"


def test_a_finished_parent_gives_uri_digest_and_the_records_it_was_trained_on() -> None:
    parent = training("t", **succeeded("best", dataset={"digest": "d1", "recordsUri": "pvc://d/r"}))
    result = resolve(prune("p", "t"), world(parent))
    assert isinstance(result, Resolved)
    assert result.inputs.model is not None and result.inputs.model.sha256 == DIGEST
    assert result.inputs.records is not None and result.inputs.records.digest == "d1"


def test_an_export_of_a_pruned_model_finds_the_records_two_steps_up() -> None:
    data = {"digest": "d1", "recordsUri": "pvc://d/r"}
    members = [training("t", **succeeded("best", dataset=data)), prune("p", "t", **succeeded("model"))]
    result = resolve(export("e", {"pruneJobRef": {"name": "p"}}), world(*members))
    assert isinstance(result, Resolved)
    assert result.inputs.records is not None and result.inputs.records.uri == "pvc://d/r"


def test_a_failed_parent_breaks_its_child_with_the_parents_reason() -> None:
    failure = {"reason": "NaNLoss", "message": "loss is NaN at step 7"}
    result = resolve(prune("p", "t"), world(training("t", phase="Failed", failure=failure)))
    assert isinstance(result, Broken)
    assert result.reason == Reason.DEPENDENCY_FAILED
    assert "NaNLoss: loss is NaN at step 7" in result.message


def test_a_parent_deleted_while_waited_for_is_waited_for_again() -> None:
    recorded = {"kind": "TrainingJob", "name": "t", "uid": "uid-t"}
    result = resolve(prune("p", "t", dependency=recorded), world())
    assert isinstance(result, Waiting)
    assert "TrainingJob/t, which was deleted (uid uid-t): create it again" in result.message
    assert result.dependency and result.dependency.uid == "uid-t"


def test_a_parent_that_was_replaced_is_the_one_that_counts() -> None:
    recorded = {"kind": "TrainingJob", "name": "t", "uid": "uid-older"}
    result = resolve(prune("p", "t", dependency=recorded), world(training("t", **succeeded("best"))))
    assert isinstance(result, Resolved)
    assert result.dependency and result.dependency.uid == "uid-t"


def test_a_reference_cycle_is_reported_with_its_members() -> None:
    members = [training("t", after="p"), prune("p", "t")]
    for member in members:
        result = resolve(member, world(*members))
        assert isinstance(result, Broken)
        assert result.reason == Reason.DEPENDENCY_CYCLE
    assert "TrainingJob/t -> PruneJob/p -> TrainingJob/t" in resolve(members[0], world(*members)).message  # type: ignore[union-attr]


def test_a_child_of_a_reference_cycle_waits_until_the_cycle_fails() -> None:
    members = [training("t", after="p"), prune("p", "t")]
    result = resolve(export("e", {"trainingJobRef": {"name": "t"}}), world(*members))
    assert isinstance(result, Waiting)


def test_a_missing_artifact_is_reported_with_the_existing_ones() -> None:
    result = resolve(prune("p", "t"), world(training("t", **succeeded("last"))))
    assert isinstance(result, Broken)
    assert result.reason == Reason.DEPENDENCY_UNUSABLE
    assert "it has: last" in result.message
