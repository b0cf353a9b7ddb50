"""Manifests as files: what is ours, what is wrong, and where."""

from pathlib import Path

import pytest

from manifest_texts import PRUNE, TRAIN
from tlt_api.failures import Reason
from tlt_runner import manifests
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
