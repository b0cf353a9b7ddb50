"""Several devices, here two logical CPUs: TensorFlow must be told before it starts, hence another process."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("training_replicas_process.py")


def test_replicas_share_the_batch_and_keep_equal_weights() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["replicas"] == 2
    assert sorted(seen["ids"]) == ["a", "b", "c", "d"]
    assert seen["largest_difference_between_replicas"] == 0.0
    assert seen["moved"] > 0.0
    # of anchors and draws that do not depend on how the batch is split: equal up to sampling
    assert abs(seen["penalty"] - seen["penalty_of_one"]) < 1e-5
