"""State of a translation: the ``spec`` of a TrainingJob as it grows, and an account of every field.

Written by :mod:`translate` and its rooms :mod:`network`, :mod:`learning` and :mod:`data`; nothing here knows
what a field means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tlt_runner.from_tlt import ours
from tlt_runner.from_tlt.paths import Maps, UncoveredPathError
from tlt_runner.from_tlt.report import Assumption, Entry, Outcome, SpecReport
from tlt_runner.from_tlt.spec import Given, Spec, Value

LACKING = "our default; the spec does not say it, although TLT requires it"
"""Why a value is assumed that a spec has to give."""


class Translation:
    """The state of one translation.

    Attributes:
        spec: Training spec.
        converts: Specs of dataset_convert that belong to it.
        maps: Addresses of paths.
        parent: Of a retraining: the translation of the training whose model is pruned; otherwise None.
        job: Spec of the TrainingJob, as far as it is known.
        problems: Mistakes that leave no manifest: one text each, with file, line and field.
    """

    def __init__(
        self, spec: Spec, converts: Sequence[Spec], maps: Maps, parent: Translation | None = None
    ) -> None:
        self.spec = spec
        self.converts = tuple(converts)
        self.maps = maps
        self.parent = parent
        self.job: dict[str, Any] = {}
        self.problems: list[str] = []
        self._entries: dict[tuple[str, int], Entry] = {}
        self._assumptions: list[Assumption] = []
        # A field by itself, not by its value: the same one may be given twice.
        self._places = {
            id(item): (one.file, index) for one in (spec, *converts) for index, item in enumerate(one.given)
        }

    # What the rooms ask.

    def of(self, path: str) -> list[Given]:
        """Return the effective fields of a path of the training spec."""
        return self.spec.of(path)

    def value(self, path: str, absent: Value = None) -> Value:
        """Return the value of a field of the training spec, or ``absent``."""
        return self.spec.value(path, absent)

    def put(self, to: str, value: Any) -> None:
        """Set a field below ``spec``."""
        node = self.job
        *messages, last = to.split(".")
        for name in messages:
            node = node.setdefault(name, {})
        node[last] = value

    def got(self, to: str) -> Any:
        """Return a field below ``spec``, or None where it is not set."""
        node: Any = self.job
        for name in to.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        return node

    # What the rooms say.

    def taken(self, item: Given, to: str, result: Any = None) -> None:
        """Account for a field that is taken; ``result`` is its value where that is written differently."""
        self._say(item, Outcome.TAKEN, to=to, result=shown(result))

    def changed(self, item: Given, to: str, result: Any, words: str, *, kept: bool = True) -> None:
        """Account for a field that is converted; ``kept`` is False if that changes its meaning."""
        self._say(item, Outcome.CHANGED, to=to, result=shown(result), words=words, kept=kept)

    def without(self, item: Given, words: str, *, kept: bool = True) -> None:
        """Account for a field without a counterpart; ``kept`` is False if its meaning is lost."""
        self._say(item, Outcome.WITHOUT, words=words, kept=kept)

    def unknown(self, item: Given, words: str) -> None:
        """Account for a field that TLT does not have."""
        self._say(item, Outcome.UNKNOWN, words=words, kept=False)

    def assume(self, to: str, words: str, *, kept: bool = True) -> None:
        """Note a value that the specs do not give."""
        self._assumptions.append(Assumption(to, words, kept))

    def problem(self, item: Given | None, words: str) -> None:
        """Note a mistake that leaves no manifest."""
        if item is None:
            self.problems.append(f"{self.spec.file}: {words}")
            return
        file = self._places[id(item)][0]
        self.problems.append(f"{file}:{item.line}: {item.name}: {words}")
        self._say(item, Outcome.WITHOUT, words=words, kept=False)

    def address(self, item: Given, path: str | None = None) -> str | None:
        """Return the address of a path, by default that of the field; note a mistake if no pair covers it."""
        try:
            return self.maps.address(str(item.value) if path is None else path)
        except UncoveredPathError as problem:
            self.problem(item, str(problem))
            return None

    def number(self, item: Given, to: str, value: float, words: str = "") -> int | float | None:
        """Set a number, converted to the field's range; return it, or None if the field cannot take it.

        Args:
            item: Field that it comes from.
            to: Field below ``spec``.
            value: Number, in units of ``to``.
            words: How it was converted; empty if it is the number given.
        """
        fitted, limit = ours.fit(to, value)
        if fitted is None:
            self.without(item, f"{to} {limit}", kept=False)
            return None
        self.put(to, fitted)
        if limit:
            self.changed(item, to, fitted, limit if not words else f"{words}; {limit}", kept=False)
        elif words:
            self.changed(item, to, fitted, words)
        else:
            self.taken(item, to)
        return fitted

    def _say(
        self,
        item: Given,
        outcome: Outcome,
        *,
        to: str = "",
        result: str = "",
        words: str = "",
        kept: bool = True,
    ) -> None:
        place = self._places[id(item)]
        given = item.shown
        self._entries[place] = Entry(
            place[0], item.line, item.name, given, outcome, to, "" if result == given else result, words, kept
        )

    # The account.

    def account(self, item: Given) -> Entry | None:
        """Return what was said of a field."""
        return self._entries.get(self._places[id(item)])

    def withdraw(self, to: str, words: str, *, kept: bool) -> None:
        """Remove a field below ``spec``, and say why of the fields that went to it."""
        node = self.job
        *messages, last = to.split(".")
        for name in messages:
            node = node.get(name, {})
        node.pop(last, None)
        for place, entry in list(self._entries.items()):
            if entry.to.split("[")[0] == to or entry.to.startswith(f"{to}."):
                self._entries[place] = Entry(
                    entry.file, entry.line, entry.field, entry.value, Outcome.WITHOUT, words=words, kept=kept
                )
        self._assumptions = [item for item in self._assumptions if not item.to.startswith(to)]

    def entries_of(self, to: str) -> list[Entry]:
        """Return the entries of fields that went to a field below ``spec``, or to one below it."""
        return [
            item
            for item in self._entries.values()
            if item.to and (item.to == to or item.to.startswith(f"{to}.") or to.startswith(f"{item.to}."))
        ]

    def report(self, spec: Spec, earlier: Translation | None = None) -> SpecReport:
        """Return the report of the training spec, or of one of dataset_convert that was given with it.

        Args:
            spec: One of the specs of this translation.
            earlier: Another translation of the same spec, whose losses are losses of the spec, too.
        """
        entries = [self._entries[spec.file, index] for index in range(len(spec.given))]
        assumptions = list(self._assumptions) if spec is self.spec else []
        if earlier is not None:
            # Of retrain_pruned_model only the retraining says anything.
            before = [earlier._entries.get((spec.file, index)) for index in range(len(spec.given))]
            # A field has one entry: that of the translation that loses its meaning.
            entries = [
                loss if one.kept and loss is not None and not loss.kept else one
                for one, loss in zip(entries, before, strict=True)
            ]
            assumptions += [one for one in earlier._assumptions if not one.kept and one not in assumptions]
        return SpecReport(spec.file, _what(spec), tuple(entries), tuple(assumptions))


def shown(value: Any) -> str:
    """Return a value of a manifest as text, for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _what(spec: Spec) -> str:
    if spec.kind == "convert":
        return "spec of dataset_convert"
    return f"training spec with names of {'TLT 1.0' if spec.old else 'TLT 2.0 or later'}"
