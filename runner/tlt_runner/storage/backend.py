"""The protocol behind :class:`tlt_runner.storage.Storage`: files at the addresses of some schemes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tlt_runner.storage.address import Address


@dataclass(frozen=True)
class StoredFile:
    """A complete file at its address.

    Attributes:
        uri: Its address.
        sha256: Digest of its content, hexadecimal.
        size_bytes: Its size.
    """

    uri: str
    sha256: str
    size_bytes: int


class Backend(Protocol):
    """Files at the addresses of some schemes.

    Every method raises :class:`~tlt_runner.errors.RunnerError` with the storage's reasons (``StorageFull``,
    ``StorageDenied``, ``StorageUnavailable``), and ``InvalidSpec`` if a link leads out of the address's root.
    """

    def local_path(self, address: Address) -> Path | None:
        """Return the path in the file system, whether it exists or not; None if files are elsewhere."""

    def mount(self, address: Address) -> Path | None:
        """Return the folder out of which no link below the address may lead; None if there is none."""

    def folder(self, address: Address) -> Path:
        """Return an existing folder for reading, or a copy of it. Raises NotFoundError."""

    def fetch(self, address: Address) -> Path:
        """Return a file for reading, or a copy of it. Raises NotFoundError."""

    def at_hand(self, address: Address) -> Path | None:
        """Return a file that needs no transfer, also a copy fetched before; None if there is none."""

    def publish(self, local: Path, address: Address) -> StoredFile:
        """Copy a local file to the address, where it appears whole or not at all."""

    def create(self, local: Path, address: Address) -> bool:
        """Copy a small file to the address unless there is one; False if there is."""

    def stored(self, address: Address) -> StoredFile | None:
        """Return digest and size of the file at the address; None if there is none."""

    def mirror(self, address: Address) -> Path:
        """Return a folder with the content of the address, in which files can be made."""

    def remove(self, folder: Address, files: Sequence[Address]) -> None:
        """Remove files of a folder, as far as they exist, and the folder if nothing else is in it."""

    def list_files(self, folder: Address) -> list[str]:
        """Return the relative paths of all files below a folder, sorted, hidden ones included."""

    def exists(self, address: Address) -> bool:
        """Return True if the address names a file or a folder."""

    def missing(self, address: Address) -> str | None:
        """Say what exists instead of a file or folder that does not; None if it exists."""
