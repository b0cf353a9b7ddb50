"""Profile of a training step and of a detection, part by part, from TensorFlow's profiler.

One thread, so that no two ops run at once and the times of the ops add up to a step's. Name scopes say which
part an op belongs to; "gradients" are backward passes. What has no scope are sums of gradients, their norm,
and bookkeeping. Shares are of all ops, the network's included.

    nice python benchmarks/step_profile.py
    nice python benchmarks/step_profile.py --roi '{"head": "light"}'
"""

import argparse
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import train_step
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tlt_runner.detector import model as detector

STEPS = 3
PARTS = (
    *("trunk", "head", "targets", "proposals", "pooling", "detections", "losses"),
    *("statistics", "penalty", "optimizer", "averages"),
)
"""Name scopes of the detector and of the trainer."""
OP = re.compile(r"^(?P<name>[^:\s]+):(?P<kind>_?[A-Z]\w*)$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    train_step.add_arguments(parser)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    config = train_step.configure(arguments.backbone, arguments.size, arguments.roi)
    model = detector.build(config, seed=1)
    batch = train_step.examples(config, arguments.batch)
    figures = {
        "benchmark": "step_profile",
        "config": train_step.described(config, arguments),
        "training": profile(train_step.training(model, batch)),
        "inference": profile(train_step.inference(model, batch["image"])[0]),
    }
    print(json.dumps(figures))


def profile(run: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Milliseconds and share of each part."""
    run()
    run()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(STEPS):
                run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    taken: Counter[str] = Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                op = OP.match(plane.event_metadata[event.metadata_id].name)
                if op:
                    taken[part_of(op["name"])] += event.duration_ps / 1e9 / STEPS
    whole = sum(taken.values())
    return {part: {"ms": round(ms, 1), "share": round(ms / whole, 4)} for part, ms in taken.most_common()}


def part_of(name: str) -> str:
    """The part of the detector that an op belongs to."""
    pieces = [re.sub(r"_\d+$", "", piece) for piece in name.split("/")]
    backward = pieces[0] == "gradient_tape"
    scope = next((piece for piece in pieces if piece in PARTS), None)
    if scope is None:
        return "other"
    return f"{scope} gradients" if backward else scope


if __name__ == "__main__":
    main()
