"""A runner reads the RunSpec of an operator that is a minor version older or newer."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from operator_ring.manifests import resource
from tlt_api import resources, runspec
from tlt_api.resources import KINDS, InvalidResourceError
from tlt_api.runspec import PROGRESS_VARIABLE, RunSpec
from tlt_api.status import Inputs, ResolvedModel, ResolvedRecords
from tlt_runner import process
from tlt_runner.errors import RunnerError

SCHEMAS = Path(__file__).parent.parent / "fixtures" / "runspec-0.1.0" / "schemas.json"
KIND_NAMES = sorted(KINDS)
NEW = "fieldOfTomorrow"


def wire_of(kind: str, **spec: Any) -> dict[str, Any]:
    """Return the RunSpec of a kind as JSON, with all sections that have a default and lists of objects."""
    more: dict[str, Any] = {"podTemplate": {"env": [{"name": "A", "value": "b"}]}, **spec}
    body = resource(kind, **more)
    body["metadata"] |= {"uid": "u-1", "generation": 1}
    parsed = resources.parse(body)
    inputs = Inputs(
        model=ResolvedModel(uri="pvc://runs/best.keras", sha256="0" * 64),
        records=ResolvedRecords(uri="pvc://runs/records", digest="d"),
    )
    wire: dict[str, Any] = json.loads(runspec.for_attempt(parsed, parsed.spec, inputs, attempt=1).to_json())
    return wire


def objects(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every object of our types; the keys of some mappings are the user's."""
    if isinstance(node, dict) and path[-1:] not in (("targetClassMapping",), ("nodeSelector",)):
        yield path
        for name, value in node.items():
            yield from objects(value, (*path, name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from objects(value, (*path, index))


def text_of(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def read(kind: str, wire: dict[str, Any], folder: Path) -> RunSpec:
    file = folder / "run.json"
    file.write_text(json.dumps(wire))
    return process.read_run_spec(file, KINDS[kind].command)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_newer_operators_fields_are_ignored_at_every_level_and_named_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wire = wire_of(kind)
    expected = read(kind, wire, tmp_path)
    newer = copy.deepcopy(wire)
    paths = list(objects(wire))
    assert len(paths) > 8
    for path in paths:
        node: Any = newer
        for part in path:
            node = node[part]
        node[NEW] = {"a": 1}
    with caplog.at_level(logging.WARNING):
        assert read(kind, newer, tmp_path) == expected
    (record,) = caplog.records
    assert "because the operator is newer, are ignored" in record.getMessage()
    assert isinstance(record.args, tuple)
    named = str(record.args[1]).split(", ")
    assert sorted(named) == sorted(text_of((*path, NEW)) for path in paths)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_run_spec_of_this_version_has_no_unknown_field(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read(kind, wire_of(kind), tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_what_an_older_operator_did_not_write_has_its_default(kind: str, tmp_path: Path) -> None:
    wire = wire_of(kind)
    # What a manifest must have, and what every operator has written.
    older = {
        "owner": {name: wire["owner"][name] for name in ("kind", "namespace", "name", "uid")},
        "attempt": 1,
        "spec": resource(kind)["spec"],
    }
    run = read(kind, older, tmp_path)
    assert (run.workers, run.inputs) == ([], Inputs())
    assert not run.spec.output.overwrite
    assert run.spec.run_policy == resources.parse(resource(kind)).spec.run_policy


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize(
    "spec",
    [{}, {"retry": 1, "runPolicy": {"stall": "Restart", "startTimeoutSeconds": 60, "maxRetries": 1}}],
    ids=["defaults", "fields of the operator"],
)
def test_the_strict_runner_of_0_1_0_reads_what_this_operator_writes(kind: str, spec: dict[str, Any]) -> None:
    schema = json.loads(SCHEMAS.read_text())[kind]
    wire = wire_of(kind, **spec)
    jsonschema.Draft202012Validator(schema).validate(wire)
    with pytest.raises(jsonschema.ValidationError, match=NEW):
        jsonschema.Draft202012Validator(schema).validate({**wire, "spec": {**wire["spec"], NEW: 1}})


def test_a_default_of_the_spec_is_written_so_that_a_runner_with_another_one_obeys() -> None:
    wire = wire_of("TrainingJob")["spec"]
    assert wire["storage"]["s3"]["region"] == "us-east-1"
    assert wire["resources"]["gpus"] == 1
    overwritten = wire_of("TrainingJob", output={"uri": "pvc://runs/a", "overwrite": True})["spec"]
    assert overwritten["output"]["overwrite"] is True


@pytest.mark.parametrize(("text", "seconds"), [(None, 5), ("60", 60), ("0", 1), ("-3", 5), ("soon", 5)])
def test_the_operator_asks_for_the_pace_of_progress_by_a_variable(text: str | None, seconds: int) -> None:
    environment = {} if text is None else {PROGRESS_VARIABLE: text}
    assert process.progress_seconds(environment) == seconds


def test_a_value_that_this_version_does_not_know_is_refused(tmp_path: Path) -> None:
    wire = wire_of("TrainingJob")
    wire["spec"]["model"]["backbone"] = "resnet9000"
    with pytest.raises(RunnerError, match=r"runSpec\.model\.backbone"):
        read("TrainingJob", wire, tmp_path)


def test_the_specs_of_users_are_read_strictly() -> None:
    with pytest.raises(InvalidResourceError, match=NEW):
        resources.parse(resource(**{NEW: 1}))
