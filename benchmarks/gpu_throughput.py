"""Training images a second on a GPU by backbone and batch, with XLA and mixed precision; and torchvision's.

Every row is a process of its own: the whole step of ``tlt train`` on images that are on the GPU already, the
median of some steps after warming up. The peer is torchvision's Faster R-CNN (:mod:`torchvision_step`), with
and without autocast, in this environment if it has torch and torchvision, otherwise in one that pip makes
under ``--environments`` from peers-torchvision.txt. One JSON line; "ratio" is ours, with XLA and mixed
precision, to the peer with autocast.

    python benchmarks/gpu_throughput.py
    python benchmarks/gpu_throughput.py --cpu --backbones resnet10 --batches 1 --size 64 --steps 2
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from detector_peers import ENVIRONMENTS_FOLDER, FOLDER, environment
from step_rate import images_a_second

PEER = "torchvision fasterrcnn_resnet50_fpn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--size", type=int, default=512, help="pixels, of both sides")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cpu", action="store_true", help="on the CPU, to see that the script runs")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS_FOLDER)
    parser.add_argument("--row", type=json.loads, help="one row of ours, in this process")
    arguments = parser.parse_args()
    if arguments.row is not None:
        step = training(arguments.row, arguments)
        print(images_a_second(step, arguments.row["batch"], arguments.steps))
        return
    rows = [
        {"detector": backbone, "batch": batch, "xla": fast, "mixed": fast}
        for backbone in arguments.backbones
        for batch in arguments.batches
        for fast in (False, True)
    ]
    rows += [
        {"detector": PEER, "batch": batch, "xla": False, "mixed": mixed}
        for batch in arguments.batches
        for mixed in (False, True)
    ]
    for row in rows:
        row["images_a_second"] = in_child(row, arguments)
    print(json.dumps({"benchmark": "gpu_throughput", "size": arguments.size, "rows": rows, **ratios(rows)}))


def in_child(row: dict[str, Any], arguments: argparse.Namespace) -> float:
    if row["detector"] == PEER:
        has_torch = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))
        python = sys.executable if has_torch else environment(arguments.environments, "torchvision")
        command = [python, FOLDER / "torchvision_step.py", f"--size={arguments.size}"]
        command += [f"--batch={row['batch']}", f"--steps={arguments.steps}"]
        command += ["--mixed"] * row["mixed"] + ["--cpu"] * arguments.cpu
    else:
        command = [sys.executable, __file__, *sys.argv[1:], "--row", json.dumps(row)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours to the peer's, of the same batch."""
    fast = {(row["detector"], row["batch"]): row["images_a_second"] for row in rows if row["mixed"]}
    return {
        "ratio": {
            f"{detector}, batch {batch}": round(rate / fast[PEER, batch], 3)
            for (detector, batch), rate in fast.items()
            if detector != PEER and (PEER, batch) in fast
        }
    }


def training(row: dict[str, Any], arguments: argparse.Namespace) -> Callable[[], object]:
    """Our step; it waits for its figures."""
    import train_step

    from tlt_api.training import Training
    from tlt_runner.detector import model as detector
    from tlt_runner.training import mixed_precision
    from tlt_runner.training.distributed.workers import claim
    from tlt_runner.training.trainer import Trainer

    workers = claim(0 if arguments.cpu else 1)
    config = train_step.configure(row["detector"], (arguments.size, arguments.size), {})
    spec = Training(xla=row["xla"], mixed_precision=row["mixed"])
    model = detector.build(config, seed=1)
    trainer = Trainer(model, spec, workers.strategy, mixed_precision.low_dtype(workers.any))
    batch = train_step.examples(config, row["batch"])
    return lambda: trainer.step(batch, 1, 1e-6).numpy()


if __name__ == "__main__":
    main()
