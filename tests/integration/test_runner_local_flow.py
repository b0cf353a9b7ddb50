"""``tlt run`` on a real, tiny flow: train, prune, retrain, export, without a cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import patience

MODEL = """
    proposals:
      miniBatch: 32
      training: {preNms: 32, postNms: 16}
      inference: {preNms: 32, postNms: 8}
    roi: {miniBatch: 8}
    maxObjects: 8
"""
TRAINING = """
apiVersion: tlt.dev/v1alpha1
kind: TrainingJob
metadata: {name: NAME}
spec:
  dataset:
    uri: pvc://data/digits
    targetClassMapping: {zero: zero, one: one}
    imageSize: {width: 64, height: 64}
  model:START
  training:
    epochs: EPOCHS
    batchSizePerGPU: 4
    augmentation: {horizontalFlip: 0}
  output: {uri: pvc://data/runs/NAME}
  resources: {gpus: 0}
"""
NEW = """
    backbone: resnet10
    widthMultiplier: 0.25
    anchors: {scales: [16, 32], ratios: [1.0]}"""
PRUNED = """
    from: {pruneJobRef: {name: small}}"""
REST = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
---
apiVersion: tlt.dev/v1alpha1
kind: ExportJob
metadata: {name: exported}
spec:
  model: {trainingJobRef: {name: retrained}}
  verification: {maxMetricDrop: 1.0}
  output: {uri: pvc://data/runs/exported}
  resources: {gpus: 0}
---
apiVersion: tlt.dev/v1alpha1
kind: PruneJob
metadata: {name: small}
spec:
  model: {trainingJobRef: {name: tiny}}
  target: {parameters: 0.6}
  minFilters: 8
  output: {uri: pvc://data/runs/small}
  resources: {gpus: 0}
"""
ENVIRONMENT = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
FLOW = ("TrainingJob-tiny", "PruneJob-small", "TrainingJob-retrained", "ExportJob-exported")


def training(name: str, start: str, epochs: int = 1) -> str:
    text = TRAINING.replace("START", start + MODEL.rstrip())
    return text.replace("NAME", name).replace("EPOCHS", str(epochs))


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tlt_runner", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_listen_to_interrupts,
    )


def _listen_to_interrupts() -> None:
    """A test run in the background ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def tlt(*arguments: str, cwd: Path) -> tuple[int, str]:
    process = start(*arguments, cwd=cwd)
    output, _ = process.communicate(timeout=patience.MINUTES)
    return process.returncode, output


def resource(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / ".tlt" / "status" / f"{name}.json").read_text()))


def digits(folder: Path) -> None:
    options = ("--images", "30", "--width", "64", "--height", "64", "--classes", "0,1")
    code, output = tlt("sample-data", "digits", ".tlt/volumes/data/digits", *options, cwd=folder)
    assert code == 0, output


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the flow has been run, and what it printed."""
    folder = tmp_path_factory.mktemp("flow")
    digits(folder)
    manifests = folder / "manifests"
    manifests.mkdir()
    (manifests / "a-rest.yaml").write_text(REST)
    (manifests / "b-train.yaml").write_text(training("retrained", PRUNED) + "---" + training("tiny", NEW))
    code, output = tlt("run", "manifests", cwd=folder)
    assert code == 0, output + "".join(path.read_text() for path in folder.glob(".tlt/runs/*/log.txt"))
    return folder, output


def test_every_resource_succeeds_in_the_order_of_references(flow: tuple[Path, str]) -> None:
    folder, _ = flow
    bodies = [resource(folder, name) for name in FLOW]
    assert [body["status"]["phase"] for body in bodies] == ["Succeeded"] * 4
    times = [body["status"]["completionTime"] for body in bodies]
    assert times == sorted(times)


def test_each_resource_starts_from_the_model_of_its_reference(flow: tuple[Path, str]) -> None:
    folder, _ = flow
    trained, pruned, retrained, exported = (resource(folder, name)["status"] for name in FLOW)
    made = {item["name"]: item["sha256"] for item in (*trained["artifacts"], *pruned["artifacts"])}
    assert pruned["inputs"]["model"]["sha256"] == made["best"]
    assert retrained["inputs"]["model"]["sha256"] == made["model"]
    assert pruned["dependency"]["uid"] == resource(folder, FLOW[0])["metadata"]["uid"]
    assert exported["inputs"]["records"]["digest"] == retrained["dataset"]["digest"]


def test_the_status_carries_results(flow: tuple[Path, str]) -> None:
    folder, _ = flow
    trained, pruned, _, exported = (resource(folder, name)["status"] for name in FLOW)
    assert trained["dataset"]["images"] == 30
    assert trained["progress"]["epoch"] == 1
    assert 0 <= trained["metrics"]["mAP"] <= 1
    assert pruned["pruning"]["parametersAfter"] < pruned["pruning"]["parametersBefore"]
    assert exported["lowestMAP"] == exported["exports"][0]["mAP"]


def test_artifacts_lie_below_the_output_address(flow: tuple[Path, str]) -> None:
    folder, output = flow
    for item in resource(folder, "ExportJob-exported")["status"]["artifacts"]:
        path = folder / ".tlt" / "volumes" / item["uri"].removeprefix("pvc://")
        assert path.stat().st_size == item["sizeBytes"]
        assert str(path) in output


def test_documents_of_other_apis_are_reported_as_ignored(flow: tuple[Path, str]) -> None:
    assert "PersistentVolumeClaim/data is not of tlt.dev" in flow[1]


def test_a_second_run_of_finished_work_does_nothing(flow: tuple[Path, str]) -> None:
    folder, _ = flow
    before = [resource(folder, name) for name in FLOW]
    code, output = tlt("run", "manifests", cwd=folder)
    assert code == 0
    assert output.count("succeeded before") == 4
    assert [resource(folder, name) for name in FLOW] == before


def test_one_command_finds_the_earlier_run_it_refers_to(flow: tuple[Path, str]) -> None:
    folder, _ = flow
    other = REST.split("---")[2].replace("name: small", "name: other").replace("/small", "/other")
    (folder / "other.yaml").write_text(other)
    code, output = tlt("prune", "-f", "other.yaml", cwd=folder)
    assert code == 0, output
    inputs = resource(folder, "PruneJob-other")["status"]["inputs"]
    assert inputs == resource(folder, "PruneJob-small")["status"]["inputs"]


def test_convert_alone_reports_the_data_and_leaves_the_status(flow: tuple[Path, str]) -> None:
    folder, _ = flow
    before = resource(folder, "TrainingJob-tiny")
    (folder / "tiny.yaml").write_text(training("tiny", NEW))
    code, output = tlt("convert", "-f", "tiny.yaml", cwd=folder)
    assert code == 0, output
    assert "data set: 30 images" in output
    assert resource(folder, "TrainingJob-tiny") == before


def test_evaluate_alone_gives_the_same_map_and_leaves_the_status(flow: tuple[Path, str]) -> None:
    folder, _ = flow
    before = resource(folder, "TrainingJob-retrained")
    (folder / "retrained.yaml").write_text(training("retrained", PRUNED))
    code, output = tlt("evaluate", "-f", "retrained.yaml", cwd=folder)
    assert code == 0, output
    report = json.loads(
        (folder / ".tlt" / "runs" / "TrainingJob-retrained-evaluate" / "report.json").read_text()
    )
    assert report["metrics"]["mAP"] == pytest.approx(before["status"]["metrics"]["mAP"], abs=1e-6)
    assert resource(folder, "TrainingJob-retrained") == before


def test_a_failed_resource_fails_its_dependants(tmp_path: Path) -> None:
    digits(tmp_path)
    wrong = training("tiny", NEW).replace("{zero: zero, one: one}", "{seven: seven}")
    (tmp_path / "all.yaml").write_text(wrong + "---" + REST.split("---")[2])
    code, output = tlt("run", "all.yaml", cwd=tmp_path)
    trained, pruned = (resource(tmp_path, name)["status"] for name in FLOW[:2])
    assert (trained["phase"], pruned["phase"]) == ("Failed", "Failed")
    assert code == trained["failure"]["exitCode"] != 0
    assert pruned["failure"]["reason"] == "DependencyFailed"
    assert trained["failure"]["message"] in output


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    digits(tmp_path)
    (tmp_path / "all.yaml").write_text(training("tiny", NEW, epochs=2000))
    process = start("run", "all.yaml", cwd=tmp_path)
    _wait_for_epoch(tmp_path, process, 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=patience.MINUTES)
    stopped = resource(tmp_path, "TrainingJob-tiny")
    assert process.returncode == 75, output
    assert (stopped["status"]["phase"], stopped["status"]["failure"]["reason"]) == (
        "Suspended",
        "Interrupted",
    )
    second = start("run", "all.yaml", cwd=tmp_path)
    first_seen = _wait_for_epoch(tmp_path, second, 0)
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=patience.MINUTES)
    resumed = resource(tmp_path, "TrainingJob-tiny")
    assert resumed["metadata"]["uid"] == stopped["metadata"]["uid"]
    assert resumed["status"]["attempt"] == 2
    assert resumed["status"]["history"][0]["reason"] == "Interrupted"
    assert first_seen >= stopped["status"]["progress"]["epoch"] >= 1


def _wait_for_epoch(folder: Path, process: subprocess.Popen[str], least: int) -> int:
    """Wait until the status says that this process has finished so many epochs; how many it says."""
    file = folder / ".tlt" / "runs" / "TrainingJob-tiny" / "report.json"
    started = time.time()
    while process.poll() is None:
        if file.exists() and file.stat().st_mtime > started:
            progress = json.loads(file.read_text()).get("progress") or {}
            if progress.get("epoch", -1) >= least:
                return int(progress["epoch"])
        time.sleep(0.2)
    raise AssertionError(process.communicate()[0])
