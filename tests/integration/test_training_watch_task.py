"""``tlt train`` on a few real scenes: what it leaves for those who watch."""

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import tiny_detector
from tlt_api.runspec import RunSpec
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.data import sample_digits
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage
from tlt_runner.tasks import train


def run_spec(folder: Path) -> RunSpec:
    spec = {
        "dataset": {
            "uri": f"file://{folder}/scenes",
            "targetClassMapping": {"zero": "zero", "one": "one"},
            "imageSize": {"width": 96, "height": 96},
            "validation": {"fraction": 0.25},
        },
        "model": tiny_detector.MODEL,
        "training": {"epochs": 1, "batchSizePerGPU": 4},
        "visualization": {"images": 2, "scoreThreshold": 0.1},
        "output": {"uri": f"file://{folder}/out"},
        "resources": {"gpus": 0},
    }
    owner = {"kind": "TrainingJob", "namespace": "default", "name": "tiny", "uid": "0123456789"}
    return RunSpec.model_validate({"owner": owner, "attempt": 1, "spec": spec})


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    sample_digits.generate(folder / "scenes", 12, 96, 96, seed=3, classes=[0, 1])
    scratch = folder / "scratch"
    scratch.mkdir()
    context = Context(Storage(scratch=scratch), LocalReporter(None), scratch, Stop())
    train.run(run_spec(folder).spec, run_spec(folder), context)
    return folder / "out"


def values(output: Path) -> list[Any]:
    files = sorted((output / "logs/tiny-01234567").iterdir())
    events = [
        tf.compat.v1.Event.FromString(item.numpy()) for item in tf.data.TFRecordDataset([*map(str, files)])
    ]
    return [value for event in events for value in event.summary.value]


def test_the_log_file_tells_of_start_epoch_evaluation_and_end(output: Path) -> None:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "epoch", "evaluation", "end"]
    assert lines[1]["figures"]["total"] > 0


def test_tensorboard_gets_curves_and_as_many_pictures_as_asked_for(output: Path) -> None:
    tags = [value.tag for value in values(output)]
    assert {"loss/total", "loss/head_classes", "gradient_norm", "learning_rate", "mAP", "AP/one"} <= {*tags}
    pictures = [value for value in values(output) if value.HasField("image")]
    assert len(pictures) == 2
    assert {(value.image.height, value.image.width) for value in pictures} == {(96, 192)}
