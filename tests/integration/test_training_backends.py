"""The detector on other Keras backends than the product's: the same script, the same model file."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_detector import settled
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig

SCRIPT = Path(__file__).with_name("training_backends_process.py")
CONFIG = DetectorConfig.model_validate(
    {
        "classNames": ["car", "dog"],
        "height": 64,
        "width": 64,
        "backbone": "resnet10",
        "widthMultiplier": 0.125,
        "anchors": {"scales": [24], "ratios": [1.0]},
        "proposals": {
            "miniBatch": 16,
            "training": {"preNms": 15, "postNms": 8},
            "inference": {"preNms": 16, "postNms": 8},
        },
        "roi": {"poolSize": 4, "miniBatch": 8},
        "maxObjects": 2,
    }
)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    detector.save(settled(CONFIG, images), path)
    return path


def _run(backend: str, model_file: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    detections = folder / f"{backend}.npz"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(model_file), str(detections)],
        env=os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), dict(np.load(detections))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_the_same_script_trains_on_jax_and_the_same_file_detects_the_same(
    model_file: Path, tmp_path: Path
) -> None:
    told, found = _run("jax", model_file, tmp_path)
    expected_told, expected = _run("tensorflow", model_file, tmp_path)
    assert (told["backend"], expected_told["backend"]) == ("jax", "tensorflow")
    for losses in (told["losses"], expected_told["losses"]):
        assert np.isfinite(losses).all()
        assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert expected["count"].min() > 0
    np.testing.assert_array_equal(found["count"], expected["count"])
    np.testing.assert_array_equal(found["classes"], expected["classes"])
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-2)
