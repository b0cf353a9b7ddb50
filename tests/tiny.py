"""The tiny training of all tests: its RunSpec, its reporter, and how it is run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_detector
from tlt_api.runspec import RunSpec
from tlt_api.status import Progress
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage

SIZE = tiny_detector.TRAINING_SIZE
IMAGES = 32
CLASSES = {"zero": "zero", "one": "one"}
OTHER_CLASSES = {"one": "one", "seven": "seven"}
"""Classes of the scenes for the tiny detector, which are larger than those of tiny trainings."""


def generate_scenes(folder: Path) -> None:
    """Write the data set of tiny trainings: 32 images of 64 x 64 pixels with digits of two classes."""
    from tlt_runner.data import sample_digits

    sample_digits.generate(folder, IMAGES, SIZE, SIZE, seed=3, classes=[0, 1])


def dataset(
    scenes: Path, classes: dict[str, str] = CLASSES, size: int = SIZE, fraction: float = 0.25
) -> dict[str, Any]:
    """Return ``spec.dataset`` for square scenes, with a fraction of them for validation."""
    return {
        "uri": f"file://{scenes}",
        "targetClassMapping": classes,
        "imageSize": {"width": size, "height": size},
        "validation": {"fraction": fraction},
    }


def spec(scenes: Path, output: Path, **sections: Any) -> dict[str, Any]:
    """Return the spec of a TrainingJob on these scenes; each section is merged into that of the spec."""
    whole: dict[str, Any] = {
        "dataset": dataset(scenes),
        "model": tiny_detector.MODEL,
        "training": {"epochs": 2, "batchSizePerGPU": 4},
        "output": {"uri": f"file://{output}"},
        "resources": {"gpus": 0},
    }
    for name, section in sections.items():
        whole[name] = {**whole.get(name, {}), **section}
    return whole


def run_spec(
    scenes: Path,
    output: Path,
    *,
    uid: str = "one",
    attempt: int = 1,
    inputs: dict[str, Any] | None = None,
    **sections: Any,
) -> RunSpec:
    """Return the RunSpec of the TrainingJob of :func:`spec`."""
    return RunSpec.model_validate(
        {
            "owner": {"kind": "TrainingJob", "namespace": "default", "name": "tiny", "uid": uid},
            "attempt": attempt,
            "spec": spec(scenes, output, **sections),
            "inputs": inputs or {},
        }
    )


class StopAt(Stop):
    """A stop request at the n-th step of a training; ``ProgressRecorder`` starts the count."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count
        self.training = False

    def requested(self) -> bool:
        """Count down while the training takes steps."""
        self.left -= self.training
        return self.left < 0


class ProgressRecorder(LocalReporter):
    """A reporter that keeps every progress, and starts the count of a :class:`StopAt`."""

    def __init__(self, stop: Stop | None = None) -> None:
        super().__init__(None)
        self.stop = stop
        self.progresses: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        """Keep a progress, and tell the stop request when the training begins."""
        super().progress(progress)
        self.progresses.append(progress)
        if isinstance(self.stop, StopAt):
            self.stop.training = progress.stage == "train"


def execute(task: Any, run: RunSpec, scratch: Path, stop: Any = None) -> ProgressRecorder:
    """Run a task in this process, and return its reporter."""
    reporter = ProgressRecorder(stop)
    scratch.mkdir(parents=True, exist_ok=True)
    task.run(run.spec, run, Context(Storage(scratch=scratch), reporter, scratch, stop or Stop()))
    return reporter
