"""Trainings of several workers as processes on this machine, by ``tlt train --spec`` as pods run it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import patience
import ports
import tiny
from forked import Forked
from tlt_runner.training.distributed.rendezvous import INDEX_VARIABLE

POLL_SECONDS = 0.2


def run_spec(
    scenes: Path,
    output: Path,
    batch_size: int,
    *,
    epochs: int = 2,
    classes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A RunSpec: a tiny detector with frozen batch normalisation, sampled mini-batches, mosaics and EMA.

    The learning rate is low: gradients of a fresh detector are large, and weights that moved far on rounding
    errors would rank two proposals otherwise. Two epochs are 12 steps: workers ask each other at least twice
    within the first eight whether to stop.
    """
    run = tiny.run_spec(
        scenes,
        output,
        dataset={"targetClassMapping": classes or tiny.CLASSES},
        model={
            "freezeBatchNorm": True,
            "proposals": {
                "miniBatch": 8,
                "training": {"preNms": 15, "postNms": 12},
                "inference": {"preNms": 15, "postNms": 12},
            },
            "roi": {"poolSize": 4, "miniBatch": 6},
            "detections": {"maxDetections": 8, "scoreThreshold": 0.001},
        },
        training={
            "epochs": epochs,
            "batchSizePerGPU": batch_size,
            "learningRate": {"min": 2e-6, "max": 2e-5, "annealing": 1.0, "scaling": "none"},
            "augmentation": {"mosaic": 0.5},
            "ema": {"momentum": 0.9},
        },
        evaluation={"iouThreshold": 0.1, "intervalEpochs": epochs},
    )
    wire: dict[str, Any] = json.loads(run.to_json())
    return wire


@dataclass
class Worker:
    """A running ``tlt train``."""

    process: Forked
    folder: Path

    @property
    def log(self) -> str:
        """The text of its log so far."""
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def report(self) -> dict[str, Any]:
        """Its last report."""
        file = self.folder / "report.json"
        return json.loads(file.read_text()) if file.exists() else {}

    @property
    def failure(self) -> dict[str, Any]:
        """The failure in its termination message."""
        return json.loads((self.folder / "message").read_text())["failure"]

    def kill(self) -> None:
        """End it at once, and wait."""
        self.process.kill()
        self.process.wait()

    def ended(self) -> int:
        """Its exit code, when it has ended."""
        return self.process.wait(patience.MINUTES)

    def wait_for(self, condition: Callable[[Worker], bool]) -> None:
        """Wait until a condition holds."""
        for _ in range(int(patience.MINUTES / POLL_SECONDS)):
            if condition(self):
                return
            assert self.process.poll() is None, self.log[-3000:]
            time.sleep(POLL_SECONDS)
        raise AssertionError(self.log[-3000:])


def trains(worker: Worker) -> bool:
    """True once it has reported a step."""
    return (worker.report.get("progress") or {}).get("loss") is not None


def start(folder: Path, spec: dict[str, Any], count: int) -> list[Worker]:
    """Start so many workers with one RunSpec."""
    addresses = [f"localhost:{port}" for port in ports.free_ports(count)] if count > 1 else []
    workers = []
    for index in range(count):
        worker_folder = folder / f"{index}-{time.monotonic_ns()}"
        worker_folder.mkdir(parents=True)
        file = worker_folder / "run.json"
        file.write_text(json.dumps({**spec, "workers": addresses}))
        process = Forked(
            "tlt_runner.cli:main",
            ["train", "--spec", str(file), "--report", str(worker_folder / "report.json")],
            worker_folder / "log",
            {
                INDEX_VARIABLE: str(index),
                "TLT_TERMINATION_LOG": str(worker_folder / "message"),
                "TF_NUM_INTRAOP_THREADS": "1",
            },
        )
        workers.append(Worker(process, worker_folder))
    return workers


def stopped_at(worker: Worker) -> str:
    """The position at which it reports that it was stopped."""
    match = re.search(r"after epoch \d+ and step \d+", worker.failure["message"])
    assert match is not None, worker.failure
    return match.group()
