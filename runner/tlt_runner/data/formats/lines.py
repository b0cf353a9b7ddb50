"""Contents of label files, read within limits: bytes, text, and lines of columns (kitti, yolo).

All readers of labels open files here. A file that nobody may open is bad data, and the readers say so in a
finding. A storage that fails is not: a finding would blame the file, and preparation would keep the records
without it.

Text is UTF-8 with or without a byte order mark; lines end as on any system. A file beyond the limits yields
nothing: half of an image's objects would teach that the other half is background.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

from tlt_api.dataset import LONGEST_CLASS
from tlt_runner.data.images.decode import FILES_OWN_ERRORS
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Problem

MAX_BYTES = 16 << 20
MAX_LINES = 10_000
MAX_LINE = 100_000
"""Characters; columns take many times the memory of their text."""
LONG_NAME = f"expected a class of at most {LONGEST_CLASS} characters"
_SHOWN = 80
"""Characters of a line that a message shows."""


def content(path: Path, max_bytes: int) -> bytes:
    """Read all bytes of a file.

    Raises:
        ValueError: This one file cannot be opened, or is larger than ``max_bytes``; the message says so.
        OSError: The storage fails, which says nothing about the file.
    """
    try:
        with path.open("rb") as opened:
            # Not read(max_bytes + 1): that takes the memory for as many bytes, however small the file.
            if os.fstat(opened.fileno()).st_size > max_bytes:
                raise ValueError(f"expected at most {max_bytes / (1 << 20):g} MiB")
            return opened.read()
    except OSError as error:
        if error.errno not in FILES_OWN_ERRORS:
            raise
        raise ValueError(f"expected a file that can be read: {error.strerror}") from error


def read(path: Path, file: str, parse_line: Callable[[list[str], str, int], LabelledBox | Finding]) -> Labels:
    """Read one label file.

    Args:
        path: The file.
        file: Its path relative to the data set's root, for messages.
        parse_line: Takes a line's columns, the file and the line's number from 1. Returns an object, a region
            to leave out of account (a box without a class), or what is wrong with the line.
    """
    lines = _lines(path)
    if isinstance(lines, str):
        return Labels(findings=(Finding(file, Problem.UNREADABLE_LABEL, lines),))
    boxes: list[LabelledBox] = []
    ignored: list[LabelledBox] = []
    findings: list[Finding] = []
    for number, line in enumerate(lines, start=1):
        # Not split: the columns of a line take many times its memory.
        if len(line) > MAX_LINE:
            message = f"expected a line of at most {MAX_LINE:,} characters, got {len(line):,}"
            findings.append(Finding(file, Problem.WRONG_COLUMNS, message, number))
            continue
        columns = line.split()
        # Empty lines are legal, most often one at the end.
        if not columns:
            continue
        # Bad lines are findings; the lines beside them are used.
        result = parse_line(columns, file, number)
        if isinstance(result, Finding):
            findings.append(result)
        else:
            (boxes if result.class_name else ignored).append(result)
    return Labels(tuple(boxes), tuple(findings), tuple(ignored))


def text(path: Path, max_bytes: int) -> str:
    """Read a text file, without its byte order mark, with every end of line as a line feed.

    Raises:
        OSError: The storage fails.
        ValueError: The file cannot be opened, is too large, or is no UTF-8; the message says which.
    """
    data = content(path, max_bytes)
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text: {error}") from error
    return decoded.replace("\r\n", "\n").replace("\r", "\n")


def _lines(path: Path) -> list[str] | str:
    """Split a file into lines; return a message if that is not possible."""
    try:
        # A line feed at the end of the last line begins no line of its own.
        lines = text(path, MAX_BYTES).removesuffix("\n").split("\n")
    except ValueError as error:
        return str(error)
    # All or nothing: the first 10,000 lines alone would make background of the other objects.
    return lines if len(lines) <= MAX_LINES else f"expected at most {MAX_LINES:,} lines, got {len(lines):,}"


def number(column: str) -> float | None:
    """Parse a finite number; None if the column is none."""
    try:
        value = float(column)
    except ValueError:
        return None
    # float() takes "nan", "inf" and "1_000", too.
    return value if math.isfinite(value) and "_" not in column else None


def shown(columns: list[str]) -> str:
    """Cut a line for a message."""
    line = " ".join(column[:_SHOWN] for column in columns[:_SHOWN])
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
