"""Addresses to files and back: ``pvc://claim/path``, ``s3://bucket/key``, ``file:///path``.

Every task reads its inputs and publishes its results through :class:`Storage`; nothing else opens an address.
What is published is whole or absent: a temporary name in the target folder, fsync, rename (S3 puts are atomic
by themselves). Failures leave as :class:`RunnerError`; an address that names nothing is a
:class:`NotFoundError`, so that a caller who knows what was meant (a data set, weights) can give it a better
reason. An address cannot leave its claim, bucket or scratch folder: :func:`parse` refuses paths that climb,
:func:`path_of` refuses symbolic links that lead out. Nothing is decoded: ``%2e%2e`` is a name like others.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlt_api.common import S3Storage, is_below_root
from tlt_api.failures import Reason
from tlt_api.runspec import VOLUMES_ROOT
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.files import PARTIAL_SUFFIX as PARTIAL_SUFFIX
from tlt_runner.files import atomically as atomically
from tlt_runner.files import partial_name as partial_name
from tlt_runner.files import settle as settle
from tlt_runner.files import sha256_of as sha256_of
from tlt_runner.files import sync_folder as sync_folder

if TYPE_CHECKING:
    from tlt_runner.storage.s3 import ObjectStore

CHUNK_BYTES = 1 << 20
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
        return f"{self.scheme}://{self.root}/{self.path}".removesuffix("/" if self.root else "")


def parse(uri: str) -> Address:
    """Take an address apart.

    Raises:
        RunnerError: ``InvalidSpec`` for an unknown scheme, or a path with an empty, ``.`` or ``..`` name.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("pvc", "s3", "file") or (scheme == "file" and rest[:1] != "/"):
        raise RunnerError(
            Reason.INVALID_SPEC, f"expected pvc://claim/path, s3://bucket/prefix or file:///path, got {uri!r}"
        )
    root, _, path = rest.partition("/")
    if scheme != "file" and not root:
        raise RunnerError(Reason.INVALID_SPEC, f"expected a claim or bucket after {scheme}://, got {uri!r}")
    name = path.removesuffix("/")
    if root in (".", "..") or "\0" in rest or (path and not is_below_root(name)):
        raise _climbs("an address", uri)
    return Address(scheme, root, name)


def join(uri: str, *parts: str) -> str:
    """``uri`` and the relative paths below it, as one address: ``join("pvc://a/b", "c/d") == "pvc://a/b/c/d"``."""
    address = parse(uri)
    path = "/".join(filter(None, (address.path, *map(relative, parts))))
    return Address(address.scheme, address.root, path).uri


def relative(path: str) -> str:
    """A path below an address in its one form, "" for the address itself: ``/a/`` and ``./a`` are ``a``.

    Raises:
        RunnerError: ``InvalidSpec`` for a path with an empty or ``..`` name, or a ``.`` behind its beginning.
    """
    name = path.removeprefix("/").removesuffix("/")
    name = "" if name == "." else name.removeprefix("./")
    if "//" in path or "\0" in path or (name and not is_below_root(name)):
        raise _climbs("a relative path", path)
    return name


def _climbs(what: str, given: str) -> RunnerError:
    return RunnerError(
        Reason.INVALID_SPEC,
        f"expected {what} without empty ('//'), '.' and '..' names, got {given!r}",
        "Write out the path below the claim, bucket or root, with one slash between names.",
    )


def mount_of(address: Address, volumes: Path) -> Path | None:
    """Folder at which the claim of a pvc:// address is mounted; None for other addresses."""
    return volumes / address.root if address.scheme == "pvc" else None


def path_of(address: Address, volumes: Path) -> Path | None:
    """Path of an address in the file system, whether it exists or not; None for s3://.

    Args:
        address: The address.
        volumes: Folder in which the claims are mounted.

    Raises:
        RunnerError: ``InvalidSpec`` when a symbolic link leads out of the claim.
    """
    mount = mount_of(address, volumes)
    if mount is not None:
        return _inside(mount, address.path, address.uri)
    return Path("/") / address.path if address.scheme == "file" else None


def _inside(root: Path, path: str, uri: str) -> Path:
    """A path below a folder that is still below it when symbolic links are resolved.

    Raises:
        RunnerError: ``InvalidSpec`` when a symbolic link leads out of the folder.
    """
    # Whoever can write to the volume can still put a link in place between this check and the opening of the
    # file. To close that gap, every reader and writer would have to open each folder on the way by
    # descriptor, without following links; the user and the mounts of the pod bound what such a link reaches.
    target = root / path
    resolved = Path(os.path.realpath(target))  # Path.resolve raises RuntimeError for a loop of links
    if not resolved.is_relative_to(os.path.realpath(root)):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"{uri}: expected a path within {root}, got a symbolic link that leads out of it, to {resolved}",
            "Copy there what the link points to, or name that by an address of its own.",
        )
    return target


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
            RunnerError: ``StorageUnavailable`` when the claim is not mounted; ``InvalidSpec`` when a symbolic
                link leads out of it.
        """
        address = parse(uri)
        mount = mount_of(address, self._volumes_root)
        if mount is not None and not mount.is_dir():
            raise RunnerError(
                Reason.STORAGE_UNAVAILABLE,
                f"{uri}: the volume of claim {address.root} is not mounted: expected the folder {mount}",
                "In a cluster check the PersistentVolumeClaim; in a local run use file:/// or set "
                "TLT_VOLUMES_ROOT.",
            )
        return path_of(address, self._volumes_root)

    def mount(self, uri: str) -> Path | None:
        """Folder out of which no link below the address may lead; None where there is no such folder."""
        return mount_of(parse(uri), self._volumes_root)

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
        uris = [join(uri, name) for name in names]
        if path is None:
            address = parse(uri)
            self._objects().remove(address.root, [parse(file_uri).path for file_uri in uris])
            path = self._copy_of(address)
        files = [self.local_path(file_uri) or self._copy_of(parse(file_uri)) for file_uri in uris]
        with storage_errors(uri):
            for file in files:
                file.unlink(missing_ok=True)
            try:
                path.rmdir()
            except OSError as error:  # ENOTDIR: the folder is a link to one
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                    raise

    def exists(self, uri: str) -> bool:
        """Whether the address names a file or a folder that is not empty (S3) or is there (elsewhere)."""
        path = self.local_path(uri)
        if path is None:
            address = parse(uri)
            return self._objects().exists(address.root, address.path)
        with storage_errors(uri):
            return path.exists()

    def missing(self, uri: str) -> str | None:
        """Say what is there instead of a file or folder that does not exist; None where it exists.

        An S3 server that does not let us list is believed: only reading tells whether the object exists.
        """
        path = self.local_path(uri)
        if path is None:
            address = parse(uri)
            return self._objects().missing(address.root, address.path)
        with storage_errors(uri):
            return None if path.exists() else _what_is_there(path)

    def _copy_of(self, address: Address) -> Path:
        return _inside(self.scratch, f"s3/{address.root}/{address.path}", address.uri)

    def _objects(self) -> ObjectStore:
        if self._store is None:
            from tlt_runner.storage.s3 import ObjectStore

            self._store = ObjectStore(self.s3)
        return self._store


def _copy_atomically(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with atomically(target) as partial, source.open("rb") as reader, partial.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _what_is_there(path: Path) -> str:
    if path.exists():
        return "which is a folder" if path.is_dir() else "which is a file"
    nearest = next(parent for parent in path.parents if parent.is_dir())
    names = sorted(entry.name + "/" * entry.is_dir() for entry in nearest.iterdir())
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"which does not exist; {nearest} holds: {listed or 'nothing'}"
