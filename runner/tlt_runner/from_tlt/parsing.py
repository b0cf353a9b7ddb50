"""Reading of a spec: old names translated, values typed, unknown names kept apart, repetitions resolved."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from google.protobuf import text_format

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.from_tlt import text
from tlt_runner.from_tlt.fields import (
    CONVERT_MESSAGES,
    FOREIGN,
    MESSAGES,
    OLD_NAMES,
    ONE_OF,
    REPEATED_MESSAGES,
    ROWS,
    Row,
    Type,
)
from tlt_runner.from_tlt.spec import HIDDEN, Given, Spec, Value, is_secret


def parse(file: str, content: str) -> Spec:
    """Read a spec of Faster R-CNN or of dataset_convert.

    Raises:
        RunnerError: InvalidSpec; the text is not protobuf's text format, a value has another type than its
            field, or the spec is one of another network. All values at fault are named, with their lines.
    """
    try:
        message = text.read(content)
    except text.SyntaxProblemError as problem:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"{file}:{_without_key(problem, content)}",
            "Correct the line: TLT's specs are protobuf text, with braces that close and texts in quotes.",
        ) from None
    reader = _Reader(file)
    given = [item for field in message.fields for item in reader.field(field, "", "", 0)]
    _check_network(file, given, anything_read=bool(reader.problems))
    if reader.problems:
        raise RunnerError(
            Reason.INVALID_SPEC, "\n  ".join(reader.problems), "Correct these values: TLT refuses them, too."
        )
    convert = any(item.path.split(".")[0] in CONVERT_MESSAGES for item in given if _is_known(item))
    return Spec(file, "convert" if convert else "training", reader.old, tuple(_overridden(given)))


def _without_key(problem: text.SyntaxProblemError, content: str) -> str:
    """Return the message of a problem, which quotes the text, unless the key stands in or above its line."""
    lines = content.split("\n")[max(0, problem.line - 2) : problem.line]
    words = re.findall(r"\w+", " ".join(lines))
    if any(is_secret(f".{word}") for word in words if word != "key"):
        return f'{problem.line}: expected enc_key: "...", in quotes, and a field after it, got {HIDDEN}'
    return str(problem)


def _is_known(item: Given) -> bool:
    return item.row is not None or item.path in MESSAGES


def _check_network(file: str, given: list[Given], *, anything_read: bool) -> None:
    """Refuse the spec of another network, whose every field would be unknown."""
    for item in given:
        top = item.path.split(".")[0]
        if not _is_known(item) and top in FOREIGN:
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"{file}:{item.line}: expected a spec of Faster R-CNN or dataset_convert, got {top}, which "
                f"is of {FOREIGN[top]}",
                "The detector here is Faster R-CNN. Describe the training anew (docs/from-tlt.md).",
            )
    if not anything_read and not any(_is_known(item) for item in given):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"{file}: expected a spec of Faster R-CNN (model_config, training_config, ...) or of "
            f"dataset_convert (kitti_config or coco_config), got {len(given)} fields, none of them known",
            "Name the spec files that tlt train and tlt dataset_convert were given.",
        )


class _Reader:
    """Turns the fields of a text into typed ones, and collects the values at fault."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.old = False
        self.problems: list[str] = []
        self._blocks: dict[str, int] = {}

    def field(self, field: text.Field, name: str, path: str, block: int) -> Iterator[Given]:
        """Yield the fields of one field: itself, or those of a message.

        Args:
            field: The field.
            name: Name of its message as written; empty at the top.
            path: Name of its message today; empty at the top.
            block: Occurrence of the repeated message around it.
        """
        name, path = self._names(field.name, name, path)
        if path in MESSAGES and isinstance(field.value, text.Message):
            if path in REPEATED_MESSAGES:
                block = self._blocks[path] = self._blocks.get(path, -1) + 1
            if not field.value.fields:
                yield Given(name, path, field.line, None, None, block)
            for inner in field.value.fields:
                yield from self.field(inner, name, path, block)
        elif path in ROWS:
            yield from self._known(field, name, ROWS[path], block)
        elif path in MESSAGES:
            self._problem(field.line, name, "a message in braces", _shown(field.value))
        else:
            yield Given(name, path, field.line, _shown(field.value), None, block, near=_near(path))

    def _names(self, own: str, name: str, path: str) -> tuple[str, str]:
        today = f"{path}.{own}" if path else own
        if today in OLD_NAMES:
            self.old = True
            today = OLD_NAMES[today]
        return (f"{name}.{own}" if name else own), today

    def _known(self, field: text.Field, name: str, row: Row, block: int) -> Iterator[Given]:
        if row.type in (Type.TEXT_MAP, Type.NUMBER_MAP, Type.ANY):
            if not isinstance(field.value, text.Message):
                self._problem(field.line, name, row.type.value, _shown(field.value))
            elif row.type is Type.ANY:
                yield Given(name, row.path, field.line, None, row, block)
            else:
                yield from self._entry(field.line, field.value, name, row, block)
            return
        words = field.value if isinstance(field.value, tuple) else (field.value,)
        if isinstance(field.value, tuple) and not row.repeated:
            self._problem(field.line, name, f"{row.type.value}, not a list", _shown(field.value))
            return
        if not words:  # an empty list is a field that sets nothing
            yield Given(name, row.path, field.line, None, None, block)
        for word in words:
            try:
                value = _typed(word, row)
            except ValueError:
                self._problem(field.line, name, _wanted(row), _shown(word))
            else:
                yield Given(name, row.path, field.line, value, row, block)

    def _entry(self, line: int, entry: text.Message, name: str, row: Row, block: int) -> Iterator[Given]:
        key, value = "", "" if row.type is Type.TEXT_MAP else 0.0
        for field in entry.fields:
            if not isinstance(field.value, text.Word) or field.name not in ("key", "value"):
                path = f"{row.path}.{field.name}"
                yield Given(f"{name}.{field.name}", path, field.line, _shown(field.value), None, block,
                            near="key or value")  # fmt: skip
                continue
            kind = Type.TEXT if field.name == "key" or row.type is Type.TEXT_MAP else Type.NUMBER
            try:
                typed = _scalar(field.value, kind)
            except ValueError:
                self._problem(field.line, f"{name}.{field.name}", kind.value, _shown(field.value))
                continue
            if field.name == "key":
                key = str(typed)
            else:
                value = typed
        yield Given(name, row.path, line, (key, value), row, block)

    def _problem(self, line: int, name: str, wanted: str, got: str) -> None:
        got = HIDDEN if is_secret(name) else got
        self.problems.append(f"{self.file}:{line}: {name}: expected {wanted}, got {got}")


def _typed(word: text.Word | text.Message, row: Row) -> Value:
    if not isinstance(word, text.Word):
        raise ValueError(row.path)
    if row.type is not Type.NAME:
        return _scalar(word, row.type)
    # TLT 1.0 has texts where later ones have names: reg_type: 'L2'. Numbers of names are protobuf's.
    if word.text in row.names:
        return word.text
    if word.text.lower() in ("none", "no_reg") and "NO_REG" in row.names:
        return "NO_REG"
    return row.names[_index(word.text, len(row.names))]


def _index(number: str, names: int) -> int:
    index = int(text_format.ParseInteger(number))
    if index >= names:
        raise ValueError(number)
    return index


def _scalar(word: text.Word, kind: Type) -> str | int | float | bool:
    """Return a scalar by the rules of protobuf's text format; ValueError otherwise."""
    if word.quoted != (kind is Type.TEXT):
        raise ValueError(word.text)
    if kind is Type.TEXT:
        return word.text
    readers: dict[Type, Callable[[str], int | float | bool]] = {
        Type.COUNT: text_format.ParseInteger,
        Type.NUMBER: _finite,
        Type.FLAG: text_format.ParseBool,
    }
    return readers[kind](word.text)


def _finite(number: str) -> float:
    value = float(text_format.ParseFloat(number))
    # Protobuf knows inf and nan; no field of a spec means anything by them.
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(number)
    return value


def _wanted(row: Row) -> str:
    return f"one of {', '.join(row.names)}" if row.names else row.type.value


def _shown(value: text.Word | text.Message | tuple[text.Word, ...]) -> str:
    if isinstance(value, text.Message):
        return "{...}" if value.fields else "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(word.text for word in value)}]"
    return repr(value.text) if value.quoted else value.text


def _near(path: str) -> str:
    """Return the nearest known name: in the same message, or the same name in another one."""
    message, _, own = path.rpartition(".")
    paths = (*ROWS, *MESSAGES, *OLD_NAMES)
    siblings = sorted({item.rpartition(".")[2] for item in paths if item.rpartition(".")[0] == message})
    if close := difflib.get_close_matches(own, siblings, 1, cutoff=0.7):
        return close[0]
    elsewhere = [item for item in ROWS if item.rpartition(".")[2] == own]
    return elsewhere[0] if elsewhere else ""


def _overridden(given: list[Given]) -> Iterator[Given]:
    """Mark the fields that a later one replaces: TLT merges, so that the last of several counts."""
    by: dict[int, int] = {}
    last: dict[object, int] = {}
    member: dict[tuple[str, ...], str] = {}
    for index, item in enumerate(given):
        for union in ONE_OF:
            own = next((path for path in union if item.path == path or item.path.startswith(f"{path}.")), "")
            if own and member.setdefault(union, own) != own:
                for earlier in range(index):
                    path = given[earlier].path
                    if path == member[union] or path.startswith(f"{member[union]}."):
                        by.setdefault(earlier, item.line)
                member[union] = own
        if item.row is None:
            continue
        # Of a map the entries with the same key; of a repeated field nothing.
        if item.row.type in (Type.TEXT_MAP, Type.NUMBER_MAP) and isinstance(item.value, tuple):
            key: object = (item.path, item.block, item.value[0])
        elif item.row.repeated and item.path.rpartition(".")[0] not in REPEATED_MESSAGES:
            continue
        else:
            key = (item.path, item.block)
        if key in last and last[key] not in by:
            by[last[key]] = item.line
        last[key] = index
    for index, item in enumerate(given):
        yield replace(item, overridden=by.get(index))
