"""Pruning of a whole detector: trunk and head together, through files, and the task around it."""

from __future__ import annotations

import hashlib

import keras
import numpy as np
import pytest

from fakes import run_task, task_context
from tiny_detector import settled, tiny_config
from tlt_api.failures import Reason
from tlt_api.prunejob import PruneJobSpec, PruneTarget
from tlt_api.status import Inputs, ResolvedModel
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import OUTPUT_LAYERS
from tlt_runner.errors import RunnerError
from tlt_runner.pruning.plan import Options, PruningPlan
from tlt_runner.tasks import prune

SIZE = 96
SMALL = Options(granularity=4, min_filters=4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model(images):
    """A detector whose filters differ in size, as a trained one's do."""
    model = settled(tiny_config(), images)
    rng = np.random.default_rng(11)
    for layer in [*model.trunk.layers, *model.head.layers]:
        if isinstance(layer, keras.layers.Conv2D) and layer.name not in OUTPUT_LAYERS:
            layer.kernel.assign(layer.kernel * rng.uniform(0.2, 1.0, layer.kernel.shape[-1]))
    return model


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "best.keras"
    detector.save(model, path)
    return path


def zero(model, plan):
    """A copy of the detector with the filters that go at zero; all its offsets are zero already."""
    copy = detector.with_config(model, model.config)
    trunk, head = keras.models.clone_model(model.trunk), keras.models.clone_model(model.head)
    trunk.set_weights(model.trunk.get_weights())
    head.set_weights(model.head.get_weights())
    copy = detector.FasterRCNN(model.config, trunk, head)
    for item in plan.layers:
        graph = trunk if item.name in {layer.name for layer in trunk.layers} else head
        kernel, *rest = graph.get_layer(item.name).get_weights()
        kernel[..., np.setdiff1d(np.arange(item.filters), item.kept)] = 0
        graph.get_layer(item.name).set_weights([kernel, *rest])
    return copy


def same_detections(left, right, images, atol):
    one, other = left(images), right(images)
    for name in one:
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), atol=atol, err_msg=name)


@pytest.mark.parametrize("normalizer", ["max", "l2"])
def test_a_pruned_detector_detects_what_the_unpruned_one_does_with_those_filters_at_zero(
    model, images, normalizer
):
    options = SMALL.model_copy(update={"normalizer": normalizer})
    plan = prune.plan_pruning(model, options, target=PruneTarget(parameters=0.5))
    pruned = prune.rebuild(model, plan)
    assert pruned.count_params() == plan.parameters_after
    assert model.count_params() == plan.parameters_before
    features = len(next(item for item in plan.layers if item.name == "stage3_block1_conv2").kept)
    assert pruned.head.inputs[0].shape[-1] == features < model.head.inputs[0].shape[-1]
    zeroed = zero(model, plan)
    expected, got = zeroed.trunk(images, training=False), pruned.trunk(images, training=False)
    for name in ("objectness", "deltas"):
        np.testing.assert_allclose(np.asarray(got[name]), np.asarray(expected[name]), atol=1e-3)
    same_detections(zeroed, pruned, images, atol=1e-2)


def test_output_layers_are_never_pruned(model):
    plan = prune.plan_pruning(model, SMALL, threshold=0.9)
    for item in plan.layers:
        assert (len(item.kept) == item.filters) == (item.name in OUTPUT_LAYERS)
        assert bool(item.protection) == (item.name in OUTPUT_LAYERS)


def test_a_higher_threshold_keeps_less(model):
    plans = [prune.plan_pruning(model, SMALL, threshold=value) for value in (0.3, 0.5, 0.7)]
    kept = [plan.parameters_kept for plan in plans]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


@pytest.mark.parametrize("target", [{"parameters": 0.6}, {"parameters": 0.4}, {"flops": 0.5}])
def test_a_target_is_met_from_below_and_its_threshold_gives_the_same_plan(model, target):
    goal = PruneTarget(**target)
    plan = prune.plan_pruning(model, SMALL, target=goal)
    (name,) = target
    kept = getattr(plan, f"{name}_kept")
    assert target[name] - 0.05 < kept <= target[name]
    again = prune.plan_pruning(model, SMALL, threshold=plan.threshold)
    assert again.layers == plan.layers
    assert prune.plan_pruning(model, SMALL, target=goal) == plan


def test_a_target_out_of_reach_is_refused_with_what_can_be_reached(model):
    options = SMALL.model_copy(update={"min_filters": 16})
    with pytest.raises(RunnerError, match=r"target.parameters 0.05: minFilters 16.* keep 0\.") as error:
        prune.plan_pruning(model, options, target=PruneTarget(parameters=0.05))
    assert error.value.reason == Reason.INVALID_SPEC


def test_a_pruned_detector_survives_its_file_and_can_be_pruned_again(model, images, tmp_path):
    once = prune.rebuild(model, prune.plan_pruning(model, SMALL, target=PruneTarget(flops=0.7)))
    detector.save(once, tmp_path / "once.keras")
    loaded = detector.load(tmp_path / "once.keras")
    assert loaded.config == model.config
    same_detections(once, loaded, images, atol=0)
    plan = prune.plan_pruning(loaded, SMALL, target=PruneTarget(flops=0.7))
    twice = prune.rebuild(loaded, plan)
    assert twice.count_params() == plan.parameters_after < once.count_params() < model.count_params()


def test_a_plan_can_be_written_read_and_carried_out(model, images):
    groups = prune.find_groups(model, SMALL)
    plan = prune.plan_pruning(model, SMALL, threshold=0.6, groups=groups)
    read = PruningPlan.model_validate_json(plan.to_json())
    pruned = prune.rebuild(model, plan, groups)
    same_detections(pruned, prune.rebuild(model, read), images, atol=0)


def test_frozen_blocks_stay_frozen(model):
    config = model.config.model_copy(update={"freeze_blocks": [0, 1], "freeze_batch_norm": True})
    frozen = detector.with_config(model, config)
    pruned = prune.rebuild(frozen, prune.plan_pruning(frozen, SMALL, threshold=0.6))
    for graph, other in ((frozen.trunk, pruned.trunk), (frozen.head, pruned.head)):
        assert [layer.trainable for layer in graph.layers] == [layer.trainable for layer in other.layers]
    detector.freeze(model)


class Run:
    """A run of the task in its own folder."""

    def __init__(self, folder):
        self.output = folder / "out"
        self.context = task_context(folder)
        self.reporter = self.context.reporter

    def __call__(self, model_file, sha256=None, **spec):
        spec = PruneJobSpec.model_validate(
            {
                "model": {"uri": f"file://{model_file}"},
                "output": {"uri": f"file://{self.output}"},
                "granularity": 4,
                "minFilters": 4,
                **spec,
            }
        )
        inputs = Inputs(model=ResolvedModel(uri=f"file://{model_file}", sha256=sha256))
        run_task(prune, spec, self.context, inputs)
        return self.reporter.snapshot()


def test_the_task_publishes_model_and_plan_and_reports_what_it_saved(model_file, tmp_path):
    run = Run(tmp_path)
    digest = hashlib.sha256(model_file.read_bytes()).hexdigest()
    report = run(model_file, digest, target={"parameters": 0.5})
    artifacts = {item.name: item for item in report.artifacts}
    assert {name: item.uri.rsplit("/", 1)[1] for name, item in artifacts.items()} == {
        "plan": "plan.json",
        "model": "model.keras",
    }
    for item in artifacts.values():
        content = (run.output / item.uri.rsplit("/", 1)[1]).read_bytes()
        assert (item.sha256, item.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    plan = PruningPlan.model_validate_json((run.output / "plan.json").read_bytes())
    pruned = detector.load(run.output / "model.keras")
    status = report.pruning
    assert pruned.count_params() == plan.parameters_after == status.parameters_after
    assert status.ratio == round(status.parameters_after / status.parameters_before, 4)
    assert status.parameters_kept == f"{100 * status.ratio:.0f} %"
    assert status.flops_after < status.flops_before
    assert status.flops_kept == f"{100 * status.flops_after / status.flops_before:.0f} %"


def test_a_model_file_with_another_digest_is_refused(model_file, tmp_path):
    run = Run(tmp_path)
    with pytest.raises(RunnerError) as error:
        run(model_file, "0" * 64, threshold=0.5)
    assert error.value.reason == Reason.CHECKSUM_MISMATCH
    assert not run.output.exists()


def test_a_threshold_that_prunes_nothing_fails_and_publishes_nothing(model_file, tmp_path):
    run = Run(tmp_path)
    with pytest.raises(RunnerError, match="no filter goes at threshold 0.001") as error:
        run(model_file, threshold=0.001)
    assert error.value.reason == Reason.NOTHING_TO_PRUNE
    assert not run.output.exists()


def test_a_stop_ends_the_task(model_file, tmp_path):
    run = Run(tmp_path)
    run.context.stop.request()
    with pytest.raises(RunnerError) as error:
        run(model_file, threshold=0.5)
    assert error.value.reason == Reason.INTERRUPTED
