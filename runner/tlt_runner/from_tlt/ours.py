"""Values that the fields of a TrainingJob accept, read from the API's own schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from tlt_api.trainingjob import TrainingJobSpec


@cache
def _schema() -> dict[str, Any]:
    return TrainingJobSpec.model_json_schema(by_alias=True)


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and the one alternative of an optional field that is not null."""
    while "$ref" in node or "anyOf" in node or "allOf" in node:
        if "$ref" in node:
            node = _schema()["$defs"][node["$ref"].rsplit("/", 1)[1]]
        else:
            options = node.get("anyOf") or node["allOf"]
            node = next(option for option in options if option.get("type") != "null")
    return node


@cache
def field(path: str) -> dict[str, Any]:
    """Return the JSON schema of a field below ``spec``; of a list, that of its items.

    Raises:
        KeyError: There is no such field.
    """
    node = _resolved(_schema())
    for name in path.split("."):
        node = _resolved(node["properties"][name])
    return _resolved(node["items"]) if node.get("type") == "array" else node


def ordered(job: dict[str, Any], first: Sequence[str] = ()) -> dict[str, Any]:
    """Return a spec with its fields in the order of the API, those of ``first`` before all others.

    Sections without a field are left out.
    """
    return dict(_ordered(job, _resolved(_schema()), first))


def _ordered(
    body: dict[str, Any], schema: dict[str, Any], first: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    properties = schema.get("properties")
    for name in sorted(body, key=lambda name: _rank(name, properties, first)):
        value = body[name]
        if isinstance(value, dict):
            # A map of the user, such as targetClassMapping, keeps the order of the spec.
            value = dict(_ordered(value, _resolved(properties[name]) if properties else {}))
        if value != {}:
            yield name, value


def _rank(name: str, properties: dict[str, Any] | None, first: Sequence[str]) -> int:
    if name in first:
        return first.index(name) - len(first)
    return list(properties).index(name) if properties else 0


def fit(path: str, value: float) -> tuple[int | float | None, str]:
    """Return the number that a field takes for a given one, and how it differs.

    Returns:
        The number and an empty text; the nearest number of the field's range and the reason; or None and the
        reason, if the range is open where the number leaves it.
    """
    limits = field(path)
    if "exclusiveMinimum" in limits and value <= limits["exclusiveMinimum"]:
        return None, f"has to be above {limits['exclusiveMinimum']:g}"
    if "exclusiveMaximum" in limits and value >= limits["exclusiveMaximum"]:
        return None, f"has to be below {limits['exclusiveMaximum']:g}"
    if "minimum" in limits and value < limits["minimum"]:
        return limits["minimum"], f"at least {limits['minimum']:g}"
    if "maximum" in limits and value > limits["maximum"]:
        return limits["maximum"], f"at most {limits['maximum']:g}"
    if limits.get("type") == "integer":
        return round(value), "" if value == round(value) else "a whole number"
    return value, ""
