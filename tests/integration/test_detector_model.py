"""The detector as a whole: built, called, saved, loaded, frozen."""

from pathlib import Path

import keras
import numpy as np
import pytest

from tiny_detector import DETECTIONS, SIZE, tiny_config
from tlt_api.failures import Reason
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError


def test_detections_have_the_promised_shapes_and_stay_in_the_image(
    tiny_model: detector.FasterRCNN, tiny_images: np.ndarray
) -> None:
    detections = {name: np.asarray(value) for name, value in tiny_model(tiny_images).items()}
    assert detections["boxes"].shape == (3, DETECTIONS, 4)
    assert detections["scores"].shape == detections["classes"].shape == (3, DETECTIONS)
    assert detections["classes"].dtype == np.int32
    assert (detections["count"] == (detections["classes"] >= 0).sum(axis=1)).all()
    assert detections["count"].sum() > 0
    assert (detections["boxes"] >= 0).all()
    assert (detections["boxes"] <= SIZE).all()
    assert (np.diff(detections["scores"], axis=1) <= 0).all()


def test_a_saved_model_detects_the_same_after_loading(
    tiny_model: detector.FasterRCNN, tiny_images: np.ndarray, tmp_path: Path
) -> None:
    detector.save(tiny_model, tmp_path / "model.keras")
    again = detector.load(tmp_path / "model.keras")
    assert again.config == tiny_model.config
    for name, value in tiny_model(tiny_images).items():
        np.testing.assert_allclose(again(tiny_images)[name], value, rtol=1e-5, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    one, same, other = (detector.build(tiny_config(), seed) for seed in (1, 1, 2))
    for left, right in zip(one.weights, same.weights, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any(
        np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(one.weights, other.weights, strict=True)
    )


def test_frozen_blocks_and_batch_norms_are_not_trained() -> None:
    config = tiny_config().model_copy(update={"freeze_blocks": [0, 1, 3], "freeze_batch_norm": True})
    trained = {variable.path.split("/")[0] for variable in detector.build(config, 1).trainable_variables}
    assert {"stage2_block1_conv1", "stage4_block1_conv1"} <= trained
    assert not any(name.startswith(("stem_", "stage1_", "stage3_")) or "_bn" in name for name in trained)


def test_the_config_decides_what_is_frozen_and_not_the_file(tmp_path: Path) -> None:
    config = tiny_config()
    frozen = detector.build(config.model_copy(update={"freeze_blocks": [0, 1, 2, 3]}), 1)
    detector.save(frozen, tmp_path / "frozen.keras")
    free = detector.with_config(detector.load(tmp_path / "frozen.keras"), config)
    assert len(free.trainable_variables) == len(detector.build(config, 1).trainable_variables)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"not a model")
    with pytest.raises(RunnerError, match=r"model\.keras") as caught:
        detector.load(path)
    assert caught.value.reason == Reason.UNREADABLE_MODEL


def test_another_keras_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classifier.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
    with pytest.raises(RunnerError, match="Sequential") as caught:
        detector.load(path)
    assert caught.value.reason == Reason.UNREADABLE_MODEL


@pytest.mark.parametrize(("backbone", "channels"), [("resnet18", 32), ("resnet50", 128)])
def test_other_backbones_have_stride_16(backbone: str, channels: int) -> None:
    config = tiny_config().model_copy(update={"backbone": backbone, "width_multiplier": 0.125})
    trunk = detector.build(config, 1).trunk
    assert trunk.output["features"].shape[1:] == (6, 6, channels)
