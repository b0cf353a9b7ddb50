"""Accuracy of a detector on held-out digits scenes: mAP@0.5, COCO AP by pycocotools, and its learning curve.

The real runner trains (``tlt train``), on scenes that are generated here; pycocotools judges the best model
in pixels of the original images.

    python benchmarks/digits_accuracy.py --out FOLDER      # resnet18; two hours on 2 cores; resumes

FOLDER gets the scenes, the run, ``curve.json`` and its plot ``curve.svg``. ``--plot`` only draws that again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tlt_runner.data import sample_digits

SIZE, SEED = 192, 7
TRAINING: dict[str, Any] = {
    "batchSizePerGPU": 4,
    "learningRate": {"min": 1.0e-5, "max": 1.0e-3, "softStart": 0.1, "annealing": 0.4},
    "optimizer": {"type": "adam"},
    "augmentation": {
        "horizontalFlip": 0,
        "zoomMin": 0.9,
        "zoomMax": 1.1,
        "translateMaxX": 12,
        "translateMaxY": 12,
    },
}


def spec(options: argparse.Namespace) -> dict[str, Any]:
    """The TrainingJob's spec."""
    return {
        "dataset": {
            "uri": f"file://{options.out}/scenes",
            "targetClassMapping": {name: name for name in sample_digits.CLASS_NAMES},
            "imageSize": {"width": SIZE, "height": SIZE},
            "validation": {"fraction": 0.2, "seed": 42},
        },
        "model": {
            "backbone": options.backbone,
            "widthMultiplier": options.width_multiplier,
            "anchors": {"scales": [24, 40, 64], "ratios": [1.0, 0.7]},
            "proposals": {
                "miniBatch": 128,
                "training": {"preNms": 400, "postNms": 100},
                "inference": {"preNms": 400, "postNms": 100},
            },
            "roi": {"poolSize": 7, "miniBatch": 32, "positiveFraction": 0.5, **options.roi},
            "detections": {"maxDetections": 32},
            "maxObjects": 16,
        },
        "training": {"epochs": options.epochs, **TRAINING},
        "output": {"uri": f"file://{options.out}/run"},
        "resources": {"gpus": 0},
    }


def main() -> None:
    options = _options()
    if options.plot:
        plot(options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    sample_digits.generate(options.out / "scenes", options.images, SIZE, SIZE, SEED)
    started = time.monotonic()
    curve = train(options)
    seconds = time.monotonic() - started
    training = round(options.images * 0.8)
    figures = {
        "benchmark": "digits_accuracy",
        "backbone": options.backbone,
        "widthMultiplier": options.width_multiplier,
        "roi": options.roi,
        "images_seen": training * options.epochs,
        "best_mAP": round(max(curve), 4),
        **judge(options.out),
        "minutes": round(seconds / 60, 1),
    }
    (options.out / "curve.json").write_text(json.dumps({**figures, "mAP_by_epoch": curve}))
    plot(options.out)
    print(json.dumps(figures))


def train(options: argparse.Namespace) -> list[float]:
    """Train, and return mAP@0.5 by epoch."""
    owner = {"kind": "TrainingJob", "namespace": "benchmarks", "name": "digits", "uid": "digits-accuracy"}
    file = options.out / "run.json"
    file.write_text(json.dumps({"owner": owner, "attempt": 1, "spec": spec(options)}))
    command = [sys.executable, "-m", "tlt_runner", "train", "--spec", str(file)]
    with (options.out / "train.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    lines = (options.out / "run" / "log.jsonl").read_text().splitlines()
    return [event["mAP"] for event in map(json.loads, lines) if event["event"] == "evaluation"]


def plot(out: Path) -> None:
    """Draw ``curve.json`` of a run."""
    from matplotlib.figure import Figure

    figures = json.loads((out / "curve.json").read_text())
    curve = figures["mAP_by_epoch"]
    images = [figures["images_seen"] * (epoch + 1) / len(curve) for epoch in range(len(curve))]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(images, curve, marker="o", label="mAP@0.5 after each epoch")
    axes.axhline(
        figures["coco_AP"], linestyle=":", color="gray", label=f"COCO AP of the best {figures['coco_AP']:.3f}"
    )
    axes.set(
        xlabel="images seen",
        ylabel=f"{figures['validation_images']} held-out scenes",
        ylim=(0, 1),
        title=f"{figures['backbone']}, width {figures['widthMultiplier']:g}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(out / "curve.svg", metadata={"Date": None})


def judge(out: Path) -> dict[str, Any]:
    """COCO AP of the best model on the validation images."""
    from coco_scores import coco_scores

    from tlt_runner.data.records import load_records
    from tlt_runner.detector import model as detector
    from tlt_runner.storage import Storage

    records = load_records(Storage(volumes_root=out, scratch=out, s3=None), f"file://{records_folder(out)}")
    model = detector.load(out / "run" / "best.keras")
    return coco_scores(
        lambda images: {name: np.asarray(value) for name, value in model.predict_on_batch(images).items()},
        records,
    )


def records_folder(out: Path) -> Path:
    """Return the folder of the run's TFRecords."""
    return next((out / "run").rglob("dataset.json")).parent


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--width-multiplier", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=1000, help="scenes, a fifth of them held out")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--roi", type=json.loads, default={}, help="fields of spec.model.roi, as JSON")
    parser.add_argument("--plot", action="store_true", help="draw an earlier run's curve.json again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
