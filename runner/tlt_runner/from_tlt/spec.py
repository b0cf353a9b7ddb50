"""A spec as data: its typed fields, which of them count, and where each stands."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from tlt_runner.from_tlt.fields import Row

Value = str | int | float | bool | tuple[str, str | float] | None
"""Value of a field: of a map, an entry; None for a message that is empty or not looked into."""

_SECRET = "enc_key"
"""Field whose value is printed nowhere."""
HIDDEN = "(not shown)"


def is_secret(name: str) -> bool:
    """Tell whether a field is the key or may be meant to be: a misspelled name still has it as its value.

    Args:
        name: Name as written, with or without the messages around it.
    """
    message, _, own = name.lower().rpartition(".")
    # In a message it is the key of a map's entry.
    if own == "key":
        return not message
    close = difflib.SequenceMatcher(None, own, _SECRET).ratio() >= 0.7
    return close or own.endswith("key") or own.startswith("key_") or "secret" in own


@dataclass(frozen=True)
class Given:
    """A field of a spec: one scalar, one entry of a map, or one message without fields.

    Attributes:
        name: Name as written, from the top of the spec, with dots.
        path: Name of today; of an unknown field, the message of today and the name as written.
        line: Line of the name.
        value: Typed value; of an unknown field its text.
        row: Its row of the table; None for an unknown field and for a message without fields.
        block: Which occurrence of a repeated message it is in, from 0.
        overridden: Line of the field that replaces it, or None.
        near: Of an unknown field: the nearest known name, or an empty text.
    """

    name: str
    path: str
    line: int
    value: Value
    row: Row | None
    block: int = 0
    overridden: int | None = None
    near: str = ""

    @property
    def number(self) -> float:
        """The value of a field of numbers; the value of the entry of a map of numbers."""
        value = self.value[1] if isinstance(self.value, tuple) else self.value
        if not isinstance(value, int | float):
            raise TypeError(f"{self.path}: a number was expected to be read, got {value!r}")
        return float(value)

    @property
    def key(self) -> str:
        """The key of the entry of a map; empty for other fields."""
        return self.value[0] if isinstance(self.value, tuple) else ""

    @property
    def shown(self) -> str:
        """The value as text, for people."""
        if is_secret(self.name):
            return HIDDEN
        if isinstance(self.value, tuple):
            return f"{self.value[0]}: {_plain(self.value[1])}"
        return "{...}" if self.value is None and self.row else _plain(self.value)


@dataclass(frozen=True)
class Spec:
    """A spec file.

    Attributes:
        file: Its name, for messages.
        kind: ``training``, or ``convert`` for dataset_convert's.
        old: True with names of TLT 1.0.
        given: All its fields, in the order of the file.
    """

    file: str
    kind: Literal["training", "convert"]
    old: bool
    given: tuple[Given, ...]

    def effective(self) -> list[Given]:
        """Return the known fields that no later one replaces."""
        return [item for item in self.given if item.row is not None and item.overridden is None]

    def of(self, path: str) -> list[Given]:
        """Return the effective fields of a path."""
        return [item for item in self.effective() if item.path == path]

    def value(self, path: str, absent: Value = None) -> Value:
        """Return the value of a field that is given once, or ``absent``."""
        fields = self.of(path)
        return fields[-1].value if fields else absent

    @property
    def retrains(self) -> bool:
        """True if a pruned model is trained."""
        return bool(self.value("training_config.retrain_pruned_model"))

    @property
    def continues(self) -> bool:
        """True if that model is a file of this product, which has its network in it."""
        return str(self.value("training_config.retrain_pruned_model", "")).endswith(".keras")

    def has(self, message: str) -> bool:
        """Tell whether a message, or a field of it, is given and not replaced."""
        return any(
            item.path == message or item.path.startswith(f"{message}.")
            for item in self.given
            if item.overridden is None
        )


def _plain(value: str | float | None) -> str:
    # Counts among TLT's floats, such as freeze_blocks, without their fraction.
    return "{}" if value is None else str(value).removesuffix(".0")
