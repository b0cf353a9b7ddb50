"""Reading of manifest files: the documents of our API group, and every mistake by file, document and field.

Called by ``tlt validate``, ``tlt run`` and ``tlt <command> -f``. The API's models decide, and types are as
strict as an API server's: a text is not a number, and a key may not appear twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tlt_api import references, resources
from tlt_api.base import GROUP
from tlt_api.failures import Reason
from tlt_api.resources import KINDS, InvalidResourceError, Resource
from tlt_runner.errors import RunnerError

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Document:
    """A valid document of our API group.

    Attributes:
        position: ``file, document N``.
        resource: Its resource.
    """

    position: str
    resource: Resource


@dataclass(frozen=True)
class Checked:
    """The documents of a file or folder: valid ones, invalid ones and those of other APIs.

    Attributes:
        documents: Valid documents, in order of reading.
        problems: Mistakes: one text each, with position, field, expected and got.
        ignored: Documents of other API groups, and subfolders: one text each.
    """

    documents: tuple[Document, ...]
    problems: tuple[str, ...]
    ignored: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return one line for each document, and a last one with the totals."""
        valid = [f"valid    {item.position}: {item.resource.key}" for item in self.documents]
        wrong = [f"invalid  {text}" for text in self.problems]
        other = [f"ignored  {text}" for text in self.ignored]
        total = f"{len(valid)} valid, {len(wrong)} invalid, {len(other)} ignored"
        return [*valid, *wrong, *other, total]

    def require_valid(self) -> list[Resource]:
        """Return the resources of all documents, or refuse them if one is invalid.

        Raises:
            RunnerError: InvalidSpec; a document is invalid, or none is of our API group.
        """
        if self.problems:
            raise RunnerError(Reason.INVALID_SPEC, "\n  ".join(("", *self.problems)))
        if not self.documents:
            other_documents = "; ".join(self.ignored) or "no documents"
            raise RunnerError(
                Reason.INVALID_SPEC, f"expected at least one {' or '.join(KINDS)}, got: {other_documents}"
            )
        return [item.resource for item in self.documents]


def read(path: Path) -> Checked:
    """Read a manifest file, or all files of a folder but not of its subfolders; mistakes are collected.

    Raises:
        RunnerError: InvalidSpec; the path does not exist or cannot be read.
    """
    files, ignored = _files(path)
    # Mistakes are collected: the user corrects all of them after one call.
    documents: list[Document] = []
    problems: list[str] = []
    for file in files:
        try:
            bodies = list(_bodies(file))
        # One damaged file does not hide the mistakes in the others.
        except yaml.YAMLError as error:
            problems.append(f"{file}: not YAML: {' '.join(str(error).split())}")
            continue
        for position, body in bodies:
            if not _is_ours(body):
                ignored.append(f"{position}: {_description(body)} is not of {GROUP}")
                continue
            try:
                documents.append(Document(position, _parse(body)))
            except InvalidResourceError as error:
                problems.append(f"{position}: {error}")
    return Checked(
        tuple(documents), (*problems, *_duplicates(documents), *_cycles(documents)), tuple(ignored)
    )


def _files(path: Path) -> tuple[list[Path], list[str]]:
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a manifest or a folder of manifests, got {path}, which is not there",
        )
    entries = sorted(path.iterdir())
    files = [entry for entry in entries if entry.is_file() and entry.suffix in SUFFIXES]
    return files, [f"{entry}: a subfolder; name it to read it" for entry in entries if entry.is_dir()]


def _bodies(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the position and the body of each document; the items of a List count as documents."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunnerError(Reason.INVALID_SPEC, f"expected UTF-8 text in {file}, got: {error}") from None
    number = 0
    for body in yaml.load_all(text, Loader=_Loader):  # noqa: S506 - a SafeLoader
        # An empty document, as two --- in a row make one, is none for kubectl either.
        if body is None:
            continue
        number += 1
        position = f"{file}, document {number}"
        if isinstance(body, dict) and body.get("kind") == "List" and isinstance(body.get("items"), list):
            yield from ((f"{position}, item {i}", item) for i, item in enumerate(body["items"], start=1))
        else:
            yield position, body


def _is_ours(body: Any) -> bool:
    if not isinstance(body, dict):
        return False
    # By kind too: a manifest with a misspelt apiVersion is invalid, not one of another API.
    return str(body.get("apiVersion")).startswith(f"{GROUP}/") or body.get("kind") in KINDS


def _description(body: Any) -> str:
    if not isinstance(body, dict):
        return f"a {type(body).__name__}"
    name = (body.get("metadata") or {}).get("name") if isinstance(body.get("metadata"), dict) else None
    return f"{body.get('kind') or 'a document without kind'}{f'/{name}' if name else ''}"


def _parse(body: dict[str, Any]) -> Resource:
    metadata = body.get("metadata")
    # resources.parse takes metadata as a cluster has checked them: there, a name that is no text would be a
    # TypeError.
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidResourceError(f"metadata.name: expected a text, got {metadata!r:.120}")
    # First as the operator reads it, whose messages name the fields; then once more, strictly.
    resource = resources.parse(body)
    try:  # as an API server types: 100 and 1e2 are numbers, "100" is a text
        resource.kind.spec.model_validate_json(json.dumps(body.get("spec") or {}), strict=True)
    except ValidationError as error:
        raise InvalidResourceError(f"{resource.key}: {resources.explain(error)}") from None
    return resource


def _duplicates(documents: list[Document]) -> Iterator[str]:
    first_positions: dict[str, str] = {}
    for item in documents:
        first = first_positions.setdefault(item.resource.key, item.position)
        if first != item.position:
            yield f"{item.position}: {item.resource.key} stands in {first} already"


def _cycles(documents: list[Document]) -> Iterator[str]:
    by_key = {(item.resource.kind.name, item.resource.name): item.resource for item in documents}
    for item in documents:
        # A reference out of the folder resolves to nothing here, which is no mistake: a cluster may hold it.
        resolved = references.resolve(item.resource, lambda kind, name: by_key.get((kind, name)))
        if isinstance(resolved, references.Broken) and resolved.reason == Reason.DEPENDENCY_CYCLE:
            yield f"{item.position}: {resolved.message}"


class _Loader(yaml.SafeLoader):
    """Reads YAML as an API server does: duplicate keys are a mistake, 5e-6 is a number, a date is a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; refuse one in which a key appears twice."""
        keys: set[Any] = set()
        for key_node, _ in node.value:
            # A merge key (<<) is no key of the mapping: SafeLoader replaces it below.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            # Keys of other types may not be hashable; SafeLoader refuses those by itself.
            if isinstance(key, str | int | float | bool) and key in keys:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping",
                    node.start_mark,
                    f"the key {key!r} stands twice",
                    key_node.start_mark,
                )
            keys.add(key if isinstance(key, str | int | float | bool) else id(key_node))
        return super().construct_mapping(node, deep)


# PyYAML reads YAML 1.1: 2026-01-01 would be a date. Its float needs a dot and a signed exponent: 5e-6 would
# be a text. An API server reads both as JSON does.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)
