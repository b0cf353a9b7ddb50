"""Generate the CustomResourceDefinitions from the models: ``python -m tlt_api.crdgen crds``.

pydantic's JSON Schema is converted to a structural schema: references are inlined, optional fields lose
``null`` (so that CEL's ``has`` is false for an absent field), and exclusive bounds take the form of OpenAPI
3.0. Rules in CEL, the immutability of ``spec``, size limits that bound CEL's cost, and printer columns are
added.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tlt_api.base import GROUP, VERSION
from tlt_api.common import (
    CLUSTER_URI_PATTERN,
    CLUSTER_WEIGHTS_URI_PATTERN,
    URI_PATTERN,
    WEIGHTS_URI_PATTERN,
)
from tlt_api.resources import KINDS, MAX_NAME_LENGTH, Kind, crd_name

Schema = dict[str, Any]

MUTABLE = {"suspend", "retry", "runPolicy", "output.overwrite"}
"""Fields of the spec that may change: they decide whether, how often and how long, not what is run."""
AT_CREATION = "oldSelf.hasValue() || "
"""Beginning of a rule (with ``optionalOldSelf``) about what cannot change: it holds of what is stored."""
_PARTLY_MUTABLE = {path.rsplit(".", 1)[0] for path in MUTABLE if "." in path}
_DEFAULT_MAX_LENGTH = 1024
_DEFAULT_MAX_ITEMS = 1024
_IN_A_CLUSTER = {URI_PATTERN: CLUSTER_URI_PATTERN, WEIGHTS_URI_PATTERN: CLUSTER_WEIGHTS_URI_PATTERN}
_API_VERSION = f"Versioned schema of this representation of the object: {GROUP}/{VERSION}."
_KIND = "Kind of the object, in CamelCase. It cannot be updated."
# Keywords without a place in a structural schema. additionalProperties: false is one, because properties are
# given; kubectl reports unknown fields, and the API server drops them.
_DROPPED = {"title", "$defs", "additionalProperties"}


def custom_resource_definition(kind: Kind) -> Schema:
    """Return the CustomResourceDefinition of a kind, as JSON data."""
    spec = _structural(kind.spec.model_json_schema(by_alias=True))
    _fit_the_cluster(spec)
    immutability = _immutability(spec)
    _check_once(spec)
    _own_as_a_whole(spec)
    # No rules and no immutability: the status is written by the product's own processes.
    status = _structural(kind.status.model_json_schema(by_alias=True))
    _drop_defaults(status)
    _own_as_a_whole(status)
    root = {
        "description": (kind.spec.__doc__ or "").strip(),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": _API_VERSION, "type": "string"},
            "kind": {"description": _KIND, "type": "string"},
            # The API server refuses a description here: it has its own.
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [*_name_rules(), immutability],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        # A write of the status leaves metadata.generation alone, which therefore counts changes of the spec.
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": c.name, "type": c.type, "jsonPath": c.path, **({"priority": 1} if c.wide else {})}
            for c in kind.columns
        ],
    }
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "shortNames": [kind.short_name],
        "categories": ["tlt"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": crd_name(kind)},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _name_rules() -> list[Schema]:
    length = f"metadata.name: expected at most {MAX_NAME_LENGTH} characters (child names must fit)"
    dots = "metadata.name: expected no dots (references and child names have none)"
    return [
        {
            "rule": f"size(self.metadata.name) <= {MAX_NAME_LENGTH}",
            "message": length,
            "messageExpression": f"'{length}, got %s'.format([size(self.metadata.name)])",
        },
        {"rule": "!self.metadata.name.contains('.')", "message": dots},
    ]


def _immutability(spec: Schema) -> Schema:
    """Return the rule by which the spec stays as it is, but for the mutable fields.

    One rule for all fields, at the object, where it can see the status: to compare a spec costs an API server
    a millisecond, and most writes are those of a status. A request for the status cannot change the spec, and
    any other one cannot change the status (the API server takes the stored one), so that a phase or a report
    of progress that differs says that there is nothing to compare.
    """
    same = dict(_comparisons(spec))
    *first, last = same
    changed = "".join(f"!({same[path]}) ? '{path}' : " for path in first) + f"'{last}'"
    written = " || ".join(
        _comes_or_differs(path) for path in ("status.phase", "status.progress.lastUpdateTime")
    )
    reason = "is immutable: create another resource, or delete this one and create it again"
    return {
        "rule": f"{written} || ({' && '.join(same.values())})",
        "message": f"spec, but for {', '.join(sorted(MUTABLE))}, {reason}",
        "messageExpression": f"'spec.%s {reason}'.format([{changed}])",
        "fieldPath": ".spec",
    }


def _comes_or_differs(path: str) -> str:
    """Return in CEL that a field is there, and was not before or was another one."""
    # Not by optional values (``self.?status``), whose cost an API server cannot estimate.
    names = path.split(".")
    present = {
        root: " && ".join(f"has({root}.{'.'.join(names[: end + 1])})" for end in range(len(names)))
        for root in ("self", "oldSelf")
    }
    return f"({present['self']} && (!({present['oldSelf']}) || self.{path} != oldSelf.{path}))"


def _comparisons(schema: Schema, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the path of each field of the spec that cannot change, and in CEL that it has not."""
    required = set(schema.get("required", ()))
    for name, child in schema["properties"].items():
        path = f"{prefix}{name}"
        if path in _PARTLY_MUTABLE:
            yield from _comparisons(child, f"{path}.")
        elif path not in MUTABLE:
            new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
            # A field with a default is always present. An optional one may neither come nor go.
            if name in required or "default" in child:
                yield path, f"{new} == {old}"
            else:
                yield path, f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"


def _check_once(spec: Schema) -> None:
    """Let the rules of what cannot change be checked when it is created, not at each write of a status."""
    _at_creation(spec)
    for name, child in spec["properties"].items():
        if name not in MUTABLE and name not in _PARTLY_MUTABLE:
            for node in _correlated(child):
                _at_creation(node)


def _correlated(schema: Schema) -> Iterator[Schema]:
    """Return the nodes that have a stored value to compare with: the items of a list have none."""
    yield schema
    for child in schema.get("properties", {}).values():
        yield from _correlated(child)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _correlated(schema["additionalProperties"])


def _at_creation(node: Schema) -> None:
    if rules := node.get("x-kubernetes-validations"):
        # New ones: a model that stands in two places has one list of rules.
        node["x-kubernetes-validations"] = [
            {**rule, "rule": f"{AT_CREATION}({rule['rule']})", "optionalOldSelf": True} for rule in rules
        ]


def _structural(schema: Schema) -> Schema:
    inlined: Schema = _inline(schema, schema.get("$defs", {}))
    return inlined


def _inline(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    # The order matters: an optional model is a union of a reference and null.
    node = _without_reference(_without_null(node), definitions)
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    # The keys of `properties` are names of fields, one of which may be called like a keyword.
    if "properties" in result:
        properties = result["properties"].items()
        result["properties"] = {name: _inline(value, definitions) for name, value in properties}
    if "items" in result:
        result["items"] = _inline(result["items"], definitions)
    # A map from names to values: the one use of additionalProperties that is kept.
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _inline(node["additionalProperties"], definitions)
    # OpenAPI 3.0 has no const.
    if "const" in result:
        result["enum"] = [result.pop("const")]
    # A default of null says that the field may be absent, which `required` says already.
    if "default" in result:
        result["default"] = _without_absent(result["default"])
        if result["default"] is None:
            del result["default"]
    # JSON Schema has the bound in exclusiveMinimum; in OpenAPI 3.0 that is a flag beside minimum.
    for bound in ("Minimum", "Maximum"):
        if isinstance(result.get(f"exclusive{bound}"), int | float):
            result[bound.lower()] = result[f"exclusive{bound}"]
            result[f"exclusive{bound}"] = True
    if "description" in result:
        # Line breaks are those of the source file.
        result["description"] = " ".join(result["description"].split())
    return result


def _without_null(node: Schema) -> Schema:
    options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
    if "anyOf" not in node:
        return node
    # Structural schemas know no unions: a union is several optional fields and a rule (exactly_one_of).
    if len(options) != 1:
        raise ValueError(f"a structural schema has one type a field, got {node['anyOf']}")
    return {**options[0], **{key: value for key, value in node.items() if key != "anyOf"}}


def _without_reference(node: Schema, definitions: Schema) -> Schema:
    if "$ref" not in node:
        return node
    target = definitions[node["$ref"].rsplit("/", 1)[1]]
    # The description and default beside a reference are those of the field, and take precedence.
    overrides = {key: value for key, value in node.items() if key != "$ref"}
    return _without_null({**target, **overrides})


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    return value


def _fit_the_cluster(schema: Schema) -> None:
    """Add size limits, and exclude the addresses that exist in local runs only."""
    for node in _walk(schema):
        # CEL's estimated cost follows from the longest possible value: without limits, rules are refused.
        if node.get("type") == "string" and "enum" not in node:
            node.setdefault("maxLength", _DEFAULT_MAX_LENGTH)
        # file:// is for local runs: the file system of a pod is lost with the pod.
        pattern = node.get("pattern")
        if pattern in _IN_A_CLUSTER:
            node["pattern"] = _IN_A_CLUSTER[pattern]
        if node.get("type") == "array":
            node.setdefault("maxItems", _DEFAULT_MAX_ITEMS)


def _drop_defaults(status: Schema) -> None:
    """Drop the defaults of a status: the API server would write values that nobody has reported."""
    for node in _walk(status):
        node.pop("default", None)


def _walk(schema: Schema) -> Iterator[Schema]:
    yield schema
    for child in schema.get("properties", {}).values():
        yield from _walk(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _walk(schema[key])


def _own_as_a_whole(schema: Schema) -> None:
    """Let each object in a spec or status have one field manager, rather than one for each of its fields.

    The API server notes and compares the manager of every field at each write: for a spec that was written as
    a whole and never changes, and for sections that one process reports, this was half of a stored resource,
    and a quarter of the cost of a write.
    """
    for name, child in schema["properties"].items():
        # Somebody may apply suspend or a TTL beside the manifest.
        if name not in _PARTLY_MUTABLE and name not in MUTABLE and "properties" in child:
            child["x-kubernetes-map-type"] = "atomic"


class _Dumper(yaml.SafeDumper):
    """YAML dumper without anchors: two equal defaults are written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(kind: Kind) -> str:
    """Return the CustomResourceDefinition as the text of the committed YAML file."""
    head = "# Generated by `make generate` (tlt_api.crdgen) from the models in crds/tlt_api. Do not edit.\n"
    body = yaml.dump(custom_resource_definition(kind), Dumper=_Dumper, sort_keys=False, width=110)
    return head + body


def main(folder: Path) -> None:
    """Write one file per kind to ``folder``."""
    for kind in KINDS.values():
        (folder / f"{crd_name(kind)}.yaml").write_text(to_yaml(kind), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "crds"))
