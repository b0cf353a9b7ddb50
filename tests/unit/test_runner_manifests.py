"""Manifests as files: what is ours, what is wrong, and where."""

from pathlib import Path

import pytest
import yaml

from manifest_texts import PRUNE, TRAIN
from tlt_api.failures import Reason
from tlt_runner import kubectl_yaml, manifests
from tlt_runner.errors import RunnerError

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"


def write(folder: Path, *texts: str, name: str = "all.yaml") -> Path:
    file = folder / name
    file.write_text("---".join(texts))
    return file


@pytest.mark.parametrize(
    "folder", [path for path in SAMPLES.iterdir() if path.is_dir()], ids=lambda p: p.name
)
def test_every_sample_is_valid(folder: Path) -> None:
    checked = manifests.read(folder)
    assert checked.problems == ()
    assert checked.documents


def test_documents_of_other_apis_are_listed_as_ignored(tmp_path: Path) -> None:
    other = "\napiVersion: v1\nkind: Namespace\nmetadata: {name: tlt}\n"
    (tmp_path / "more").mkdir()
    write(tmp_path, TRAIN, other)
    checked = manifests.read(tmp_path)
    assert [item.resource.key for item in checked.documents] == ["TrainingJob/digits"]
    assert any("Namespace/tlt" in text for text in checked.ignored)
    assert any("subfolder" in text for text in checked.ignored)


def test_items_of_a_list_are_documents(tmp_path: Path) -> None:
    body = "".join(f"    {line}\n" for line in TRAIN.strip().splitlines())
    file = write(tmp_path, f"apiVersion: v1\nkind: List\nitems:\n  -\n{body}")
    assert [item.resource.key for item in manifests.read(file).documents] == ["TrainingJob/digits"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("width: 64", "width: 63"), "spec.dataset.imageSize.width: "),
        (("width: 64", 'width: "64"'), "spec.dataset.imageSize.width: "),
        (("  output:", "  outputs: 1\n  output:"), "spec.outputs: "),
        (("v1alpha1", "v1"), "expected apiVersion tlt.dev/v1alpha1"),
        (("kind: TrainingJob", "kind: TrainJob"), "'TrainJob'"),
        (("{name: digits}", "{name: " + "a" * 41 + "}"), "metadata.name: "),
        (("{name: digits}", "{name: 7}"), "metadata.name: "),
        (("{one: one}", "{one: one, one: two}"), "'one' stands twice"),
        (("spec:", "spec: ["), "not YAML"),
    ],
)
def test_each_mistake_names_file_document_and_field(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    file = write(tmp_path, TRAIN.replace(*change))
    (problem,) = manifests.read(file).problems
    assert problem.startswith(str(file))
    assert expected in problem
    assert "not YAML" in problem or "document 1" in problem


def test_scientific_notation_is_a_number_as_for_an_api_server(tmp_path: Path) -> None:
    text = TRAIN + "  training: {learningRate: {min: 5e-6, max: 1e-3}}\n"
    assert manifests.read(write(tmp_path, text)).problems == ()


def test_a_duplicate_resource_is_a_problem(tmp_path: Path) -> None:
    file = write(tmp_path, TRAIN, TRAIN)
    (problem,) = manifests.read(file).problems
    assert "document 2" in problem
    assert "document 1 already" in problem


def test_a_circle_of_references_is_a_problem(tmp_path: Path) -> None:
    start = "  model: {from: {pruneJobRef: {name: half}}}\n"
    file = write(
        tmp_path,
        TRAIN + start,
        PRUNE,
    )
    problems = manifests.read(file).problems
    assert any("TrainingJob/digits -> PruneJob/half -> TrainingJob/digits" in text for text in problems)


def test_a_folder_without_resources_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError) as caught:
        manifests.read(tmp_path).require_valid()
    assert caught.value.reason == Reason.INVALID_SPEC


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError) as caught:
        manifests.read(tmp_path / "nothing")
    assert caught.value.reason == Reason.INVALID_SPEC


@pytest.mark.parametrize("name", ["my_job", "Cars", "../../evil", "-cars", "cars-", "a.b", "cars/1", "ä"])
def test_a_name_that_a_cluster_refuses_is_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, TRAIN.replace("{name: digits}", f'{{name: "{name}"}}'))
    (problem,) = manifests.read(file).problems
    assert "metadata.name: expected" in problem


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("namespace: My_Team", "metadata.namespace: expected lower case letters"),
        ("labels: {team: a b}", "metadata.labels.team: expected a value of letters"),
        ("labels: {-team: a}", "metadata.labels.-team: expected a name of letters"),
        ("labels: {Example.com/team: a}", "metadata.labels.Example.com/team: expected a domain before '/'"),
        ("labels: {team: " + "a" * 64 + "}", "at most 63 characters"),
        ("labels: {fast: yes}", "metadata.labels.fast: expected a text, got true (quote it"),
        ("annotations: {a//b: x}", "metadata.annotations.a//b: expected a domain before '/'"),
        ("annotations: {rate: 0.5}", "metadata.annotations.rate: expected a text, got 0.5 (quote it"),
        ("nmae: x", "metadata.nmae: unknown field"),
    ],
)
def test_metadata_that_a_cluster_refuses_are_refused(tmp_path: Path, metadata: str, expected: str) -> None:
    file = write(tmp_path, TRAIN.replace("{name: digits}", f"{{name: digits, {metadata}}}"))
    (problem,) = manifests.read(file).problems
    assert expected in problem


def test_metadata_that_a_cluster_takes_are_taken(tmp_path: Path) -> None:
    metadata = "labels: {app.example.com/part_of: a.B-c_1, empty: ''}, annotations: {Example.com/x: any text}"
    file = write(tmp_path, TRAIN.replace("{name: digits}", f"{{name: digits, namespace: ml-1, {metadata}}}"))
    assert manifests.read(file).problems == ()


@pytest.mark.parametrize(
    ("key", "text", "type_name"),
    [
        ("0", "0", "a number"),
        ("010", "8", "a number"),
        ("1.50", "1.5", "a number"),
        ("1e3", "1000", "a number"),
        ("123456789.125", "1.2345679e+08", "a number"),
        ("3", "3", "a number"),
    ],
)
def test_a_number_as_a_key_is_the_text_that_kubectl_makes_of_it(
    tmp_path: Path, key: str, text: str, type_name: str
) -> None:
    checked = manifests.read(write(tmp_path, TRAIN.replace("{one: one}", f"{{{key}: one}}")))
    assert checked.problems == ()
    (document,) = checked.documents
    assert document.resource.spec.to_wire()["dataset"]["targetClassMapping"] == {text: "one"}
    (warning,) = checked.warnings()
    assert f"line 8: the key {key} is {type_name}" in warning
    assert f'the text "{text}": quote the key: "{key}"' in warning


@pytest.mark.parametrize("key", ["no", "No", "off", "n", "N", "yes", "y", "on", "true"])
def test_a_boolean_as_a_key_is_refused_with_the_advice_to_quote_it(tmp_path: Path, key: str) -> None:
    file = write(tmp_path, TRAIN.replace("{one: one}", f"{{{key}: one}}"))
    (problem,) = manifests.read(file).problems
    assert "spec.dataset: expected no class true or false" in problem
    assert f'quote the key: "{key}"' in problem
    quoted = TRAIN.replace("{one: one}", f'{{"{key}": one}}')
    assert (manifests.read(write(tmp_path, quoted)).problems == ()) == (key != "true")


def test_a_class_that_yaml_reads_as_a_boolean_is_refused(tmp_path: Path) -> None:
    (problem,) = manifests.read(write(tmp_path, TRAIN.replace("{one: one}", "{one: n}"))).problems
    assert "spec.dataset.targetClassMapping.one: expected string (quote it" in problem
    assert "got false" in problem


def test_a_number_without_a_fraction_is_an_integer_as_for_an_api_server(tmp_path: Path) -> None:
    assert manifests.read(write(tmp_path, TRAIN + "  training: {epochs: 3.0}\n")).problems == ()
    (problem,) = manifests.read(write(tmp_path, TRAIN + "  training: {epochs: 3.5}\n")).problems
    assert "spec.training.epochs: expected integer, got 3.5" in problem


def test_an_empty_field_has_its_default_and_an_empty_entry_is_dropped_with_a_warning(tmp_path: Path) -> None:
    text = TRAIN.replace("{one: one}", "{one: one, two: }") + "  training:\n"
    checked = manifests.read(write(tmp_path, text))
    assert checked.problems == ()
    assert checked.documents[0].resource.spec.to_wire()["dataset"]["targetClassMapping"] == {"one": "one"}
    assert [text.partition(": ")[2] for text in checked.warnings()] == [
        "spec.dataset.targetClassMapping.two: null, which an API server drops: give it a value"
    ]


def test_a_final_line_break_does_not_match_a_pattern(tmp_path: Path) -> None:
    file = write(tmp_path, TRAIN.replace("pvc://data/out", '"pvc://data\\n"'))
    (problem,) = manifests.read(file).problems
    assert "spec.output.uri: " in problem


def test_several_mistakes_of_a_document_are_named_together(tmp_path: Path) -> None:
    text = TRAIN.replace("width: 64", "width: 63").replace("{name: digits}", "{name: My_Job}")
    (problem,) = manifests.read(write(tmp_path, text)).problems
    assert "spec.dataset.imageSize.width: expected at least 64, got 63" in problem
    assert "metadata.name: " in problem


def test_an_address_of_this_machine_is_valid_without_a_cluster_only(tmp_path: Path) -> None:
    checked = manifests.read(write(tmp_path, TRAIN.replace("pvc://data/digits", "file:///data/digits")))
    assert not checked.refused
    first, last = checked.lines()
    assert first.startswith("local    ")
    assert "TrainingJob/digits: a cluster refuses spec.dataset.uri: expected an address that a pod" in first
    assert last == "1 valid, 0 invalid, 0 ignored; 1 of the valid without a cluster only"


@pytest.mark.parametrize("second", ["pvc://data/out", "pvc://data/out/"])
def test_two_resources_with_one_output_are_refused_naming_both_files(tmp_path: Path, second: str) -> None:
    write(tmp_path, TRAIN, name="a.yaml")
    write(tmp_path, PRUNE.replace("pvc://data/pruned", second), name="b.yaml")
    (problem,) = manifests.read(tmp_path).problems
    assert problem.startswith(f"{tmp_path / 'b.yaml'}, document 1: PruneJob/half: spec.output.uri: ")
    assert f"output of TrainingJob/digits in {tmp_path / 'a.yaml'}, document 1" in problem
    assert manifests.read(tmp_path).lines()[-1] == "1 valid, 1 invalid, 0 ignored"


def test_claims_of_two_namespaces_are_two_outputs_and_buckets_are_one(tmp_path: Path) -> None:
    def documents(uri: str) -> Path:
        text = TRAIN.replace("pvc://data/out", uri)
        other = text.replace("{name: digits}", "{name: digits, namespace: other}")
        return write(tmp_path, text, other.replace("name: digits", "name: more"))

    assert manifests.read(documents("pvc://data/out")).problems == ()
    assert len(manifests.read(documents("s3://data/out")).problems) == 1


def test_one_name_in_two_namespaces_is_valid_for_a_cluster_and_refused_without_one(tmp_path: Path) -> None:
    other = TRAIN.replace("{name: digits}", "{name: digits, namespace: other}")
    checked = manifests.read(write(tmp_path, TRAIN, other))
    assert not checked.refused
    with pytest.raises(RunnerError, match="TrainingJob/digits stands in"):
        checked.require_valid()


SPEC = 'random_seed: 42\nenc_key: "tlt"\nmodel_config {\n  arch: "resnet:18"\n}\n'


@pytest.mark.parametrize("name", ["spec.txt", "default_spec_resnet18", "spec.yaml"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_a_specification_of_tlt_is_named_with_the_command_that_converts_it(
    tmp_path: Path, name: str, as_folder: bool
) -> None:
    (tmp_path / name).write_text(SPEC)
    checked = manifests.read(tmp_path if as_folder else tmp_path / name)
    assert checked.refused
    text = "\n".join(checked.lines())
    assert f"{tmp_path / name}: a specification of TLT: `tlt import {tmp_path / name}` converts it" in text
    assert "nothing  expected at least one TrainingJob" in text
    with pytest.raises(RunnerError, match="tlt import"):
        checked.require_valid()


def test_a_specification_of_tlt_beside_manifests_is_ignored_by_name(tmp_path: Path) -> None:
    (tmp_path / "spec.txt").write_text(SPEC)
    write(tmp_path, TRAIN)
    checked = manifests.read(tmp_path)
    assert not checked.refused
    assert [("tlt import" in text) for text in checked.ignored] == [True]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "nothing  expected at least one TrainingJob or PruneJob or ExportJob, got none"),
        (["notes.txt", "run.sh"], "notes.txt, run.sh: no manifests, whose names end in .yaml, .yml, .json"),
        (["a", "b", "c", "d", "e", "f", "g"], "a, b, c, d, e and 2 more: no manifests"),
    ],
)
def test_a_folder_without_manifests_says_what_it_has(tmp_path: Path, files: list[str], expected: str) -> None:
    for name in files:
        (tmp_path / name).write_text("nothing of ours\n")
    checked = manifests.read(tmp_path)
    assert checked.refused
    assert expected in "\n".join(checked.lines())
    with pytest.raises(RunnerError, match="got: "):
        checked.require_valid()


@pytest.mark.parametrize(
    "text", ["y", "N", "no", "on", "08", "1e3", "0o17", "1.0", "~", "", "<<", "2026-01-01", "traffic light"]
)
@pytest.mark.parametrize("block_style", [True, False])
def test_what_is_written_is_what_kubectl_reads(tmp_path: Path, text: str, block_style: bool) -> None:
    """As a key and as a value; kubectl's reading is compared with the API server's by another test."""
    body = yaml.safe_load(TRAIN)
    mapping = {text or "empty": text or "empty"}
    body["metadata"]["annotations"] = {"example.org/text": text}
    body["spec"]["dataset"]["targetClassMapping"] = mapping
    checked = manifests.read(write(tmp_path, kubectl_yaml.dump(body, block_style=block_style)))
    assert (checked.problems, checked.warnings()) == ((), [])
    (document,) = checked.documents
    assert document.resource.spec.dataset.target_class_mapping == mapping
