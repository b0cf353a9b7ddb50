"""Trainings that start from a detector of other classes: what stays, what is new, what is an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import tiny_detector
from tlt_api.failures import Reason
from tlt_api.prunejob import PruneTarget
from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.pruning.plan import Options
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage
from tlt_runner.tasks import prune
from tlt_runner.training.initial_model import frozen_at_random, initial_model
from tlt_runner.training.pretrained import load

BEFORE = ["bus", "car", "dog"]
MODEL: dict[str, Any] = {**tiny_detector.MODEL, "detections": {"maxDetections": 4}}


def run_of(classes: list[str], size: int = tiny.SIZE, file: Path | None = None, **model: Any) -> RunSpec:
    return tiny.run_spec(
        Path("/data"),
        Path("/out"),
        inputs={} if file is None else {"model": {"uri": f"file://{file}"}},
        dataset={
            "targetClassMapping": {name: name for name in classes},
            "imageSize": {"width": size, "height": size},
        },
        model={**MODEL, **model},
    )


def spec_of(classes: list[str], **model: Any) -> TrainingJobSpec:
    spec = run_of(classes, **model).spec
    assert isinstance(spec, TrainingJobSpec)
    return spec


def retrain(file: Path, classes: list[str], size: int = tiny.SIZE) -> FasterRCNN:
    run = run_of(classes, size, file, **{"from": {"uri": f"file://{file}"}})
    assert isinstance(run.spec, TrainingJobSpec)
    scratch = Path("/nowhere")
    return initial_model(
        run, run.spec, Context(Storage(scratch=scratch), LocalReporter(None), scratch, Stop())
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def given() -> FasterRCNN:
    spec = spec_of(BEFORE)
    model = detector.build(DetectorConfig.from_spec(spec.model, spec.dataset), 3)
    draws = np.random.default_rng(1)
    for name in ("head_classes", "head_deltas"):
        layer = model.head.get_layer(name)
        layer.set_weights([draws.normal(size=value.shape) for value in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def file(given: FasterRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given") / "best.keras"
    detector.save(given, path)
    return path


def outputs(model: FasterRCNN, images: np.ndarray) -> dict[str, np.ndarray]:
    """The trunk's features and objectness, and what the head makes of these features."""
    trunk = model.trunk(images)
    trunk.pop("deltas")
    return {name: np.asarray(value) for name, value in {**trunk, **model.head(trunk["features"])}.items()}


def test_a_model_retrained_for_other_classes_keeps_all_but_the_new_classes_outputs(
    given: FasterRCNN, file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = retrain(file, ["van", "car"])
    assert model.config.class_names == ["car", "van"]
    before, now = outputs(given, images), outputs(model, images)
    np.testing.assert_allclose(now["features"], before["features"], rtol=1e-5)
    np.testing.assert_allclose(now["objectness"], before["objectness"], rtol=1e-5)
    assert now["classes"].shape == (1, 3)
    np.testing.assert_allclose(now["classes"][:, [0, 2]], before["classes"][:, [1, 3]], rtol=1e-5)
    np.testing.assert_allclose(now["deltas"][:, 0], before["deltas"][:, 1], rtol=1e-5)
    old, new = (part.head.get_layer("head_classes").get_weights() for part in (given, model))
    assert np.abs(new[0][:, 1]).max() < 0.1 < np.abs(old[0]).max()
    np.testing.assert_array_equal(new[1], [old[1][1], 0, old[1][3]])
    detector.save(model, tmp_path / "again.keras")
    again = outputs(detector.load(tmp_path / "again.keras"), images)
    np.testing.assert_allclose(again["classes"], now["classes"], rtol=1e-5)


def test_new_outputs_are_the_same_for_the_same_seed(file: Path) -> None:
    one, other = (retrain(file, ["cat", "van", "yak"]) for _ in range(2))
    for left, right in zip(one.head.weights, other.head.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_same_classes_change_nothing(given: FasterRCNN, file: Path) -> None:
    model = retrain(file, BEFORE)
    for left, right in zip(model.weights, given.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_same_classes_in_another_order_are_put_in_order(
    given: FasterRCNN, images: np.ndarray, tmp_path: Path
) -> None:
    config = given.config.model_copy(update={"class_names": ["dog", "bus", "car"]})
    detector.save(detector.with_config(given, config), tmp_path / "best.keras")
    now = outputs(retrain(tmp_path / "best.keras", BEFORE), images)
    np.testing.assert_allclose(now["classes"], outputs(given, images)["classes"][:, [1, 2, 0, 3]], rtol=1e-5)


def test_a_pruned_model_keeps_its_widths_and_is_pruned_again(given: FasterRCNN, tmp_path: Path) -> None:
    options = Options(granularity=2, min_filters=4)
    plan = prune.plan_pruning(given, options, target=PruneTarget(parameters=0.5))
    pruned = prune.rebuild(given, plan)
    detector.save(pruned, tmp_path / "pruned.keras")
    model = retrain(tmp_path / "pruned.keras", ["cat"])
    assert model.trunk.count_params() == pruned.trunk.count_params()
    width = pruned.head.get_layer("head_classes").kernel.shape[0]
    lost = (width + 1) * 5 * (len(BEFORE) - 1)
    assert model.count_params() == pruned.count_params() - lost
    again = prune.plan_pruning(model, options, target=PruneTarget(parameters=0.8))
    assert prune.rebuild(model, again).count_params() < model.count_params()


def test_a_light_head_is_retrained_for_other_classes(images: np.ndarray, tmp_path: Path) -> None:
    roi = {**MODEL["roi"], "head": "light"}
    spec = spec_of(BEFORE, roi=roi)
    given = detector.build(DetectorConfig.from_spec(spec.model, spec.dataset), 3)
    detector.save(given, tmp_path / "best.keras")
    model = retrain(tmp_path / "best.keras", ["car", "van"])
    assert model.config.roi.head == "light"
    pooled = np.random.default_rng(2).normal(size=(2, *model.head.input.shape[1:])).astype(np.float32)
    before, now = given.head(pooled)["classes"], model.head(pooled)["classes"]
    np.testing.assert_allclose(now.numpy()[:, [0, 2]], before.numpy()[:, [1, 3]], rtol=1e-5)
    assert model(images)["boxes"].shape == (1, 4, 4)


def test_a_model_of_another_image_size_is_refused(file: Path) -> None:
    with pytest.raises(RunnerError, match="expected the model's 64 x 64 .* got 96 x 96") as caught:
        retrain(file, BEFORE, size=96)
    assert caught.value.reason == Reason.MODEL_MISMATCH


def test_pretrained_weights_of_other_classes_keep_the_classes_that_both_have(
    given: FasterRCNN, file: Path, images: np.ndarray
) -> None:
    spec = spec_of(["car", "cat", "dog"])
    model, taken = load.build(DetectorConfig.from_spec(spec.model, spec.dataset), 9, file)
    assert set(taken.partly) == {"head_classes", "head_deltas"}
    assert taken.missing == taken.unused == taken.mismatched == ()
    before, now = outputs(given, images), outputs(model, images)
    np.testing.assert_allclose(now["classes"][:, [0, 2, 3]], before["classes"][:, [1, 2, 3]], rtol=1e-5)
    np.testing.assert_allclose(now["deltas"][:, [0, 2]], before["deltas"][:, [1, 2]], rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_a_file_without_class_names_gives_its_head_only_to_as_many_classes(
    given: FasterRCNN, count: int, tmp_path: Path
) -> None:
    given.save_weights(tmp_path / "best.weights.h5")
    spec = spec_of(["cat", "van", "yak"][:count])
    config = DetectorConfig.from_spec(spec.model, spec.dataset)
    model, taken = load.build(config, 9, tmp_path / "best.weights.h5")
    of_head = {"head_classes", "head_deltas"}
    assert taken.untouched == (set() if count == 3 else of_head)
    assert len(taken.loaded) == len(load.layers_of(model)) - len(taken.untouched)


def test_frozen_layers_that_stay_random_are_found(file: Path) -> None:
    spec = spec_of(BEFORE, freezeBlocks=[0, 1, 3])
    model, taken = load.build(DetectorConfig.from_spec(spec.model, spec.dataset), 9, file)
    everything = {layer.name for layer in load.layers_of(model)}
    stuck = frozen_at_random(model, everything)
    assert {"stem_conv", "stage1_block1_conv1", "stage3_block1_shortcut_bn"} <= set(stuck)
    assert not [name for name in stuck if name.startswith(("stage2", "stage4", "rpn", "head"))]
    assert frozen_at_random(model, taken.untouched) == []
