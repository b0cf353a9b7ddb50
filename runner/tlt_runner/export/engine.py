"""Builds engines from ONNX with TensorRT or TensorRT-RTX; one code for both, whose builders share an API.

Called by ``tlt_runner.tasks.export``. TensorRT-RTX builds ahead of time without a GPU, one engine for several
GPU generations, and finishes the compilation on the machine that loads the engine; TensorRT builds for the
GPU of its node. Both networks are strongly typed: each tensor has the precision of the ONNX model. Neither
package is imported before it is needed: they are large, and a CPU image does not have ``tensorrt``.
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
        path: The file.
        size_bytes: Size of the file.
        seconds: Duration of the build.
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
    """Import the module ``tensorrt`` or ``tensorrt_rtx``.

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
    """Check that the builder knows every compute capability of the spec, before any long work.

    Raises:
        RunnerError: InvalidSpec, naming the unknown ones; EngineBuildFailed when there is no builder.
    """
    trt = load_builder(engine.builder)
    # The builder's default: there is nothing to check.
    if not engine.compute_capabilities:
        return
    # Other members of the enum, such as CURRENT, name no generation.
    supported = [_dotted(name) for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    unknown = [item for item in engine.compute_capabilities if item not in supported]
    if unknown:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"spec.engine.computeCapabilities: expected some of {', '.join(supported)} ({engine.builder} "
            f"{trt.__version__}), got {', '.join(unknown)}",
        )


def build_engine(onnx_path: Path, engine_path: Path, engine: Engine, batch: Batch) -> BuiltEngine:
    """Build an engine with dynamic batch from an ONNX model whose input ``images`` is [N, 3, H, W].

    Args:
        onnx_path: The model.
        engine_path: Path of the engine; it is written under another name first, then renamed.
        engine: Builder and GPU generations.
        batch: Smallest, usual and largest batch.

    Raises:
        RunnerError: EngineBuildFailed, with the parser's or builder's own messages; InvalidSpec for a compute
            capability that the builder does not know.
    """
    # 1. Refuse what cannot be built.
    check_capabilities(engine)
    trt = load_builder(engine.builder)
    logger = _collector(trt)
    started = time.monotonic()
    # 2. Read the network. Strongly typed: the builder takes the ONNX model's types and chooses no precision.
    builder = _builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # A network without inputs has no batch for which an engine could be built.
    if not parser.parse_from_file(str(onnx_path)) or not network.num_inputs:
        raise _parse_error(parser, onnx_path)
    # 3. Build. The builder reports failure by None; the reasons are in the messages that its logger got.
    config = _config(trt, builder, network, engine, batch)
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise RunnerError(
            Reason.ENGINE_BUILD_FAILED, f"could not build the engine: {_several(logger.errors)}"
        )
    # 4. Write. A view: an engine is as large as its weights and is not copied.
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
    """Check by an engine's header that it belongs to this builder and version.

    TensorRT-RTX validates a header without loading the engine. Only the machine with the GPU can tell whether
    that GPU takes the engine, so findings about this machine's driver or GPU are returned, not raised.

    Args:
        engine_path: The engine file.
        builder: Must be ``tensorrt-rtx``; TensorRT has no such check.

    Returns:
        ``valid``, ``suboptimal`` or ``not judged without a GPU``; otherwise TensorRT-RTX's names for what
        this machine's GPU or driver lacks.

    Raises:
        RunnerError: EngineBuildFailed, when the file is not an engine of this version.
    """
    trt = load_builder(builder)
    runtime = trt.Runtime(_collector(trt))
    # The header is enough, and a few bytes of a file that may have gigabytes.
    with engine_path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    validity, bits = runtime.get_engine_validity(header)
    # A bit for each finding; the enum's values are these bits.
    flags = trt.EngineInvalidityDiagnostics.__members__.values()
    diagnostics = {flag.name for flag in flags if bits & int(flag)}
    # These two are the file's fault; all others are about the GPU or driver of this machine.
    broken = diagnostics & {"MALFORMED_ENGINE", "VERSION_MISMATCH"}
    if broken:
        raise RunnerError(
            Reason.ENGINE_BUILD_FAILED,
            f"{engine_path.name}: expected an engine of {builder} {trt.__version__}, got "
            f"{', '.join(sorted(broken))}",
        )
    if validity != trt.EngineValidity.INVALID:
        return str(validity.name).lower()
    return ", ".join(sorted(diagnostics)) or "not judged without a GPU"


def _config(trt: Any, builder: Any, network: Any, engine: Engine, batch: Batch) -> Any:
    """Configure the build: batch sizes and GPU generations."""
    config = builder.create_builder_config()
    images = network.get_input(0)
    # [3, H, W], without the batch.
    size = tuple(images.shape)[1:]
    profile = builder.create_optimization_profile()
    # Only the batch is dynamic: the model fixes all other dimensions.
    profile.set_shape(images.name, (batch.min, *size), (batch.opt, *size), (batch.max, *size))
    config.add_optimization_profile(profile)
    # The number first: only then are there places that the loop fills.
    if engine.compute_capabilities:
        config.num_compute_capabilities = len(engine.compute_capabilities)
        for index, item in enumerate(engine.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{item.replace('.', '')}"), index)
    return config


def _collector(trt: Any) -> Any:
    """A TensorRT logger that collects errors for the exception and passes the rest to ``logging``."""
    # Verbose messages are in no level and are dropped.
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.DEBUG,
        trt.ILogger.Severity.ERROR: logging.DEBUG,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
    }

    # Inside the function, because its base class exists only where the builder's package is installed.
    class Collector(trt.ILogger):
        """Errors become a RunnerError's message, so they are logged for debugging only."""

        def __init__(self) -> None:
            # Not super(): pybind11 wants the base class's own __init__.
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # On one line: messages of TensorRT have line breaks and indentation.
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
            if severity in levels:
                log.log(levels[severity], "%s", message)

    return Collector()


def _builder(trt: Any, logger: Any) -> Any:
    """Create a builder.

    Raises:
        RunnerError: EngineBuildFailed where TensorRT finds no GPU.
    """
    try:
        return trt.Builder(logger)
    except TypeError as error:
        # TensorRT found no GPU and returned a null pointer, which pybind11 turns into a TypeError.
        raise RunnerError(
            Reason.ENGINE_BUILD_FAILED,
            f"could not create a builder: {_several(logger.errors)}",
            "tensorrt needs a GPU and its driver; use tensorrt-rtx to build on any node.",
        ) from error


def _parse_error(parser: Any, onnx_path: Path) -> RunnerError:
    """Make the error for an ONNX file that the parser refused, from the parser's own messages."""
    # The parser keeps its own errors, apart from the logger's. Those about the file itself name no node.
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    messages = [
        f"node {error.node()} {error.node_operator()} {error.node_name()!r}: {error.desc()}"
        if error.node_operator()
        else error.desc()
        for error in errors
    ] or ["it has no input"]
    return RunnerError(
        Reason.ENGINE_BUILD_FAILED, f"the ONNX parser refused {onnx_path.name}: {_several(messages)}"
    )


def _several(messages: list[str]) -> str:
    """The first messages and the number of the others."""
    if not messages:
        return "the builder gave no reason"
    hidden = len(messages) - _MESSAGES_SHOWN
    return "; ".join(messages[:_MESSAGES_SHOWN]) + (f"; and {hidden} more" if hidden > 0 else "")


def _dotted(member: str) -> str:
    """A compute capability from the name of TensorRT's enum: ``SM89`` is 8.9, ``SM120`` is 12.0."""
    return f"{member[2:-1]}.{member[-1]}"
