"""The state of local runs: each resource as ``kubectl get -o json`` would show it, in ``.tlt/status``.

One ``tlt run`` at a time works on a state folder. The running child inherits the lock, so that it holds even
if ``tlt run`` itself was killed while the child still trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlt_api import resources
from tlt_api.base import API_VERSION
from tlt_api.failures import Reason
from tlt_api.resources import Resource
from tlt_api.status import Artifact
from tlt_runner import files
from tlt_runner.errors import RunnerError
from tlt_runner.storage import parse, volumes


@dataclass(frozen=True)
class Folders:
    """Folders of a local run.

    Attributes:
        state: State folder, ``.tlt`` by default.
        volumes: ``pvc://claim/path`` is ``volumes/claim/path``.
    """

    state: Path
    volumes: Path

    @classmethod
    def of(cls, state: Path | None, volumes: Path | str | None) -> Folders:
        """Return the folders that the options name, as absolute paths."""
        # Absolute: the child has the same folder whatever its working folder is.
        state_folder = (state or Path(".tlt")).absolute()
        return cls(state_folder, Path(volumes).absolute() if volumes else state_folder / "volumes")

    def path_of(self, uri: str) -> Path | None:
        """Return the path of an address in the file system; None for s3://.

        Raises:
            RunnerError: InvalidSpec; the address leaves its claim.
        """
        address = parse(uri)
        return None if address.scheme == "s3" else volumes.path_of(address, self.volumes)

    def holds(self, artifact: Artifact) -> bool:
        """Return True if an artifact still exists with its size. One in S3 is assumed to exist."""
        # By size: a digest of every artifact at every `tlt run` would read gigabytes.
        path = self.path_of(artifact.uri)
        return path is None or (path.is_file() and path.stat().st_size == artifact.size_bytes)

    def make_claims(self, resource: Resource) -> None:
        """Make the folders of the claims that a resource names, as a cluster binds its volumes."""
        for uri in resource.spec.referenced_uris():
            # Only the claim's folder: folders below it are made by the task, or are data that must exist.
            mount = volumes.mount_of(parse(uri), self.volumes)
            if mount is not None:
                mount.mkdir(parents=True, exist_ok=True)

    def run_folder(self, kind: str, name: str, command: str = "") -> Path:
        """Make the folder of a run, for its RunSpec, report and log."""
        # One folder a resource and command: the next run replaces it, so that the newest log is in a known
        # place.
        folder = _within(self.state / "runs", "-".join(filter(None, (kind, name, command))))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class ResourceStore:
    """The resources of earlier local runs.

    Args:
        folder: State folder; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._status = folder / "status"
        self._status.mkdir(parents=True, exist_ok=True)
        self._lock = folder / "lock"

    def load(self, kind: str, name: str) -> Resource | None:
        """Return a resource as it was last saved, or None.

        Raises:
            RunnerError: InvalidSpec; the file is damaged, or of another version of the product.
        """
        file = self.file_of(kind, name)
        if not file.is_file():
            return None
        # Damaged, or written by another version: the user decides whether earlier results may be forgotten.
        try:
            return resources.parse(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"expected the state of {kind}/{name} in {file}, got: {error}",
                "Remove that file (or the whole state folder) to begin anew.",
            ) from None

    def save(self, resource: Resource) -> None:
        """Save a resource."""
        # Written whole: `tlt run` may be killed at any moment.
        text = json.dumps(body_of(resource), indent=2, ensure_ascii=False) + "\n"
        files.write(self.file_of(resource.kind.name, resource.name), text)

    def file_of(self, kind: str, name: str) -> Path:
        """Return the file of a resource."""
        return _within(self._status, f"{kind}-{name}.json")

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Lock the state folder; yield the lock's file descriptor, for the child to inherit.

        Raises:
            RunnerError: InvalidSpec; another run holds it.
        """
        # The file stays after the run: removing it would let two runs lock two different files of this name.
        with self._lock.open("w") as stream:
            if not files.try_lock(stream):
                raise RunnerError(
                    Reason.INVALID_SPEC,
                    f"another local run works in {self._lock.parent}",
                    "Wait for it (or end it), or name another folder with --state.",
                )
            yield stream.fileno()


def _within(folder: Path, name: str) -> Path:
    """Return the path of a file or folder of this name, which comes from a manifest.

    Raises:
        RunnerError: InvalidSpec; the path would lie outside of the folder. Names of resources are checked
            where manifests are read; this holds for every other way in.
    """
    if Path(name).name != name:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a name without '/' in {folder}, got {name!r}",
            "Correct metadata.name: lower case letters, digits and '-'.",
        )
    return folder / name


def body_of(resource: Resource) -> dict[str, Any]:
    """Return the resource as JSON."""
    return {
        "apiVersion": API_VERSION,
        "kind": resource.kind.name,
        "metadata": {
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
            "generation": resource.generation,
            "creationTimestamp": resource.created,
        },
        "spec": resource.spec.to_wire(),
        "status": resource.status.to_wire(),
    }
