"""Checks of the inputs of a run: that they exist, and that a model fits a data set.

:func:`require` is called before a task is imported, which takes seconds because TensorFlow does: a misspelt
address is answered at once. Nothing here imports TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.status import ResolvedModel
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage, join

if TYPE_CHECKING:
    from tlt_runner.data.records import Manifest
    from tlt_runner.detector.config import DetectorConfig


def require(command: str, run: RunSpec, storage: Storage) -> None:
    """Refuse a run whose model or data set does not exist.

    Args:
        command: Name of the command.
        run: Its RunSpec.
        storage: Looks whether addresses exist; nothing is read.

    Raises:
        RunnerError: InvalidSpec or DatasetNotFound, with what is there instead; the storage's reasons.
    """
    spec = run.spec
    # PruneJob and ExportJob work on one model file and, if at all, on records that a training made.
    if not isinstance(spec, TrainingJobSpec):
        _require_file(given_model(run).uri, storage)
        return
    absence = storage.missing(spec.dataset.uri)
    if absence is not None:
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"spec.dataset.uri: expected a data set at {spec.dataset.uri}, {absence}",
        )
    # Without a best model, the one that the training starts from is evaluated: it must be named then.
    if command == "evaluate" and storage.missing(best_model(spec)):
        initial_model(spec, run)
    # tlt convert and tlt anchors take no model: a missing one does not keep them from running.
    if command == "train":
        for start in (run.inputs.model, spec.model.pretrained_weights):
            # A public file is asked for when it is downloaded.
            if start is not None and not start.uri.startswith("https://"):
                _require_file(start.uri, storage)


def _require_file(uri: str, storage: Storage) -> None:
    absence = storage.missing(uri)
    if absence is not None:
        # A pvc:// address alone does not say where the pod has mounted its claim.
        path = storage.local_path(uri)
        located = uri if path is None else f"{uri} ({path})"
        raise NotFoundError(f"expected a file at {located}, {absence}")


def given_model(run: RunSpec) -> ResolvedModel:
    """Return the model that a PruneJob or an ExportJob works on.

    Raises:
        RunnerError: InvalidSpec; the RunSpec has none.
    """
    if run.inputs.model is None:
        raise RunnerError(Reason.INVALID_SPEC, "expected inputs.model, the resolved spec.model, got none")
    return run.inputs.model


def best_model(spec: TrainingJobSpec) -> str:
    """Return the address of the best model of a training."""
    return join(spec.output.uri, "best.keras")


def initial_model(spec: TrainingJobSpec, run: RunSpec) -> ResolvedModel:
    """Return the model that a training without a best model starts from, for an evaluation.

    Raises:
        RunnerError: InvalidSpec; the training starts from no model.
    """
    if run.inputs.model is None:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a trained model to evaluate, got none: {best_model(spec)} does not exist, and "
            "spec.model.from names none",
            "Train first, or name a model in spec.model.from.",
        )
    return run.inputs.model


def require_same_data(config: DetectorConfig, manifest: Manifest) -> None:
    """Refuse records of other classes or of another image size than those of the model.

    Raises:
        RunnerError: ModelMismatch.
    """
    # The order of the classes counts, too: a class id is an index into this list.
    expected = (config.class_names, config.width, config.height)
    got = (manifest.class_names, manifest.width, manifest.height)
    if expected != got:
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"expected data of classes {', '.join(expected[0])} and {expected[1]} x {expected[2]} pixels "
            f"(width x height), as the model; got {', '.join(got[0])} and {got[1]} x {got[2]}",
        )
