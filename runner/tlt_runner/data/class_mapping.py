"""Mapping from the labels' classes to the classes to learn (``targetClassMapping``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClassMapping:
    """Maps source classes to target classes. An exact match wins; else case does not matter, as in TLT.

    Attributes:
        targets: The mapping of the spec.
        class_names: Target classes, sorted; a class's id is its index here.
    """

    targets: Mapping[str, str]
    class_names: tuple[str, ...] = field(init=False)
    _any_case: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Derived fields of a frozen dataclass can only be set past its own __setattr__.
        object.__setattr__(self, "class_names", tuple(sorted(set(self.targets.values()))))
        # Sorted, so that of two keys that differ in case alone the same one wins in every run.
        object.__setattr__(self, "_any_case", {key.casefold(): key for key in sorted(self.targets)})

    def key(self, source: str) -> str | None:
        """Find the mapping's key for a class of the labels; None if there is none."""
        # The exact name first: a mapping may tell "Car" and "car" apart.
        return source if source in self.targets else self._any_case.get(source.casefold())

    def target(self, source: str) -> str | None:
        """Find the class to learn for a class of the labels; None if objects of it are ignored."""
        key = self.key(source)
        return None if key is None else self.targets[key]

    def unused_keys(self, sources: Iterable[str]) -> list[str]:
        """List the keys that no class of the labels matches."""
        return sorted(set(self.targets) - {self.key(source) for source in sources})
