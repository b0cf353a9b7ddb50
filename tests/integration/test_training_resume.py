"""An interrupted training ends as one that is not: same losses, same weights, same best model.

Three interruptions of one run, in its first, second and third attempt: SIGTERM between two steps of an
epoch, kill -9 some steps after a checkpoint, SIGTERM in an evaluation. After the third, the output is
turned into that of an earlier program version.
"""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import patience
import tiny
from forked import Forked
from tlt_api.failures import Reason
from tlt_api.runreport import RunReport
from tlt_api.runspec import RunSpec
from tlt_api.status import Artifact, Metrics
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.files import sha256_of
from tlt_runner.training.checkpoint import state, writer
from tlt_runner.training.checkpoint.manifest import Manifest
from tlt_runner.training.checkpoint.state import Position
from training_resume_process import Ending, attempt

EPOCHS, STEPS = 3, 6
SAVED = {".keras", ".npz", ".json"}
STOPPED, KILLED, STOPPED_IN_EVALUATION = 3, 9, 2
"""After step 4 (of epoch 1), after step 10 (of epoch 2), in the evaluation of epoch 2."""


def run_spec(scenes: Path, output: Path, **options: object) -> RunSpec:
    training = {
        "epochs": EPOCHS,
        "batchSizePerGPU": 2,
        "gradientAccumulationSteps": 2,
        "ema": {"momentum": 0.9},
        "keepCheckpoints": 2,
        "optimizer": {"type": "adam"},
        "augmentation": {"mosaic": 0.5, "colorShiftStddev": 0.05, "zoomMin": 0.8, "zoomMax": 1.2},
        "earlyStopping": {"monitor": "loss", "patience": 3},
        **options,
    }
    return tiny.run_spec(scenes, output, training=training)


@dataclass
class Trained:
    """A training that has come to its end."""

    output: Path
    report: RunReport
    losses: list[tuple[int, float]]

    @property
    def position(self) -> Position:
        return manifest_of(self.output).position


def losses_of(file: Path) -> list[tuple[int, float]]:
    pairs = (line.split() for line in file.read_text().splitlines())
    return [(int(step), float(loss)) for step, loss in pairs]


def manifest_of(output: Path) -> Manifest:
    return Manifest.model_validate_json((output / "checkpoint.json").read_text())


def state_of(output: Path) -> list[np.ndarray]:
    """The variables of the checkpoint to resume from."""
    manifest = manifest_of(output)
    checkpoint = manifest.checkpoint(manifest.resume)
    assert checkpoint is not None
    assert checkpoint.state is not None
    return state.read(output / checkpoint.state.path)[1]


@pytest.fixture(scope="module")
def straight(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("straight")
    report = attempt(run_spec(scenes, output), output / "scratch", output / "losses", Ending())
    return Trained(output, report, losses_of(output / "losses"))


def _turn_into_layout_of_before_2026_12(output: Path) -> None:
    manifest, variables = manifest_of(output), state_of(output)
    assert (manifest.position.epoch, manifest.position.epoch_finished) == (STOPPED_IN_EVALUATION, False)
    models = [
        Artifact(
            name=name,
            uri=f"file://{output}/{name}.keras",
            sha256=sha256_of(output / f"{name}.keras"),
            size_bytes=(output / f"{name}.keras").stat().st_size,
            epoch=checkpoint.epoch,
        )
        for name, checkpoint in manifest.models().items()
    ]
    file = output / "last.state.npz"
    state.write(file, manifest.position.model_copy(update={"artifacts": models}), variables)
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files if name != state.DIGEST}
    position = json.loads(arrays[state.POSITION].tobytes())
    position["closed"] = position.pop("epochFinished")
    arrays[state.POSITION] = np.frombuffer(json.dumps(position).encode(), np.uint8)
    np.savez(file, **arrays)
    (output / "checkpoint.json").unlink()
    shutil.rmtree(output / "checkpoints")


@pytest.fixture(scope="module")
def interrupted(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("interrupted")
    run, scratch, losses = run_spec(scenes, output), output / "scratch", output / "losses"
    with pytest.raises(RunnerError, match=f"after epoch 0 and step {STOPPED + 1} of the next") as caught:
        attempt(run, scratch, losses, Ending(stop_after=STOPPED))
    assert caught.value.reason == Reason.INTERRUPTED
    assert losses_of(losses)[-1][0] == STOPPED  # no step after the signal
    (output / "run.json").write_text(run.to_json())
    arguments = [str(output / "run.json"), str(scratch), str(losses), json.dumps({"kill_after": KILLED})]
    killed = Forked("training_resume_process:main", arguments, output / "killed.log")
    assert killed.wait(patience.MINUTES) == -signal.SIGKILL, (output / "killed.log").read_text()[-2000:]
    with pytest.raises(RunnerError, match="stopped while evaluating") as caught:
        attempt(run, scratch, losses, Ending(stop_in_evaluation=STOPPED_IN_EVALUATION))
    assert caught.value.reason == Reason.INTERRUPTED
    assert losses_of(losses)[-1][0] == STOPPED_IN_EVALUATION * STEPS - 1
    _turn_into_layout_of_before_2026_12(output)
    report = attempt(run, scratch, losses, Ending())
    return Trained(output, report, losses_of(losses))


def test_a_training_killed_within_an_epoch_goes_on_from_the_timed_checkpoint_to_the_same_end(
    scenes: Path, straight: Trained, tmp_path: Path
) -> None:
    # A checkpoint is due before every step; the kill comes in epoch 2, once the manifest names one.
    output, run = tmp_path, run_spec(scenes, tmp_path, checkpointMinutes=1e-9)
    (output / "run.json").write_text(run.to_json())
    ending = {"kill_after": STEPS + 1, "timed_in": str(output / "checkpoint.json")}
    arguments = [
        str(output / "run.json"),
        str(output / "scratch"),
        str(output / "losses"),
        json.dumps(ending),
    ]
    killed = Forked("training_resume_process:main", arguments, output / "killed.log")
    assert killed.wait(patience.MINUTES) == -signal.SIGKILL, (output / "killed.log").read_text()[-2000:]
    position, before = manifest_of(output).position, losses_of(output / "losses")
    assert position.step > 0
    assert position.epoch_finished
    report = attempt(run, output / "scratch", output / "losses", Ending())
    resumed = Trained(output, report, losses_of(output / "losses"))
    # The next attempt's first step is the one after the checkpoint, not the first of the epoch.
    assert resumed.losses[len(before)][0] == position.epoch * STEPS + position.step
    for step, loss in resumed.losses:
        assert loss == pytest.approx(dict(straight.losses)[step], abs=1e-5), step
    for left, right in zip(state_of(straight.output), state_of(output), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)
    assert figures(resumed.report.metrics) == figures(straight.report.metrics)


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


def figures(metrics: Metrics | None) -> Metrics:
    """Return metrics without the address of their details, which is that of the run."""
    assert metrics is not None
    return metrics.model_copy(update={"details_uri": None})


def test_the_whole_state_is_the_same(straight: Trained, interrupted: Trained) -> None:
    wanted, got = straight.position, interrupted.position
    for left, right in zip(state_of(straight.output), state_of(interrupted.output), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)
    assert got.reached == pytest.approx(wanted.reached, abs=1e-5)
    assert figures(got.best) == figures(wanted.best)
    ignored = {"artifacts", "reached", "best"}
    assert got.model_dump(exclude=ignored) == wanted.model_dump(exclude=ignored)


def test_every_epoch_was_evaluated_and_the_best_is_the_same(straight: Trained, interrupted: Trained) -> None:
    assert straight.report.metrics is not None
    assert figures(interrupted.report.metrics) == figures(straight.report.metrics)
    origin = writer.origin_of(interrupted.output / "best.keras")
    assert origin is not None
    assert (origin.run, origin.job) == ("one", "default/tiny")
    assert figures(origin.evaluation) == figures(straight.report.metrics)


def test_the_newest_checkpoints_are_kept_across_attempts(straight: Trained, interrupted: Trained) -> None:
    for trained in (straight, interrupted):
        kept = {item.name: item.epoch for item in trained.report.artifacts or ()}
        assert {name for name in kept if name.startswith("epoch-")} == {"epoch-0002", "epoch-0003"}
        assert (kept["epoch-0002"], kept["last"]) == (2, EPOCHS)
        files = {path.name for path in trained.output.glob("*.keras")}
        assert files == {f"{name}.keras" for name in kept}
        stored = {str(path.relative_to(trained.output)) for path in trained.output.glob("checkpoints/*/*")}
        assert stored == manifest_of(trained.output).paths()
        assert not (trained.output / "last.state.npz").exists()


def _best_model(output: Path) -> Path:
    model = manifest_of(output).models()["best"].model
    assert model is not None
    return output / model.path


def test_a_finished_training_whose_best_model_is_gone_makes_one_of_the_last_epoch(
    scenes: Path, straight: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(straight.output, output)
    (output / "best.keras").unlink()
    _best_model(output).unlink()
    report = attempt(run_spec(scenes, output), output / "scratch", output / "losses", Ending())
    assert losses_of(output / "losses") == straight.losses  # no step was taken
    assert report.metrics is not None
    assert report.metrics.epoch == EPOCHS
    assert {item.name: item.epoch for item in report.artifacts or ()}["best"] == EPOCHS
    best, last = detector.load(output / "best.keras"), detector.load(output / "last.keras")
    for left, right in zip(best.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert manifest_of(output).position.epoch_finished


def test_a_best_model_of_which_only_the_copy_is_gone_is_copied_again(
    scenes: Path, straight: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(straight.output, output)
    (output / "best.keras").unlink()
    report = attempt(run_spec(scenes, output), output / "scratch", output / "losses", Ending())
    assert losses_of(output / "losses") == straight.losses  # no step was taken
    assert figures(report.metrics) == figures(straight.report.metrics)
    assert (output / "best.keras").read_bytes() == (straight.output / "best.keras").read_bytes()


def test_other_classes_under_a_run_are_an_error_and_overwrite_nothing(
    scenes: Path, straight: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(straight.output, output)
    run = run_spec(scenes, output)
    wire = json.loads(run.to_json())
    del wire["spec"]["dataset"]["targetClassMapping"]["zero"]
    saved = [path for path in output.rglob("*.*") if path.suffix in SAVED]
    # The report of the data, which are prepared before the checkpoint is read, is that of the other classes.
    before = {path: path.read_bytes() for path in saved if path.name != "dataset-report.json"}
    with pytest.raises(RunnerError, match=r"classes one, got one for one, zero \(gone: zero\)") as caught:
        attempt(RunSpec.from_json(json.dumps(wire)), output / "scratch", output / "losses", Ending())
    assert caught.value.reason == Reason.MODEL_MISMATCH
    assert {path: path.read_bytes() for path in before} == before
