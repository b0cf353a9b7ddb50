"""Checks of a local run before anything starts: order, references, data sets, nodes.

Pure, except that it looks whether folders exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tlt_api import references
from tlt_api.failures import Reason
from tlt_api.references import Lookup
from tlt_api.resources import Resource
from tlt_api.status import Phase
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.errors import RunnerError
from tlt_runner.local import transitions
from tlt_runner.local.state import Folders


def in_order(resources: Sequence[Resource], lookup: Lookup) -> list[Resource]:
    """Sort the resources, each after the one that it refers to; otherwise they keep their order.

    Args:
        resources: The resources of the flow. A circle among them is refused.
        lookup: Finds resources of earlier runs.

    Raises:
        RunnerError: DependencyCycle, or InvalidSpec where a reference leads to nothing.
    """
    # Kind and name: a TrainingJob and a PruneJob may have one name.
    by_key = {(item.kind.name, item.name): item for item in resources}
    ordered: dict[tuple[str, str], Resource] = {}
    for resource in resources:
        # Up from each resource to its oldest ancestor: each has one parent at most.
        chain: list[Resource] = []
        current: Resource | None = resource
        while current is not None and (current.kind.name, current.name) not in ordered:
            # A resource that leads back to itself: no order exists.
            if current in chain:
                names = " -> ".join(item.key for item in (*chain, current))
                raise RunnerError(Reason.DEPENDENCY_CYCLE, f"the references form a circle: {names}")
            chain.append(current)
            parent = references.parent_key(references.model_source(current))
            # The parent is not in this flow: an earlier local run must have made it.
            if parent is not None and parent not in by_key:
                _require_earlier(current, parent, lookup)
            current = by_key.get(parent) if parent else None
        # The chain runs from child to parent, and the parent has to come first.
        ordered.update({(item.kind.name, item.name): item for item in reversed(chain)})
    return list(ordered.values())


def _require_earlier(resource: Resource, parent: tuple[str, str], lookup: Lookup) -> None:
    earlier = lookup(*parent)
    if earlier is not None and earlier.status.phase == Phase.SUCCEEDED:
        return
    state = "is neither among the manifests nor known from an earlier local run"
    if earlier is not None:
        state = f"is {earlier.status.phase or Phase.PENDING} since an earlier local run"
    raise RunnerError(
        Reason.INVALID_SPEC,
        f"{resource.key} refers to {parent[0]}/{parent[1]}, which {state}",
        "Put its manifest beside this one, or run it first; the state folder must be the same (--state).",
    )


def finished(
    resource: Resource, stored: Resource | None, parent: Resource | None, folders: Folders
) -> tuple[bool, str]:
    """Return True if the work is done already, else False and the reason (empty if it never succeeded)."""
    if stored is None or stored.status.phase != Phase.SUCCEEDED:
        return False, ""
    if not transitions.same_work(resource, stored):
        return False, "its spec has changed since it succeeded"
    # Run again, the parent has a new uid: what was made from its old model is out of date.
    dependency = stored.status.dependency
    if parent is not None and (dependency is None or dependency.uid != parent.uid):
        return False, f"{parent.key}, from which it starts, has run again since"
    # Somebody may have deleted or replaced artifacts since.
    lost = [item.uri for item in stored.status.artifacts or () if not folders.holds(item)]
    if lost:
        return False, f"what it made is no longer there, or has another size: {', '.join(lost)}"
    return True, ""


def require_data(resources: Sequence[Resource], folders: Folders) -> None:
    """Refuse to start if a data set does not exist.

    Raises:
        RunnerError: DatasetNotFound; says where it is expected and how to make one.
    """
    missing: dict[Path, str] = {}
    for resource in resources:
        if isinstance(resource.spec, TrainingJobSpec):
            uri = resource.spec.dataset.uri
            path = folders.path_of(uri)
            # A bucket is looked into by the run itself, which has the credentials.
            if path is not None and not path.is_dir():
                missing.setdefault(path, f"{resource.key} expects a data set at {uri}, which is {path} here")
    if missing:
        first = next(iter(missing))
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"{'; '.join(missing.values())}: no such folder",
            "Put the data there, name their folder as file:///path, make the claim's folder a link to it, or "
            f"make some to try: tlt sample-data digits {first}",
        )


def require_one_node(resources: Sequence[Resource]) -> None:
    """Refuse a training over several nodes: on one machine its figures would be others.

    Raises:
        RunnerError: InvalidSpec; names what would differ.
    """
    for resource in resources:
        spec = resource.spec
        if isinstance(spec, TrainingJobSpec) and spec.resources.nodes > 1:
            nodes = spec.resources.nodes
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"{resource.key}: spec.resources.nodes: expected 1 without a cluster, got {nodes}: one node "
                f"would train with 1/{nodes} of the images a step, and with learningRate.scaling linear "
                f"1/{nodes} of the learning rate",
                "Apply it to a cluster, or set spec.resources.nodes to 1 for a training of its own figures.",
            )


def not_applied(resource: Resource) -> list[str]:
    """Return the names of fields that the spec sets and that have no effect without a cluster."""
    spec = resource.spec
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("runPolicy", lambda: "run_policy" in spec.model_fields_set),
        ("resources.cpu", lambda: spec.resources.cpu is not None),
        ("resources.memory", lambda: spec.resources.memory is not None),
        ("storage.s3.secretRef", lambda: spec.storage.s3.secret_ref is not None),
        # A child process takes the environment; images, volumes and node selectors have no meaning here.
        ("podTemplate (all but env)", lambda: bool(spec.pod_template.model_fields_set - {"env"})),
    ]
    return [name for name, is_set in checks if is_set()]
