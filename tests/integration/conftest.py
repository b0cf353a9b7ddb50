"""One tiny detector, its exports, and the data set of tiny trainings: for tests that only read them.

Imports are in the fixtures: tests of the operator need no TensorFlow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import forked

if TYPE_CHECKING:
    from onnx import ModelProto

    from tlt_runner.detector.model import FasterRCNN


forked.preload("tensorflow", "keras", "tlt_runner.cli", "tlt_runner.tasks.train")


@pytest.fixture(scope="session")
def tiny_images() -> np.ndarray:
    """Three images for the tiny detector."""
    from tiny_detector import SIZE
    from tlt_runner.export import verify

    return next(verify.random_images(7, 1, 3, SIZE, SIZE))


@pytest.fixture(scope="session")
def tiny_model(tiny_images: np.ndarray) -> FasterRCNN:
    """The tiny detector. No test may change it."""
    from tiny_detector import settled, tiny_config

    return settled(tiny_config(), tiny_images)


@pytest.fixture(scope="session")
def tiny_onnx(tiny_model: FasterRCNN) -> ModelProto:
    """The tiny detector as ONNX in float32."""
    from tlt_runner.export import onnx

    return onnx.to_onnx(tiny_model, source_digest="0" * 64)


@pytest.fixture(scope="session")
def tiny_onnx_fp16(tiny_onnx: ModelProto) -> ModelProto:
    """The tiny detector as ONNX in float16."""
    from tlt_runner.export import precision

    return precision.to_float16(tiny_onnx)


@pytest.fixture(scope="session")
def detector_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of the tiny detector's size with digits of tiny.OTHER_CLASSES. Tests only read them."""
    from tiny_detector import SIZE
    from tlt_runner.data import sample_digits

    folder = tmp_path_factory.mktemp("digits")
    sample_digits.generate(folder, 12, SIZE, SIZE, seed=1, classes=[1, 7])
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of tiny trainings. Tests only read it: records are made at each output address."""
    import tiny

    folder = tmp_path_factory.mktemp("scenes")
    tiny.generate_scenes(folder)
    return folder
