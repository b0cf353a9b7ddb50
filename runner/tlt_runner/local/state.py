"""What local runs remember: each resource as ``kubectl get -o json`` would show it, in ``.tlt/status``.

One ``tlt run`` at a time works on a state folder. The lock is handed on to the running child, so that it
holds even where ``tlt run`` itself was killed and the child still trains.
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
from tlt_runner import files, storage
from tlt_runner.errors import RunnerError


@dataclass(frozen=True)
class Folders:
    """Where a local run keeps things.

    Attributes:
        state: State folder, ``.tlt`` by default.
        volumes: ``pvc://claim/path`` is ``volumes/claim/path``.
    """

    state: Path
    volumes: Path

    @classmethod
    def of(cls, state: Path | None, volumes: Path | str | None) -> Folders:
        """The folders that the options name, absolute."""
        chosen = (state or Path(".tlt")).absolute()
        return cls(chosen, Path(volumes).absolute() if volumes else chosen / "volumes")

    def path_of(self, uri: str) -> Path | None:
        """Where an address is in the file system; None for s3://.

        Raises:
            RunnerError: InvalidSpec; the address leaves its claim.
        """
        return storage.path_of(storage.parse(uri), self.volumes)

    def holds(self, artifact: Artifact) -> bool:
        """Whether an artifact is still there, by its size; one in S3 is believed to be."""
        path = self.path_of(artifact.uri)
        return path is None or (path.is_file() and path.stat().st_size == artifact.size_bytes)

    def make_claims(self, resource: Resource) -> None:
        """Make the folders of the claims that a resource names, as a cluster binds its volumes."""
        for uri in resource.spec.referenced_uris():
            mount = storage.mount_of(storage.parse(uri), self.volumes)
            if mount is not None:
                mount.mkdir(parents=True, exist_ok=True)

    def run_folder(self, kind: str, name: str, command: str = "") -> Path:
        """Folder of a run: its RunSpec, its report, its log."""
        folder = self.state / "runs" / "-".join(filter(None, (kind, name, command)))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class State:
    """The remembered resources.

    Args:
        folder: State folder; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._status = folder / "status"
        self._status.mkdir(parents=True, exist_ok=True)
        self._lock = folder / "lock"

    def load(self, kind: str, name: str) -> Resource | None:
        """The resource as it was last saved, or None.

        Raises:
            RunnerError: InvalidSpec; the file is damaged, or of another version of the product.
        """
        file = self.file_of(kind, name)
        if not file.is_file():
            return None
        try:
            return resources.parse(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"expected the state of {kind}/{name} in {file}, got: {error}",
                "Remove that file (or the whole state folder) to begin anew.",
            ) from None

    def save(self, resource: Resource) -> None:
        """Remember a resource."""
        text = json.dumps(body_of(resource), indent=2, ensure_ascii=False) + "\n"
        files.write(self.file_of(resource.kind.name, resource.name), text)

    def file_of(self, kind: str, name: str) -> Path:
        """The file of a resource."""
        return self._status / f"{kind}-{name}.json"

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the state folder; yields the lock's file descriptor, for the child to inherit.

        Raises:
            RunnerError: InvalidSpec; another run holds it.
        """
        with self._lock.open("w") as stream:
            if not files.try_lock(stream):
                raise RunnerError(
                    Reason.INVALID_SPEC,
                    f"another local run works in {self._lock.parent}",
                    "Wait for it (or end it), or name another folder with --state.",
                )
            yield stream.fileno()


def body_of(resource: Resource) -> dict[str, Any]:
    """The resource in its JSON form."""
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
