"""Pruning of the detector: what the general parts must know of it, and nothing else does.

Called by ``tlt prune`` (:mod:`tlt_runner.tasks.prune`).
"""

from __future__ import annotations

from tlt_api.prunejob import PruneTarget
from tlt_runner.detector.model import OUTPUT_LAYERS, FasterRCNN
from tlt_runner.pruning import planning
from tlt_runner.pruning import rebuild as rebuilding
from tlt_runner.pruning.graph import Network, Tie
from tlt_runner.pruning.plan import Options, PruningPlan


def network(model: FasterRCNN) -> Network:
    """Trunk and head, tied by RoI pooling; the head runs once for each proposal of inference."""
    return Network(
        models={"trunk": model.trunk, "head": model.head},
        ties=(Tie(source="trunk", output="features", target="head"),),
        runs={"head": model.config.proposals.inference.post_nms},
        kept=dict.fromkeys(OUTPUT_LAYERS, "output layer"),
    )


def plan_pruning(
    model: FasterRCNN,
    options: Options,
    *,
    threshold: float | None = None,
    target: PruneTarget | None = None,
) -> PruningPlan:
    """Plan the pruning of a detector; see :func:`tlt_runner.pruning.planning.make`."""
    return planning.make(network(model), options, threshold=threshold, target=target)


def rebuild(model: FasterRCNN, plan: PruningPlan) -> FasterRCNN:
    """The pruned detector; ``model`` stays as it is.

    Raises:
        RunnerError: ``ModelMismatch`` where the plan was made for another model.
    """
    models = rebuilding.rebuild(network(model), plan)
    return FasterRCNN(model.config, models["trunk"], models["head"], name=model.name)
