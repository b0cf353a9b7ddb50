"""targetClassMapping applied: the labels' classes to the classes to learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClassMapping:
    """Source class -> target class. An exact match wins; else case does not matter, as in TLT.

    Attributes:
        targets: The mapping of the spec.
        class_names: Target classes, sorted; a class's id is its place here.
    """

    targets: Mapping[str, str]
    class_names: tuple[str, ...] = field(init=False)
    _any_case: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(sorted(set(self.targets.values()))))
        object.__setattr__(self, "_any_case", {key.casefold(): key for key in sorted(self.targets)})

    def key(self, source: str) -> str | None:
        """The mapping's key for a class of the labels; None when it has none."""
        return source if source in self.targets else self._any_case.get(source.casefold())

    def target(self, source: str) -> str | None:
        """The class to learn for a class of the labels; None when it is not an object."""
        key = self.key(source)
        return None if key is None else self.targets[key]

    def unused_keys(self, sources: Iterable[str]) -> list[str]:
        """Keys that none of the labels' classes matches."""
        return sorted(set(self.targets) - {self.key(source) for source in sources})
