"""Reading of manifest files: the documents of our API group, and every mistake by file, document and field.

Called by ``tlt validate``, ``tlt run`` and ``tlt <command> -f``. YAML is read as kubectl reads it, and the
verdict is that of an API server (:mod:`tlt_runner.admission`), but that addresses of this machine are allowed
and said. What files mean together, such as two resources with one output, is checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tlt_api import references, resources
from tlt_api.base import API_VERSION, GROUP
from tlt_api.failures import Reason
from tlt_api.resources import KINDS, InvalidResourceError, Resource
from tlt_runner import admission, kubectl_yaml
from tlt_runner.errors import RunnerError

SUFFIXES = (".yaml", ".yml", ".json")
_TLT_SPEC = re.compile(
    r"^\s*(model_config|network_config|training_config|dataset_config|augmentation_config|eval_config"
    r"|evaluation_config|inference_config|kitti_config|coco_config)\s*:?\s*\{",
    re.MULTILINE,
)
"""A block that a specification of TLT or TAO begins with, in protobuf's text format."""
_LOOKED_AT = 64 * 1024
"""Bytes of a file that are looked at to tell what it is."""
_NAMED = 5
"""Files that a message names of those that are no manifests."""


@dataclass(frozen=True)
class Document:
    """A valid document of our API group.

    Attributes:
        position: ``file, document N``.
        resource: Its resource.
        local: Reasons why a cluster refuses it although a run on this machine is possible: addresses with
            file://.
        warnings: What is read otherwise than it looks.
    """

    position: str
    resource: Resource
    local: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """The documents of a file or folder: valid ones, invalid ones and those of other APIs.

    Attributes:
        documents: Valid documents, in order of reading.
        problems: Mistakes: one text each, with position, field, expected and got.
        ignored: Documents of other API groups, subfolders and other files: one text each.
    """

    documents: tuple[Document, ...]
    problems: tuple[str, ...]
    ignored: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return one line for each document, problem and warning, and a last one with the totals."""
        # Valid by itself, a document may be refused for what it means beside the others.
        documents = [
            item
            for item in self.documents
            if not any(text.startswith(f"{item.position}: ") for text in self.problems)
        ]
        local = [item for item in documents if item.local]
        valid = [
            f"{'local' if item.local else 'valid':8} {item.position}: {item.resource.key}"
            + (f": a cluster refuses {'; '.join(item.local)}" if item.local else "")
            for item in documents
        ]
        wrong = [f"invalid  {text}" for text in self.problems]
        if not self.documents and not self.problems:
            wrong = [f"nothing  expected at least one {' or '.join(KINDS)}, got none"]
        other = [f"ignored  {text}" for text in self.ignored]
        warnings = [f"warning  {text}" for text in self.warnings()]
        total = f"{len(valid)} valid, {len(self.problems)} invalid, {len(other)} ignored"
        if local:
            total += f"; {len(local)} of the valid without a cluster only"
        return [*valid, *wrong, *other, *warnings, total]

    def warnings(self) -> list[str]:
        """Return what is read otherwise than it looks, with its position."""
        return [f"{item.position}: {text}" for item in self.documents for text in item.warnings]

    @property
    def refused(self) -> bool:
        """True if a document is invalid, or there is none of our API group."""
        return bool(self.problems or not self.documents)

    def require_valid(self) -> list[Resource]:
        """Return the resources of all documents, or refuse them if one is invalid.

        Raises:
            RunnerError: InvalidSpec; a document is invalid, none is of our API group, or two have one name
                in different namespaces, which runs without a cluster do not know.
        """
        problems = [*self.problems, *_duplicates(self.documents, namespaces=False)]
        if problems:
            raise RunnerError(Reason.INVALID_SPEC, "\n  ".join(("", *problems)))
        if not self.documents:
            kinds, others = " or ".join(KINDS), "; ".join(self.ignored) or "no files"
            raise RunnerError(Reason.INVALID_SPEC, f"expected at least one {kinds}, got: {others}")
        return [item.resource for item in self.documents]


def read(path: Path) -> Checked:
    """Read a manifest file, or all files of a folder but not of its subfolders; mistakes are collected.

    Raises:
        RunnerError: InvalidSpec; the path does not exist or cannot be read.
    """
    files, ignored = _files(path)
    contents: list[tuple[str, str]] = []
    for file in files:
        # A specification of TLT is no YAML, whatever its file is called.
        if _is_tlt_spec(file):
            ignored.append(_tlt_spec(file))
        else:
            contents.append((str(file), _text_of(file)))
    return check(contents, ignored)


def check(contents: Sequence[tuple[str, str]], ignored: Sequence[str] = ()) -> Checked:
    """Check manifests by their texts; mistakes are collected, so that one call names all of them.

    Args:
        contents: Name and YAML of each file.
        ignored: What was left out before.
    """
    documents: list[Document] = []
    problems: list[str] = []
    others = list(ignored)
    for name, text in contents:
        try:
            bodies = list(_bodies(name, text))
        # One damaged file does not hide the mistakes in the others.
        except yaml.YAMLError as error:
            problems.append(f"{name}: not YAML: {' '.join(str(error).split())}")
            continue
        for position, body, warnings in bodies:
            if not _is_ours(body):
                others.append(f"{position}: {_description(body)} is not of {GROUP}")
                continue
            try:
                documents.append(_parse(position, body, warnings))
            except InvalidResourceError as error:
                # A key read otherwise than written is most often the reason.
                problems.append("; ".join((f"{position}: {error}", *warnings)))
    found = (*problems, *_duplicates(documents), *_shared_outputs(documents), *_cycles(documents))
    return Checked(tuple(documents), found, tuple(others))


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """List the manifest files, and say what else there is."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a manifest or a folder of manifests, got {path}, which is not there",
        )
    entries = sorted(path.iterdir())
    files = [entry for entry in entries if entry.is_file() and entry.suffix in SUFFIXES]
    others = [entry for entry in entries if entry.is_file() and entry.suffix not in SUFFIXES]
    specs = [entry for entry in others if _is_tlt_spec(entry)]
    ignored = [f"{entry}: a subfolder; name it to read it" for entry in entries if entry.is_dir()]
    ignored += [_tlt_spec(entry) for entry in specs]
    # Beside manifests any files may lie; only where there is nothing else they are an answer.
    rest = [entry.name for entry in others if entry not in specs]
    if rest and not files and not specs:
        more = f" and {len(rest) - _NAMED} more" if len(rest) > _NAMED else ""
        names = f"{', '.join(rest[:_NAMED])}{more}"
        ignored.append(f"{path}: {names}: no manifests, whose names end in {', '.join(SUFFIXES)}")
    return files, ignored


def _is_tlt_spec(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(_LOOKED_AT)
    except OSError:
        return False
    return _TLT_SPEC.search(start.decode("utf-8", "replace")) is not None


def _tlt_spec(file: Path) -> str:
    return f"{file}: a specification of TLT: `tlt import {file}` converts it to manifests"


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunnerError(Reason.INVALID_SPEC, f"expected UTF-8 text in {file}, got: {error}") from None


def _bodies(name: str, text: str) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Yield position, body and warnings of each document; the items of a List count as documents."""
    number = 0
    loader = kubectl_yaml.Loader(text)
    while loader.check_data():  # type: ignore[no-untyped-call]
        loader.warnings = []
        body = loader.get_data()
        # An empty document, as two --- in a row make one, is none for kubectl either.
        if body is None:
            continue
        number += 1
        position, warnings = f"{name}, document {number}", tuple(loader.warnings)
        if isinstance(body, dict) and body.get("kind") == "List" and isinstance(body.get("items"), list):
            for index, item in enumerate(body["items"], start=1):
                yield f"{position}, item {index}", item, warnings
        else:
            yield position, body, warnings


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


def _parse(position: str, body: dict[str, Any], warnings: tuple[str, ...]) -> Document:
    kind = body.get("kind")
    # Nothing of another version can be checked by this one's schema.
    if body.get("apiVersion") != API_VERSION or not isinstance(kind, str) or kind not in KINDS:
        raise InvalidResourceError(
            f"expected apiVersion {API_VERSION} and kind {' or '.join(KINDS)}, "
            f"got {body.get('apiVersion')!r} and {kind!r}"
        )
    stored, dropped = admission.as_stored(kind, body)
    refusals = admission.problems(kind, stored)
    # The models have checks beyond the schema, which the operator applies to what is stored, and sentences
    # where a pattern can only show itself. Otherwise a field is not named twice.
    by_models = dict(_refused_by_models(kind, stored))
    refusals = [problem for problem in refusals if not (problem.pattern and problem.path in by_models)]
    named = {problem.path for problem in refusals}
    clauses = [
        *(str(problem) for problem in refusals if not problem.local),
        *(f"{path}: {text}" for path, text in by_models.items() if path not in named),
    ]
    if clauses:
        metadata = stored.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        raise InvalidResourceError(f"{kind}/{name}: {'; '.join(clauses)}")
    local = tuple(str(problem) for problem in refusals if problem.local)
    return Document(position, resources.parse(stored), local, (*warnings, *dropped))


def _refused_by_models(kind: str, body: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:  # as an API server types: 100 and 1e2 are numbers, "100" is a text
        KINDS[kind].spec.model_validate_json(json.dumps(body.get("spec") or {}), strict=True)
    except ValidationError as error:
        return resources.clauses(error)
    return []


def _duplicates(documents: Sequence[Document], *, namespaces: bool = True) -> Iterator[str]:
    first_positions: dict[tuple[str, str], str] = {}
    for item in documents:
        namespace = item.resource.namespace if namespaces else ""
        first = first_positions.setdefault((namespace, item.resource.key), item.position)
        if first != item.position:
            yield f"{item.position}: {item.resource.key} stands in {first} already"


def _shared_outputs(documents: Sequence[Document]) -> Iterator[str]:
    """Name the resources whose results would overwrite those of another one."""
    first_documents: dict[tuple[str, str], Document] = {}
    for item in documents:
        uri = item.resource.spec.output.uri.rstrip("/")
        # A claim belongs to a namespace; buckets do not.
        namespace = item.resource.namespace if uri.startswith("pvc://") else ""
        first = first_documents.setdefault((namespace, uri), item)
        # Of one resource that stands twice, that is the mistake.
        if first is not item and first.resource.key != item.resource.key:
            yield (
                f"{item.position}: {item.resource.key}: spec.output.uri: {uri} is the output of "
                f"{first.resource.key} in {first.position}, too: expected an output of its own, or the "
                "results of one would overwrite those of the other"
            )


def _cycles(documents: Sequence[Document]) -> Iterator[str]:
    by_key = {
        (item.resource.namespace, item.resource.kind.name, item.resource.name): item.resource
        for item in documents
    }
    for item in documents:
        namespace = item.resource.namespace

        def lookup(kind: str, name: str, namespace: str = namespace) -> Resource | None:
            return by_key.get((namespace, kind, name))

        # A reference out of the folder resolves to nothing here, which is no mistake: a cluster may hold it.
        resolved = references.resolve(item.resource, lookup)
        if isinstance(resolved, references.Broken) and resolved.reason == Reason.DEPENDENCY_CYCLE:
            yield f"{item.position}: {resolved.message}"
