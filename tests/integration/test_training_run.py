"""``tlt train`` on a few real scenes: published models, stop, resumption and failures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tiny
from tiny import ProgressRecorder, StopAt
from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.status import Artifact
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.files import sha256_of
from tlt_runner.tasks import train
from tlt_runner.training.pretrained import load


def run_spec(scenes: Path, output: Path, **changes: Any) -> RunSpec:
    return tiny.run_spec(scenes, output, training={"optimizer": {"type": "adam"}}, **changes)


def execute(run: RunSpec, scratch: Path, stop: StopAt | None = None) -> ProgressRecorder:
    return tiny.execute(train, run, scratch, stop)


def artifacts(reporter: ProgressRecorder) -> dict[str, Artifact]:
    return {item.name: item for item in reporter.snapshot().artifacts or ()}


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ProgressRecorder]:
    output = tmp_path_factory.mktemp("finished")
    return output, execute(run_spec(scenes, output), output / "scratch")


def test_best_and_last_are_published_with_their_digests(finished: tuple[Path, ProgressRecorder]) -> None:
    output, reporter = finished
    assert set(artifacts(reporter)) == {"best", "last"}
    for name, artifact in artifacts(reporter).items():
        file, copy = Path(artifact.uri.removeprefix("file://")), output / f"{name}.keras"
        assert file.is_relative_to(output / "checkpoints")
        assert artifact.sha256 == sha256_of(file) == sha256_of(copy)
        assert artifact.size_bytes == file.stat().st_size
    assert artifacts(reporter)["last"].epoch == 2


def test_metrics_are_those_of_the_best_model(finished: tuple[Path, ProgressRecorder]) -> None:
    _, reporter = finished
    metrics = reporter.snapshot().metrics
    assert metrics is not None
    assert metrics.epoch == artifacts(reporter)["best"].epoch
    assert [item.name for item in metrics.per_class or ()] == ["one", "zero"]


def test_details_of_the_best_model_lie_beside_it(finished: tuple[Path, ProgressRecorder]) -> None:
    output, reporter = finished
    metrics = reporter.snapshot().metrics
    assert metrics is not None
    details = json.loads((output / "metrics.json").read_text())
    assert metrics.details_uri == f"file://{output}/metrics.json"
    assert details["headline"] == metrics.to_wire()
    assert [item["name"] for item in details["perClass"]] == ["one", "zero"]
    # The model file has the thresholds, too; None where this short training got nothing right.
    assert detector.load(output / "best.keras").config.score_thresholds == metrics.score_thresholds


def test_progress_ends_with_all_epochs_done(finished: tuple[Path, ProgressRecorder]) -> None:
    _, reporter = finished
    last = reporter.progresses[-1]
    assert (last.epoch, last.epochs, last.eta_seconds) == (2, 2, 0)


def test_a_published_model_can_be_loaded(finished: tuple[Path, ProgressRecorder]) -> None:
    output, _ = finished
    assert detector.load(output / "best.keras").config.class_names == ["one", "zero"]


def test_an_interrupted_training_ends_with_the_same_weights_after_resuming(
    scenes: Path, finished: tuple[Path, ProgressRecorder], tmp_path: Path
) -> None:
    run, data = run_spec(scenes, tmp_path), finished[1].snapshot().dataset
    assert data is not None
    steps = (data.training_images or 0) // 4
    with pytest.raises(RunnerError, match="after epoch 1 and step 1") as caught:
        execute(run, tmp_path / "scratch", StopAt(steps + 1))
    assert caught.value.reason == Reason.INTERRUPTED
    assert (tmp_path / "checkpoint.json").exists()
    execute(run, tmp_path / "scratch")
    wanted, got = detector.load(finished[0] / "last.keras"), detector.load(tmp_path / "last.keras")
    for left, right in zip(wanted.weights, got.weights, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)


def test_another_attempt_of_a_finished_training_reports_it_and_takes_no_step(
    scenes: Path, finished: tuple[Path, ProgressRecorder]
) -> None:
    output, before = finished
    again = execute(run_spec(scenes, output), output / "scratch")
    assert artifacts(again) == artifacts(before)
    assert again.snapshot().metrics == before.snapshot().metrics
    assert not any(progress.step for progress in again.progresses if progress.stage == "train")


def test_the_checkpoint_of_another_resource_is_not_resumed(
    scenes: Path, finished: tuple[Path, ProgressRecorder], tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(finished[0] / "checkpoint.json", tmp_path)
    with pytest.raises(RunnerError, match="after epoch 0 and step 0"):
        execute(run_spec(scenes, tmp_path, uid="two"), tmp_path / "scratch", StopAt(0))


def test_a_loss_that_is_not_finite_names_step_rate_and_images(
    scenes: Path, finished: Any, tmp_path: Path
) -> None:
    broken = detector.load(finished[0] / "best.keras")
    kernel = broken.trunk.get_layer("rpn_conv").kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    detector.save(broken, tmp_path / "broken.keras")
    inputs = {"model": {"uri": f"file://{tmp_path}/broken.keras"}}
    source = {"from": {"uri": f"file://{tmp_path}/broken.keras"}}
    with pytest.raises(RunnerError, match=r"step 1 with learning rate 5e-06.*images .*0000") as caught:
        execute(run_spec(scenes, tmp_path, inputs=inputs, model=source), tmp_path / "scratch")
    assert caught.value.reason == Reason.NAN_LOSS
    assert not (tmp_path / "checkpoint.json").exists()


def test_missing_gpus_are_reported_before_anything_is_read(tmp_path: Path) -> None:
    missing = len(tf.config.list_physical_devices("GPU")) + 1
    with pytest.raises(RunnerError) as caught:
        execute(run_spec(tmp_path / "no-data", tmp_path, resources={"gpus": missing}), tmp_path / "scratch")
    assert caught.value.reason == Reason.NOT_ENOUGH_GPUS


def test_weights_of_another_network_are_refused(finished: tuple[Path, ProgressRecorder]) -> None:
    source = detector.load(finished[0] / "best.keras").config
    wider = source.model_copy(update={"width_multiplier": 0.5, "class_names": ["a"]})
    with pytest.raises(RunnerError) as caught:
        load.build(wider, 1, finished[0] / "best.keras")
    assert caught.value.reason == Reason.MODEL_MISMATCH
