"""The command line: quick to answer, clear in refusing."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn, get_args

import click
import pytest
import yaml

from forked import tlt
from manifest_texts import PRUNE, TRAIN
from tlt_api.dataset import LabelFormat
from tlt_runner import cli, manifests
from tlt_runner.commands import COMMANDS


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tlt_runner import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'tensorflow', 'keras', 'pydantic', 'yaml', 'cv2', 'boto3', 'onnx', 'rich'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "train" in done.stdout


@pytest.mark.parametrize("name", list(cli.tlt.commands))
def test_every_command_has_examples_in_its_help_and_they_parse(name: str) -> None:
    command = cli.tlt.commands[name]
    text = command.get_help(click.Context(command, info_name=f"tlt {name}"))
    examples = [line.strip() for line in text.partition("Examples:")[2].strip().splitlines()]
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["tlt", name]
        command.make_context(name, words[2:])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tlt tr", {"train"}),
        ("tlt run --a", {"--again"}),
        ("tlt convert --to ", set(get_args(LabelFormat))),
    ],
)
def test_the_shell_completes_commands_options_and_formats(words: str, expected: set[str]) -> None:
    request = {"_TLT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "tlt_runner"],
        env={**os.environ, **request},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


def test_the_module_answers_as_the_script_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlt_runner", "version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == tlt("version", cwd=tmp_path).stdout != ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "one of the arguments --spec -f/--file is required"),
        (["train", "--spec", "a", "-f", "b"], "not allowed with argument"),
        (["train", "--spe", "a"], "No such option '--spe'. (Did you mean one of: '--spec'"),
        (["run", ".", "--agian"], "No such option '--agian'. Did you mean '--again'?"),
        (["sample-data", "digits", "out", "--images", "0"], "expected a whole number from 1, got '0'"),
        (["sample-data", "digits", "out", "--classes", "1,1"], "expected different digits"),
        (["anchors"], "one of the arguments --spec -f/--file is required"),
        (["infer", "--model", "m", "--images", "i"], "Missing option '--output'"),
        (["infer", "--model", "m", "--images", "i", "--output", "o", "--score", "2"], "from 0 to 1, got '2'"),
        (["run", "nothing"], "InvalidSpec: expected a manifest or a folder of manifests, got nothing"),
        (["train", "-f", "nothing.yaml"], "InvalidSpec: "),
        (["train", "-f", "m.yaml", "--report", "r.json"], "--report goes with --spec"),
        (["train", "--spec", "nothing.json"], "InvalidSpec: expected a RunSpec in nothing.json"),
        (["train", "--spec", "r.json", "--state", "s"], "--state goes with -f"),
    ],
)
def test_misuse_is_one_clear_paragraph(tmp_path: Path, arguments: list[str], expected: str) -> None:
    done = tlt(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_an_inference_without_images_is_one_clear_paragraph(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    done = tlt("infer", "--model", "m.keras", "--images", "images", "--output", "out", cwd=tmp_path)
    assert done.returncode == 20
    assert "tlt infer: DatasetNotFound: expected images (.jpg, .jpeg, .png) in images" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_validate_prints_file_document_and_field(tmp_path: Path) -> None:
    text = "---".join((TRAIN, PRUNE.replace("0.5", "-1"), "\nkind: Namespace\nmetadata: {name: tlt}\n"))
    (tmp_path / "all.yaml").write_text(text)
    done = tlt("validate", "all.yaml", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0] == "valid    all.yaml, document 1: TrainingJob/digits"
    assert lines[1].startswith("invalid  all.yaml, document 2: PruneJob/half: spec.threshold: ")
    assert lines[1].endswith("got -1")
    assert lines[2].startswith("ignored  all.yaml, document 3: Namespace/tlt is not of tlt.dev")
    assert lines[3] == "1 valid, 1 invalid, 1 ignored"


def test_validate_of_valid_manifests_succeeds(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(TRAIN)
    assert tlt("validate", tmp_path, cwd=tmp_path).returncode == 0


def test_a_wrong_manifest_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(f"{TRAIN}---{PRUNE.replace('0.5', '-1')}")
    done = tlt("run", "all.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "PruneJob/half: spec.threshold" in done.stderr
    assert not (tmp_path / ".tlt").exists()


def test_a_missing_reference_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(PRUNE)
    done = tlt("prune", "-f", "all.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "PruneJob/half refers to TrainingJob/digits, which is neither among" in done.stderr
    assert list((tmp_path / ".tlt" / "status").iterdir()) == []


def test_a_missing_data_set_is_refused_with_a_way_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(TRAIN)
    done = tlt("run", "all.yaml", cwd=tmp_path)
    assert done.returncode == 20
    assert f"tlt sample-data digits {tmp_path}/.tlt/volumes/data/digits" in done.stderr


def test_a_file_with_two_fitting_resources_is_refused(tmp_path: Path) -> None:
    more = TRAIN.replace("name: digits", "name: more").replace("data/out", "data/more")
    (tmp_path / "all.yaml").write_text(f"{TRAIN}---{more}")
    done = tlt("train", "-f", "all.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "expected exactly one TrainingJob in all.yaml, got TrainingJob/digits, TrainingJob/more"
        in done.stderr
    )


def test_a_suspended_resource_is_not_run(tmp_path: Path) -> None:
    (tmp_path / ".tlt" / "volumes" / "data" / "digits").mkdir(parents=True)
    (tmp_path / "all.yaml").write_text(f"{TRAIN}  suspend: true\n---{PRUNE}")
    done = tlt("run", "all.yaml", cwd=tmp_path)
    assert done.returncode == 0
    files = {"TrainingJob-digits": "Suspended", "PruneJob-half": "Pending"}
    for name, phase in files.items():
        body = json.loads((tmp_path / ".tlt" / "status" / f"{name}.json").read_text())
        assert body["status"]["phase"] == phase
    assert "waits for TrainingJob/digits, which is Suspended" in done.stdout


def test_damaged_state_is_named(tmp_path: Path) -> None:
    status = tmp_path / ".tlt" / "status"
    status.mkdir(parents=True)
    (status / "TrainingJob-digits.json").write_text("{")
    (tmp_path / "all.yaml").write_text(TRAIN)
    done = tlt("run", "all.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "Remove that file" in done.stderr


@pytest.mark.parametrize("path", ["//etc/x", "/../x", "/a/./x"])
@pytest.mark.parametrize("command", [("run", "m.yaml"), ("train", "-f", "m.yaml"), ("validate", "m.yaml")])
def test_a_manifest_whose_address_leaves_its_claim_is_refused(
    tmp_path: Path, command: tuple[str, ...], path: str
) -> None:
    (tmp_path / "m.yaml").write_text(TRAIN.replace("pvc://data/out", f"pvc://data{path}"))
    (tmp_path / ".tlt/volumes/data/digits").mkdir(parents=True)
    done = tlt(*command, cwd=tmp_path)
    assert done.returncode == 2
    message = (
        "spec.output.uri: expected an address without empty ('//'), '.' and '..' names in its path: write"
    )
    assert message in done.stdout + done.stderr
    assert f"got 'pvc://data{path}'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / ".tlt/volumes/data/digits").iterdir())


def test_a_local_run_follows_no_link_out_of_a_claim(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(TRAIN)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".tlt/volumes/data").mkdir(parents=True)
    (tmp_path / ".tlt/volumes/data/digits").symlink_to(tmp_path / "elsewhere")
    done = tlt("run", "m.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "tlt run: InvalidSpec: pvc://data/digits: expected a path within" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_local_run_takes_an_encoded_dot_dot_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(TRAIN.replace("data/digits", "data/%2e%2e/digits"))
    (tmp_path / ".tlt/volumes/digits").mkdir(parents=True)
    done = tlt("run", "m.yaml", cwd=tmp_path)
    assert done.returncode == 20
    assert f"which is {tmp_path}/.tlt/volumes/data/%2e%2e/digits here: no such folder" in done.stderr


def test_an_inference_with_a_model_address_that_leaves_its_claim_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").touch()
    (tmp_path / "volumes/data").mkdir(parents=True)
    model = f"pvc://data/{tmp_path}/m.keras"
    arguments = ("--images", "images", "--output", "out", "--volumes", "volumes")
    done = tlt("infer", "--model", model, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "tlt infer: InvalidSpec: expected an address without empty ('//'), '.' and '..'" in done.stderr
    assert "Traceback" not in done.stderr


def run_spec(folder: Path, kind: str, manifest: str) -> None:
    """Write ``run.json``: the RunSpec of a manifest whose model is ``gone.keras``."""
    spec = yaml.safe_load(manifest)["spec"]
    inputs = {} if kind == "TrainingJob" else {"model": {"uri": "pvc://data/gone.keras", "sha256": "0" * 64}}
    owner = {"kind": kind, "namespace": "default", "name": "digits", "uid": "u-1"}
    body = {"owner": owner, "attempt": 1, "spec": spec, "inputs": inputs}
    (folder / "run.json").write_text(json.dumps(body))


EXPORT = """
apiVersion: tlt.dev/v1alpha1
kind: ExportJob
metadata: {name: digits}
spec:
  model: {trainingJobRef: {name: digits}}
  output: {uri: pvc://data/exported}
"""
INFER = ["infer", "--model", "m.keras", "--images", "images", "--output", "out"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["run", "nothing"], 2, "expected a manifest or a folder of manifests"),
        (["validate", "nothing"], 2, "expected a manifest or a folder of manifests"),
        *[
            ([command, "-f", "nothing.yaml"], 2, "expected a manifest or a folder of manifests")
            for command in COMMANDS
        ],
        (["convert", "-f", "nothing.yaml", "--to", "voc", "--out", "out"], 2, "expected a manifest"),
        (["train", "-f", "train.yaml"], 20, "expects a data set at pvc://data/digits"),
        (["infer", "--model", "m", "--images", "imges", "--output", "out"], 20, "got imges, which is none"),
        (["infer", "--model", "m", "--images", "empty", "--output", "out"], 20, "got none: it holds"),
        (INFER, 2, "m.keras"),
        ([*INFER[:-1], "taken"], 2, "which holds mine.txt"),
    ],
)
def test_a_mistake_is_answered_before_tensorflow_is_imported(
    tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    (tmp_path / "train.yaml").write_text(TRAIN)
    for name in ("images/a.png", "empty/readme.txt", "taken/mine.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    done = tlt(*arguments, cwd=tmp_path, target="forked:main_without_tensorflow")
    assert (done.returncode, expected in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "kind", "manifest", "code", "expected"),
    [
        (
            "train",
            "TrainingJob",
            TRAIN,
            20,
            "a data set at pvc://data/digits, which does not exist; ",
        ),
        ("convert", "TrainingJob", TRAIN, 20, "expected a data set at pvc://data/digits"),
        ("anchors", "TrainingJob", TRAIN, 20, "expected a data set at pvc://data/digits"),
        ("evaluate", "TrainingJob", TRAIN.replace("digits\n", "there\n"), 2, "expected a trained model"),
        (
            "train",
            "TrainingJob",
            TRAIN.replace("digits\n", "there\n") + "  model: {pretrainedWeights: {uri: pvc://data/w.h5}}\n",
            2,
            "expected a file at pvc://data/w.h5 (volumes/data/w.h5), which does not exist; ",
        ),
        (
            "prune",
            "PruneJob",
            PRUNE,
            2,
            "a file at pvc://data/gone.keras (volumes/data/gone.keras), which does not exist; ",
        ),
        (
            "export",
            "ExportJob",
            EXPORT,
            2,
            "a file at pvc://data/gone.keras (volumes/data/gone.keras), which does not exist; ",
        ),
    ],
)
def test_a_pod_misses_its_inputs_before_tensorflow_is_imported(
    tmp_path: Path, command: str, kind: str, manifest: str, code: int, expected: str
) -> None:
    (tmp_path / "volumes/data/there").mkdir(parents=True)
    run_spec(tmp_path, kind, manifest)
    arguments = (command, "--spec", "run.json", "--volumes", "volumes")
    done = tlt(*arguments, cwd=tmp_path, target="forked:main_without_tensorflow")
    assert (done.returncode, expected in done.stderr) == (code, True), done.stderr


def test_ctrl_c_outside_a_run_exits_as_a_shell_expects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: Path) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifests, "read", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "manifests"])
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "command",
    [
        ("run", "m.yaml"),
        ("validate", "m.yaml"),
        *((command, "-f", "m.yaml") for command in COMMANDS if COMMANDS[command].kind == "TrainingJob"),
        ("convert", "-f", "m.yaml", "--to", "coco", "--out", "converted"),
    ],
    ids=" ".join,
)
def test_a_name_that_a_cluster_refuses_is_refused_and_nothing_is_written(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    work = tmp_path / "deep/down/work"
    data = work / ".tlt/volumes/data/digits"
    data.mkdir(parents=True)
    (work / "m.yaml").write_text(TRAIN.replace("{name: digits}", "{name: ../../evil}"))
    before = sorted(tmp_path.rglob("*"))
    done = tlt(*command, cwd=work)
    assert done.returncode == 2
    assert "metadata.name: expected lower case letters" in done.stdout + done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_a_run_spec_whose_names_lead_out_of_the_output_is_refused(tmp_path: Path, field: str) -> None:
    owner = {"kind": "TrainingJob", "namespace": "default", "name": "digits", "uid": "u-1"}
    spec = yaml.safe_load(TRAIN)["spec"]
    text = json.dumps({"owner": {**owner, field: "../../evil"}, "attempt": 1, "spec": spec})
    (tmp_path / "run.json").write_text(text)
    done = tlt("train", "--spec", "run.json", cwd=tmp_path)
    assert done.returncode == 2
    assert f"owner.{field}" in done.stdout + done.stderr


def test_a_folder_with_a_specification_of_tlt_alone_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "spec.txt").write_text("random_seed: 42\nmodel_config {\n}\n")
    for command in ("validate", "run"):
        done = tlt(command, tmp_path, cwd=tmp_path)
        assert done.returncode == 2
        assert "`tlt import " in done.stdout + done.stderr


def test_a_warning_about_a_manifest_is_printed_before_the_run_starts(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(TRAIN.replace("{one: one}", "{1: one}"))
    done = tlt("run", "all.yaml", cwd=tmp_path)
    assert done.returncode == 20
    assert 'quote the key: "1"' in done.stdout
