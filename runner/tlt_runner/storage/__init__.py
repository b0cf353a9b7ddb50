"""Addresses to files and back: ``pvc://claim/path``, ``s3://bucket/key``, ``file:///path``.

Every task reads its inputs and publishes its results through :class:`Storage`; nothing else opens an address.
A published file is whole or absent. Failures leave as :class:`~tlt_runner.errors.RunnerError`; an address
that names nothing is a :class:`~tlt_runner.errors.NotFoundError`, so that a caller who knows what was meant
(a data set, weights) can give it a better reason. Two backends do the work, :mod:`tlt_runner.storage.volumes`
and :mod:`tlt_runner.storage.s3`; :mod:`tlt_runner.storage.address` keeps every address below its root.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tlt_api.common import S3Storage
from tlt_api.failures import Reason
from tlt_api.runspec import VOLUMES_ROOT
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.files import sha256_of
from tlt_runner.storage.address import join as join
from tlt_runner.storage.address import parse as parse
from tlt_runner.storage.address import relative as relative
from tlt_runner.storage.backend import Backend as Backend
from tlt_runner.storage.backend import StoredFile as StoredFile
from tlt_runner.storage.volumes import Volumes

PARALLEL_FILES = 8
"""Files of a folder that are read or written at a time."""


class Storage:
    """Reads and writes addresses.

    Args:
        scratch: Folder for downloads; the caller removes it.
        s3: Endpoint and region of s3://; None means AWS with the environment's credentials.
        volumes_root: Folder of claims: ``pvc://claim/path`` is ``volumes_root/claim/path``. By default the
            environment's ``TLT_VOLUMES_ROOT``, else the pod's mount point.
        backends: Scheme -> the backend of its addresses, instead of the built-in one.
    """

    def __init__(
        self,
        *,
        scratch: Path,
        s3: S3Storage | None = None,
        volumes_root: Path | None = None,
        backends: Mapping[str, Backend] | None = None,
    ) -> None:
        self.scratch = scratch
        self.s3 = s3 or S3Storage()
        # An empty variable counts as none.
        volumes = Volumes(volumes_root or Path(os.environ.get("TLT_VOLUMES_ROOT") or VOLUMES_ROOT))
        self._backends: dict[str, Backend] = {"pvc": volumes, "file": volumes, **(backends or {})}

    def local_path(self, uri: str) -> Path | None:
        """Return the path of an address in the file system, whether it exists or not; None for s3://.

        Raises:
            RunnerError: ``StorageUnavailable`` when the claim is not mounted; ``InvalidSpec`` when a symbolic
                link leads out of it.
        """
        return self._backend(uri).local_path(parse(uri))

    def mount(self, uri: str) -> Path | None:
        """Return the folder out of which no link below the address may lead; None if there is none."""
        return self._backend(uri).mount(parse(uri))

    def folder(self, uri: str) -> Path:
        """Return an existing folder, for reading; of s3:// a copy under the scratch folder.

        Raises:
            NotFoundError: There is no such folder; the message says what exists instead.
        """
        return self._backend(uri).folder(parse(uri))

    def fetch(self, uri: str, sha256: str | None = None) -> Path:
        """Return a local file with the content of the address, verified if a digest is given.

        Raises:
            NotFoundError: There is no such file.
            RunnerError: ``ChecksumMismatch`` when the content is not the expected one.
        """
        # The digest is of what lies here now, so a transfer that was cut off is noticed, too.
        path = self._backend(uri).fetch(parse(uri))
        if sha256 is None:
            return path
        with storage_errors(uri):
            got = sha256_of(path)
        if got != sha256:
            raise RunnerError(Reason.CHECKSUM_MISMATCH, f"{uri}: expected sha256 {sha256}, got {got}")
        return path

    def download(
        self, url: str, sha256: str, cache: str, raise_if_stopped: Callable[[], None] = lambda: None
    ) -> Path:
        """Return the file of an https:// address, verified.

        Args:
            url: The address.
            sha256: Digest of the file, hexadecimal.
            cache: Address of a folder that keeps the file; for s3:// the scratch folder is used instead.
            raise_if_stopped: Called again and again; what it raises ends the download.

        Raises:
            NotFoundError: There is no such file.
            RunnerError: ``ChecksumMismatch``, ``StorageDenied``, ``StorageUnavailable``, ``StorageFull``.
        """
        # Imported for the first https:// address only: requests is slow to import.
        from tlt_runner.storage import https

        folder = self.local_path(cache) or self.scratch / "https"
        return https.download(url, sha256, folder, raise_if_stopped=raise_if_stopped)

    def at_hand(self, uri: str) -> Path | None:
        """Return the file of an address if it needs no transfer; of s3:// a copy fetched before."""
        return self._backend(uri).at_hand(parse(uri))

    def publish(self, local: Path, uri: str) -> StoredFile:
        """Copy a local file to the address; it appears there whole or not at all.

        Raises:
            RunnerError: ``StorageFull``, ``StorageDenied`` or ``StorageUnavailable``.
        """
        return self._backend(uri).publish(local, parse(uri))

    def create(self, local: Path, uri: str) -> bool:
        """Copy a small file to the address unless there is one; return False if there is.

        Of several callers at the same time one creates it. On S3 servers without conditional writes this is
        not certain: the last one wins then, and mostly the others notice.

        Raises:
            RunnerError: ``StorageFull``, ``StorageDenied`` or ``StorageUnavailable``.
        """
        return self._backend(uri).create(local, parse(uri))

    def stored(self, uri: str) -> StoredFile | None:
        """Return digest and size of the file at an address; None if there is none.

        The digest of an S3 object is the one that :meth:`publish` wrote beside it; an object without one is
        downloaded.
        """
        return self._backend(uri).stored(parse(uri))

    def mirror(self, uri: str) -> Path:
        """Return a folder with the content of the address, in which files can be made.

        It is the address itself, made if it is missing; of s3:// a fresh copy under the scratch folder, whose
        files reach the address by :meth:`publish`.
        """
        return self._backend(uri).mirror(parse(uri))

    def remove(self, uri: str, names: Sequence[str]) -> None:
        """Remove files of a folder, and the folder if nothing else is in it.

        Args:
            uri: The folder.
            names: File names; those that do not exist are skipped.
        """
        # Each name is parsed as an address, so that none can lead out of the folder.
        self._backend(uri).remove(parse(uri), [parse(join(uri, name)) for name in names])

    def list_files(self, uri: str) -> list[str]:
        """Return the paths of all files below a folder, relative to it and sorted, hidden ones included.

        The list is empty if there is no such folder.
        """
        return self._backend(uri).list_files(parse(uri))

    def exists(self, uri: str) -> bool:
        """Return True if the address names a file or a folder; an empty folder does not exist in S3."""
        return self._backend(uri).exists(parse(uri))

    def missing(self, uri: str) -> str | None:
        """Say what exists instead of a file or folder that does not; None if it exists.

        The answer is None if an S3 server does not let us list: only reading tells whether the object exists.
        """
        return self._backend(uri).missing(parse(uri))

    def _backend(self, uri: str) -> Backend:
        # Only s3 can be missing here: parse refuses unknown schemes.
        scheme = parse(uri).scheme
        if scheme not in self._backends:
            # Imported for the first s3:// address only: boto3 is slow to import.
            from tlt_runner.storage.s3 import Buckets, ObjectStore

            self._backends[scheme] = Buckets(ObjectStore(self.s3), self.scratch)
        return self._backends[scheme]
