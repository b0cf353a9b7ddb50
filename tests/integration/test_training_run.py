"""``tlt train`` on a few real scenes: what it publishes, how it stops, resumes and fails."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tiny_detector
from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.status import Artifact, DatasetStatus, Metrics, Progress, Section
from tlt_runner.context import Context
from tlt_runner.data import sample_digits
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage, sha256_of
from tlt_runner.tasks import train
from tlt_runner.training.pretrained import load

CLASSES = {"zero": "zero", "one": "one"}


class StopAt(threading.Event):
    """Is set from the n-th time on that a training asks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count
        self.training = False

    def is_set(self) -> bool:
        self.left -= self.training
        return self.left < 0


@dataclass
class Heard:
    """A reporter that remembers."""

    stop: StopAt | None = None
    progresses: list[Progress] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    best: Metrics | None = None
    data: DatasetStatus | None = None

    def progress(self, progress: Progress) -> None:
        self.progresses.append(progress)
        if self.stop is not None:
            self.stop.training = progress.stage == "train"

    def artifact(self, artifact: Artifact) -> None:
        self.artifacts[artifact.name] = artifact

    def removed(self, name: str) -> None:
        del self.artifacts[name]

    def report(self, section: Section) -> None:
        if isinstance(section, Metrics):
            self.best = section
        elif isinstance(section, DatasetStatus):
            self.data = section
        else:
            raise AssertionError(f"expected metrics or a data set of a training, got {section}")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    sample_digits.generate(folder, 16, 96, 96, seed=3, classes=[0, 1])
    return folder


def run_spec(scenes: Path, output: Path, uid: str = "one", **changes: Any) -> RunSpec:
    spec = {
        "dataset": {
            "uri": f"file://{scenes}",
            "targetClassMapping": changes.get("classes", CLASSES),
            "imageSize": {"width": 96, "height": 96},
            "validation": {"fraction": 0.25},
        },
        "model": {**tiny_detector.MODEL, **changes.get("model", {})},
        "training": {"epochs": 2, "batchSizePerGPU": 4, "optimizer": {"type": "adam"}},
        "output": {"uri": f"file://{output}"},
        "resources": {"gpus": changes.get("gpus", 0)},
    }
    owner = {"kind": "TrainingJob", "namespace": "default", "name": "tiny", "uid": uid}
    return RunSpec.model_validate(
        {"owner": owner, "attempt": 1, "spec": spec, "inputs": changes.get("inputs", {})}
    )


def execute(run: RunSpec, scratch: Path, stop: StopAt | None = None) -> Heard:
    heard = Heard(stop)
    scratch.mkdir(parents=True, exist_ok=True)
    context = Context(Storage(scratch=scratch), heard, scratch, stop or threading.Event())
    train.run(run.spec, run, context)
    return heard


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard]:
    output = tmp_path_factory.mktemp("finished")
    return output, execute(run_spec(scenes, output), output / "scratch")


def test_best_and_last_are_published_with_their_digests(finished: tuple[Path, Heard]) -> None:
    output, heard = finished
    assert set(heard.artifacts) == {"best", "last"}
    for name, artifact in heard.artifacts.items():
        file = output / f"{name}.keras"
        assert (artifact.uri, artifact.sha256) == (f"file://{file}", sha256_of(file))
        assert artifact.size_bytes == file.stat().st_size
    assert heard.artifacts["last"].epoch == 2


def test_metrics_are_those_of_the_best_model(finished: tuple[Path, Heard]) -> None:
    _, heard = finished
    assert heard.best is not None
    assert heard.best.epoch == heard.artifacts["best"].epoch
    assert [item.name for item in heard.best.per_class or ()] == ["one", "zero"]


def test_progress_ends_with_all_epochs_done(finished: tuple[Path, Heard]) -> None:
    _, heard = finished
    last = heard.progresses[-1]
    assert (last.epoch, last.epochs, last.eta_seconds) == (2, 2, 0)


def test_a_published_model_can_be_loaded(finished: tuple[Path, Heard]) -> None:
    output, _ = finished
    assert detector.load(output / "best.keras").config.class_names == ["one", "zero"]


def test_an_interrupted_training_ends_with_the_same_weights_after_resuming(
    scenes: Path, finished: tuple[Path, Heard], tmp_path: Path
) -> None:
    run, data = run_spec(scenes, tmp_path), finished[1].data
    assert data is not None
    steps = (data.training_images or 0) // 4
    with pytest.raises(RunnerError, match="after epoch 1 and step 1") as caught:
        execute(run, tmp_path / "scratch", StopAt(steps + 1))
    assert caught.value.reason == Reason.INTERRUPTED
    assert (tmp_path / "last.state.npz").exists()
    execute(run, tmp_path / "scratch")
    wanted, got = detector.load(finished[0] / "last.keras"), detector.load(tmp_path / "last.keras")
    for left, right in zip(wanted.weights, got.weights, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)


def test_a_finished_training_reports_again_and_trains_no_more(
    scenes: Path, finished: tuple[Path, Heard]
) -> None:
    output, before = finished
    again = execute(run_spec(scenes, output), output / "scratch")
    assert again.artifacts == before.artifacts
    assert again.best == before.best
    assert not any(progress.step for progress in again.progresses if progress.stage == "train")


def test_the_checkpoint_of_another_resource_is_not_resumed(
    scenes: Path, finished: tuple[Path, Heard], tmp_path: Path
) -> None:
    state = tmp_path / "last.state.npz"
    state.write_bytes((finished[0] / "last.state.npz").read_bytes())
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
    assert not (tmp_path / "last.state.npz").exists()


def test_gpus_that_are_not_there_are_missed_before_anything_is_read(tmp_path: Path) -> None:
    missing = len(tf.config.list_physical_devices("GPU")) + 1
    with pytest.raises(RunnerError) as caught:
        execute(run_spec(tmp_path / "no-data", tmp_path, gpus=missing), tmp_path / "scratch")
    assert caught.value.reason == Reason.NOT_ENOUGH_GPUS


def test_weights_of_another_network_are_refused(finished: tuple[Path, Heard]) -> None:
    source = detector.load(finished[0] / "best.keras").config
    wider = detector.build(source.model_copy(update={"width_multiplier": 0.5, "class_names": ["a"]}), 1)
    with pytest.raises(RunnerError) as caught:
        load.load_by_name(wider, finished[0] / "best.keras")
    assert caught.value.reason == Reason.MODEL_MISMATCH
