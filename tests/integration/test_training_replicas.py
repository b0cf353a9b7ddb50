"""Several devices, here two logical CPUs: TensorFlow must be told before it starts, hence another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tlt_runner.data import sample_digits

SCRIPT = Path(__file__).with_name("training_replicas_process.py")


def test_two_replicas_make_the_weights_and_metrics_of_one(tmp_path: Path) -> None:
    # mini-batches are drawn and mosaics made: draws go by an image's place in the batch
    scenes = tmp_path / "scenes"
    sample_digits.generate(scenes, 18, 64, 64, seed=3, classes=[0, 1])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(scenes), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(SCRIPT.parents[1]),
            "TF_NUM_INTRAOP_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    print(seen)
    assert seen["replicas"] == 2
    assert seen["largest_relative_difference"] < 1e-4
    assert abs(seen["maps"][0] - seen["maps"][1]) < 1e-6
