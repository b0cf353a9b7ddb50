"""CPU time of the training callbacks per step, beside that of Keras' own for the same purpose.

    python benchmarks/callback_overhead.py

Status, log file and TensorBoard's scalars of 20,000 steps in epochs of 100, without images, on a local
disk; then Keras' ProgbarLogger, CSVLogger and History for as many batches. Prints one JSON line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from tlt_api.runspec import RunSpec
from tlt_api.status import Progress
from tlt_runner.storage import Storage
from tlt_runner.training.callbacks.aggregate import Aggregate
from tlt_runner.training.callbacks.base import CallbackList, Step
from tlt_runner.training.callbacks.log_file import LogFile
from tlt_runner.training.callbacks.progress import ProgressReport
from tlt_runner.training.callbacks.tensorboard import TensorBoard
from tlt_runner.training.callbacks.uploader import Uploader

EPOCHS, STEPS, IMAGES = 200, 100, 8
FIGURES = {
    "total": 1.5,
    "rpn_objectness": 0.4,
    "rpn_deltas": 0.3,
    "head_classes": 0.5,
    "head_deltas": 0.2,
    "penalty": 0.1,
    "gradient_norm": 2.0,
}


def ours(folder: Path) -> float:
    """CPU seconds of our callbacks."""
    run = RunSpec.model_validate(
        {
            "owner": {"kind": "TrainingJob", "namespace": "default", "name": "cost", "uid": "0123456789"},
            "attempt": 1,
            "spec": {
                "dataset": {
                    "uri": "file:///data",
                    "targetClassMapping": {"a": "a"},
                    "imageSize": {"width": 64, "height": 64},
                },
                "output": {"uri": f"file://{folder}/out"},
            },
        }
    )
    storage = Storage(scratch=folder)
    aggregate = Aggregate(IMAGES, time.monotonic, STEPS)
    reports: list[Progress] = []

    def uploader() -> Uploader:
        return Uploader(storage, f"file://{folder}/out", time.monotonic)

    callbacks = CallbackList(
        [
            aggregate,
            ProgressReport(
                reports.append,
                aggregate,
                epochs=EPOCHS,
                steps=STEPS,
                clock=time.monotonic,
                evaluation_interval=1,
            ),
            LogFile(
                uploader(),
                aggregate,
                scratch=folder,
                run=run,
                epochs=EPOCHS,
                steps=STEPS,
                images_per_step=IMAGES,
                now=time.time,
            ),
            TensorBoard(
                uploader(), aggregate, scratch=folder, attempt=1, steps=STEPS, images=None, now=time.time
            ),
        ]
    )
    began = time.process_time()
    with callbacks:
        for epoch in range(EPOCHS):
            callbacks.on_epoch_begin(epoch, 0)
            for step in range(STEPS):
                callbacks.on_step_end(Step(epoch * STEPS + step, step + 1, 1e-3, FIGURES))
        callbacks.on_train_end(EPOCHS)
    assert not any(callbacks.failures), callbacks.failures
    return time.process_time() - began


def of_keras(folder: Path) -> float:
    """CPU seconds of Keras' callbacks."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    callbacks = keras.callbacks.CallbackList(
        [keras.callbacks.CSVLogger(folder / "log.csv"), keras.callbacks.ProgbarLogger()],
        add_history=True,
        model=model,
        epochs=EPOCHS,
        steps=STEPS,
        verbose=1,
    )
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        callbacks.on_train_begin()
        for epoch in range(EPOCHS):
            callbacks.on_epoch_begin(epoch)
            for step in range(STEPS):
                callbacks.on_train_batch_begin(step)
                callbacks.on_train_batch_end(step, dict(FIGURES))
            callbacks.on_epoch_end(epoch, dict(FIGURES))
        callbacks.on_train_end()
    return time.process_time() - began


def main() -> None:
    """Measure both and print the figures."""
    steps = EPOCHS * STEPS
    with tempfile.TemporaryDirectory() as name:
        mine, peer = ours(Path(name)), of_keras(Path(name))
    figures = {
        "microseconds_per_step": round(mine / steps * 1e6, 1),
        "keras_microseconds_per_step": round(peer / steps * 1e6, 1),
        "ratio": round(mine / peer, 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
