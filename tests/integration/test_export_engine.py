"""TensorRT-RTX builds the exported detector with no GPU; what it refuses fails with its own words."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tiny_detector import tiny_config
from tlt_api.exportjob import Batch, Engine
from tlt_api.failures import Reason
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.export import engine, precision
from tlt_runner.export import onnx as export

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx exists for Linux x86-64 only"
)
AMPERE = Engine(compute_capabilities=["8.6"])


@dataclass
class Files:
    fp32: Path
    fp16: Path


@pytest.fixture(scope="module")
def files(tiny_onnx, tiny_onnx_fp16, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    export.write(tiny_onnx, folder / "model-fp32.onnx")
    export.write(tiny_onnx_fp16, folder / "model-fp16.onnx")
    return Files(folder / "model-fp32.onnx", folder / "model-fp16.onnx")


def broken(folder: Path, operator: str) -> Path:
    graph = helper.make_graph(
        [helper.make_node(operator, ["images"], ["y"], name="the_culprit")],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    path = folder / "broken.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_engine_with_dynamic_batch_is_built_without_a_gpu(files, tmp_path, name):
    target = tmp_path / "model.engine"
    built = engine.build_engine(getattr(files, name), target, AMPERE, Batch(min=1, opt=2, max=4))
    assert built.compute_capabilities == ("8.6",)
    assert built.size_bytes == target.stat().st_size > 100_000
    assert engine.check_engine(target)
    assert [path.name for path in tmp_path.iterdir()] == ["model.engine"]


def test_engine_of_an_odd_size_and_one_channel_is_built(tmp_path):
    """The model pads inside: the builder must take the padding, and an input that is no multiple of 16."""
    size = {"height": 72, "width": 100, "color_mode": "grayscale"}
    exported = export.to_onnx(detector.build(tiny_config().model_copy(update=size), 0))
    export.write(precision.to_float16(exported), tmp_path / "model.onnx")
    built = engine.build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", AMPERE, Batch())
    assert built.compute_capabilities == ("8.6",)
    assert engine.check_engine(tmp_path / "model.engine")


def test_one_fp16_engine_serves_turing_and_later(files, tmp_path):
    spec = Engine(compute_capabilities=["7.5", "8.6", "12.0"])
    built = engine.build_engine(files.fp16, tmp_path / "model.engine", spec, Batch())
    assert built.compute_capabilities == ("7.5", "8.6", "12.0")


def test_fp32_for_turing_fails_with_the_builders_own_reason(files, tmp_path):
    with pytest.raises(RunnerError, match=r"SM75.*FP32 GEMM is not supported") as caught:
        engine.build_engine(files.fp32, tmp_path / "e", Engine(compute_capabilities=["7.5"]), Batch())
    assert caught.value.reason == Reason.ENGINE_BUILD_FAILED
    assert not list(tmp_path.iterdir())


def test_operator_that_the_parser_does_not_know_is_named(tmp_path):
    with pytest.raises(RunnerError, match=r"broken\.onnx.*NoSuchOperator 'the_culprit'") as caught:
        engine.build_engine(broken(tmp_path, "NoSuchOperator"), tmp_path / "e", AMPERE, Batch())
    assert caught.value.reason == Reason.ENGINE_BUILD_FAILED


def test_file_that_is_no_onnx_model_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(RunnerError) as caught:
        engine.build_engine(tmp_path / "text.onnx", tmp_path / "e", AMPERE, Batch())
    assert caught.value.reason == Reason.ENGINE_BUILD_FAILED


def test_compute_capability_that_the_builder_does_not_know_is_refused_early():
    with pytest.raises(RunnerError, match=r"7\.5, 8\.0.*got 9\.0") as caught:
        engine.check_capabilities(Engine(compute_capabilities=["8.6", "9.0"]))
    assert caught.value.reason == Reason.INVALID_SPEC


def test_damaged_engine_is_recognised_without_a_gpu(files, tmp_path):
    target = tmp_path / "model.engine"
    engine.build_engine(files.fp16, target, AMPERE, Batch())
    damaged = bytearray(target.read_bytes())
    damaged[:8] = bytes(8)
    target.write_bytes(damaged)
    with pytest.raises(RunnerError, match="MALFORMED_ENGINE"):
        engine.check_engine(target)
