"""Names of files: by which they are matched, and how they are written down whatever bytes they consist of.

The operating system's names are bytes. Those that are no UTF-8 reach Python as lone surrogates, which can
neither be printed nor hashed nor put into JSON.
"""

from __future__ import annotations

import unicodedata
from posixpath import splitext

_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, surrogates, ends of line and paragraph."""


def stem(name: str) -> str:
    """A relative path without its suffix, by which images, labels and lists of names are matched."""
    return composed(splitext(printable(name))[0])


def composed(name: str) -> str:
    """The same in composed Unicode (NFC): the same letters match whichever system wrote the name."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_safe(name: str) -> bool:
    """Whether a name can stand in a line of UTF-8 text: in records, lists and reports."""
    return name.isprintable() or all(unicodedata.category(character) not in _UNSAFE for character in name)


def printable(name: str) -> str:
    """A name that can be written down: what cannot stand in a line of text, as escapes."""
    if is_safe(name):
        return name
    return "".join(
        character if is_safe(character) else character.encode("unicode_escape").decode() for character in name
    )
