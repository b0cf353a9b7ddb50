"""Several devices, here two logical CPUs: TensorFlow must be told before it starts, hence another process."""

import json
from pathlib import Path

import patience
from forked import Forked


def test_two_replicas_give_the_weights_and_metrics_of_one(scenes: Path, tmp_path: Path) -> None:
    # Mini-batches are drawn and mosaics made: draws go by an image's place in the batch.
    log = tmp_path / "log"
    process = Forked(
        "training_replicas_process:main",
        [str(scenes), str(tmp_path)],
        log,
        {"TF_NUM_INTRAOP_THREADS": "1"},
    )
    assert process.wait(patience.MINUTES) == 0, log.read_text()[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["replicas"] == 2
    # Rounding of 1e-7 that an untrained network enlarges (test_training_workers).
    assert figures["largest_relative_difference"] < 5e-4
    assert abs(figures["maps"][0] - figures["maps"][1]) < 1e-6
