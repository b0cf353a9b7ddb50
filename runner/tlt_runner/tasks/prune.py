"""``tlt prune``: take filters out of a trained detector; the result is a detector that can be retrained.

Called by :mod:`tlt_runner.process` with the RunSpec of a PruneJob. The plan is logged and published before
the model that it makes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.prunejob import PruneJobSpec
from tlt_api.runspec import RunSpec
from tlt_api.status import Artifact, Progress, PruningStatus
from tlt_runner.context import Context
from tlt_runner.detector import model as detector
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import faster_rcnn
from tlt_runner.pruning.plan import Options, PruningPlan
from tlt_runner.storage import join

log = logging.getLogger(__name__)


def run(run: RunSpec, context: Context) -> None:
    """Plan, rebuild, publish ``plan`` and ``model``.

    Raises:
        RunnerError: InvalidSpec, NothingToPrune, UnreadableModel, Interrupted, or the storage's reasons.
    """
    spec = run.spec
    if not isinstance(spec, PruneJobSpec):
        raise RunnerError(
            Reason.INVALID_SPEC, f"prune: expected a PruneJob, got {run.owner.kind}/{run.owner.name}"
        )
    if run.inputs.model is None:
        raise RunnerError(Reason.INVALID_SPEC, "expected inputs.model, the resolved spec.model, got none")
    # Nothing here is worth a GPU, and one that is claimed here is missing elsewhere.
    tf.config.set_visible_devices([], "GPU")
    model = detector.load(context.storage.fetch(run.inputs.model.uri, run.inputs.model.sha256))
    _continue(context, step=1)
    options = options_of(spec)
    groups = faster_rcnn.find_groups(model, options)
    plan = faster_rcnn.plan_pruning(
        model, options, threshold=spec.threshold, target=spec.target, groups=groups
    )
    log.info("pruning plan\n%s", plan.table())
    _publish_plan(plan, spec, context)
    _continue(context, step=2)
    pruned = faster_rcnn.rebuild(model, plan, groups)
    if pruned.count_params() != plan.parameters_after:
        raise RunnerError(
            Reason.INTERNAL,
            f"expected {plan.parameters_after} parameters by the plan, the pruned model has "
            f"{pruned.count_params()}",
        )
    local = context.scratch / "model.keras"
    detector.save(pruned, local)
    _publish("model", local, spec, context)
    context.reporter.pruning(status_of(plan))


def options_of(spec: PruneJobSpec) -> Options:
    """The part of the spec that says how, not how much."""
    return Options(
        normalizer=spec.normalizer,
        equalization=spec.equalization,
        granularity=spec.granularity,
        min_filters=spec.min_filters,
        excluded_layers=tuple(spec.excluded_layers),
    )


def status_of(plan: PruningPlan) -> PruningStatus:
    """What the plan comes to, for the resource's status."""
    return PruningStatus(
        parameters_before=plan.parameters_before,
        parameters_after=plan.parameters_after,
        flops_before=plan.flops_before,
        flops_after=plan.flops_after,
        ratio=round(plan.parameters_kept, 4),
        parameters_kept=f"{plan.parameters_kept * 100:.0f} %",
        flops_kept=f"{plan.flops_kept * 100:.0f} %",
    )


def _publish_plan(plan: PruningPlan, spec: PruneJobSpec, context: Context) -> None:
    local = context.scratch / "plan.json"
    local.write_text(plan.to_json() + "\n", encoding="utf-8")
    _publish("plan", local, spec, context)


def _publish(name: str, local: Path, spec: PruneJobSpec, context: Context) -> None:
    published = context.storage.publish(local, join(spec.output.uri, local.name))
    local.unlink()
    context.reporter.artifact(
        Artifact(name=name, uri=published.uri, sha256=published.sha256, size_bytes=published.size_bytes)
    )


def _continue(context: Context, step: int) -> None:
    if context.stop.is_set():
        raise RunnerError(Reason.INTERRUPTED, "stopped while pruning; the next attempt begins anew")
    context.reporter.progress(Progress(stage="prune", step=step))
