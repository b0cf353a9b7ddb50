"""Translation of paths of TLT's container to addresses, by the pairs of ``--map``."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tlt_api.common import URI_PATTERN
from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError


class UncoveredPathError(ValueError):
    """A path that no pair covers; the message names it and the flag."""


@dataclass(frozen=True)
class Maps:
    """Pairs of a folder of TLT's container and its address, as given."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Maps:
        """Read pairs written as ``/folder=pvc://claim/path``.

        Raises:
            RunnerError: InvalidSpec; a text is no such pair.
        """
        pairs = []
        for text in texts:
            folder, _, address = text.partition("=")
            if mistake := mistake_in(address) if folder else "a folder":
                raise RunnerError(
                    Reason.INVALID_SPEC,
                    f"--map: expected FOLDER=ADDRESS, got {text!r}, which needs {mistake}",
                    "For example: --map /workspace/tlt-experiments=pvc://tlt-data",
                )
            pairs.append((_normal(folder), stripped(address)))
        return cls(tuple(pairs))

    def address(self, path: str) -> str:
        """Return the address of a path; of several folders around it the innermost decides.

        Raises:
            UncoveredPathError: The path is in none of the folders.
        """
        path = _normal(path)
        around = [
            (folder, address)
            for folder, address in self.pairs
            if path == folder or path.startswith(f"{folder.rstrip('/')}/")
        ]
        if not around:
            folder = posixpath.dirname(path) or path
            raise UncoveredPathError(
                f"no --map covers the path {path!r}; give the folder's address, for example "
                f"--map {folder}=pvc://CLAIM/PATH"
            )
        folder, address = max(around, key=lambda pair: len(pair[0]))
        return stripped(join(address, path[len(folder) :].lstrip("/")))

    @property
    def first(self) -> str | None:
        """Address of the first pair, or None without any."""
        return self.pairs[0][1] if self.pairs else None


def mistake_in(address: str) -> str:
    """Return what an address is expected to be, or an empty text if it is that."""
    if re.search(URI_PATTERN, address):
        return ""
    scheme, _, rest = address.partition("://")
    name, _, path = rest.partition("/")
    what = {"pvc": "claim", "s3": "bucket"}.get(scheme)
    if not address.startswith(("pvc://", "s3://", "file:///")):
        return "an address that begins with pvc://, s3:// or file:///"
    if what and not re.search(URI_PATTERN, f"{scheme}://{name}"):
        return f"a {what} named by small letters, digits, - and ., a letter or digit first and last"
    return f"no empty name, . or .. in the path {path or '/'}"


def stripped(address: str) -> str:
    """Return an address without slashes at its end; the root of this machine keeps its own: ``file:///``."""
    return address.rstrip("/") if address.rstrip("/") != "file:" else "file:///"


def _normal(path: str) -> str:
    # Two leading slashes are one to everybody but POSIX.
    return posixpath.normpath(re.sub(r"^/+", "/", path))


def join(folder: str, name: str) -> str:
    """Return a path below a folder; an absolute name stands for itself, as in TLT."""
    return posixpath.join(folder, name)


def root(preferred: str | None, addresses: Sequence[str]) -> str | None:
    """Return a folder that contains all addresses: the preferred one, or the innermost; None without any."""
    if preferred and all(relative(preferred, address) is not None for address in addresses):
        return preferred
    parts = [address.split("/") for address in addresses]
    shared = 0
    while all(len(part) > shared for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    # The beginning is scheme, an empty text, and the claim or bucket; of file:/// the latter is empty, too.
    beginning = 3 if parts and parts[0][2:3] != [""] else 4
    if parts and parts[0][0] == "file:" and shared == 3:
        return "file:///"
    return "/".join(parts[0][:shared]) if parts and shared >= beginning else None


def relative(folder: str, address: str) -> str | None:
    """Return an address as a path relative to a folder, ``.`` for the folder itself; None outside."""
    if address == folder:
        return "."
    beginning = join(folder, "")
    return address.removeprefix(beginning) if address.startswith(beginning) else None
