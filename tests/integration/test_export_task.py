"""The export task from RunSpec to artifacts, on a tiny detector and real scenes."""

import hashlib

import numpy as np
import onnx
import pytest

import tiny
from fakes import run_task, task_context
from tiny_detector import SIZE, settled, tiny_config
from tlt_api.dataset import Dataset
from tlt_api.exportjob import ExportJobSpec
from tlt_api.failures import Reason
from tlt_api.status import Inputs, ResolvedModel, ResolvedRecords
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.export import onnx as exported_onnx
from tlt_runner.export import precision, verify
from tlt_runner.storage import Storage
from tlt_runner.tasks import export

CLASSES = tiny.OTHER_CLASSES


@pytest.fixture(scope="module")
def images():
    return next(verify.random_images(7, 1, 2, SIZE, SIZE))


@pytest.fixture(scope="module")
def model(images):
    return settled(tiny_config(class_names=sorted(CLASSES)), images)


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "best.keras"
    detector.save(model, path)
    return path


@pytest.fixture(scope="module")
def records(detector_scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    dataset = Dataset.model_validate(tiny.dataset(detector_scenes, CLASSES, SIZE, 0.5))
    return prepare(dataset, Storage(scratch=root / "scratch"), f"file://{root}/out")


class Run:
    """Runs the task in a folder of its own."""

    def __init__(self, folder, **spec):
        self.output = folder / "out"
        self.spec = {"output": {"uri": f"file://{self.output}"}, **spec}
        self.context = task_context(folder)
        self.reporter = self.context.reporter

    def __call__(self, model_file, records=None, sha256=None):
        inputs = Inputs(
            model=ResolvedModel(uri=f"file://{model_file}", sha256=sha256),
            records=records and ResolvedRecords(uri=records.uri, digest=records.digest),
        )
        spec = ExportJobSpec.model_validate({"model": {"uri": f"file://{model_file}"}, **self.spec})
        run_task(export, spec, self.context, inputs)
        return self.reporter.snapshot()


def test_everything_is_published_verified_and_built(model_file, records, tmp_path):
    digest = hashlib.sha256(model_file.read_bytes()).hexdigest()
    run = Run(
        tmp_path,
        precisions=["fp32", "fp16"],
        batch={"max": 2},
        engine={"builder": "tensorrt-rtx", "computeCapabilities": ["8.6"]},
    )
    report = run(model_file, records, digest)
    by_name = {item.name: item for item in report.artifacts}
    assert set(by_name) == {"onnx-fp32", "onnx-fp16", "engine-fp32", "engine-fp16"}
    for item in by_name.values():
        content = (run.output / item.uri.rsplit("/", 1)[1]).read_bytes()
        assert (item.sha256, item.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [item.precision for item in report.exports] == ["fp32", "fp16"]
    assert report.metrics.m_ap is not None
    for item in report.exports:
        assert item.not_compared is None
        assert abs(item.m_ap_drop) <= 0.01
        assert item.max_abs_error <= 0.02
        assert item.latency_milliseconds > 0
    metadata = exported_onnx.metadata(onnx.load(run.output / "model-fp16.onnx"))
    assert metadata["source_sha256"] == digest
    assert metadata["class_names"] == sorted(CLASSES)


def test_model_without_records_is_compared_on_random_images(model_file, tmp_path):
    report = Run(tmp_path, precisions=["fp16"])(model_file)
    (only,) = report.exports
    assert (only.m_ap, only.m_ap_drop) == (None, None)
    assert 0 < only.max_abs_error <= 0.02
    assert report.metrics is None
    assert only.not_compared.startswith("the model comes from a file, which names no validation data")
    assert [item.name for item in report.artifacts] == ["onnx-fp16"]


def test_validation_data_without_an_object_that_counts_pass_no_gate(
    model_file, records, tmp_path, monkeypatch
):
    first = export.batches.validation_batches

    def all_difficult(*arguments, **options):
        for batch in first(*arguments, **options):
            yield {**batch, "difficult": np.ones(batch["difficult"].shape, bool)}

    monkeypatch.setattr(export.batches, "validation_batches", all_difficult)
    run = Run(tmp_path, verification={"maxMetricDrop": 1.0}, engine={"computeCapabilities": ["8.6"]})
    with pytest.raises(RunnerError, match="but mAP is empty: the first 500 validation images") as caught:
        run(model_file, records)
    assert caught.value.reason == Reason.NO_LABELS
    report = run.reporter.snapshot()
    # What is there to look into is published; no engine is built.
    assert [item.name for item in report.artifacts] == ["onnx-fp32"]
    assert "no object that counts" in report.exports[0].not_compared


def test_records_of_other_classes_are_refused_before_anything_is_exported(images, records, tmp_path):
    other = tmp_path / "other.keras"
    detector.save(settled(tiny_config(class_names=["bus", "car"]), images), other)
    run = Run(tmp_path)
    with pytest.raises(RunnerError, match=r"bus.*seven") as caught:
        run(other, records)
    assert caught.value.reason == Reason.MODEL_MISMATCH
    assert not run.output.exists()


def test_missing_builder_is_found_before_the_model_is_read(tmp_path):
    with pytest.raises(RunnerError) as caught:
        Run(tmp_path, engine={"computeCapabilities": ["9.9"]})(tmp_path / "absent.keras")
    assert caught.value.reason == Reason.INVALID_SPEC


def test_request_to_stop_ends_the_run_as_interrupted(model_file, tmp_path):
    run = Run(tmp_path)
    run.context.stop.request()
    with pytest.raises(RunnerError) as caught:
        run(model_file)
    assert caught.value.reason == Reason.INTERRUPTED


def test_map_against_the_models_own_detections_is_kept_in_both_precisions(model, tmp_path):
    """Truth is what Keras finds: its mAP is then 1, and an export that loses boxes or classes shows."""
    images = next(verify.random_images(11, 1, 6, SIZE, SIZE))
    detect = keras_detector(model)
    truth = detect(images)
    batch = {
        "image": images,
        "boxes": truth["boxes"],
        "classes": truth["classes"],
        "difficult": np.zeros(truth["classes"].shape, bool),
        "placement": np.tile(np.array([1, 1, 0, 0, SIZE, SIZE], np.float32), (len(images), 1)),
        "valid": np.ones(len(images), bool),
    }
    names = sorted(CLASSES)
    assert verify.evaluate_detector(detect, [batch], names).metrics.m_ap == pytest.approx(1.0)
    full = exported_onnx.to_onnx(model)
    for name, exported in (("fp32", full), ("fp16", precision.to_float16(full))):
        exported_onnx.write(exported, tmp_path / f"{name}.onnx")
        results = verify.evaluate_detector(verify.OnnxDetector(tmp_path / f"{name}.onnx"), [batch], names)
        assert results.metrics.m_ap == pytest.approx(1.0, abs=0.01)
