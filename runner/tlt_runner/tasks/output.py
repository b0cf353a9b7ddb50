"""Claim of an output before any work, so that no run replaces the files of another one.

``tlt-owner.json`` at the output address names the run that the files there belong to. It is created as a
whole and only where there is none, so that of two pods that start together one is refused. Called by
:mod:`tlt_runner.process` before the task is imported; nothing here imports TensorFlow.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from tlt_api import times
from tlt_api.base import StatusModel
from tlt_api.failures import CLASSES, Reason
from tlt_api.runspec import WRITERS_VARIABLE, RunSpec
from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage, join

MARKER = "tlt-owner.json"
PUBLISHED = (
    "checkpoint.json",
    "last.state.npz",
    "best.keras",
    "last.keras",
    "model.keras",
    "model-fp32.onnx",
    "model-fp16.onnx",
)
"""Files at the output address that show that a run has published something there: checkpoints of each
layout and models of a training, the model of a pruning, the networks of an export."""

log = logging.getLogger(__name__)


class RunOwner(StatusModel):
    """Run that the files of an output belong to."""

    version: int = 1
    """Format of the file."""
    kind: str = ""
    """Kind of the resource; empty if an output of an earlier release does not name it."""
    namespace: str = ""
    """Namespace of the resource."""
    name: str = ""
    """Name of the resource."""
    uid: str
    """UID of the resource; empty if it is not known."""
    attempt: int = 0
    """Newest attempt that worked on the output; 0 if it is not known."""
    since: str = ""
    """Time at which the run claimed the output."""
    local: bool = False
    """True for a run without a cluster."""
    cluster: str = ""
    """Digest of the certificate authority of the cluster; empty if it is not known."""

    def __str__(self) -> str:
        """Return whose files they are, as far as it is known."""
        if not self.uid:
            return "a run of an earlier release that did not leave its name"
        resource = f"{self.kind} {self.namespace}/{self.name} " if self.name else "a run "
        known = [f"uid {self.uid}"]
        known += [f"attempt {self.attempt}"] if self.attempt else []
        known += [f"since {self.since}"] if self.since else []
        return f"{resource}({', '.join(known)})"

    def is_same_manifest(self, other: RunOwner) -> bool:
        """Tell whether both are local runs of one resource's manifest."""
        names = [(item.kind, item.namespace, item.name) for item in (self, other)]
        return self.local and other.local and names[0] == names[1]


@contextmanager
def claimed(
    run: RunSpec,
    storage: Storage,
    scratch: Path,
    *,
    local: bool,
    chief: bool = True,
    existing: Collection[str] | None = None,
    cluster: str = "",
    now: datetime | None = None,
) -> Iterator[None]:
    """Context in which the output belongs to the run.

    A run that fails for good before it has published anything gives back what it claimed, so that a corrected
    resource can have the output.

    Args:
        run: The run.
        storage: Reads and writes the output.
        scratch: Folder for the file.
        local: True for a run without a cluster.
        chief: False for a worker that publishes nothing: it looks, and claims nothing.
        existing: UIDs of the other resources of the namespace with this output; None if they are not known.
        cluster: Digest of the certificate authority of the cluster; empty if it is not known.
        now: The time.

    Raises:
        RunnerError: OutputTaken; the storage's reasons.
    """
    uri, overwrite = run.spec.output.uri, run.spec.output.overwrite
    me = RunOwner(
        kind=run.owner.kind,
        namespace=run.owner.namespace,
        name=run.owner.name,
        uid=run.owner.uid,
        attempt=run.attempt,
        since=times.to_wire(now or times.utc_now()),
        local=local,
        cluster=cluster,
    )
    owner = _look(storage, uri, run.attempt)
    if owner is not None and not overwrite and _is_abandoned(owner, me, storage, uri, existing):
        log.info("%s: claimed by %s, which no longer exists and left nothing: taken over", uri, owner)
        overwrite = True
    is_new = owner is None
    if owner is not None:
        _require_mine(owner, me, uri, overwrite=overwrite)
    if chief:
        me = (
            me.model_copy(update={"since": owner.since})
            if owner and owner.uid == me.uid and owner.since
            else me
        )
        file = scratch / MARKER
        file.write_text(me.model_dump_json(by_alias=True, indent=1), encoding="utf-8")
        if not is_new:
            storage.publish(file, join(uri, MARKER))
        # Somebody else was faster since the look above.
        elif not storage.create(file, join(uri, MARKER)):
            is_new = False
            owner = _marked(storage, uri)
            if owner is not None:
                _require_mine(owner, me, uri, overwrite=overwrite)
            storage.publish(file, join(uri, MARKER))
        file.unlink()
    try:
        yield
    except RunnerError as error:
        if is_new and chief and not CLASSES[error.reason].retryable:
            _give_back(storage, uri)
        raise


def existing_writers(environment: Mapping[str, str]) -> Collection[str] | None:
    """Return the uids of the other resources with this output; None without an operator that knows them."""
    text = environment.get(WRITERS_VARIABLE)
    return None if text is None else [uid for uid in text.split(",") if uid]


def _is_abandoned(
    owner: RunOwner, me: RunOwner, storage: Storage, uri: str, existing: Collection[str] | None
) -> bool:
    """Tell whether an output belongs to a resource that no longer exists, and holds nothing of it."""
    # The operator knows the resources of one namespace of one cluster, and a local run is none.
    if existing is None or owner.local or me.local or owner.namespace != me.namespace:
        return False
    if not owner.uid or owner.uid == me.uid or owner.uid in existing:
        return False
    # Two clusters may share a bucket, and have namespaces of one name.
    if not me.cluster or owner.cluster != me.cluster:
        return False
    try:
        return not any(storage.exists(join(uri, name)) for name in PUBLISHED)
    except RunnerError as error:
        if error.reason != Reason.STORAGE_DENIED:
            raise
        # Keys of S3 that may not list do not tell a file that is missing from one that is there.
        return False


def _require_mine(owner: RunOwner, me: RunOwner, uri: str, *, overwrite: bool) -> None:
    """Refuse the output of another run.

    Raises:
        RunnerError: OutputTaken, naming the other run.
    """
    # Attempts, retries and resumptions have the resource's uid. Local runs have a new one whenever the
    # manifest has changed: whoever runs a manifest again on the own machine wants its files replaced.
    if owner.uid == me.uid or owner.is_same_manifest(me):
        return
    if overwrite:
        log.warning("%s: spec.output.overwrite: the files of %s are replaced", uri, owner)
        return
    names = [(item.kind, item.namespace, item.name) for item in (owner, me)]
    former = names[0] == names[1] and not owner.local
    raise RunnerError(
        Reason.OUTPUT_TAKEN,
        f"spec.output.uri: expected an output of {me.kind} {me.namespace}/{me.name} (uid {me.uid}), "
        f"got {uri} with the files of {owner}" + (", a former resource of this name" if former else ""),
    )


def _look(storage: Storage, uri: str, attempt: int) -> RunOwner | None:
    """Find out whose the output is; None if it is free."""
    try:
        return _marked(storage, uri) or _unmarked(storage, uri, attempt)
    except RunnerError as error:
        if error.reason != Reason.STORAGE_DENIED:
            raise
        # Keys of S3 that may not list are denied a file that is missing, as if it were there. A marker that
        # is there is found when this run's own is created.
        log.info("%s: whose output it is cannot be looked up: %s", uri, error.message)
        return None


def _marked(storage: Storage, uri: str) -> RunOwner | None:
    """Read whose output it is; None if it does not say so.

    Raises:
        RunnerError: StorageUnavailable; also where the file is damaged, because it may be being replaced.
    """
    marker = join(uri, MARKER)
    try:
        text = storage.fetch(marker).read_bytes()
    except NotFoundError:
        return None
    try:
        return RunOwner.model_validate_json(text)
    except ValidationError:
        raise RunnerError(
            Reason.STORAGE_UNAVAILABLE,
            f"{marker}: expected the JSON of the run that the output belongs to, got {text[:80]!r}",
            f"Restore the file, or remove it together with the files of that run: {uri}.",
        ) from None


def _unmarked(storage: Storage, uri: str, attempt: int) -> RunOwner | None:
    """Find out whose files an output of a release before the marker holds; None if it holds none."""
    names = [name for name in PUBLISHED if storage.exists(join(uri, name))]
    if not names:
        return None
    uid = _run_of_manifest(storage, uri) if "checkpoint.json" in names else None
    if uid is None and "last.state.npz" in names:
        uid = _run_of_state(storage, uri)
    if uid is not None:
        return _named(storage, uri, uid)
    # Prunings and exports left no name. The first attempt of a run has published nothing yet.
    if attempt > 1:
        log.info("%s: %s are taken for those of an earlier attempt", uri, ", ".join(names))
        return None
    return RunOwner(uid="")


def _run_of_manifest(storage: Storage, uri: str) -> str | None:
    try:
        return str(json.loads(storage.fetch(join(uri, "checkpoint.json")).read_bytes())["position"]["run"])
    # A damaged one says nothing.
    except (ValueError, KeyError, TypeError):
        return None


def _run_of_state(storage: Storage, uri: str) -> str | None:
    # Imported here: numpy starts threads, and signals are blocked before any.
    import numpy as np

    try:
        with np.load(io.BytesIO(storage.fetch(join(uri, "last.state.npz")).read_bytes())) as arrays:
            return str(json.loads(arrays["position"].tobytes())["run"])
    except (ValueError, KeyError, TypeError, OSError, EOFError):
        return None


def _named(storage: Storage, uri: str, uid: str) -> RunOwner:
    """Return the run of a uid, with the names that its log file has."""
    try:
        lines = storage.fetch(join(uri, "log.jsonl")).read_text(encoding="utf-8").splitlines()
        starts = [line for line in map(json.loads, lines) if line["event"] == "start" and line["run"] == uid]
        fields = {name: starts[-1][name] for name in ("kind", "namespace", "name", "attempt")}
        return RunOwner(uid=uid, since=starts[0]["time"], **fields)
    # Names are for the message only.
    except (RunnerError, ValueError, KeyError, TypeError, IndexError):
        return RunOwner(uid=uid)


def _give_back(storage: Storage, uri: str) -> None:
    try:
        if not any(storage.exists(join(uri, name)) for name in PUBLISHED):
            storage.remove(uri, [MARKER])
    # What ended the run is the error to report.
    except RunnerError as error:
        log.warning("%s is not given back: %s", join(uri, MARKER), error.message)
