"""Anchors from the boxes of a data set: read from records, proposed by ``tlt anchors``, used by training."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import patience
from fakes import run_task, task_context
from tlt_api.model import Anchors
from tlt_api.status import AnchorsStatus
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.data import anchor_grid, sample_digits
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.records import Records
from tlt_runner.detector import anchor_clustering
from tlt_runner.detector import model as detector
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage
from tlt_runner.tasks import anchors, train
from tlt_runner.training import initial_model
from tlt_runner.training.checkpoint import state
from tlt_runner.training.checkpoint.state import Position

SIZE = 96
TRAINING_IMAGES = 12
CLASSES = {"zero": "zero", "one": "one"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    sample_digits.generate(folder, TRAINING_IMAGES, SIZE, SIZE, seed=3, classes=[0, 1])
    sample_digits.generate(folder, 4, SIZE, SIZE, seed=4, classes=[0, 1], part="testing")
    return folder


def job(scenes: Path, output: Path, **model: Any) -> dict[str, Any]:
    """A TrainingJob's spec; the network's input is twice as wide as the scenes."""
    return {
        "dataset": {
            "uri": f"file://{scenes}",
            "targetClassMapping": CLASSES,
            "imageSize": {"width": 2 * SIZE, "height": SIZE},
            "validation": {"images": "testing/image_2", "labels": "testing/label_2"},
        },
        "model": {
            "backbone": "resnet10",
            "widthMultiplier": 0.125,
            "anchors": {"scales": [64, 128], "ratios": [1.0, 0.5]},
            "proposals": {
                "miniBatch": 16,
                "training": {"preNms": 30, "postNms": 16},
                "inference": {"preNms": 30, "postNms": 16},
            },
            "roi": {"poolSize": 4, "miniBatch": 8},
            **model,
        },
        "training": {"epochs": 1, "batchSizePerGPU": 4},
        "output": {"uri": f"file://{output}"},
        "resources": {"gpus": 0},
    }


def execute(task: Any, spec: dict[str, Any], folder: Path) -> AnchorsStatus | None:
    reporter = LocalReporter(None)
    context = task_context(folder, reporter)
    run_task(task, TrainingJobSpec.model_validate(spec), context)
    return reporter.snapshot().anchors


@pytest.fixture(scope="module")
def records(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("prepared")
    spec = TrainingJobSpec.model_validate(job(scenes, folder))
    return prepare(spec.dataset, Storage(scratch=folder / "scratch"), spec.output.uri)


def labelled_boxes(scenes: Path) -> np.ndarray:
    """Edges in the network's input, yxyx, of every training label, from the text of the label files."""
    rows = [
        [float(value) for value in line.split()[4:8]]
        for file in sorted((scenes / "training" / "label_2").iterdir())
        for line in file.read_text().splitlines()
    ]
    x1, y1, x2, y2 = np.array(rows, np.float32).T
    return np.stack([y1, 2 * x1, y2, 2 * x2], axis=-1)


def labelled_sizes(scenes: Path) -> np.ndarray:
    boxes = labelled_boxes(scenes)
    sizes = boxes[:, 2:] - boxes[:, :2]
    return sizes[np.lexsort(sizes.T)]


def test_box_sizes_equal_those_of_the_training_labels(scenes: Path, records: Records) -> None:
    np.testing.assert_array_equal(initial_model.training_objects(records).sizes, labelled_sizes(scenes))


def test_a_sample_of_many_boxes_is_the_same_every_time(records: Records) -> None:
    everything = {tuple(size) for size in initial_model.training_objects(records).sizes}
    drawn = initial_model.training_objects(records, max_objects=7).sizes
    assert drawn.shape == (7, 2)
    assert {tuple(size) for size in drawn} <= everything
    np.testing.assert_array_equal(drawn, initial_model.training_objects(records, max_objects=7).sizes)


def test_the_task_reports_anchors_that_fit_better(scenes: Path, records: Records, tmp_path: Path) -> None:
    fitted = execute(anchors, job(scenes, tmp_path), tmp_path / "scratch")
    assert fitted is not None
    sizes, given = labelled_sizes(scenes), Anchors(scales=[64, 128], ratios=[1.0, 0.5])
    chosen = anchor_clustering.propose(sizes, given, seed=42)
    objects = initial_model.training_objects(records)
    assert fitted == anchor_clustering.compare(objects, given, chosen, foreground=0.7)
    boxes = np.array(sorted(labelled_boxes(scenes).tolist()))
    np.testing.assert_array_equal(sorted(objects.boxes.tolist()), boxes)
    overlaps = anchor_grid.best_overlaps(boxes, anchor_grid.shapes_of(chosen), objects.height, objects.width)
    assert fitted.recall == pytest.approx(np.mean(overlaps >= 0.5), abs=1e-5)
    assert sum(gap.missed for gap in fitted.gaps or ()) == np.sum(overlaps < 0.5)
    # Digits of 12 to 36 pixels, drawn to double width: no given anchor fits most of them.
    assert fitted.default_recall < 0.2
    # By shape alone nearly all of them fit; on the grid of 16 pixels some lie too far from an anchor.
    assert np.mean(anchor_clustering.best_overlaps(sizes, chosen) >= 0.5) > 0.9
    assert 0.6 < fitted.recall < 0.8
    assert max(fitted.scales) < 64


def test_the_command_prints_a_table_and_the_yaml_to_paste(scenes: Path, tmp_path: Path) -> None:
    manifest = {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "digits"},
        "spec": job(scenes, tmp_path / "out"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    command = [sys.executable, "-m", "tlt_runner", "anchors", "-f", "job.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=patience.MINUTES, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    header = next(line for line in lines if line.startswith("ANCHORS"))
    columns = ["ANCHORS", "SCALES", "RATIOS", "RECALL@0.5", "RECALL@0.7", "MEAN IOU"]
    assert [cell.strip() for cell in header.split("   ") if cell.strip()] == columns
    assert [line.split()[0] for line in lines[lines.index(header) :][1:3]] == ["spec", "proposed"]
    start = lines.index("spec:")
    pasted = yaml.safe_load("\n".join(lines[start : start + 5]))["spec"]["model"]["anchors"]
    sizes, given = labelled_sizes(scenes), Anchors(scales=[64, 128], ratios=[1.0, 0.5])
    assert Anchors.model_validate(pasted) == anchor_clustering.propose(sizes, given, seed=42)


def test_a_training_uses_and_reports_the_fitted_anchors(scenes: Path, tmp_path: Path) -> None:
    spec = job(scenes, tmp_path, anchors={"auto": True, "scales": [64, 128], "ratios": [1.0, 0.5]})
    fitted = execute(train, spec, tmp_path / "scratch")
    assert fitted is not None
    trained = detector.load(tmp_path / "last.keras").config.anchors
    assert trained == Anchors(scales=fitted.scales, ratios=fitted.ratios)
    assert fitted == execute(anchors, spec, tmp_path / "more")  # what a resumed run gets
    (state_file,) = tmp_path.glob("checkpoints/*/state.npz")
    assert state.read(state_file)[0].anchors == trained


def test_a_checkpoint_of_other_anchors_is_not_resumed(tmp_path: Path) -> None:
    before = Position(run="one", batch_size=4, epoch=3, anchors=Anchors(scales=[32]))
    state.write(tmp_path / "state.npz", before, [np.ones(2)])
    start = Position(run="one", batch_size=4, anchors=Anchors(scales=[33]))
    storage, uri = Storage(scratch=tmp_path), f"file://{tmp_path}/state.npz"
    saved = state.find(storage, uri, "one")
    assert saved is not None
    assert state.resume(saved, start, [np.zeros(2)]) == start
