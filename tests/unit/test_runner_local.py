"""Local flows without running anything: order, identity, what is done already, and what the tables show."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tlt_api import references, resources
from tlt_api.base import API_VERSION
from tlt_api.failures import Reason
from tlt_api.resources import Resource
from tlt_api.runreport import RunReport
from tlt_api.status import Artifact, Dependency, Inputs, Metrics, Phase, Progress
from tlt_runner import exits
from tlt_runner.commands import COMMANDS
from tlt_runner.errors import RunnerError
from tlt_runner.local import checks, flow, table, transitions
from tlt_runner.local.state import Folders, ResourceStore, body_of
from tlt_runner.local.view import PlainView

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RESOLVED = references.Resolved(Inputs())


def training(name: str, start: str | None = None, **spec: Any) -> Resource:
    model = {"model": {"from": {"pruneJobRef": {"name": start}}}} if start else {}
    dataset = {
        "uri": "pvc://data/digits",
        "targetClassMapping": {"one": "one"},
        "imageSize": {"width": 64, "height": 64},
    }
    return parse(
        "TrainingJob", name, {"dataset": dataset, "output": {"uri": "pvc://data/out"}, **model, **spec}
    )


def pruning(name: str, parent: str) -> Resource:
    model = {"trainingJobRef": {"name": parent}}
    return parse("PruneJob", name, {"model": model, "threshold": 0.5, "output": {"uri": "pvc://data/p"}})


def export(name: str, parent: str) -> Resource:
    model = {"trainingJobRef": {"name": parent}}
    return parse("ExportJob", name, {"model": model, "output": {"uri": "pvc://data/e"}})


def parse(kind: str, name: str, spec: dict[str, Any]) -> Resource:
    return resources.parse(
        {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
    )


def nothing(_kind: str, _name: str) -> Resource | None:
    return None


def done(resource: Resource, report: RunReport | None = None) -> Resource:
    begun = transitions.begun(transitions.new(resource, NOON), RESOLVED, NOON)
    return transitions.succeeded(transitions.reported(begun, report or RunReport()), NOON)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders.of(tmp_path / "state", None)


def test_each_resource_comes_after_what_it_refers_to() -> None:
    flow = [export("e", "retrained"), training("retrained", "p"), pruning("p", "t"), training("t")]
    ordered = checks.in_order(flow, nothing)
    assert [item.key for item in ordered] == [
        "TrainingJob/t",
        "PruneJob/p",
        "TrainingJob/retrained",
        "ExportJob/e",
    ]


def test_independent_resources_keep_their_order() -> None:
    flow = [training("b"), training("a"), training("c")]
    assert [item.name for item in checks.in_order(flow, nothing)] == ["b", "a", "c"]


def test_a_circle_is_refused() -> None:
    with pytest.raises(RunnerError) as caught:
        checks.in_order([training("t", "p"), pruning("p", "t")], nothing)
    assert caught.value.reason == Reason.DEPENDENCY_CYCLE


def test_a_reference_may_lead_to_an_earlier_run_that_succeeded() -> None:
    earlier = done(training("t"))
    ordered = checks.in_order([pruning("p", "t")], lambda kind, name: earlier)
    assert [item.name for item in ordered] == ["p"]


def test_a_reference_to_an_earlier_run_that_failed_is_refused() -> None:
    failed = transitions.failed(training("t"), exits.failure(Reason.NO_LABELS, "none"), NOON)
    with pytest.raises(RunnerError, match="is Failed since an earlier local run"):
        checks.in_order([pruning("p", "t")], lambda kind, name: failed)


def test_finished_work_is_not_done_again(folders: Folders) -> None:
    assert checks.finished(training("t"), done(training("t")), None, folders) == (True, "")


@pytest.mark.parametrize(("again", "expected"), [(False, ["new"]), (True, ["finished", "new"])])
def test_only_what_is_to_run_needs_its_data_set(folders: Folders, again: bool, expected: list[str]) -> None:
    state = ResourceStore(folders.state)
    state.save(done(training("finished")))
    with state.locked() as lock:
        run = flow.Flow([training("finished"), training("new")], folders, state, lock, again=again)
    assert [item.name for item in run.unfinished()] == expected


def test_a_changed_spec_is_run_again(folders: Folders) -> None:
    changed = training("t", training={"epochs": 3})
    assert checks.finished(changed, done(training("t")), None, folders) == (
        False,
        "its spec has changed since it succeeded",
    )


def test_suspend_and_run_policy_do_not_change_the_work(folders: Folders) -> None:
    other = training("t", suspend=True, runPolicy={"maxRetries": 5})
    assert checks.finished(other, done(training("t")), None, folders)[0]


def test_a_parent_that_ran_again_makes_its_dependants_run_again(folders: Folders) -> None:
    parent = done(training("t"))
    dependency = Dependency(kind="TrainingJob", name="t", uid=parent.uid)
    begun = transitions.begun(
        transitions.new(pruning("p", "t"), NOON), references.Resolved(Inputs(), dependency), NOON
    )
    stored = transitions.succeeded(begun, NOON)
    assert checks.finished(pruning("p", "t"), stored, parent, folders)[0]
    again = done(training("t"))
    finished, why = checks.finished(pruning("p", "t"), stored, again, folders)
    assert (finished, why) == (False, "TrainingJob/t, from which it starts, has run again since")


def test_a_lost_artifact_is_made_again(folders: Folders) -> None:
    made = Artifact(name="best", uri="pvc://data/best.keras", sha256="0" * 64, size_bytes=3)
    stored = done(training("t"), RunReport(artifacts=[made]))
    finished, why = checks.finished(training("t"), stored, None, folders)
    assert not finished
    assert "pvc://data/best.keras" in why
    path = folders.volumes / "data" / "best.keras"
    path.parent.mkdir(parents=True)
    path.write_text("abc")
    assert checks.finished(training("t"), stored, None, folders)[0]


def test_fields_without_effect_in_a_local_run_are_named() -> None:
    resource = training(
        "t", resources={"gpus": 0, "memory": "1Gi"}, podTemplate={"image": "x"}, runPolicy={"maxRetries": 1}
    )
    assert checks.not_applied(resource) == ["runPolicy", "resources.memory", "podTemplate (all but env)"]
    assert checks.not_applied(training("t", podTemplate={"env": [{"name": "A", "value": "b"}]})) == []


@pytest.mark.parametrize("way", ["run", "train"])
def test_a_training_over_several_nodes_is_refused_before_anything_starts(
    way: str, folders: Folders, tmp_path: Path
) -> None:
    file = tmp_path / "flow.json"
    file.write_text(json.dumps(body_of(training("t", resources={"gpus": 0, "nodes": 4}))))
    with pytest.raises(RunnerError) as caught:
        if way == "run":
            flow.run_all(file, folders, again=False)
        else:
            flow.run_one(COMMANDS["train"], file, folders)
    assert caught.value.reason == Reason.INVALID_SPEC
    for part in ("TrainingJob/t", "spec.resources.nodes", "got 4", "1/4 of the images a step"):
        assert part in str(caught.value)
    assert ResourceStore(folders.state).load("TrainingJob", "t") is None


def test_the_resource_with_several_nodes_is_named() -> None:
    checks.require_one_node([training("t"), pruning("p", "t")])
    with pytest.raises(RunnerError, match="TrainingJob/u"):
        checks.require_one_node([training("t"), training("u", resources={"gpus": 0, "nodes": 2})])


def test_an_attempt_after_a_failure_keeps_the_uid_and_the_history() -> None:
    first = transitions.begun(transitions.new(training("t"), NOON), RESOLVED, NOON)
    failed = transitions.failed(first, exits.failure(Reason.NAN_LOSS, "NaN"), NOON)
    second = transitions.begun(transitions.resumed(training("t"), failed, NOON), RESOLVED, NOON)
    assert second.uid == first.uid
    assert second.status.attempt == 2
    assert [(item.attempt, item.reason) for item in second.status.history or ()] == [(1, "NaNLoss")]
    assert second.status.failure is None
    assert second.status.completion_time is None


def test_an_attempt_without_a_recorded_end_counts_as_interrupted() -> None:
    lost = transitions.begun(transitions.new(training("t"), NOON), RESOLVED, NOON)
    second = transitions.begun(transitions.resumed(training("t"), lost, NOON), RESOLVED, NOON)
    assert [item.reason for item in second.status.history or ()] == ["Interrupted"]


def test_an_interrupted_run_is_suspended_and_not_complete() -> None:
    begun = transitions.begun(transitions.new(training("t"), NOON), RESOLVED, NOON)
    stopped = transitions.failed(begun, exits.failure(Reason.INTERRUPTED, "stopped"), NOON)
    assert stopped.status.phase == Phase.SUSPENDED
    assert stopped.status.completion_time is None


def test_conditions_follow_the_phase_and_keep_their_time() -> None:
    later = NOON + timedelta(hours=1)
    begun = transitions.begun(transitions.new(training("t"), NOON), RESOLVED, NOON)
    ended = transitions.succeeded(begun, later)
    conditions = {item.type: (item.status, item.last_transition_time) for item in ended.status.conditions}
    assert conditions["Ready"] == ("True", "2026-01-01T13:00:00Z")
    assert conditions["Complete"] == ("True", "2026-01-01T13:00:00Z")
    assert conditions["Reconciling"] == ("False", "2026-01-01T13:00:00Z")
    assert conditions["Failed"] == ("False", "2026-01-01T12:00:00Z")


def test_a_report_fills_only_the_fields_of_its_kind() -> None:
    begun = transitions.begun(transitions.new(pruning("p", "t"), NOON), RESOLVED, NOON)
    after = transitions.reported(begun, RunReport(progress=Progress(step=3), metrics=Metrics(m_ap=0.5)))
    wire = after.status.to_wire()
    assert wire["progress"] == {"step": 3}
    assert "metrics" not in wire


def test_state_is_what_kubectl_would_show_and_reads_back_as_it_was(tmp_path: Path) -> None:
    state = ResourceStore(tmp_path)
    resource = done(training("t"), RunReport(metrics=Metrics(m_ap=0.5)))
    state.save(resource)
    body = json.loads((tmp_path / "status" / "TrainingJob-t.json").read_text())
    assert (body["kind"], body["metadata"]["uid"]) == ("TrainingJob", resource.uid)
    assert body["status"]["metrics"] == {"mAP": 0.5}
    assert body["spec"]["training"]["epochs"] == 100
    assert state.load("TrainingJob", "t") == resource
    assert state.load("TrainingJob", "other") is None


def test_two_runs_do_not_share_a_state_folder(tmp_path: Path) -> None:
    with (
        ResourceStore(tmp_path).locked(),
        pytest.raises(RunnerError, match="another local run"),
        ResourceStore(tmp_path).locked(),
    ):
        pass


def test_addresses_lead_to_the_volumes_folder(folders: Folders) -> None:
    assert folders.path_of("pvc://data/a/b") == folders.volumes / "data" / "a" / "b"
    assert folders.path_of("file:///data/a") == Path("/data/a")
    assert folders.path_of("s3://bucket/a") is None


def test_the_table_has_the_columns_of_kubectl_get() -> None:
    report = RunReport(progress=Progress(epoch=3), metrics=Metrics(m_ap=0.87654))
    (rows,) = table.by_kind([done(training("t"), report)], NOON + timedelta(minutes=5))
    assert dict(zip(*rows, strict=True)) == {
        "NAME": "t",
        "PHASE": "Succeeded",
        "EPOCH": "3",
        "MAP": "0.8765",
        "ETA": "",
        "GPUS": "1",
        "ATTEMPT": "1",
        "AGE": "5m",
    }


def test_a_failed_flow_prints_reason_hint_and_log(folders: Folders) -> None:
    begun = transitions.begun(transitions.new(training("t"), NOON), RESOLVED, NOON)
    failed = transitions.failed(begun, exits.failure(Reason.NAN_LOSS, "loss is NaN at step 3"), NOON)
    text = "\n".join(table.of_flow([failed], folders, {failed.key: Path("/log.txt")}, NOON))
    for part in ("NaNLoss: loss is NaN at step 3", "learningRate.max", "/log.txt", "does not retry"):
        assert part in text


def test_plain_output_prints_each_phase_once() -> None:
    printed: list[str] = []
    view = PlainView(printed.append)
    begun = transitions.begun(transitions.new(training("t"), NOON), RESOLVED, NOON)
    view.show([begun], NOON)
    view.show([begun], NOON)
    view.show([transitions.reported(begun, RunReport(progress=Progress(stage="train", epoch=1)))], NOON)
    view.show([transitions.succeeded(begun, NOON)], NOON)
    assert printed == [
        "TrainingJob/t: Running: starting",
        "TrainingJob/t: train, epoch 1",
        "TrainingJob/t: Succeeded",
    ]


def test_the_stored_body_is_accepted_as_a_resource() -> None:
    resource = replace(done(training("t")), namespace="default")
    assert resources.parse(body_of(resource)) == resource


@pytest.mark.parametrize("name", ["../../evil", "a/b", "/evil"])
def test_no_name_leads_out_of_the_state_folder(tmp_path: Path, name: str) -> None:
    folders = Folders.of(tmp_path / "state", None)
    outside = replace(training("t"), name=name)
    with pytest.raises(RunnerError, match="expected a name without '/'"):
        ResourceStore(folders.state).save(outside)
    with pytest.raises(RunnerError, match="expected a name without '/'"):
        folders.run_folder("TrainingJob", name)
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["state", "status"]
