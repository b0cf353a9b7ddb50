"""``tlt evaluate`` on a tiny detector and real scenes."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from fakes import UID, run_task, task_context
from tiny_detector import SIZE, settled, tiny_config
from tlt_api.failures import Reason
from tlt_api.status import Inputs, ResolvedModel
from tlt_api.training import Evaluation
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.evaluate import evaluate as judge
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.evaluation.protocols import Protocol
from tlt_runner.tasks import evaluate
from tlt_runner.training.checkpoint import writer

CLASSES = tiny.OTHER_CLASSES


@pytest.fixture(scope="module")
def model():
    images = np.random.default_rng(5).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    return settled(tiny_config(class_names=sorted(CLASSES)), images)


class Run:
    """Runs the task in a folder of its own."""

    def __init__(self, folder, scenes):
        self.output = folder / "out"
        self.output.mkdir()
        self.context = task_context(folder)
        self.storage = self.context.storage
        self.reporter = self.context.reporter
        self.spec = TrainingJobSpec.model_validate(
            {
                "dataset": tiny.dataset(scenes, CLASSES, SIZE, 0.5),
                "training": {"batchSizePerGPU": 4},
                "evaluation": {"averagePrecision": "voc07", "iouThreshold": 0.25},
                "output": {"uri": f"file://{self.output}"},
            }
        )

    def __call__(self, start=None):
        inputs = Inputs(model=ResolvedModel(uri=f"file://{start}") if start else None)
        run_task(evaluate, self.spec, self.context, inputs)
        return self.reporter.snapshot()


def test_the_best_model_is_evaluated_on_the_validation_images(detector_scenes, model, tmp_path):
    run = Run(tmp_path, detector_scenes)
    detector.save(model, run.output / "best.keras")
    metrics = run().metrics
    records = prepare(run.spec.dataset, run.storage, run.spec.output.uri)
    judged = batches.validation_batches(records, 3)
    details = {"details_uri": f"file://{run.output}/metrics.json"}
    expected = judge(keras_detector(model), judged, sorted(CLASSES), Protocol.of(run.spec.evaluation))
    assert metrics == expected.metrics.model_copy(update=details)
    assert (run.output / "metrics.json").is_file()
    assert [item.name for item in metrics.per_class] == sorted(CLASSES)
    assert metrics.iou_threshold == 0.25


def test_the_evaluation_has_proposals_and_detections_of_its_own(detector_scenes, model, tmp_path):
    run = Run(tmp_path, detector_scenes)
    detector.save(model, run.output / "best.keras")
    usual = run().metrics
    own = {
        "proposals": {"preNms": 50, "postNms": 20, "nmsOverlap": 0.4},
        "detections": {"scoreThreshold": 0.3, "nmsOverlap": 0.6, "maxDetections": 3},
    }
    evaluation = Evaluation.model_validate(
        run.spec.evaluation.model_dump(by_alias=True, exclude_none=True) | own
    )
    run.spec = run.spec.model_copy(update={"evaluation": evaluation})
    metrics = run().metrics
    proposals = model.config.proposals.model_copy(update={"inference": evaluation.proposals})
    config = model.config.model_copy(update={"proposals": proposals, "detections": evaluation.detections})
    records = prepare(run.spec.dataset, run.storage, run.spec.output.uri)
    judged = batches.validation_batches(records, 3)
    own_detector = keras_detector(detector.with_config(model, config))
    expected = judge(own_detector, judged, sorted(CLASSES), Protocol.of(evaluation))
    assert metrics == expected.metrics.model_copy(update={"details_uri": metrics.details_uri})
    assert metrics.m_ap != usual.m_ap


def test_without_a_trained_model_the_initial_one_is_evaluated(detector_scenes, model, tmp_path):
    run = Run(tmp_path, detector_scenes)
    detector.save(model, tmp_path / "pruned.keras")
    assert run(start=tmp_path / "pruned.keras").metrics.m_ap is not None


def test_evaluation_without_any_model_asks_to_train_first(detector_scenes, tmp_path):
    with pytest.raises(RunnerError, match=r"best\.keras does not exist") as error:
        Run(tmp_path, detector_scenes)()
    assert error.value.reason == Reason.INVALID_SPEC


def test_a_model_of_other_classes_is_refused(detector_scenes, tmp_path):
    run = Run(tmp_path, detector_scenes)
    detector.save(detector.build(tiny_config(class_names=["bus", "car"]), 0), run.output / "best.keras")
    with pytest.raises(RunnerError, match="bus, car") as error:
        run()
    assert error.value.reason == Reason.MODEL_MISMATCH


@pytest.mark.parametrize(("uid", "warned"), [(UID, False), ("before", True)], ids=["own", "of another run"])
def test_evaluating_a_model_of_another_run_logs_a_warning(
    detector_scenes, model, tmp_path, caplog, uid, warned
):
    run = Run(tmp_path, detector_scenes)
    origin = writer.Origin(run=uid, job="default/elder", epoch=7)
    writer.save(model, run.output / "best.keras", origin)
    assert run().metrics.m_ap is not None
    assert any("default/elder" in line and "epoch 7" in line for line in caplog.messages) == warned


def test_a_stop_ends_the_evaluation(detector_scenes, model, tmp_path):
    run = Run(tmp_path, detector_scenes)
    detector.save(model, run.output / "best.keras")
    run.context.stop.request()
    with pytest.raises(RunnerError) as error:
        run()
    assert error.value.reason == Reason.INTERRUPTED
