"""The API's descriptions are plain English that stands alone: ``kubectl explain`` shows a field by itself."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import tlt_api
from tlt_api import crdgen
from tlt_api.resources import KINDS, Kind

RELATIVE_CLAUSE = re.compile(
    r"(What|Where|Whether|Which|Who|Whose|When|Why|How|That|The same|The one|Of|As above|Its|Their)\b"
)


def problem(description: str) -> str | None:
    """Return the first rule of plain words that a description breaks."""
    if not description:
        return "has no description"
    if not description[0].isupper():
        return "does not start with an upper-case letter"
    if not description.endswith("."):
        return "does not end with a full stop"
    if RELATIVE_CLAUSE.match(description):
        return "starts with a relative clause, or cannot be understood without its neighbours"
    return None


def described(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield path and description of a schema's properties, in items and additional properties too."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child.get("description", "")
        yield from described(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from described(schema[key], f"{path}[]")


def api_classes() -> list[type]:
    """List the public classes that the modules of tlt_api define."""
    modules = [
        importlib.import_module(f"tlt_api.{module.name}") for module in pkgutil.iter_modules(tlt_api.__path__)
    ]
    return [
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and item.__module__ == module.__name__ and not item.__name__.startswith("_")
    ]


@pytest.mark.parametrize(
    "description",
    [
        "",
        "decay.",
        "EMA decay",
        "Where results are written.",
        "The same of rmsprop.",
        "Whether XLA compiles.",
    ],
)
def test_a_description_that_does_not_stand_alone_is_refused(description: str) -> None:
    assert problem(description)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_property_of_a_crd_has_a_description_that_stands_alone(kind: Kind) -> None:
    version = crdgen.custom_resource_definition(kind)["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    # The API server describes metadata itself, and refuses a CRD that does.
    del root["properties"]["metadata"]
    descriptions = [(kind.name, root.get("description", "")), *described(root, kind.name)]
    assert len(descriptions) > 100
    assert {path: problem(text) for path, text in descriptions if problem(text)} == {}


def test_every_class_of_the_api_has_a_docstring_that_stands_alone() -> None:
    classes = api_classes()
    assert len(classes) > 50
    summaries = {item.__name__: (item.__dict__.get("__doc__") or "").split("\n\n")[0] for item in classes}
    assert {name: problem(text) for name, text in summaries.items() if problem(text)} == {}
