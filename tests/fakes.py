"""Stand-ins for what surrounds a task: a reporter that remembers, a storage in memory, a context, a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tlt_api.runspec import Owner, RunSpec
from tlt_api.status import Artifact, Inputs, Progress, Section
from tlt_runner.cancel import Stop
from tlt_runner.context import Context, Reporter
from tlt_runner.errors import NotFoundError
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage, StoredFile
from tlt_runner.storage.address import Address

UID = "u-1"
"""UID of the resource of :func:`run_task`."""
SectionType = TypeVar("SectionType", bound=Section)


class RecordingReporter:
    """A reporter that remembers everything, in order.

    Args:
        on_progress: what a test does when a task reports its progress, such as asking it to stop.
    """

    def __init__(self, on_progress: Callable[[Progress], None] | None = None) -> None:
        self._on_progress = on_progress
        self.progresses: list[Progress] = []
        self.sections: list[Section] = []
        self.artifacts: dict[str, Artifact] = {}

    def progress(self, progress: Progress) -> None:
        self.progresses.append(progress)
        if self._on_progress:
            self._on_progress(progress)

    def report(self, section: Section) -> None:
        self.sections.append(section)

    def artifact(self, artifact: Artifact) -> None:
        self.artifacts[artifact.name] = artifact

    def removed(self, name: str) -> None:
        self.artifacts.pop(name, None)

    def last(self, kind: type[SectionType]) -> SectionType:
        """The newest section of a type."""
        return [section for section in self.sections if isinstance(section, kind)][-1]


class MemoryBackend:
    """Files of any scheme in memory, by address; copies are made below a scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.files: dict[str, bytes] = {}
        self._scratch = scratch

    def local_path(self, address: Address) -> None:
        return None

    def mount(self, address: Address) -> None:
        return None

    def folder(self, address: Address) -> Path:
        if self.missing(address):
            raise NotFoundError(f"expected a folder at {address.uri}")
        for name in self.list_files(address):
            self.fetch(Address(address.scheme, address.root, f"{address.path}/{name}".lstrip("/")))
        return self._copy(address)

    def fetch(self, address: Address) -> Path:
        if address.uri not in self.files:
            raise NotFoundError(f"expected a file at {address.uri}")
        copy = self._copy(address)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(self.files[address.uri])
        return copy

    def at_hand(self, address: Address) -> Path | None:
        copy = self._copy(address)
        return copy if copy.is_file() else None

    def publish(self, local: Path, address: Address) -> StoredFile:
        self.files[address.uri] = local.read_bytes()
        stored = self.stored(address)
        assert stored is not None
        return stored

    def create(self, local: Path, address: Address) -> bool:
        return self.files.setdefault(address.uri, content := local.read_bytes()) is content

    def stored(self, address: Address) -> StoredFile | None:
        content = self.files.get(address.uri)
        if content is None:
            return None
        return StoredFile(address.uri, hashlib.sha256(content).hexdigest(), len(content))

    def mirror(self, address: Address) -> Path:
        self._copy(address).mkdir(parents=True, exist_ok=True)
        return self.folder(address) if self.exists(address) else self._copy(address)

    def remove(self, folder: Address, files: Sequence[Address]) -> None:
        for file in files:
            self.files.pop(file.uri, None)

    def list_files(self, folder: Address) -> list[str]:
        start = folder.uri.rstrip("/") + "/"
        return sorted(uri.removeprefix(start) for uri in self.files if uri.startswith(start))

    def exists(self, address: Address) -> bool:
        return address.uri in self.files or bool(self.list_files(address))

    def missing(self, address: Address) -> str | None:
        return None if self.exists(address) else "which does not exist"

    def _copy(self, address: Address) -> Path:
        return self._scratch / address.scheme / address.root / address.path


def task_context(folder: Path, reporter: Reporter | None = None, stop: Stop | None = None) -> Context:
    """The surroundings of a task, with a new scratch folder in ``folder``."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    return Context(Storage(scratch=scratch), reporter or LocalReporter(None), scratch, stop or Stop())


def run_task(task: Any, spec: Any, context: Context, inputs: Inputs | None = None) -> None:
    """Run a task as the first attempt of a resource with this spec and :data:`UID`."""
    kind = type(spec).__name__.removesuffix("Spec")
    owner = Owner(kind=kind, namespace="default", name="tiny", uid=UID)
    task.run(spec, RunSpec(owner=owner, attempt=1, spec=spec, inputs=inputs or Inputs()), context)
