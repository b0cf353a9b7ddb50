"""Names of files and classes: matched, made printable, and given anew so that every format can hold them.

The operating system's names are bytes. Those that are no UTF-8 reach Python as lone surrogates, which can
neither be printed nor hashed nor put into JSON.
"""

from __future__ import annotations

import hashlib
import unicodedata
from posixpath import splitext

_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, surrogates, ends of line and paragraph."""
FLAT_SEPARATOR = "__"
"""Separator of the parts of a name whose format has no sub-folders."""
LONGEST_PART = 200
"""Bytes of a file or folder name, without suffix; file systems allow 255 with it."""
_NO_CHARACTERS = "\ufffe\uffff"
_FILE_SUFFIXES = (".jpg", ".jpeg", ".png", ".txt", ".xml", ".json")


def stem(name: str) -> str:
    """Return the key by which images, labels and lists match: a relative path without its suffix."""
    # Printable first: reports and lists hold the escaped form, and have to match it.
    return composed(splitext(printable(name))[0])


def composed(name: str) -> str:
    """Compose a name's Unicode (NFC), so that equal letters match whichever system wrote the name."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_safe(name: str) -> bool:
    """Return True if a name can stand in a line of UTF-8 text: in records, lists and reports."""
    return name.isprintable() or all(unicodedata.category(character) not in _UNSAFE for character in name)


def printable(name: str) -> str:
    """Escape characters that cannot stand in a line of text, for records, messages and reports."""
    if is_safe(name):
        return name
    return "".join(
        character if is_safe(character) else character.encode("unicode_escape").decode() for character in name
    )


def xml_text(text: str) -> str:
    """Replace characters that XML cannot hold (controls, lone surrogates, U+FFFE, U+FFFF) by "_"."""
    return (
        "".join(sign if is_safe(sign) and sign not in _NO_CHARACTERS else "_" for sign in text).strip() or "_"
    )


class UniqueNames:
    """Gives each image a name of its own, as close to the one it had as the format allows.

    Names that differ in case alone, or in how accents are composed, count as the same: some file systems
    cannot hold both. A folder never gets the name of a file.

    Args:
        flat: The format allows neither sub-folders nor white space.
    """

    def __init__(self, *, flat: bool) -> None:
        self._flat = flat
        self._taken: set[str] = set()

    def give(self, folder: str, original: str) -> str:
        """Give an image a name below ``folder``.

        Args:
            folder: Its new image folder.
            original: The name it had, without suffix, relative to the image folder it was in.
        """
        parts = [_path_part(part) for part in original.split("/")]
        if self._flat:
            parts = [_shortened("_".join(FLAT_SEPARATOR.join(parts).split()))]
        # Only the last part gets a number if the name is taken: images of one folder stay together.
        *folders, last = [_shortened(part) for part in parts]
        # A folder "a.jpg" could meet the file of an image called "a".
        folders = [f"{part}_" if part.casefold().endswith(_FILE_SUFFIXES) else part for part in folders]
        preferred = "/".join([*folders, last])
        # The first image of a name keeps it; the next ones get -2, -3 ...
        name, count = preferred, 1
        while (key := _key(folder, name)) in self._taken:
            count += 1
            name = f"{preferred}-{count}"
        self._taken.add(key)
        return name


def _path_part(part: str) -> str:
    """Make one part of a path holdable: printable, not hidden, not "..", not empty."""
    part = xml_text(part)
    # A leading dot would hide the file, and ".." would leave the folder.
    return f"_{part}" if part.startswith(".") else part


def _shortened(part: str) -> str:
    # File systems count bytes, and a letter may have four.
    encoded = part.encode()
    if len(encoded) <= LONGEST_PART:
        return part
    # Room for a hyphen and eight digits of a digest, which keep long names with one beginning apart.
    kept = encoded[: LONGEST_PART - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def _key(folder: str, name: str) -> str:
    # Composed again: folding the case may decompose a letter.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", f"{folder}/{name}").casefold())
