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

import patience
from tiny_detector import settled, training_config
from tlt_runner.detector import model as detector

SCRIPT = Path(__file__).with_name("training_backends_process.py")
CONFIG = training_config(["car", "dog"], maxObjects=2)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    detector.save(settled(CONFIG, images), path)
    return path


def _start(backend: str, model_file: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(model_file), str(folder / f"{backend}.npz")],
        env=os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_the_same_script_trains_on_jax_and_the_same_file_detects_the_same(
    model_file: Path, tmp_path: Path
) -> None:
    running = {backend: _start(backend, model_file, tmp_path) for backend in ("jax", "tensorflow")}
    for backend, process in running.items():
        output, errors = process.communicate(timeout=patience.MINUTES)
        assert process.returncode == 0, errors[-2000:]
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        assert result["backend"] == backend
        assert np.isfinite(result["losses"]).all()
        assert np.mean(result["losses"][-3:]) < 0.9 * np.mean(result["losses"][:3])
    detections, expected = (dict(np.load(tmp_path / f"{backend}.npz")) for backend in running)
    assert expected["count"].min() > 0
    np.testing.assert_array_equal(detections["count"], expected["count"])
    np.testing.assert_array_equal(detections["classes"], expected["classes"])
    np.testing.assert_allclose(detections["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(detections["boxes"], expected["boxes"], atol=1e-2)
