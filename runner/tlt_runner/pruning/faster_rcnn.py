"""Pruning of the detector: all that the general stages of pruning must know of it.

Called by ``tlt prune`` (:mod:`tlt_runner.tasks.prune`).
"""

from __future__ import annotations

from tlt_api.prunejob import PruneTarget
from tlt_runner.detector.model import OUTPUT_LAYERS, FasterRCNN
from tlt_runner.pruning import groups as grouping
from tlt_runner.pruning import planning
from tlt_runner.pruning import rebuild as rebuilding
from tlt_runner.pruning.graph import Connection, Network
from tlt_runner.pruning.groups import Groups
from tlt_runner.pruning.plan import Options, PruningPlan


def network(model: FasterRCNN) -> Network:
    """Trunk and head, connected by RoI pooling; the head runs once for each proposal of inference."""
    return Network(
        models={"trunk": model.trunk, "head": model.head},
        # RoI pooling mixes places, never channels.
        connections=(Connection(source="trunk", output="features", target="head"),),
        runs={"head": model.config.proposals.inference.post_nms},
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
    return FasterRCNN(model.config, models["trunk"], models["head"], name=model.name)
