"""Verdict of an API server on a manifest: its CRD's schema, CEL rules and the rules of metadata.

Called by :mod:`tlt_runner.manifests`. The schema is the one of the CRD file (:mod:`tlt_api.crdgen`), applied
in an API server's order: nulls are dropped and defaults filled in, then types, patterns and limits are
checked, then the rules. Rules that compare an object with its stored version (``oldSelf``) have nothing to
compare here: like an API server that creates an object, this skips them.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tlt_api import crdgen
from tlt_api.common import CLUSTER_URI_PATTERN, CLUSTER_WEIGHTS_URI_PATTERN
from tlt_api.resources import KINDS, MAX_NAME_LENGTH

Schema = Mapping[str, Any]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_NAME.pattern}(\.{_NAME.pattern})*")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LABEL_LENGTH, _SUBDOMAIN_LENGTH = 63, 253
_ANNOTATIONS_BYTES = 256 * 1024
_METADATA_FIELDS = frozenset(
    ("annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers")
    + ("generateName", "generation", "labels", "managedFields", "name", "namespace", "ownerReferences")
    + ("resourceVersion", "selfLink", "uid")
)
_LOCAL_PATTERNS = {CLUSTER_URI_PATTERN, CLUSTER_WEIGHTS_URI_PATTERN}
_BLOCKING = {"type", "required", "maxLength", "maxItems", "maxProperties"}
"""Keywords after whose violation an API server does not evaluate rules: their types would be wrong, or their
cost unbounded."""


@dataclass(frozen=True)
class Problem:
    """One reason for which an API server refuses an object.

    Attributes:
        path: Field at fault, as in ``spec.precisions[0]``.
        message: Expected and given value.
        pattern: True if the value does not match a pattern, of which the message can only show the text.
        local: True if the value is an address of this machine (``file://``), which a run without a cluster
            can use.
    """

    path: str
    message: str
    pattern: bool = False
    local: bool = False

    def __str__(self) -> str:
        """``path: message``."""
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Rule:
    """CEL rule of a kind.

    Attributes:
        path: Field whose value is ``self``; empty for the object itself.
        cel: The rule.
        message: Sentence for a person.
        expression: CEL expression of a message with the given values, or None.
    """

    path: str
    cel: str
    message: str
    expression: str | None

    @property
    def compares_versions(self) -> bool:
        """True if the rule needs the stored version of the object."""
        return "oldSelf" in self.cel


def as_stored(kind: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a manifest as an API server reads it, and what it drops without saying so.

    Fields that are null count as absent; the status belongs to the operator and the runner, and is dropped.
    """
    result = {name: copy.deepcopy(value) for name, value in body.items() if name != "status"}
    dropped: list[str] = []
    _drop_nulls(result, schema_of(kind), "", dropped)
    return result, dropped


def problems(kind: str, body: Mapping[str, Any]) -> list[Problem]:
    """Return every reason for which an API server refuses to create an object; empty if it takes it.

    Args:
        kind: Name of a kind of this API.
        body: The object, as :func:`as_stored` returns it.
    """
    schema = schema_of(kind)
    found = [*_unknown_fields(body, schema, ""), *_metadata(body.get("metadata"))]
    completed = copy.deepcopy(dict(body))
    _fill_in_defaults(completed, schema)
    violations = sorted(_validator(kind).iter_errors(completed), key=lambda error: list(map(str, error.path)))
    found += [_violation(error) for error in violations]
    metadata = body.get("metadata")
    named = isinstance(metadata, dict) and isinstance(metadata.get("name"), str)
    # Rules are for values of the right types; two of them speak of the name.
    if not named or any(error.validator in _BLOCKING for error in violations):
        return found
    return [*found, *_broken_rules(kind, completed)]


@cache
def schema_of(kind: str) -> Schema:
    """Return the structural schema of a kind, as in its CustomResourceDefinition."""
    definition = crdgen.custom_resource_definition(KINDS[kind])
    schema: Schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def rules_of(kind: str) -> list[Rule]:
    """Return all CEL rules of a kind, those that compare two versions of an object included."""
    return list(_rules(schema_of(kind), ""))


def _rule(path: str, item: Mapping[str, Any]) -> Rule:
    # Here, every object is about to be created.
    cel = item["rule"].removeprefix(crdgen.AT_CREATION)
    return Rule(path, cel, item["message"], item.get("messageExpression"))


def _rules(schema: Schema, path: str) -> Iterator[Rule]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield _rule(path, rule)
    for name, child in schema.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}".lstrip("."))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _rules(schema[key], f"{path}[]")


# Reading: what an API server does before it checks.


def _drop_nulls(value: Any, schema: Schema, path: str, dropped: list[str]) -> None:
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            _drop_nulls(item, schema["items"], f"{path}[{index}]", dropped)
    if not isinstance(value, dict):
        return
    for name in list(value):
        child = schema.get("properties", {}).get(name)
        entry = schema.get("additionalProperties")
        below = child or (entry if isinstance(entry, dict) else None)
        if below is None:
            continue
        if value[name] is not None:
            _drop_nulls(value[name], below, f"{path}.{name}".lstrip("."), dropped)
        else:
            del value[name]
            # Of a map a whole entry is gone; an empty field of an object means its default.
            if not child:
                dropped.append(f"{path}.{name}: null, which an API server drops: give it a value")


def _fill_in_defaults(value: Any, schema: Schema) -> None:
    if isinstance(value, list) and "items" in schema:
        for item in value:
            _fill_in_defaults(item, schema["items"])
    if not isinstance(value, dict):
        return
    for name, child in schema.get("properties", {}).items():
        if name not in value and "default" in child:
            value[name] = copy.deepcopy(child["default"])
        if name in value:
            _fill_in_defaults(value[name], child)


# Fields: names, types, patterns and limits.


def _unknown_fields(value: Any, schema: Schema, path: str) -> Iterator[Problem]:
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _unknown_fields(item, schema["items"], f"{path}[{index}]")
    if not isinstance(value, dict):
        return
    fields = schema.get("properties")
    for name, item in value.items():
        child_path = f"{path}.{name}".lstrip(".")
        if fields is None:
            continue
        if name in fields:
            yield from _unknown_fields(item, fields[name], child_path)
        else:
            yield Problem(child_path, f"unknown field; expected one of {', '.join(fields)}")


@cache
def _validator(kind: str) -> Any:
    import jsonschema

    # Exclusive bounds of OpenAPI 3.0 are those of draft 4.
    return jsonschema.Draft4Validator(_for_python(schema_of(kind)))


def _for_python(node: Any) -> Any:
    if isinstance(node, list):
        return [_for_python(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _for_python(value) for key, value in node.items()}
    # Python's $ also matches before a final line break, RE2's does not.
    if isinstance(result.get("pattern"), str):
        result["pattern"] = re.sub(r"\$$", r"\\Z", result["pattern"])
    return result


def _violation(error: Any) -> Problem:
    """Put a violation of the schema into words: expected and given value."""
    path = _path(error.absolute_path)
    value, limit = error.instance, error.validator_value
    if error.validator == "required":
        missing = re.match(r"'(.*)' is a required property", error.message)
        name = missing[1] if missing else ""
        return Problem(f"{path}.{name}".lstrip("."), "expected a value, got none")
    if error.validator == "pattern":
        pattern = re.sub(r"\\Z$", "$", limit)
        if pattern in _LOCAL_PATTERNS and value.startswith("file:///"):
            text = f"expected an address that a pod can use (pvc://, s3://), got {value}"
            return Problem(path, f"{text}, which is a place of one machine", local=True)
        return Problem(path, f"expected a text that matches {pattern}, got {value!r:.120}", pattern=True)
    schema = error.schema
    expected = {
        "type": f"{limit}{_quotes(limit, value)}",
        "enum": f"one of {', '.join(map(str, limit))}" if isinstance(limit, list) else "",
        "minimum": f"{'more than' if schema.get('exclusiveMinimum') else 'at least'} {limit}",
        "maximum": f"{'less than' if schema.get('exclusiveMaximum') else 'at most'} {limit}",
        "multipleOf": f"a multiple of {limit}",
        "minLength": f"at least {limit} characters",
        "maxLength": f"at most {limit} characters",
        "minItems": f"at least {limit} items",
        "maxItems": f"at most {limit} items",
        "minProperties": f"at least {limit} entries",
        "maxProperties": f"at most {limit} entries",
    }.get(error.validator)
    if expected is None:
        return Problem(path, error.message)
    return Problem(path, f"expected {expected}, got {_json(value):.120}")


def _quotes(expected: str, value: Any) -> str:
    if expected == "string" and isinstance(value, bool | int | float):
        return " (quote it: YAML reads numbers, yes, no, on, off, y and n as other types)"
    if expected in ("integer", "number") and isinstance(value, str):
        return " (without quotes)"
    return ""


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _path(parts: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


# Metadata: the same rules for every kind of Kubernetes.


def _metadata(metadata: Any) -> Iterator[Problem]:
    if not isinstance(metadata, dict):
        yield Problem("metadata", f"expected an object with a name, got {metadata!r:.120}")
        return
    for name in metadata.keys() - _METADATA_FIELDS:
        yield Problem(f"metadata.{name}", "unknown field")
    yield from _names(metadata)
    for field in ("labels", "annotations"):
        yield from _labels(field, metadata.get(field))


def _names(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(name, str) or not name:
        got = "none" if name is None else f"{_json(name):.120}{_quotes('string', name)}"
        yield Problem("metadata.name", f"expected a text, got {got}")
    # Rules of the CRD say that it has no dots and at most 40 characters.
    elif len(name) > _SUBDOMAIN_LENGTH or not _SUBDOMAIN.fullmatch(name):
        yield Problem(
            "metadata.name",
            f"expected lower case letters, digits and '-', first and last a letter or digit, at most "
            f"{MAX_NAME_LENGTH}, got {name!r:.300}",
        )
    if namespace is None or namespace == "":
        return
    if not isinstance(namespace, str):
        got = f"{_json(namespace):.120}{_quotes('string', namespace)}"
        yield Problem("metadata.namespace", f"expected a text, got {got}")
    elif len(namespace) > _LABEL_LENGTH or not _NAME.fullmatch(namespace):
        yield Problem(
            "metadata.namespace",
            f"expected lower case letters, digits and '-', first and last a letter or digit, at most "
            f"{_LABEL_LENGTH}, got {namespace!r:.120}",
        )


def _labels(field: str, entries: Any) -> Iterator[Problem]:
    if entries is None:
        return
    if not isinstance(entries, dict):
        yield Problem(f"metadata.{field}", f"expected names with texts, got {entries!r:.120}")
        return
    for key, value in entries.items():
        path = f"metadata.{field}.{key}"
        prefix, slash, name = key.rpartition("/")
        # Annotations are compared in lower case, which allows capitals in their prefix.
        prefix = prefix.lower() if field == "annotations" else prefix
        if slash and (len(prefix) > _SUBDOMAIN_LENGTH or not _SUBDOMAIN.fullmatch(prefix)):
            yield Problem(path, f"expected a domain before '/', got {prefix!r:.300}")
        if len(name) > _LABEL_LENGTH or not _LABEL.fullmatch(name):
            yield Problem(path, f"expected a name of {_SYNTAX}, got {name!r:.120}")
        # Null is an empty text there.
        if value is None:
            continue
        if not isinstance(value, str):
            yield Problem(path, f"expected a text, got {_json(value)}{_quotes('string', value)}")
        elif field == "labels" and value and (len(value) > _LABEL_LENGTH or not _LABEL.fullmatch(value)):
            yield Problem(path, f"expected a value of {_SYNTAX}, got {value!r:.120}")
    texts = (text for item in entries.items() for text in item if isinstance(text, str))
    size = sum(len(text.encode()) for text in texts)
    if field == "annotations" and size > _ANNOTATIONS_BYTES:
        yield Problem("metadata.annotations", f"expected at most {_ANNOTATIONS_BYTES} bytes, got {size}")


_SYNTAX = (
    f"letters, digits, '-', '_' and '.', first and last a letter or digit, at most {_LABEL_LENGTH} characters"
)


# Rules: several fields together, in CEL.


def _broken_rules(kind: str, body: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _check_rules(body, schema_of(kind), "")


def _check_rules(value: Any, schema: Schema, path: str) -> Iterator[Problem]:
    for item in schema.get("x-kubernetes-validations", ()):
        rule = _rule(path, item)
        if not rule.compares_versions:
            yield from _check_rule(rule, value, schema)
    if isinstance(value, dict):
        for name, child in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                yield from _check_rules(child, below, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and "items" in schema:
        for index, child in enumerate(value):
            yield from _check_rules(child, schema["items"], f"{path}[{index}]")


def _check_rule(rule: Rule, value: Any, schema: Schema) -> Iterator[Problem]:
    # Two rules speak of the object's name, and stand at the object.
    path = rule.path or rule.message.partition(":")[0]
    this = {"self": _cel_value(value, schema)}
    try:
        if _evaluate(rule.cel, this):
            return
    # A rule that meets a value of another type fails on an API server, too.
    except Exception as error:
        yield Problem(path, f"the rule {rule.cel!r} cannot be evaluated: {error}")
        return
    message = rule.message if rule.expression is None else str(_evaluate(rule.expression, this))
    yield Problem(path, message.removeprefix(f"{path}: "))


@cache
def _program(expression: str) -> Any:
    environment = _environment()
    functions = {"format": _format, "isSorted": _is_sorted}
    return environment.program(environment.compile(expression), functions=functions)


@cache
def _environment() -> Any:
    import celpy

    # It raises the limit of the whole process, for expressions far deeper than ours.
    limit = sys.getrecursionlimit()
    try:
        return celpy.Environment()
    finally:
        sys.setrecursionlimit(limit)


def _evaluate(expression: str, variables: Mapping[str, Any]) -> Any:
    return _program(expression).evaluate(variables)


def _cel_value(value: Any, schema: Schema) -> Any:
    """Convert a JSON value to CEL's types, which follow from the schema: 1 is a double in a number field."""
    from celpy import celtypes

    if isinstance(value, dict):
        properties, entries = schema.get("properties", {}), schema.get("additionalProperties")
        # Metadata has no schema of its own; rules may read its names only, which are texts.
        return celtypes.MapType(
            {
                celtypes.StringType(name): _cel_value(child, properties.get(name) or entries or {})
                for name, child in value.items()
            }
        )
    if isinstance(value, list):
        return celtypes.ListType([_cel_value(item, schema.get("items", {})) for item in value])
    if isinstance(value, bool):
        return celtypes.BoolType(value)
    if isinstance(value, str):
        return celtypes.StringType(value)
    if schema.get("type") == "number" or isinstance(value, float):
        return celtypes.DoubleType(value)
    return celtypes.IntType(value)


def _format(template: Any, values: Any) -> Any:
    """CEL's ``'... %s'.format([...])``, which celpy lacks: an extension of cel-go that Kubernetes uses."""
    from celpy import celtypes

    return celtypes.StringType(str(template) % tuple(map(_text, values)))


def _text(value: Any) -> str:
    """Write a value as cel-go does: items of lists otherwise than values by themselves."""
    if isinstance(value, list):
        return f"[{', '.join(map(_item_text, value))}]"
    if type(value).__name__ == "BoolType":
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _item_text(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:.6f}" if isinstance(value, float) else _text(value)


def _is_sorted(values: Any) -> Any:
    """``[...].isSorted()`` of Kubernetes' list library."""
    from celpy import celtypes

    pairs = zip(values, values[1:], strict=False)
    return celtypes.BoolType(all(low <= high for low, high in pairs))
