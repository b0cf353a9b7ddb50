"""A training that is interrupted by all means ends as one that is not: same losses, same weights, same best.

Three interruptions of one run, in its first, second and third attempt: SIGTERM between two steps of an epoch,
kill -9 some steps after a checkpoint, SIGTERM in an evaluation.
"""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tlt_api.failures import Reason
from tlt_api.runreport import RunReport
from tlt_api.runspec import RunSpec
from tlt_runner.data import sample_digits
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.training.checkpoint import model_file, state
from tlt_runner.training.checkpoint.state import Position

SCRIPT = Path(__file__).with_name("training_resume_process.py")
_spec = importlib.util.spec_from_file_location("training_resume_process", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
process = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(process)
Ending, attempt = process.Ending, process.attempt

EPOCHS, STEPS = 3, 6
STOPPED, KILLED, STOPPED_IN_EVALUATION = 3, 9, 2
"""After step 4 (of epoch 1), after step 10 (of epoch 2), in the evaluation of epoch 2."""


def run_spec(scenes: Path, output: Path) -> RunSpec:
    spec = {
        "dataset": {
            "uri": f"file://{scenes}",
            "targetClassMapping": {"zero": "zero", "one": "one"},
            "imageSize": {"width": 64, "height": 64},
            "validation": {"fraction": 0.25},
        },
        "model": {
            "backbone": "resnet10",
            "widthMultiplier": 0.125,
            "anchors": {"scales": [24], "ratios": [1.0]},
            "proposals": {
                "miniBatch": 16,
                "training": {"preNms": 16, "postNms": 8},
                "inference": {"preNms": 16, "postNms": 8},
            },
            "roi": {"poolSize": 2, "miniBatch": 8},
            "detections": {"maxDetections": 8},
            "maxObjects": 8,
        },
        "training": {
            "epochs": EPOCHS,
            "batchSizePerGPU": 2,
            "gradientAccumulationSteps": 2,
            "ema": {"momentum": 0.9},
            "keepCheckpoints": 2,
            "optimizer": {"type": "adam"},
            "augmentation": {"mosaic": 0.5, "colorShiftStddev": 0.05, "zoomMin": 0.8, "zoomMax": 1.2},
            "earlyStopping": {"monitor": "loss", "patience": 3},
        },
        "output": {"uri": f"file://{output}"},
        "resources": {"gpus": 0},
    }
    owner = {"kind": "TrainingJob", "namespace": "default", "name": "tiny", "uid": "one"}
    return RunSpec.model_validate({"owner": owner, "attempt": 1, "spec": spec, "inputs": {}})


@dataclass
class Trained:
    """A training that has come to its end."""

    output: Path
    report: RunReport
    losses: list[tuple[int, float]]

    @property
    def position(self) -> Position:
        return state.read(self.output / "last.state.npz")[0]


def losses_of(file: Path) -> list[tuple[int, float]]:
    pairs = (line.split() for line in file.read_text().splitlines())
    return [(int(step), float(loss)) for step, loss in pairs]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    sample_digits.generate(folder, 32, 64, 64, seed=3, classes=[0, 1])
    return folder


@pytest.fixture(scope="module")
def straight(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("straight")
    report = attempt(run_spec(scenes, output), output / "scratch", output / "losses", Ending())
    return Trained(output, report, losses_of(output / "losses"))


@pytest.fixture(scope="module")
def interrupted(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("interrupted")
    run, scratch, losses = run_spec(scenes, output), output / "scratch", output / "losses"
    with pytest.raises(RunnerError, match=f"after epoch 0 and step {STOPPED + 1} of the next") as caught:
        attempt(run, scratch, losses, Ending(stop_after=STOPPED))
    assert caught.value.reason == Reason.INTERRUPTED
    assert losses_of(losses)[-1][0] == STOPPED  # no step after the signal
    (output / "run.json").write_text(run.to_json())
    command = [sys.executable, str(SCRIPT), str(output / "run.json"), str(scratch), str(losses)]
    killed = subprocess.run([*command, json.dumps({"kill_after": KILLED})], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    with pytest.raises(RunnerError, match="stopped while evaluating") as caught:
        attempt(run, scratch, losses, Ending(stop_in_evaluation=STOPPED_IN_EVALUATION))
    assert caught.value.reason == Reason.INTERRUPTED
    assert losses_of(losses)[-1][0] == STOPPED_IN_EVALUATION * STEPS - 1
    position, _ = state.read(output / "last.state.npz")
    assert (position.epoch, position.closed) == (STOPPED_IN_EVALUATION, False)
    report = attempt(run, scratch, losses, Ending())
    return Trained(output, report, losses_of(losses))


def test_every_step_has_the_loss_of_the_uninterrupted_training(
    straight: Trained, interrupted: Trained
) -> None:
    wanted = dict(straight.losses)
    assert list(wanted) == list(range(EPOCHS * STEPS))
    taken = [step for step, _ in interrupted.losses]
    again = range(STEPS, KILLED + 1)  # what was done between the checkpoint and the kill
    assert sorted(taken) == sorted([*range(EPOCHS * STEPS), *again])
    for step, loss in interrupted.losses:
        assert loss == pytest.approx(wanted[step], abs=1e-5), step


def test_the_weights_are_the_same(straight: Trained, interrupted: Trained) -> None:
    for name in ("last.keras", "best.keras"):
        wanted, got = detector.load(straight.output / name), detector.load(interrupted.output / name)
        for left, right in zip(wanted.weights, got.weights, strict=True):
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-5, err_msg=left.path)


def test_the_whole_state_is_the_same(straight: Trained, interrupted: Trained) -> None:
    (wanted, arrays), (got, others) = (
        state.read(one.output / "last.state.npz") for one in (straight, interrupted)
    )
    for left, right in zip(arrays, others, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)
    assert got.reached == pytest.approx(wanted.reached, abs=1e-5)
    ignored = {"artifacts", "reached"}
    assert got.model_dump(exclude=ignored) == wanted.model_dump(exclude=ignored)


def test_every_epoch_was_evaluated_and_the_best_is_the_same(straight: Trained, interrupted: Trained) -> None:
    assert straight.report.metrics is not None
    assert interrupted.report.metrics == straight.report.metrics
    origin = model_file.origin_of(interrupted.output / "best.keras")
    assert origin is not None
    assert (origin.run, origin.job, origin.evaluation) == ("one", "default/tiny", straight.report.metrics)


def test_the_newest_checkpoints_are_kept_across_attempts(straight: Trained, interrupted: Trained) -> None:
    for trained in (straight, interrupted):
        kept = {item.name: item.epoch for item in trained.report.artifacts or ()}
        assert {name for name in kept if name.startswith("epoch-")} == {"epoch-0002", "epoch-0003"}
        assert (kept["epoch-0002"], kept["last"]) == (2, EPOCHS)
        files = {path.name for path in trained.output.glob("*.keras")}
        assert files == {f"{name}.keras" for name in kept}


def test_a_finished_training_whose_best_model_is_gone_makes_one_of_the_last_epoch(
    scenes: Path, straight: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(straight.output, output)
    (output / "best.keras").unlink()
    report = attempt(run_spec(scenes, output), output / "scratch", output / "losses", Ending())
    assert losses_of(output / "losses") == straight.losses  # no step was taken
    assert report.metrics is not None
    assert report.metrics.epoch == EPOCHS
    assert {item.name: item.epoch for item in report.artifacts or ()}["best"] == EPOCHS
    best, last = detector.load(output / "best.keras"), detector.load(output / "last.keras")
    for left, right in zip(best.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert state.read(output / "last.state.npz")[0].closed


def test_other_classes_under_a_run_are_an_error_and_overwrite_nothing(
    scenes: Path, straight: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(straight.output, output)
    run = run_spec(scenes, output)
    wire = json.loads(run.to_json())
    del wire["spec"]["dataset"]["targetClassMapping"]["zero"]
    before = (output / "last.state.npz").read_bytes()
    with pytest.raises(RunnerError, match=r"classes one, got one for one, zero \(gone: zero\)") as caught:
        attempt(RunSpec.from_json(json.dumps(wire)), output / "scratch", output / "losses", Ending())
    assert caught.value.reason == Reason.MODEL_MISMATCH
    assert (output / "last.state.npz").read_bytes() == before
