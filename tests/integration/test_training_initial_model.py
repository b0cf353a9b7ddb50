"""The model that a training starts with: in which variant, and what is reported of pretrained weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import tiny_detector
from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.detector.variant import DEFAULT, Variant
from tlt_runner.errors import RunnerError
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.initial_model import initial_model

FORMER_FILE = Path(__file__).parents[1] / "fixtures/model-2026-11/best.keras"
CLASSES = ["bus", "car"]


class Downloading(Storage):
    """A storage that has one public file."""

    def __init__(self, scratch: Path, file: Path) -> None:
        super().__init__(scratch=scratch)
        self.file = file
        self.downloads: list[tuple[str, str, str]] = []

    def download(
        self, url: str, sha256: str, cache: str, raise_if_stopped: Callable[[], None] = lambda: None
    ) -> Path:
        self.downloads.append((url, sha256, cache))
        return self.file


def start(storage: Storage, saved: Position | None = None, **model: Any) -> tuple[FasterRCNN, LocalReporter]:
    run: RunSpec = tiny.run_spec(
        Path("/data"),
        Path("/out"),
        dataset={
            "targetClassMapping": {name: name for name in CLASSES},
            "imageSize": {"width": tiny_detector.TRAINING_SIZE, "height": tiny_detector.TRAINING_SIZE},
        },
        model={**tiny_detector.MODEL, "widthMultiplier": 0.0625, **model},
    )
    assert isinstance(run.spec, TrainingJobSpec)
    reporter = LocalReporter(None)
    context = Context(storage, reporter, storage.scratch, Stop())
    return initial_model(run, run.spec, context, saved), reporter


def test_a_training_that_began_before_goes_on_in_its_graph_and_with_its_frozen_blocks(tmp_path: Path) -> None:
    storage = Storage(scratch=tmp_path)
    # A state file of before 2026-12 says nothing of it.
    before = Position.model_validate_json('{"run": "one", "batchSize": 4, "epoch": 3}')
    model, _ = start(storage, before, freezeBlocks=[0])
    assert (model.config.variant, model.config.block_numbers) == (DEFAULT, "former")
    assert not model.trunk.get_layer("stage1_block1_conv1").trainable
    assert "AveragePooling2D" in {type(layer).__name__ for layer in model.trunk.layers}
    model, _ = start(storage, freezeBlocks=[0])
    assert (model.config.variant, model.config.block_numbers) == (DEFAULT, "tlt")
    assert model.trunk.get_layer("stage1_block1_conv1").trainable
    again = Position(run="one", batch_size=4, variant=model.config.variant, block_numbers="tlt")
    assert start(storage, again, freezeBlocks=[0])[0].config == model.config


def test_a_training_that_starts_over_does_so_in_the_variant_of_today(tmp_path: Path) -> None:
    without_pool = Variant(stem_pool=False)
    before = Position(run="one", batch_size=4, anchors=Anchors(scales=[8], ratios=[1]), variant=without_pool)
    assert before.block_numbers == "former"
    model, _ = start(Storage(scratch=tmp_path), before)
    assert (model.config.variant, model.config.block_numbers) == (DEFAULT, "tlt")
    same = before.model_copy(update={"anchors": model.config.anchors})
    assert start(Storage(scratch=tmp_path), same)[0].config.variant == without_pool


def test_the_log_says_what_each_number_freezes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        start(Storage(scratch=tmp_path), freezeBlocks=[1, 0])
    texts = [record.getMessage() for record in caplog.records if "freezeBlocks" in record.getMessage()]
    # The stem with its normalisation; the two convolutions of stage 1, each with one.
    assert texts[0] == "spec.model.freezeBlocks 0: 2 layers are frozen (stem_conv to stem_bn)"
    assert texts[1].startswith("spec.model.freezeBlocks 1: 4 layers are frozen (stage1_block1_conv1 to ")


def test_what_pretrained_weights_gave_is_in_the_status(tmp_path: Path) -> None:
    weights = {"uri": f"file://{FORMER_FILE}"}
    model, reporter = start(Storage(scratch=tmp_path), pretrainedWeights=weights)
    # Weights of a model of before are built in its variant: its features stay its own.
    assert model.config.variant.shortcut == "average"
    status = reporter.snapshot().pretrained
    assert status is not None
    assert status.origin == "this product"
    # Stem 2, stage 1 4, stages 2 to 4 6 each with their shortcuts, region proposal network 3, outputs 2.
    assert (status.matched.layers, status.matched.parameters) == (29, 1.0)
    assert (status.missing.layers, status.mismatched.layers, status.unused_layers) == (0, 0, 0)
    assert status.not_loaded == []


def test_public_weights_are_kept_at_the_output(tmp_path: Path) -> None:
    file = tmp_path / "weights.keras"
    shutil.copy(FORMER_FILE, file)
    storage = Downloading(tmp_path, file)
    weights = {"uri": "https://example.org/weights.keras", "sha256": "0" * 64}
    model, _ = start(storage, pretrainedWeights=weights)
    assert storage.downloads == [(weights["uri"], "0" * 64, "file:///out/pretrained")]
    stored, _ = start(Storage(scratch=tmp_path), pretrainedWeights={"uri": f"file://{file}"})
    for one, other in zip(model.get_weights(), stored.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="resnet10 with widthMultiplier 1, got best.keras") as caught:
        start(
            Storage(scratch=tmp_path), widthMultiplier=1.0, pretrainedWeights={"uri": f"file://{FORMER_FILE}"}
        )
    assert caught.value.reason == Reason.MODEL_MISMATCH
