"""Two real processes as one training: the weights of one, a stop of both, the end when a worker is lost."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

import training_workers as processes
from tlt_api.failures import CLASSES, Reason
from tlt_runner.detector import model as detector


@pytest.fixture(scope="module")
def together(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[processes.Worker]]:
    """Two workers, two images each, trained to the end without interruption."""
    output = tmp_path_factory.mktemp("together")
    workers = processes.start(output, processes.run_spec(scenes, output, 2), 2)
    for worker in workers:
        assert worker.ended() == 0, worker.log[-3000:]
    return output, workers


def difference(left: Path, right: Path) -> float:
    """Largest relative difference of a variable's values, in the variable's norm."""
    pairs = zip(
        detector.load(left / "last.keras").get_weights(),
        detector.load(right / "last.keras").get_weights(),
        strict=True,
    )
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6)) for a, b in pairs)


def epoch_figures(output: Path) -> list[dict[str, float]]:
    """Return the mean losses and the gradient norm of each epoch."""
    events = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [event["figures"] for event in events if event["event"] == "epoch"]


def test_two_workers_give_the_weights_and_metrics_of_one(
    scenes: Path, together: tuple[Path, list[processes.Worker]], tmp_path: Path
) -> None:
    (alone,) = processes.start(tmp_path, processes.run_spec(scenes, tmp_path, 4), 1)
    assert alone.ended() == 0, alone.log[-3000:]
    output, (chief, other) = together
    # Rounding: background proposals are decoded from an untrained network, which makes 1e-7 into 1e-4. One
    # proposal that is drawn otherwise, of 144 in an epoch, would change the mean loss of classes by 1e-3.
    assert difference(output, tmp_path) < 5e-4
    for left, right in zip(epoch_figures(output), epoch_figures(tmp_path), strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    one, two = alone.report["metrics"], chief.report["metrics"]
    assert one["epoch"] == two["epoch"]
    assert abs(one["mAP"] - two["mAP"]) < 1e-6
    for left, right in zip(one["perClass"], two["perClass"], strict=True):
        assert left["name"] == right["name"]
        assert abs(left["averagePrecision"] - right["averagePrecision"]) < 1e-6
    assert not other.report


def test_a_stop_of_one_worker_stops_both_at_one_step_and_they_resume_to_the_same_weights(
    scenes: Path, together: tuple[Path, list[processes.Worker]], tmp_path: Path
) -> None:
    spec = processes.run_spec(scenes, tmp_path, 2)
    chief, other = processes.start(tmp_path, spec, 2)
    other.wait_for(lambda worker: "all 2 workers are there" in worker.log)
    chief.wait_for(lambda worker: (worker.report.get("progress") or {}).get("stage") == "train")
    other.process.send_signal(signal.SIGTERM)
    assert [chief.ended(), other.ended()] == [CLASSES[Reason.INTERRUPTED].exit_code] * 2
    assert processes.stopped_at(chief) == processes.stopped_at(other)
    assert (tmp_path / "checkpoint.json").exists()
    for worker in processes.start(tmp_path, spec, 2):
        assert worker.ended() == 0, worker.log[-3000:]
        assert "resuming" in worker.log
    assert difference(tmp_path, together[0]) < 1e-6


def test_a_stop_while_tensorflow_starts_on_the_workers_ends_both(scenes: Path, tmp_path: Path) -> None:
    chief, other = processes.start(tmp_path, processes.run_spec(scenes, tmp_path, 2, epochs=500), 2)
    other.wait_for(lambda worker: "all 2 workers are there" in worker.log)
    other.process.send_signal(signal.SIGTERM)  # TensorFlow starts now, and takes the signal for itself
    assert other.ended() == CLASSES[Reason.INTERRUPTED].exit_code, other.log[-3000:]
    assert chief.ended() in [CLASSES[one].exit_code for one in (Reason.INTERRUPTED, Reason.WORKER_LOST)]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_other_which_names_it(scenes: Path, tmp_path: Path, victim: int) -> None:
    workers = processes.start(tmp_path, processes.run_spec(scenes, tmp_path, 2, epochs=500), 2)
    workers[0].wait_for(processes.trains)
    workers[victim].kill()
    left = workers[1 - victim]
    assert left.ended() == CLASSES[Reason.WORKER_LOST].exit_code, left.log[-3000:]
    assert f"worker {victim} at localhost:" in left.failure["message"]
    assert "Traceback" not in left.log
    if victim:  # the chief writes the log file
        *_, last = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
        assert (last["event"], last["reason"]) == ("failure", "WorkerLost")


def test_a_chief_that_cannot_prepare_ends_the_other_too(scenes: Path, tmp_path: Path) -> None:
    spec = processes.run_spec(scenes, tmp_path, 2, classes={"zebra": "zebra"})
    chief, other = processes.start(tmp_path, spec, 2)
    assert chief.ended() == CLASSES[Reason.UNKNOWN_CLASS].exit_code
    assert other.ended() == CLASSES[Reason.WORKER_LOST].exit_code
    assert "worker 0" in other.failure["message"]
