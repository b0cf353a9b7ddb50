"""Engines from ONNX, by TensorRT or TensorRT-RTX: one code for both, since their builders share an API.

Called by ``tlt_runner.tasks.export``. TensorRT-RTX builds ahead of time with no GPU, one engine for several
GPU generations, and finishes the compilation where the engine is loaded; TensorRT builds for the GPU of its
node. Both networks are strongly typed: the precision is what the ONNX model says. Imports neither package
before it is needed: they are large, and ``tensorrt`` is not there on a CPU image.
"""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlt_api.exportjob import Batch, Engine
from tlt_api.failures import Reason
from tlt_runner import files
from tlt_runner.errors import RunnerError

log = logging.getLogger(__name__)

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_MESSAGES_SHOWN = 5


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file.

    Attributes:
        path: Where it is.
        size_bytes: Its size.
        seconds: Time that the build took.
        builder: Package and version that built it; only the same version loads it.
        compute_capabilities: GPU generations it was built for; empty: the builder's default (TensorRT-RTX:
            all from 8.0 on; TensorRT: the GPU of this node).
    """

    path: Path
    size_bytes: int
    seconds: float
    builder: str
    compute_capabilities: tuple[str, ...]


def load_builder(name: str) -> Any:
    """The module ``tensorrt`` or ``tensorrt_rtx``.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        RunnerError: EngineBuildFailed, when the package is not installed or its libraries do not load.
    """
    try:
        return importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:
        raise RunnerError(
            Reason.ENGINE_BUILD_FAILED,
            f"expected the Python package {name} for spec.engine.builder {name}, got {error}",
            "Use a runner image with the gpu extra on a GPU node for tensorrt; "
            "tensorrt-rtx needs a Linux x86-64 image and no GPU.",
        ) from error


def check_capabilities(engine: Engine) -> None:
    """See that the builder knows every compute capability of the spec, before any long work.

    Raises:
        RunnerError: InvalidSpec names those that it does not know; EngineBuildFailed when there is no
            builder.
    """
    trt = load_builder(engine.builder)
    if not engine.compute_capabilities:
        return
    known = {_dotted(name): name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    unknown = [item for item in engine.compute_capabilities if item not in known]
    if unknown:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"spec.engine.computeCapabilities: expected some of {', '.join(known)} ({engine.builder} "
            f"{trt.__version__}), got {', '.join(unknown)}",
        )


def build_engine(onnx_path: Path, engine_path: Path, engine: Engine, batch: Batch) -> BuiltEngine:
    """Build an engine with dynamic batch from an ONNX model whose input ``images`` is [N, 3, H, W].

    Args:
        onnx_path: The model.
        engine_path: Where the engine goes; written under another name first, then renamed.
        engine: Which builder, and for which GPUs.
        batch: Smallest, usual and largest batch.

    Raises:
        RunnerError: EngineBuildFailed, with the parser's or builder's own messages; InvalidSpec for a compute
            capability that the builder does not know.
    """
    check_capabilities(engine)
    trt = load_builder(engine.builder)
    logger = _collector(trt)
    started = time.monotonic()
    builder = _builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)) or not network.num_inputs:
        raise _parse_error(parser, onnx_path)
    config = _config(trt, builder, network, engine, batch)
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise RunnerError(
            Reason.ENGINE_BUILD_FAILED, f"could not build the engine: {_several(logger.errors)}"
        )
    files.write(engine_path, memoryview(blob))
    built = BuiltEngine(
        engine_path,
        engine_path.stat().st_size,
        time.monotonic() - started,
        f"{engine.builder} {trt.__version__}",
        tuple(engine.compute_capabilities),
    )
    log.info(
        "built %s with %s: %d bytes, %.1f s", engine_path.name, built.builder, built.size_bytes, built.seconds
    )
    return built


def check_engine(engine_path: Path, builder: str = "tensorrt-rtx") -> str:
    """Read an engine's header, as far as this machine can: does it belong to this builder and version?

    TensorRT-RTX judges a header without loading the engine. Whether a GPU takes the engine is known only
    where the GPU is; what concerns this machine's driver or GPU is therefore said, not raised.

    Args:
        engine_path: The engine file.
        builder: Must be ``tensorrt-rtx``; TensorRT has no such check.

    Returns:
        ``valid``, ``suboptimal`` or ``not judged without a GPU``; otherwise what this machine's GPU or
        driver lacks.

    Raises:
        RunnerError: EngineBuildFailed, when the file is not an engine of this version.
    """
    trt = load_builder(builder)
    runtime = trt.Runtime(_collector(trt))
    with engine_path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    validity, bits = runtime.get_engine_validity(header)
    found = {flag.name for flag in trt.EngineInvalidityDiagnostics.__members__.values() if bits & int(flag)}
    broken = found & {"MALFORMED_ENGINE", "VERSION_MISMATCH"}
    if broken:
        raise RunnerError(
            Reason.ENGINE_BUILD_FAILED,
            f"{engine_path.name}: expected an engine of {builder} {trt.__version__}, got "
            f"{', '.join(sorted(broken))}",
        )
    if validity != trt.EngineValidity.INVALID:
        return str(validity.name).lower()
    return ", ".join(sorted(found)) or "not judged without a GPU"


def _config(trt: Any, builder: Any, network: Any, engine: Engine, batch: Batch) -> Any:
    config = builder.create_builder_config()
    images = network.get_input(0)
    size = tuple(images.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, (batch.min, *size), (batch.opt, *size), (batch.max, *size))
    config.add_optimization_profile(profile)
    if engine.compute_capabilities:
        config.num_compute_capabilities = len(engine.compute_capabilities)
        for index, item in enumerate(engine.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{item.replace('.', '')}"), index)
    return config


def _collector(trt: Any) -> Any:
    """A TensorRT logger that keeps errors for our message and passes the rest to ``logging``."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.DEBUG,
        trt.ILogger.Severity.ERROR: logging.DEBUG,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
    }

    class Collector(trt.ILogger):
        """Errors become a RunnerError's message, so they are logged for debugging only."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
            if severity in levels:
                log.log(levels[severity], "%s", message)

    return Collector()


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:
        # What pybind11 makes of a null pointer: TensorRT found no GPU.
        raise RunnerError(
            Reason.ENGINE_BUILD_FAILED,
            f"could not create a builder: {_several(logger.errors)}",
            "tensorrt needs a GPU and its driver; use tensorrt-rtx to build on any node.",
        ) from error


def _parse_error(parser: Any, onnx_path: Path) -> RunnerError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [
        f"node {error.node()} {error.node_operator()} {error.node_name()!r}: {error.desc()}"
        if error.node_operator()
        else error.desc()
        for error in errors
    ] or ["it has no input"]
    return RunnerError(
        Reason.ENGINE_BUILD_FAILED, f"the ONNX parser refused {onnx_path.name}: {_several(said)}"
    )


def _several(messages: list[str]) -> str:
    if not messages:
        return "the builder gave no reason"
    rest = len(messages) - _MESSAGES_SHOWN
    return "; ".join(messages[:_MESSAGES_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _dotted(member: str) -> str:
    return f"{member[2:-1]}.{member[-1]}"
