"""Base classes of the API types: immutable pydantic models with camelCase on the wire, and rules.

A :class:`Rule` checks several fields together, in CEL for the API server, which refuses a bad object when it
is applied, and in Python for runs without a cluster. Checks of one field are ordinary constraints (``ge``,
``multiple_of``, ``Literal``), which become part of the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

GROUP = "tlt.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


@dataclass(frozen=True)
class Rule:
    """Validation rule across the fields of a model.

    Attributes:
        cel: Rule in CEL; ``self`` is the object, true means valid.
        check: Rule in Python, equivalent to ``cel``.
        message: Expected values, and why or how to get there, in one sentence.
        given: CEL expression of the given values as text, for the API server's message.
    """

    cel: str
    check: Callable[[Any], bool]
    message: str
    given: str

    def to_schema(self) -> dict[str, str]:
        """Return the rule as an item of ``x-kubernetes-validations``."""
        # ``format``, not ``+``: the API server assumes that a number's text is of any length and rejects the
        # expression as too expensive.
        escaped = self.message.replace("'", "\\'")
        return {
            "rule": self.cel,
            "message": self.message,
            "messageExpression": f"'{escaped}, got %s'.format([{self.given}])",
        }


def exactly_one_of(*fields: str, hint: str) -> Rule:
    """Return the rule of a union: exactly one of these optional fields is given."""
    # Fields named like a Python keyword end with an underscore: from_.
    wire = [to_camel(field.rstrip("_")) for field in fields]
    # A sum, since CEL's logic has no exclusive or of more than two.
    counted = " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in wire)
    return Rule(
        cel=f"({counted}) == 1",
        check=lambda self: sum(getattr(self, field) is not None for field in fields) == 1,
        message=f"expected exactly one of {', '.join(wire)} ({hint})",
        given=f"({counted} == 0 ? 'none' : 'several')",
    )


def only_with(field: str, discriminator: str, *values: str) -> Rule:
    """Return the rule of an optional field that is only valid with some values of a discriminator field."""
    # The field must have no default: one that has is always present, and could not be told from a given one.
    wire, wire_discriminator = to_camel(field), to_camel(discriminator)
    allowed = ", ".join(f"'{value}'" for value in values)
    return Rule(
        cel=f"!has(self.{wire}) || self.{wire_discriminator} in [{allowed}]",
        check=lambda self: getattr(self, field) is None or getattr(self, discriminator) in values,
        message=f"expected {wire} only with {wire_discriminator} {' or '.join(values)}",
        given=f"self.{wire_discriminator}",
    )


def pair(left: str, right: str) -> str:
    """Return the ``given`` of a rule that compares two numbers: both fields with their names."""
    return f"'{left} %s and {right} %s'.format([self.{left}, self.{right}])"


class ApiModel(BaseModel):
    """Base class of all API types: frozen, unknown fields refused, camelCase in JSON and YAML."""

    model_config = ConfigDict(
        frozen=True,
        # A misspelt field is an error in local runs too; on a cluster kubectl reports it.
        extra="forbid",
        alias_generator=to_camel,
        # Manifests use the camelCase names, code the Python names.
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        # The text below a field becomes its description in the CRD and in docs/api.md.
        use_attribute_docstrings=True,
        # JSON has neither: the API server could not store them.
        allow_inf_nan=False,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        # The rules belong to the model's own schema, not to a reference to it.
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.to_schema() for rule in cls.rules]
        return schema

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        # The API server has checked a stored object by the same rules in CEL; `tlt run` has only these.
        for rule in self.rules:
            if not rule.check(self):
                raise ValueError(rule.message)
        return self

    def to_wire(self) -> dict[str, Any]:
        """Return the object as JSON data: camelCase, without absent fields."""
        # Never null: CEL's has() is true for an explicit null.
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """Base class of types read from a cluster: unknown fields, added by a newer version, are ignored."""

    # An operator and a runner of different versions read each other's reports.
    model_config = ConfigDict(extra="ignore")
