"""Names of files and classes that every format can hold, and that no two images share."""

from __future__ import annotations

import hashlib
import unicodedata

from tlt_runner.data.formats.names import is_safe

FLAT_SEPARATOR = "__"
"""Between the parts of a name whose format has no sub-folders."""
LONGEST_PART = 200
"""Bytes of a file or folder name, without suffix; file systems allow 255 with it."""
_NO_CHARACTERS = "\ufffe\uffff"
_FILE_SUFFIXES = (".jpg", ".jpeg", ".png", ".txt", ".xml", ".json")


def printable(text: str) -> str:
    """The text with "_" for what XML cannot hold: control characters, lone surrogates, U+FFFE and U+FFFF."""
    return (
        "".join(sign if is_safe(sign) and sign not in _NO_CHARACTERS else "_" for sign in text).strip() or "_"
    )


class Names:
    """Gives each image a name of its own, as close to the one it had as the format allows.

    Names that differ in case alone, or in how accents are composed, count as the same: some file systems
    cannot hold both. A folder never gets the name of a file.

    Args:
        flat: Whether sub-folders and white space are not allowed.
    """

    def __init__(self, *, flat: bool) -> None:
        self._flat = flat
        self._taken: set[str] = set()

    def give(self, folder: str, stem: str) -> str:
        """A name below ``folder`` for an image.

        Args:
            folder: Its image folder.
            stem: The name it had, relative to the image folder it was in; "/" between folders.
        """
        parts = [_printable_part(part) for part in stem.split("/")]
        if self._flat:
            parts = [_shortened("_".join(FLAT_SEPARATOR.join(parts).split()))]
        *folders, last = [_shortened(part) for part in parts]
        folders = [f"{part}_" if part.casefold().endswith(_FILE_SUFFIXES) else part for part in folders]
        wanted = "/".join([*folders, last])
        name, count = wanted, 1
        while (key := _key(folder, name)) in self._taken:
            count += 1
            name = f"{wanted}-{count}"
        self._taken.add(key)
        return name


def _printable_part(part: str) -> str:
    """One part of a path: printable, not hidden, not "..", not empty."""
    part = printable(part)
    return f"_{part}" if part.startswith(".") else part


def _shortened(part: str) -> str:
    encoded = part.encode()
    if len(encoded) <= LONGEST_PART:
        return part
    kept = encoded[: LONGEST_PART - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def _key(folder: str, name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", f"{folder}/{name}").casefold())
