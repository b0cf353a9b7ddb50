"""The models of a training at its output address: in storage and, by the same hand, in the status.

``best.keras``, ``last.keras`` and, where the spec asks for them, the newest ``epoch-0007.keras``. Called by
the train task: what an earlier attempt published is reported before anything else is done, so that it does
not leave the status while data are read. Knows neither model nor optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tlt_api.runspec import Owner
from tlt_api.status import EPOCH_PREFIX, Artifact, Metrics
from tlt_runner.context import Context
from tlt_runner.errors import RunnerError
from tlt_runner.storage import join
from tlt_runner.training.checkpoint import model_file, state
from tlt_runner.training.checkpoint.model_file import Origin
from tlt_runner.training.checkpoint.state import Position, Saved

BEST, LAST, STATE = "best", "last", "last.state.npz"

log = logging.getLogger(__name__)


def epoch_name(epoch: int) -> str:
    """The name of an epoch's own checkpoint."""
    return f"{EPOCH_PREFIX}{epoch:04d}"


class Published:
    """What one training has published.

    Args:
        context: Storage and reporter.
        output_uri: Where results go.
        owner: The TrainingJob.
    """

    def __init__(self, context: Context, output_uri: str, owner: Owner) -> None:
        self._storage = context.storage
        self._reporter = context.reporter
        self._output = output_uri
        self._owner = owner
        self._artifacts: dict[str, Artifact] = {}

    @property
    def artifacts(self) -> list[Artifact]:
        """What is there, in the order in which it came."""
        return list(self._artifacts.values())

    def recall(self) -> Saved | None:
        """Find the state of an earlier attempt of this run, and report again what it had published.

        A file that is neither the recorded one nor known to be newer is left out. Where it is ``best`` or
        ``last``, the epoch that ended last is to be closed again, which makes another.
        """
        saved = state.find(self._storage, join(self._output, STATE), self._owner.uid)
        if saved is None:
            return None
        position = saved.position
        recorded = [item.name for item in position.artifacts]
        for name in dict.fromkeys([*recorded, BEST, LAST]):
            position = self._recalled(name, position)
        expected = [*recorded, BEST] if position.best is not None else recorded
        lost = [name for name in (BEST, LAST) if name in expected and name not in self._artifacts]
        if lost:
            position = _reopened(position, lost)
        if position.best is not None:
            self._reporter.report(position.best)
        return replace(saved, position=position)

    def withdraw(self) -> None:
        """Take back what :meth:`recall` has reported, for the training starts anew; the files stay."""
        for name in list(self._artifacts):
            del self._artifacts[name]
            self._reporter.removed(name)
        self._reporter.report(Metrics())

    def publish(self, name: str, local: Path, epoch: int) -> None:
        """Publish a model file under a name."""
        done = self._storage.publish(local, self._uri(name))
        self._add(
            Artifact(name=name, uri=done.uri, sha256=done.sha256, size_bytes=done.size_bytes, epoch=epoch)
        )

    def publish_state(self, local: Path) -> None:
        """Publish the state file."""
        self._storage.publish(local, join(self._output, STATE))

    def retain(self, count: int) -> None:
        """Remove this run's own checkpoints of epochs, but for the newest ``count``."""
        made = [name for name in self._artifacts if name.startswith(EPOCH_PREFIX)]
        for name in made[: max(0, len(made) - count)]:
            del self._artifacts[name]
            self._reporter.removed(name)  # before the file, for those who read the status
            try:
                self._storage.remove(self._output, [f"{name}.keras"])
            except RunnerError as error:  # it takes room and does no other harm
                log.warning("%s.keras, which is no longer kept, cannot be removed: %s", name, error.message)

    def origin(self, epoch: int) -> Origin:
        """What a model file of this training says of itself."""
        return Origin(run=self._owner.uid, job=f"{self._owner.namespace}/{self._owner.name}", epoch=epoch)

    def _recalled(self, name: str, position: Position) -> Position:
        """Take up a file that is whole; with the best model its score, where the state lacks it."""
        recorded = next((item for item in position.artifacts if item.name == name), None)
        there = self._storage.published(self._uri(name))
        if there is None:
            return position
        if recorded is not None and recorded.sha256 == there.sha256:
            self._add(recorded)
            return position
        if position.closed:
            return position
        # Killed after a file of the epoch's end was published, and before the state was?
        origin = self._origin_at(self._uri(name))
        if origin is None or (origin.run, origin.epoch) != (self._owner.uid, position.epoch):
            return position
        if name == BEST:
            if origin.evaluation is None:
                return position
            position = position.model_copy(update={"best": origin.evaluation})
        self._add(
            Artifact(
                name=name,
                uri=there.uri,
                sha256=there.sha256,
                size_bytes=there.size_bytes,
                epoch=origin.epoch,
            )
        )
        return position

    def _origin_at(self, uri: str) -> Origin | None:
        path = self._storage.fetch(uri)
        origin = model_file.origin_of(path)
        if self._storage.local_path(uri) is None:
            path.unlink()  # a copy, as large as the model
        return origin

    def _add(self, artifact: Artifact) -> None:
        self._artifacts.pop(artifact.name, None)
        self._artifacts[artifact.name] = artifact
        self._reporter.artifact(artifact)

    def _uri(self, name: str) -> str:
        return join(self._output, f"{name}.keras")


def _reopened(position: Position, lost: Sequence[str]) -> Position:
    """The position whose last epoch is to be closed again; no step may follow it that would do so."""
    log.warning("%s: not what this training published any more; it is made again", ", ".join(lost))
    change: dict[str, object] = {}
    if BEST in lost:
        change["best"] = None
    if position.epoch and not position.step:
        change["closed"] = False
    return position.model_copy(update=change)
