"""Addresses, taken apart and joined: ``pvc://claim/path``, ``s3://bucket/key``, ``file:///path``.

An address cannot leave its claim or bucket: paths with an empty, ``.`` or ``..`` name are refused. Nothing is
decoded: ``%2e%2e`` is a name like others.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlt_api.common import is_below_root
from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError


@dataclass(frozen=True)
class Address:
    """The parts of an address, ``scheme://root/path``; ``root`` is empty for ``file``."""

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
    # Not urllib.parse: it would take "#" and "?" of a file's name for parts of the address.
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("pvc", "s3", "file") or (scheme == "file" and rest[:1] != "/"):
        raise RunnerError(
            Reason.INVALID_SPEC, f"expected pvc://claim/path, s3://bucket/prefix or file:///path, got {uri!r}"
        )
    # Of file:// the root is empty: rest begins with the slash.
    root, _, path = rest.partition("/")
    if scheme != "file" and not root:
        raise RunnerError(Reason.INVALID_SPEC, f"expected a claim or bucket after {scheme}://, got {uri!r}")
    # A claim named ".." would lead out of the folder of claims; opening a path with NUL is a ValueError.
    name = path.removesuffix("/")
    if root in (".", "..") or "\0" in rest or (path and not is_below_root(name)):
        raise _unsafe_path("an address", uri)
    # A trailing slash says nothing: folders and files have one form.
    return Address(scheme, root, name)


def join(uri: str, *parts: str) -> str:
    """Join relative paths to an address: ``join("pvc://a/b", "c/d") == "pvc://a/b/c/d"``."""
    address = parse(uri)
    # Empty parts name the address itself, so they add nothing.
    path = "/".join(filter(None, (address.path, *map(relative, parts))))
    return Address(address.scheme, address.root, path).uri


def relative(path: str) -> str:
    """Normalise a path below an address, "" for the address itself: ``/a/`` and ``./a`` become ``a``.

    Raises:
        RunnerError: ``InvalidSpec`` for a path with an empty or ``..`` name, or a ``.`` behind its beginning.
    """
    name = path.removeprefix("/").removesuffix("/")
    # "." and "/" are how people write the root itself; "./a" is how lists of images do.
    name = "" if name == "." else name.removeprefix("./")
    if "//" in path or "\0" in path or (name and not is_below_root(name)):
        raise _unsafe_path("a relative path", path)
    return name


def _unsafe_path(subject: str, path: str) -> RunnerError:
    return RunnerError(
        Reason.INVALID_SPEC,
        f"expected {subject} without empty ('//'), '.' and '..' names, got {path!r}",
        "Write out the path below the claim, bucket or root, with one slash between names.",
    )
