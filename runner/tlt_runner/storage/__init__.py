"""Addresses to files and back: ``pvc://claim/path``, ``s3://bucket/key``, ``file:///path``.

Every task reads its inputs and publishes its results through :class:`Storage`; nothing else opens an address.
What is published is whole or absent: a temporary name in the target folder, fsync, rename (S3 puts are atomic
by themselves). Failures leave as :class:`RunnerError`; an address that names nothing is a
:class:`NotFoundError`, so that a caller who knows what was meant (a data set, weights) can give it a better
reason.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tlt_api.common import S3Storage
from tlt_api.failures import Reason
from tlt_api.runspec import VOLUMES_ROOT
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors

if TYPE_CHECKING:
    from tlt_runner.storage.s3 import ObjectStore

CHUNK_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"
PARALLEL_FILES = 8
"""Files of a folder that are read or written at a time."""


@dataclass(frozen=True)
class Published:
    """A whole file at its address.

    Attributes:
        uri: Where it is.
        sha256: Digest of its content, hexadecimal.
        size_bytes: Its size.
    """

    uri: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Address:
    """An address, taken apart: ``scheme://root/path``; ``root`` is empty for ``file``."""

    scheme: str
    root: str
    path: str

    @property
    def uri(self) -> str:
        """The address as text, without a trailing slash."""
        return f"{self.scheme}://{self.root}/{self.path}".rstrip("/")


def parse(uri: str) -> Address:
    """Take an address apart.

    Raises:
        RunnerError: ``InvalidSpec`` for an unknown scheme or a path that climbs out (``..``).
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("pvc", "s3", "file") or (scheme == "file" and rest[:1] != "/"):
        raise RunnerError(
            Reason.INVALID_SPEC, f"expected pvc://claim/path, s3://bucket/prefix or file:///path, got {uri!r}"
        )
    root, _, path = rest.partition("/")
    if ".." in PurePosixPath(path).parts or root in (".", "..") or "\0" in rest:
        raise RunnerError(Reason.INVALID_SPEC, f"expected an address without '..', got {uri!r}")
    if scheme != "file" and not root:
        raise RunnerError(Reason.INVALID_SPEC, f"expected a claim or bucket after {scheme}://, got {uri!r}")
    return Address(scheme, root, str(PurePosixPath(path)) if path.strip("/") else "")


def join(uri: str, *parts: str) -> str:
    """``uri`` and the relative paths below it, as one address: ``join("pvc://a/b", "c/d") == "pvc://a/b/c/d"``."""
    relative = "/".join(part.strip("/") for part in parts if part.strip("/"))
    return parse(f"{uri.rstrip('/')}/{relative}").uri if relative else parse(uri).uri


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Storage:
    """Reads and writes addresses.

    Args:
        scratch: Folder for downloads; the caller removes it.
        s3: How s3:// is reached; None means AWS with the environment's credentials.
        volumes_root: Where claims are mounted: ``pvc://claim/path`` is ``volumes_root/claim/path``. By
            default the environment's ``TLT_VOLUMES_ROOT``, else the pod's mount point.
    """

    def __init__(
        self, *, scratch: Path, s3: S3Storage | None = None, volumes_root: Path | None = None
    ) -> None:
        self.scratch = scratch
        self.s3 = s3 or S3Storage()
        self._volumes_root = volumes_root or Path(os.environ.get("TLT_VOLUMES_ROOT") or VOLUMES_ROOT)
        self._store: ObjectStore | None = None

    def local_path(self, uri: str) -> Path | None:
        """Where the address is in the file system, whether it exists or not; None for s3://.

        Raises:
            RunnerError: ``StorageUnavailable`` when the claim is not mounted.
        """
        address = parse(uri)
        if address.scheme == "s3":
            return None
        if address.scheme == "file":
            return Path("/") / address.path
        mount = self._volumes_root / address.root
        if not mount.is_dir():
            raise RunnerError(
                Reason.STORAGE_UNAVAILABLE,
                f"{uri}: the volume of claim {address.root} is not mounted: expected the folder {mount}",
                "In a cluster check the PersistentVolumeClaim; in a local run use file:/// or set "
                "TLT_VOLUMES_ROOT.",
            )
        return mount / address.path

    def folder(self, uri: str) -> Path:
        """An existing folder, for reading; of s3:// a copy under the scratch folder.

        Raises:
            NotFoundError: There is no such folder; the message says what is there.
        """
        path = self.local_path(uri)
        if path is None:
            address = parse(uri)
            return self._objects().download_folder(address.root, address.path, self._copy_of(address))
        with storage_errors(uri):
            if not path.is_dir():
                raise NotFoundError(f"expected a folder at {uri} ({path}), {_what_is_there(path)}")
            next(path.iterdir(), None)
        return path

    def fetch(self, uri: str, sha256: str | None = None) -> Path:
        """A local file with the content of the address, verified where a digest is given.

        Raises:
            NotFoundError: There is no such file.
            RunnerError: ``ChecksumMismatch`` when the content is not the expected one.
        """
        path = self.local_path(uri)
        if path is None:
            address = parse(uri)
            path = self._objects().download(address.root, address.path, self._copy_of(address))
        with storage_errors(uri):
            if not path.is_file():
                raise NotFoundError(f"expected a file at {uri} ({path}), {_what_is_there(path)}")
            got = sha256_of(path) if sha256 else None
        if got != sha256:
            raise RunnerError(Reason.CHECKSUM_MISMATCH, f"{uri}: expected sha256 {sha256}, got {got}")
        return path

    def at_hand(self, uri: str) -> Path | None:
        """The file of an address where it is in the file system already; of s3:// a copy fetched before."""
        path = self.local_path(uri) or self._copy_of(parse(uri))
        return path if path.is_file() else None

    def publish(self, local: Path, uri: str) -> Published:
        """Copy a local file to the address; it appears there whole or not at all.

        Raises:
            RunnerError: ``StorageFull``, ``StorageDenied`` or ``StorageUnavailable``.
        """
        address = parse(uri)
        target = self.local_path(uri)
        if target is None:
            digest = sha256_of(local)
            self._objects().upload(local, address.root, address.path, digest)
            return Published(address.uri, digest, local.stat().st_size)
        with storage_errors(uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = _copy_atomically(local, target)
            return Published(address.uri, digest, target.stat().st_size)

    def published(self, uri: str) -> Published | None:
        """Digest and size of the file at an address; None where none is.

        Of s3:// the digest is the one that :meth:`publish` wrote beside the object; an object without one is
        downloaded.
        """
        path = self.local_path(uri)
        if path is not None:
            with storage_errors(uri):
                return Published(uri, sha256_of(path), path.stat().st_size) if path.is_file() else None
        address = parse(uri)
        described = self._objects().describe(address.root, address.path)
        if described is None:
            return None
        size, digest = described
        if digest is None:
            copy = self.fetch(uri)
            with storage_errors(uri):
                digest = sha256_of(copy)
                copy.unlink()
        return Published(address.uri, digest, size)

    def mirror(self, uri: str) -> Path:
        """A folder in which files of the address can be made, with what the address holds now.

        It is the address itself, made where it is missing; of s3:// a fresh copy under the scratch folder,
        whose files reach the address by :meth:`publish`.
        """
        path = self.local_path(uri)
        if path is not None:
            with storage_errors(uri):
                path.mkdir(parents=True, exist_ok=True)
            return path
        address = parse(uri)
        path = self._copy_of(address)
        with storage_errors(str(path)):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        if self.exists(uri):
            self._objects().download_folder(address.root, address.path, path)
        return path

    def remove(self, uri: str, names: Sequence[str]) -> None:
        """Remove files of a folder, and the folder where nothing else is in it.

        Args:
            uri: The folder.
            names: File names; those that are not there do not matter.
        """
        path = self.local_path(uri)
        if path is None:
            address = parse(uri)
            self._objects().remove(address.root, [parse(join(uri, name)).path for name in names])
            path = self._copy_of(address)
        with storage_errors(uri):
            for name in names:
                (path / name).unlink(missing_ok=True)
            try:
                path.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise

    def list_files(self, uri: str) -> list[str]:
        """List relative paths of all files below a folder, hidden ones too; empty without a folder."""
        path = self.local_path(uri)
        if path is None:
            address = parse(uri)
            return self._objects().list_files(address.root, address.path)
        with storage_errors(uri):
            return sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())

    def exists(self, uri: str) -> bool:
        """Whether the address names a file or a folder that is not empty (S3) or is there (elsewhere)."""
        path = self.local_path(uri)
        if path is None:
            address = parse(uri)
            return self._objects().exists(address.root, address.path)
        with storage_errors(uri):
            return path.exists()

    def _copy_of(self, address: Address) -> Path:
        return self.scratch / "s3" / address.root / address.path

    def _objects(self) -> ObjectStore:
        if self._store is None:
            from tlt_runner.storage.s3 import ObjectStore

            self._store = ObjectStore(self.s3)
        return self._store


def partial_name(target: Path) -> Path:
    """A hidden name beside a file under which to write it."""
    return target.parent / f".{target.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"


def settle(partial: Path, target: Path) -> None:
    """Give a whole file its own name, durably."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    sync_folder(target.parent)


@contextmanager
def atomically(target: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end becomes the target. After an exception nothing is left."""
    partial = partial_name(target)
    try:
        yield partial
        settle(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _copy_atomically(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with atomically(target) as partial, source.open("rb") as reader, partial.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _what_is_there(path: Path) -> str:
    if path.exists():
        return "which is a folder" if path.is_dir() else "which is a file"
    nearest = next(parent for parent in path.parents if parent.is_dir())
    names = sorted(entry.name + "/" * entry.is_dir() for entry in nearest.iterdir())
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"which does not exist; {nearest} holds: {listed or 'nothing'}"
