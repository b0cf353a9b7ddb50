"""Claims and local files as a backend: ``pvc://claim/path`` and ``file:///path``.

No address leaves its claim: a symbolic link that leads out of it is refused.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from tlt_api.failures import Reason
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.files import atomically, create, sha256_of
from tlt_runner.storage.address import Address
from tlt_runner.storage.backend import StoredFile

CHUNK_BYTES = 1 << 20


class Volumes:
    """The file system.

    Args:
        root: Folder in which the claims are mounted.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def local_path(self, address: Address) -> Path:
        """Return the path in the file system, whether it exists or not.

        Raises:
            RunnerError: ``StorageUnavailable`` when the claim is not mounted; ``InvalidSpec`` when a symbolic
                link leads out of it.
        """
        # A claim that is not mounted is another failure than a file that is missing in it.
        mount = self.mount(address)
        if mount is not None and not mount.is_dir():
            raise RunnerError(
                Reason.STORAGE_UNAVAILABLE,
                f"{address.uri}: the volume of claim {address.root} is not mounted: "
                f"expected the folder {mount}",
                "In a cluster check the PersistentVolumeClaim; in a local run use file:/// or set "
                "TLT_VOLUMES_ROOT.",
            )
        return path_of(address, self._root)

    def mount(self, address: Address) -> Path | None:
        """Return the folder of the claim; None for file:///."""
        return mount_of(address, self._root)

    def folder(self, address: Address) -> Path:
        """Return an existing folder."""
        path = self.local_path(address)
        with storage_errors(address.uri):
            if not path.is_dir():
                raise NotFoundError(f"expected a folder at {address.uri} ({path}), {_absence(path)}")
            # A folder that may not be read fails here, with StorageDenied, and not file by file later.
            next(path.iterdir(), None)
        return path

    def fetch(self, address: Address) -> Path:
        """Return an existing file."""
        path = self.local_path(address)
        with storage_errors(address.uri):
            if not path.is_file():
                raise NotFoundError(f"expected a file at {address.uri} ({path}), {_absence(path)}")
        return path

    def at_hand(self, address: Address) -> Path | None:
        """Return the file if it exists."""
        path = self.local_path(address)
        return path if path.is_file() else None

    def publish(self, local: Path, address: Address) -> StoredFile:
        """Copy a local file to the address, whole or not at all."""
        target = self.local_path(address)
        with storage_errors(address.uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = _copy_atomically(local, target)
            return StoredFile(address.uri, digest, target.stat().st_size)

    def create(self, local: Path, address: Address) -> bool:
        """Copy a file to the address unless there is one; False if there is."""
        target = self.local_path(address)
        with storage_errors(address.uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            return create(target, local.read_bytes())

    def stored(self, address: Address) -> StoredFile | None:
        """Return digest and size of the file; None if there is none."""
        path = self.local_path(address)
        with storage_errors(address.uri):
            if not path.is_file():
                return None
            return StoredFile(address.uri, sha256_of(path), path.stat().st_size)

    def mirror(self, address: Address) -> Path:
        """Return the folder itself, and make it if it is missing."""
        path = self.local_path(address)
        with storage_errors(address.uri):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self, folder: Address, files: Sequence[Address]) -> None:
        """Remove files of a folder, and the folder if nothing else is in it."""
        with storage_errors(folder.uri):
            remove_files(self.local_path(folder), [self.local_path(file) for file in files])

    def list_files(self, folder: Address) -> list[str]:
        """Return the relative paths of all files below a folder, sorted, hidden ones included."""
        path = self.local_path(folder)
        with storage_errors(folder.uri):
            return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())

    def exists(self, address: Address) -> bool:
        """Return True if there is a file or a folder, also an empty one."""
        path = self.local_path(address)
        with storage_errors(address.uri):
            return path.exists()

    def missing(self, address: Address) -> str | None:
        """Say what exists instead of the file or folder; None if it exists."""
        path = self.local_path(address)
        with storage_errors(address.uri):
            return None if path.exists() else _absence(path)


def mount_of(address: Address, volumes: Path) -> Path | None:
    """Return the folder at which the claim of a pvc:// address is mounted; None for other addresses."""
    # file:/// is the machine's own file system, where links may lead anywhere.
    return volumes / address.root if address.scheme == "pvc" else None


def path_of(address: Address, volumes: Path) -> Path:
    """Return the path of a pvc:// or file:/// address, whether it exists or not.

    Args:
        address: The address.
        volumes: Folder in which the claims are mounted.

    Raises:
        RunnerError: ``InvalidSpec`` when a symbolic link leads out of the claim.
    """
    mount = mount_of(address, volumes)
    return Path("/") / address.path if mount is None else inside(mount, address.path, address.uri)


def inside(root: Path, path: str, uri: str) -> Path:
    """Return a path below a folder, which is still below it when symbolic links are resolved.

    Raises:
        RunnerError: ``InvalidSpec`` when a symbolic link leads out of the folder.
    """
    # Whoever can write to the volume can still put a link in place between this check and the opening of the
    # file. To close that gap, every reader and writer would have to open each folder on the way by
    # descriptor, without following links; the user and the mounts of the pod bound what such a link reaches.
    # The path as given is returned, not the resolved one: messages and listings keep the user's names.
    target = root / path
    resolved = Path(os.path.realpath(target))  # Path.resolve raises RuntimeError for a loop of links
    if not resolved.is_relative_to(os.path.realpath(root)):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"{uri}: expected a path within {root}, got a symbolic link that leads out of it, to {resolved}",
            "Copy there what the link points to, or name that by an address of its own.",
        )
    return target


def remove_files(folder: Path, files: Sequence[Path]) -> None:
    """Remove files, as far as they exist, and their folder if nothing else is in it."""
    for file in files:
        file.unlink(missing_ok=True)
    # rmdir refuses a folder with files in it, so files that others put there stay.
    try:
        folder.rmdir()
    except OSError as error:  # ENOTDIR: the folder is a link to one
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
            raise


def _copy_atomically(source: Path, target: Path) -> str:
    # The digest is taken of the bytes that are written: a second reading could see a changed file.
    digest = hashlib.sha256()
    with atomically(target) as partial, source.open("rb") as reader, partial.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _absence(path: Path) -> str:
    """Say what exists instead of a file or folder, and list the nearest folder for comparison."""
    if path.exists():
        return "which is a folder" if path.is_dir() else "which is a file"
    # The root of the file system is a folder, so there is always one.
    nearest = next(parent for parent in path.parents if parent.is_dir())
    names = sorted(entry.name + "/" * entry.is_dir() for entry in nearest.iterdir())
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"which does not exist; {nearest} holds: {listed or 'nothing'}"
