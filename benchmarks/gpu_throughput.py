"""Training images a second on a GPU by backbone and batch, with XLA and mixed precision; and torchvision's.

Every row is a process of its own: the whole step of ``tlt train`` on images that are on the GPU already, the
median of some steps after warming up. The peer is torchvision's Faster R-CNN (ResNet-50 with a feature
pyramid; torchvision has none with a C4 head), with and without autocast, where torch and torchvision are
installed. One JSON line; "ratio" is ours, with XLA and mixed precision, to the peer with autocast.

    python benchmarks/gpu_throughput.py
    python benchmarks/gpu_throughput.py --cpu --backbones resnet10 --batches 1 --size 64 --steps 2
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

WARM_UP = 3
PEER = "torchvision fasterrcnn_resnet50_fpn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--size", type=int, default=512, help="pixels, of both sides")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cpu", action="store_true", help="on the CPU, to see that the script runs")
    parser.add_argument("--row", type=json.loads, help="one row, in this process")
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(json.dumps(images_a_second(arguments.row, arguments)))
        return
    rows = [
        {"detector": backbone, "batch": batch, "xla": fast, "mixed": fast}
        for backbone in arguments.backbones
        for batch in arguments.batches
        for fast in (False, True)
    ]
    if all(importlib.util.find_spec(name) for name in ("torch", "torchvision")):
        rows += [
            {"detector": PEER, "batch": batch, "xla": False, "mixed": mixed}
            for batch in arguments.batches
            for mixed in (False, True)
        ]
    else:
        print("torch and torchvision are not installed: no peer is measured", file=sys.stderr)
    for row in rows:
        row["images_a_second"] = in_child(row)
    print(json.dumps({"benchmark": "gpu_throughput", "size": arguments.size, "rows": rows, **ratios(rows)}))


def in_child(row: dict[str, Any]) -> float:
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


def images_a_second(row: dict[str, Any], arguments: argparse.Namespace) -> float:
    step = (of_torchvision if row["detector"] == PEER else of_ours)(row, arguments)
    for _ in range(WARM_UP):
        step()
    taken = []
    for _ in range(arguments.steps):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return round(row["batch"] / statistics.median(taken), 2)


def of_ours(row: dict[str, Any], arguments: argparse.Namespace) -> Callable[[], object]:
    import tensorflow as tf
    import train_step

    from tlt_api.training import Training
    from tlt_runner.detector import model as detector
    from tlt_runner.training import precision
    from tlt_runner.training.trainer import Trainer

    if not arguments.cpu and not tf.config.list_physical_devices("GPU"):
        raise SystemExit("expected a GPU, TensorFlow sees none; --cpu tries the script without one")
    config = train_step.configure(row["detector"], arguments.size, {})
    spec = Training(xla=row["xla"], mixed_precision=row["mixed"])
    strategy, low = tf.distribute.get_strategy(), precision.low_dtype()
    trainer = Trainer(detector.build(config, seed=1), spec, strategy, low)
    batch = train_step.examples(config, row["batch"])
    return lambda: trainer.step(batch, 1, 1e-6).numpy()


def of_torchvision(row: dict[str, Any], arguments: argparse.Namespace) -> Callable[[], object]:
    import torch
    import torchvision
    import train_step

    device = torch.device("cpu" if arguments.cpu else "cuda")
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=21, min_size=arguments.size, max_size=arguments.size
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    batch = train_step.examples(train_step.configure("resnet50", arguments.size, {}), row["batch"])
    objects = train_step.OBJECTS
    images = [
        torch.tensor(image).permute(2, 0, 1).to(device).float() / 255 for image in batch["image"].numpy()
    ]
    targets = [
        {
            "boxes": torch.tensor(boxes[:objects][:, [1, 0, 3, 2]]).to(device),
            "labels": torch.tensor(classes[:objects] + 1).to(device).long(),
        }
        for boxes, classes in zip(batch["boxes"].numpy(), batch["classes"].numpy(), strict=True)
    ]

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=row["mixed"]):
            total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total)

    return step


if __name__ == "__main__":
    main()
