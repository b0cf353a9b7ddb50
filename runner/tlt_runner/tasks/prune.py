"""``tlt prune``: remove filters from a trained detector; the result is a detector that can be retrained.

Called by :mod:`tlt_runner.process`. The plan is logged and published before the pruned model.
"""

from __future__ import annotations

import logging

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.prunejob import PruneJobSpec, PruneTarget
from tlt_api.runspec import RunSpec
from tlt_api.status import PruningStatus
from tlt_runner.context import Context
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import OUTPUT_LAYERS, FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import groups as grouping
from tlt_runner.pruning import planning
from tlt_runner.pruning import rebuild as rebuilding
from tlt_runner.pruning.graph import Connection, Network
from tlt_runner.pruning.groups import Groups
from tlt_runner.pruning.plan import Options, PruningPlan
from tlt_runner.tasks import inputs

log = logging.getLogger(__name__)


def run(spec: PruneJobSpec, run: RunSpec, context: Context) -> None:
    """Plan, rebuild, publish ``plan`` and ``model``.

    Raises:
        RunnerError: InvalidSpec, NothingToPrune, UnreadableModel, Interrupted, or the storage's reasons.
    """
    source = inputs.given_model(run)
    # Nothing here is worth a GPU, and one that is claimed here is missing elsewhere.
    tf.config.set_visible_devices([], "GPU")
    model = detector.load(context.storage.fetch(source.uri, source.sha256))
    # 1. Plan: nothing is changed yet, and a plan that prunes nothing ends the run here.
    context.begin("prune", step=1)
    options = options_of(spec)
    groups = find_groups(model, options)
    plan = plan_pruning(model, options, threshold=spec.threshold, target=spec.target, groups=groups)
    log.info("pruning plan\n%s", plan.table())
    plan_file = context.scratch / "plan.json"
    plan_file.write_text(plan.to_json() + "\n", encoding="utf-8")
    # Before the rebuilding: if that fails, the plan tells what was meant to be removed.
    context.publish(plan_file, "plan", spec.output.uri)
    # 2. Rebuild and publish.
    context.begin("prune", step=2)
    pruned = rebuild(model, plan, groups)
    # The rebuilt network proves the plan: a mistake in either would be published otherwise.
    if pruned.count_params() != plan.parameters_after:
        raise RunnerError(
            Reason.INTERNAL,
            f"expected {plan.parameters_after} parameters by the plan, the pruned model has "
            f"{pruned.count_params()}",
        )
    model_file = context.scratch / "model.keras"
    detector.save(pruned, model_file)
    context.publish(model_file, "model", spec.output.uri)
    context.reporter.report(status_of(plan))


def options_of(spec: PruneJobSpec) -> Options:
    """Return the pruning options of the spec: everything but the amount."""
    return Options(
        normalizer=spec.normalizer,
        equalization=spec.equalization,
        granularity=spec.granularity,
        min_filters=spec.min_filters,
        excluded_layers=tuple(spec.excluded_layers),
    )


def network(model: FasterRCNN) -> Network:
    """Describe trunk and head as one network, connected by RoI pooling; the head runs for each proposal."""
    return Network(
        models={"trunk": model.trunk, "head": model.head},
        # RoI pooling mixes places, never channels: what the trunk loses, the head's first layer loses, too.
        connections=(Connection(source="trunk", output="features", target="head"),),
        runs={"head": model.config.proposals.inference.post_nms},
        # Their filters are anchors, classes and coordinates: each one has a meaning outside the network.
        protected=dict.fromkeys(OUTPUT_LAYERS, "output layer"),
    )


def find_groups(model: FasterRCNN, options: Options) -> Groups:
    """Find the detector's groups, for :func:`plan_pruning` and :func:`rebuild`.

    Raises:
        RunnerError: ``InvalidSpec``; see :func:`tlt_runner.pruning.groups.find`.
    """
    return grouping.find(network(model), options.excluded_layers)


def plan_pruning(
    model: FasterRCNN,
    options: Options,
    *,
    threshold: float | None = None,
    target: PruneTarget | None = None,
    groups: Groups | None = None,
) -> PruningPlan:
    """Plan the pruning of a detector; see :func:`tlt_runner.pruning.planning.make`."""
    return planning.make(network(model), options, threshold=threshold, target=target, groups=groups)


def rebuild(model: FasterRCNN, plan: PruningPlan, groups: Groups | None = None) -> FasterRCNN:
    """Build the pruned detector; ``model`` is left unchanged.

    Args:
        model: The detector for which the plan was made.
        plan: Which filters stay.
        groups: Its groups, where they are at hand; a plan from a file comes without.

    Raises:
        RunnerError: ``ModelMismatch`` where the plan was made for another model.
    """
    models = rebuilding.rebuild(network(model), plan, groups)
    # Other weights have other scores: the thresholds of the whole model are none of the pruned one.
    config = model.config.model_copy(update={"score_thresholds": None})
    return FasterRCNN(config, models["trunk"], models["head"], name=model.name)


def status_of(plan: PruningPlan) -> PruningStatus:
    """Return the plan's figures for the resource's status."""
    return PruningStatus(
        parameters_before=plan.parameters_before,
        parameters_after=plan.parameters_after,
        flops_before=plan.flops_before,
        flops_after=plan.flops_after,
        ratio=round(plan.parameters_kept, 4),
        parameters_kept=f"{plan.parameters_kept * 100:.0f} %",
        flops_kept=f"{plan.flops_kept * 100:.0f} %",
    )
