r"""Find the image that a ``file_name`` of a COCO file means.

Tools write the path that an image had where they ran: ``C:\set\images\1.jpg``, ``../../images/1.jpg``,
``/home/me/set/images/1.jpg``, ``images/1/1.jpg`` (Label Studio), ``my%20set/1.jpg``,
``/data/local-files/?d=set/1.jpg``. No file is opened by such a name: it is only compared with the names of
the images in the folder.

A name is read in this order; what comes first wins:

1. as it stands, relative to the image folder; leading folders that lead to the image folder
   (``images/train/1.jpg`` for the folder ``images/train``) may stand before it; a name without folders may be
   in a sub-folder, if only in one;
2. the same with ``/`` for ``\``, without URL escapes, drive, host, ``.`` and ``..``;
3. a guess, once all files are read: the path behind folders of another machine that end as the image
   folder's (``/home/me/images/train/1.jpg``), then the same with another extension, then the end of the path
   or the base name.

A guess holds only if it leads to one image that no other entry names, the likelier kinds first. It is not
made by the base name where folders tell images apart: if ``train/1.jpg`` is an image of the folder ``train``,
``val/2.jpg`` is none of it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote

from tlt_runner.data.formats.folders import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, SourceFolder
from tlt_runner.data.formats.names import composed

Parts = tuple[str, ...]
"""A path, name by name."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*/")
_DRIVE = re.compile(r"[A-Za-z]:/")
_LOCAL_FILE = re.compile(r"[?&]d=")
"""Label Studio's address of a file of its own machine."""
SPELLED = "has backslashes, URL escapes, '..' or the folders of another machine"
BY_BASE_NAME = "is found by the end of its path"
BY_STEM = "is found with another extension"


@dataclass(frozen=True)
class Found:
    """Image that a file_name leads to.

    Attributes:
        name: The image's path relative to the image folder.
        how: What had to be overlooked; None for a name as it should be.
        folders: True if the folders of the name lead to the image, False if they do not; None without any.
    """

    name: str
    how: str | None = None
    folders: bool | None = None


class Names:
    """Paths of the images of a folder, by what a file_name may say of them.

    Args:
        images: The image folder.
        names: Paths of its images relative to it.
    """

    def __init__(self, images: SourceFolder, names: Sequence[str]) -> None:
        self._folder = images
        # Composed Unicode -> the name as it is in the folder: macOS stores letters and accents apart.
        self._paths = {composed(name): name for name in names}
        self._bare = _unique((posixpath.basename(path), name) for path, name in self._paths.items())
        # The image folder's own path, whose end a file_name may repeat.
        self._above = tuple(map(composed, images.path.parts))
        self._relative = tuple(map(composed, images.relative.split("/"))) if images.relative else ()

    def find(self, value: str) -> Found | None:
        """Find the image of a name by the first two rules."""
        literal = _literal(value)
        found = self._by_path(literal, self._paths, self._bare) if literal else None
        if found is not None:
            return found
        for parts in spellings(value):
            found = self._by_path(parts, self._paths, self._bare)
            # Without folders that lead here, the image of another folder is at most a guess.
            if found is not None and (found.folders or not _leads_away(value)):
                return Found(found.name, SPELLED, found.folders)
        return None

    def guess(self, value: str) -> list[Found]:
        """List the images that a name may mean by the third rule, all of one likelihood."""
        guesses: list[Found] = []
        for parts in spellings(value):
            found = self._by_path(parts, self._paths, {}, elsewhere=True)
            if found is not None:
                return [Found(found.name, SPELLED, found.folders)]
            tails = ["/".join(parts[start:]) for start in range(1, len(parts))]
            named = next(
                (self._paths[tail] for tail in tails if tail in self._paths), self._bare.get(parts[-1])
            )
            folders = None if len(parts) == 1 else False
            if named is not None:
                guesses.append(Found(named, BY_BASE_NAME, folders))
            stem = (*parts[:-1], _without_suffix(parts[-1]))
            by_stem = self._by_path(stem, self._stems, self._bare_stems, elsewhere=True)
            if by_stem is not None:
                guesses.append(Found(by_stem.name, BY_STEM, by_stem.folders))
            # Path and extension differ, both.
            elif (bare := self._bare_stems.get(stem[-1])) is not None and named is None:
                guesses.append(Found(bare, BY_STEM, folders))
        return list(dict.fromkeys(guesses))

    def rivals(self, value: str) -> list[str]:
        """List the images in sub-folders whose base name is that of a name: two at most."""
        bare = next((parts[-1] for parts in spellings(value)), "")
        return self._same_name.get(bare, []) if self._bare.get(bare, "") is None else []

    def elsewhere(self, value: str) -> str | None:
        """Return the file, relative to the data set's root, that a name means outside of the image folder."""
        levels = len(self._relative)
        for parts in spellings(value):
            for level in range(1, levels + 1):
                # Names below the root only: parts has neither ".." nor a drive.
                above = self._relative[: levels - level]
                try:
                    is_there = self._folder.path.parents[level - 1].joinpath(*parts).is_file()
                except OSError:  # a name that is too long for the file system
                    is_there = False
                if is_there:
                    return "/".join((*above, *parts))
        return None

    def _by_path(
        self,
        parts: Parts,
        paths: Mapping[str, str | None],
        bare: Mapping[str, str | None],
        *,
        elsewhere: bool = False,
    ) -> Found | None:
        """Look a path up: as it stands, behind folders that lead here, or without folders in one sub-folder.

        Args:
            parts: The path.
            paths: Image by path relative to the image folder.
            bare: Image by base name; None for a name that several have.
            elsewhere: The folders of another machine lead here, if they end as the image folder's path.
        """
        parts = tuple(map(composed, parts))
        # Leading folders of the file_name may repeat the end of the image folder's own path.
        for above in range(len(parts)):
            name = paths.get("/".join(parts[above:]))
            if name is not None and self._leads_here(parts[:above], elsewhere=elsewhere):
                return Found(name, folders=True if len(parts) > 1 else None)
        # A bare name is searched in the sub-folders; two images of that name are ambiguous.
        single = bare.get(parts[0]) if len(parts) == 1 else None
        return None if single is None else Found(single)

    def _leads_here(self, folders: Parts, *, elsewhere: bool) -> bool:
        count, levels = len(folders), len(self._relative)
        if count <= len(self._above) and folders == self._above[len(self._above) - count :]:
            return True
        # The data set was elsewhere: what counts is its own part of the path.
        return elsewhere and levels > 0 and folders[-levels:] == self._relative

    @cached_property
    def _same_name(self) -> dict[str, list[str]]:
        """Base name -> the first two images of that name."""
        images: dict[str, list[str]] = {}
        for path, name in self._paths.items():
            same = images.setdefault(posixpath.basename(path), [])
            if len(same) < 2:
                same.append(name)
        return images

    @cached_property
    def _stems(self) -> dict[str, str | None]:
        return _unique((_without_suffix(path), name) for path, name in self._paths.items())

    @cached_property
    def _bare_stems(self) -> dict[str, str | None]:
        stems = ((_without_suffix(posixpath.basename(path)), name) for path, name in self._paths.items())
        return _unique(stems)


def spellings(value: str) -> Iterator[Parts]:
    """Yield the relative paths that a name may mean, without drive, host, ``.`` and ``..``."""
    # Of a local file of Label Studio, the path is in the query.
    _, local, path = value.partition(match.group()) if (match := _LOCAL_FILE.search(value)) else ("", "", "")
    texts = [path if local else value]
    if "%" in value:
        texts.append(unquote(texts[0]))
    for text in texts:
        text = text.replace("\\", "/")
        if url := _URL.match(text):
            text = text[url.end() :].partition("?")[0]
        text = text[2:] if _DRIVE.match(text) else text
        # Lexically: "a/../b" is "b", and what is left of ".." at the beginning leads out of the folder.
        parts = tuple(
            composed(part) for part in posixpath.normpath(text).split("/") if part not in ("", ".", "..")
        )
        if parts:
            yield parts


def _literal(value: str) -> Parts | None:
    parts = PurePosixPath(value).parts
    return None if value.startswith("/") or ".." in parts else parts


def _leads_away(value: str) -> bool:
    """Return True for an absolute name, or one with ``..``: it speaks of a folder that may be another one."""
    path = value.replace("\\", "/")
    return path.startswith("/") or bool(_DRIVE.match(path) or _URL.match(path)) or ".." in path.split("/")


def _unique(pairs: Iterator[tuple[str, str]]) -> dict[str, str | None]:
    """Make a mapping; a key of several values has None."""
    mapping: dict[str, str | None] = {}
    for key, value in pairs:
        mapping[key] = value if key not in mapping else None
    return mapping


def _without_suffix(name: str) -> str:
    # Only an image's suffix is cut off: the name "frame.0001" has none.
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in OTHER_IMAGE_SUFFIXES.union(IMAGE_SUFFIXES) else name
