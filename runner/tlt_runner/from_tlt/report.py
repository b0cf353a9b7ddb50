"""Report of an import: what became of every field of the specs, and what they leave open."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import groupby
from textwrap import wrap
from typing import Any


class Outcome(StrEnum):
    """Outcome of the import of a field."""

    TAKEN = "taken"
    CHANGED = "changed"
    WITHOUT = "without counterpart"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Entry:
    """Outcome of the import of one field, and where the field stands.

    Attributes:
        file: Spec.
        line: Line.
        field: Name as written, from the top of the spec.
        value: Value as written.
        outcome: What became of it.
        to: Field of the manifest that has it, or an empty text.
        result: Value there, as text; empty if it is the one given.
        words: How it was changed, or why it has no counterpart.
        kept: False if the meaning of the field is lost.
    """

    file: str
    line: int
    field: str
    value: str
    outcome: Outcome
    to: str = ""
    result: str = ""
    words: str = ""
    kept: bool = True


@dataclass(frozen=True)
class Assumption:
    """Something that the specs do not say.

    Attributes:
        to: Field of the manifest, with its value.
        words: Why this value.
        kept: False if TLT would do something else.
    """

    to: str
    words: str
    kept: bool = True


@dataclass(frozen=True)
class SpecReport:
    """Outcomes of the import of the fields of one spec.

    Attributes:
        file: Spec.
        what: What the spec is, for people.
        entries: One for every field, in the order of the file.
        assumptions: What it leaves open.
    """

    file: str
    what: str
    entries: tuple[Entry, ...]
    assumptions: tuple[Assumption, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of fields of each outcome; the sum is that of all fields."""
        return {outcome: sum(item.outcome == outcome for item in self.entries) for outcome in Outcome}

    @property
    def lost(self) -> list[str]:
        """The changes of meaning: one text each."""
        fields = [f"{item.file}:{item.line}: {_own(item)}" for item in self.entries if not item.kept]
        return fields + [
            f"{self.file}: {item.to}: {item.words}" for item in self.assumptions if not item.kept
        ]


def lines(reports: Sequence[SpecReport]) -> Iterator[str]:
    """Yield the report as text for a terminal: by outcome, and below it by section of the spec."""
    for report in reports:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts().items())
        yield f"{report.file}: {report.what}, {len(report.entries)} fields: {counts}"
        for outcome in Outcome:
            entries = [item for item in report.entries if item.outcome == outcome]
            if entries:
                yield f"  {outcome}:"
                yield from _sections(entries)
        if report.assumptions:
            yield "  not in the spec:"
            yield from _assumed(report.assumptions)


def _sections(entries: Iterable[Entry]) -> Iterator[str]:
    for section, run in groupby(entries, key=lambda item: item.field.rpartition(".")[0]):
        if section:
            yield f"          {section}"
        yield from _grouped(run)


def _grouped(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield one line for each run of equal fields: repeated ones and the entries of a map."""
    for _, run in groupby(entries, key=lambda item: (item.field, item.to, item.words, item.kept)):
        same = list(run)
        first, last = same[0], same[-1]
        where = f"{first.line}" if first.line == last.line else f"{first.line}-{last.line}"
        values = ", ".join(item.value for item in same)
        results = ", ".join(item.result for item in same if item.result)
        name = first.field.rpartition(".")[2]
        shown = replace(first, field=name, value=values, result="" if results == values else results)
        yield f"  {where:>7} {_mark(first.kept)} {_own(shown)}"


def _assumed(assumptions: Sequence[Assumption]) -> Iterator[str]:
    """Yield the assumptions, those of one reason together."""
    for words in dict.fromkeys(item.words for item in assumptions):
        same = [item for item in assumptions if item.words == words]
        text = f"{_mark(same[0].kept)} {', '.join(item.to for item in same)}: {words}"
        yield from wrap(text, 110, initial_indent=" " * 10, subsequent_indent=" " * 12)


def _mark(kept: bool) -> str:
    return " " if kept else "!"


def _own(item: Entry) -> str:
    to = f" -> {item.to}" if item.to else ""
    result = f" {item.result}" if item.result else ""
    words = f": {item.words}" if item.words else ""
    return f"{item.field} {item.value}{to}{result}{words}"


def to_json(reports: Sequence[SpecReport]) -> str:
    """Return the report as JSON text, for programs."""
    body: list[dict[str, Any]] = [
        {
            "file": report.file,
            "kind": report.what,
            "counts": report.counts(),
            "fields": [asdict(item) for item in report.entries],
            "assumptions": [asdict(item) for item in report.assumptions],
            "meaningKept": not report.lost,
        }
        for report in reports
    ]
    return json.dumps({"specs": body}, indent=2) + "\n"
