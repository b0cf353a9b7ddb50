"""Reading of protobuf's text format into a tree in which every field keeps its line.

The tokens are those of ``google.protobuf.text_format`` (comments, quotes, escapes, adjacent strings). Its
parser is not used: it stops at the first unknown field or, with ``allow_unknown_field``, drops them without
a word, and a parsed message no longer knows lines, duplicates or which fields were given.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import text_format


@dataclass(frozen=True)
class Word:
    """A scalar as it was written: a number, an identifier, or the content of a quoted text."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Field:
    """A field of a message, at the place where it was given.

    Attributes:
        name: Name of the field.
        line: Line of the name, from 1.
        value: A scalar, the scalars of a list (``[1, 2]``), or the fields of a message.
    """

    name: str
    line: int
    value: Word | tuple[Word, ...] | Message


@dataclass(frozen=True)
class Message:
    """The fields of a message in the order in which they were given."""

    fields: tuple[Field, ...] = ()


class SyntaxProblemError(ValueError):
    """A text that is not protobuf's text format; the message has the line.

    Attributes:
        line: Line at fault, from 1.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"{line}: {message}")
        self.line = line


def read(text: str) -> Message:
    """Read a text of protobuf's text format.

    Raises:
        SyntaxProblemError: The text ends within a message, or no field stands where one is expected.
    """
    try:
        tokens = text_format.Tokenizer(text.split("\n"))
        fields: list[Field] = []
        while not tokens.AtEnd():
            fields += _field(tokens)
        return Message(tuple(fields))
    except RecursionError:
        raise SyntaxProblemError(1, "expected messages within messages, at most some hundred deep") from None
    except text_format.ParseError as error:
        # The library's message begins with the whole line; what it expected comes last.
        reason = str(error).rpartition("': ")[2] or str(error)
        raise SyntaxProblemError(error.GetLine() or 1, reason) from None


def _line(tokens: text_format.Tokenizer) -> int:
    return int(tokens.ParseError("").GetLine())


def _expected(tokens: text_format.Tokenizer, what: str) -> SyntaxProblemError:
    got = repr(tokens.token) if tokens.token else "the end of the file"
    return SyntaxProblemError(_line(tokens), f"expected {what}, got {got}")


def _field(tokens: text_format.Tokenizer) -> list[Field]:
    """Read one field; a list of messages gives one field for each."""
    line = _line(tokens)
    if not tokens.LookingAt("") and not (tokens.token[:1].isalpha() or tokens.token[:1] == "_"):
        raise _expected(tokens, "the name of a field")
    name = tokens.ConsumeIdentifier()
    # A message may do without the colon, a scalar may not.
    colon = tokens.TryConsume(":")
    if tokens.LookingAt("{") or tokens.LookingAt("<"):
        fields = [Field(name, line, _message(tokens, name, line))]
    elif tokens.TryConsume("["):
        fields = _list(tokens, name, line)
    elif colon:
        fields = [Field(name, line, _word(tokens, name))]
    else:
        raise _expected(tokens, f"':' or '{{' after {name}")
    tokens.TryConsume(",") or tokens.TryConsume(";")
    return fields


def _message(tokens: text_format.Tokenizer, name: str, line: int) -> Message:
    end = "}" if tokens.TryConsume("{") else ">"
    if end == ">":
        tokens.Consume("<")
    fields: list[Field] = []
    while not tokens.TryConsume(end):
        if tokens.AtEnd():
            raise _expected(tokens, f"{end!r} of {name}, which begins in line {line},")
        fields += _field(tokens)
    return Message(tuple(fields))


def _list(tokens: text_format.Tokenizer, name: str, line: int) -> list[Field]:
    words: list[Word] = []
    messages: list[Field] = []
    while not tokens.TryConsume("]"):
        if tokens.LookingAt("{") or tokens.LookingAt("<"):
            start = _line(tokens)
            messages.append(Field(name, start, _message(tokens, name, start)))
        else:
            words.append(_word(tokens, name))
        if not tokens.TryConsume(",") and not tokens.LookingAt("]"):
            raise _expected(tokens, f"',' or ']' in the list of {name}, which begins in line {line},")
    return messages or [Field(name, line, tuple(words))]


def _word(tokens: text_format.Tokenizer, name: str) -> Word:
    first = tokens.token[:1]
    if first in ("'", '"') and first:
        return Word(tokens.ConsumeString(), quoted=True)
    if not (first.isalnum() or first in ("-", "+", ".", "_")) or not first:
        raise _expected(tokens, f"a value of {name}")
    text = tokens.token
    # text_format takes "- 5" for -5, too.
    if text == "-":
        tokens.NextToken()
        text += tokens.token
    tokens.NextToken()
    return Word(text)
