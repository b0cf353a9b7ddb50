"""``tlt train`` on a few real scenes: its log file and its logs for TensorBoard."""

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import tiny
from tlt_runner.tasks import train


@pytest.fixture(scope="module")
def output(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    run = tiny.run_spec(
        scenes,
        folder / "out",
        uid="0123456789",
        training={"epochs": 1},
        visualization={"images": 2, "scoreThreshold": 0.1},
    )
    tiny.execute(train, run, folder / "scratch")
    return folder / "out"


def values(output: Path) -> list[Any]:
    files = sorted((output / "logs/tiny-01234567").iterdir())
    events = [
        tf.compat.v1.Event.FromString(item.numpy()) for item in tf.data.TFRecordDataset([*map(str, files)])
    ]
    return [value for event in events for value in event.summary.value]


def test_the_log_file_has_start_epoch_evaluation_and_end(output: Path) -> None:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "epoch", "evaluation", "end"]
    assert lines[1]["figures"]["total"] > 0


def test_tensorboard_gets_curves_and_as_many_images_as_asked_for(output: Path) -> None:
    tags = [value.tag for value in values(output)]
    assert {"loss/total", "loss/head_classes", "gradient_norm", "learning_rate", "mAP", "AP/one"} <= {*tags}
    pictures = [value for value in values(output) if value.HasField("image")]
    assert len(pictures) == 2
    assert {(value.image.height, value.image.width) for value in pictures} == {(tiny.SIZE, 2 * tiny.SIZE)}
