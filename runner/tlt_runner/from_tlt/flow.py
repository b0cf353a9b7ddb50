"""From spec files to one flow of manifests: training, pruning, retraining, export."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from tlt_api.base import API_VERSION
from tlt_api.failures import Reason
from tlt_api.resources import KINDS, MAX_NAME_LENGTH
from tlt_runner.errors import RunnerError
from tlt_runner.from_tlt import ours, parsing
from tlt_runner.from_tlt.paths import Maps, join, stripped
from tlt_runner.from_tlt.report import SpecReport
from tlt_runner.from_tlt.spec import Spec
from tlt_runner.from_tlt.translate import translate
from tlt_runner.from_tlt.translation import Translation, shown
from tlt_runner.kubectl_yaml import dump

_SUFFIXES = ("-pruned", "-retrained", "-export")
_LONGEST = MAX_NAME_LENGTH - max(len(suffix) for suffix in _SUFFIXES)
_PRUNING_THRESHOLD = 0.1
"""TLT's default of ``tlt prune -pth``."""
_BROUGHT = (
    "model.backbone",
    "model.activation",
    "model.anchors",
    "model.proposals.deltaScale",
    "model.roi.headStride",
    "model.roi.poolSize",
    "model.roi.deltaScales",
    "model.roi.dropout",
)
"""Fields that a TrainingJob with ``model.from`` ignores: the model brings them."""


@dataclass(frozen=True)
class Manifest:
    """A manifest, and what to say above it."""

    body: dict[str, Any]
    comment: str = ""


@dataclass(frozen=True)
class Flow:
    """The result of an import.

    Attributes:
        manifests: In the order in which they run.
        reports: What became of the fields, by spec.
    """

    manifests: tuple[Manifest, ...]
    reports: tuple[SpecReport, ...]

    @property
    def lost(self) -> list[str]:
        """The changes of meaning: one text each."""
        return [text for report in self.reports for text in report.lost]

    def text(self, origin: str) -> str:
        """Return the manifests as YAML.

        Args:
            origin: Names of the specs, for the first line.
        """
        documents = [
            f"# {manifest.comment}\n" * bool(manifest.comment) + dump(manifest.body, block_style=False)
            for manifest in self.manifests
        ]
        return f"# Made by tlt import from {origin}.\n" + "---\n".join(documents)


def build(
    contents: Sequence[tuple[str, str]], maps: Maps, name: str | None = None, output: str | None = None
) -> Flow:
    """Import specs that belong together.

    Args:
        contents: Name and text of each spec: a training, a retraining or both, and up to two of
            dataset_convert.
        maps: Addresses of paths.
        name: Name of the TrainingJob; by default that of the first spec's file.
        output: Folder of all outputs; by default that of the spec, or ``runs`` at the first address.

    Raises:
        RunnerError: InvalidSpec; the specs do not belong together, cannot be read, or a field leaves no valid
            manifest. Every such field is named with file and line.
    """
    files = [file for file, _ in contents]
    if twice := sorted({file for file in files if files.count(file) > 1}):
        raise RunnerError(Reason.INVALID_SPEC, f"expected each spec once, got {', '.join(twice)} again")
    read = [parsing.parse(file, content) for file, content in contents]
    training, retraining, converts = _sorted(read)
    main = training or retraining
    assert main is not None
    name = _name(name, main.file)
    outputs = _Outputs(maps, name, output)
    first = translate(main, converts, maps)
    translations, manifests, last = [first], [], name
    if retraining is None:
        manifests.append(_training(first, name, outputs))
    elif first.spec is retraining and retraining.continues:
        _continue(first)
        manifests.append(_training(first, name, outputs))
    else:
        pruned, last = f"{name}-pruned", f"{name}-retrained"
        second = translate(retraining, converts, maps, parent=first)
        translations.append(second)
        manifests.append(_training(first, name, outputs))
        _retrain(second, pruned, invented=training is None)
        manifests += [_pruning(name, pruned, outputs, second), _training(second, last, outputs)]
    manifests.append(_export(last, f"{name}-export", outputs))
    _check(translations, manifests)
    reports = [first.report(training)] if training else []
    if retraining:
        # Without a training spec the first training is this one's, too, and loses what it loses.
        earlier = first if training is None and first is not translations[-1] else None
        reports.append(translations[-1].report(retraining, earlier))
    reports += [first.report(convert) for convert in converts]
    return Flow(tuple(manifests), tuple(reports))


def _sorted(read: Sequence[Spec]) -> tuple[Spec | None, Spec | None, list[Spec]]:
    """Return the training, the retraining, and the conversions."""
    converts = [one for one in read if one.kind == "convert"]
    trainings = [one for one in read if one.kind == "training" and not one.retrains]
    retrainings = [one for one in read if one.kind == "training" and one.retrains]
    for what, found, most in (
        ("training spec", trainings, 1),
        ("spec with retrain_pruned_model", retrainings, 1),
        ("spec of dataset_convert", converts, 2),
    ):
        if len(found) > most:
            files = ", ".join(one.file for one in found)
            hint = "Import specs of different trainings one after another."
            raise RunnerError(Reason.INVALID_SPEC, f"expected at most {most} {what}, got {files}", hint)
    if not trainings and not retrainings:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a training spec besides {', '.join(one.file for one in converts)}, which describes a "
            "data set only",
            "Name both: tlt import train.txt convert.txt --map ... --out FILE",
        )
    return next(iter(trainings), None), next(iter(retrainings), None), converts


def _name(given: str | None, file: str) -> str:
    """Return the name of the TrainingJob: as given, or the file's in the letters that Kubernetes allows."""
    if given is None:
        name = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(file).stem.lower())[:_LONGEST].strip("-")
        return name if re.match(r"[a-z]", name) else f"job-{name}"[:_LONGEST].strip("-")
    if len(given) > _LONGEST or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"--name: expected up to {_LONGEST} small letters, digits and -, a letter first, got {given!r}",
            "The names of the other resources are made from it.",
        )
    return given


class _Outputs:
    """Output folders of the resources, all different."""

    def __init__(self, maps: Maps, name: str, output: str | None) -> None:
        self._maps = maps
        self._base = stripped(output) if output else join(maps.first or "", "runs")
        self._given = output is not None
        self._used: set[str] = set()

    def of_training(self, t: Translation, name: str) -> str:
        """Return the folder of a training: that of the model file in older specs, or below the base."""
        for item in t.of("training_config.output_model"):
            if self._given or not item.value:
                t.without(item, "--output is given" if self._given else "empty")
            elif path := t.address(item, re.sub(r"\.(tlt|hdf5|h5)$", "", str(item.value))):
                # A whole claim or bucket has no folder around it.
                if path.count("/") > 2:
                    self._base = stripped(path.rpartition("/")[0])
                # Two specs may name one file, which TLT would replace; two jobs need two folders.
                address = self._distinct(path) if path not in self._used else self.of(name)
                t.changed(item, "output.uri", address, "a folder, of models, checkpoints and records")
                return address
        address = self.of(name)
        if not t.of("training_config.output_model"):
            t.assume(f"output.uri {address}", "TLT's results folder is in no spec")
        return address

    def of(self, name: str) -> str:
        """Return the folder of another resource."""
        return self._distinct(join(self._base, name))

    def _distinct(self, address: str) -> str:
        """Return an address that no other resource has: the given one, or one with a number."""
        numbers = itertools.count(2)
        candidate = address
        while candidate in self._used:
            candidate = f"{address}-{next(numbers)}"
        self._used.add(candidate)
        return candidate


def _manifest(kind: str, name: str, spec: dict[str, Any], comment: str = "") -> Manifest:
    head = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}}
    return Manifest({**head, "spec": spec}, comment)


_FIRST = ("dataset", "model", "training", "evaluation", "visualization")
"""Fields that a reader looks for first; the API lists what all kinds share before."""


def _training(t: Translation, name: str, outputs: _Outputs) -> Manifest:
    t.put("output.uri", outputs.of_training(t, name))
    t.put("resources.gpus", 1)
    t.assume("resources.gpus 1", "TLT's --gpus is in no spec")
    t.assume("training.keepCheckpoints 0", "besides best and last; TLT keeps all")
    return _manifest("TrainingJob", name, ours.ordered(t.job, _FIRST))


def _continue(t: Translation) -> None:
    """Begin with a model file of this product, which brings its network."""
    for item in t.of("training_config.retrain_pruned_model"):
        if address := t.address(item):
            t.put("model.from.uri", address)
            t.taken(item, "model.from.uri", address)
    for to in ("model.pretrainedWeights", *_BROUGHT):
        t.withdraw(to, "the model brings it", kept=True)


def _retrain(t: Translation, pruned: str, *, invented: bool) -> None:
    """Train the model of a PruneJob, which brings its network."""
    for item in t.of("training_config.retrain_pruned_model"):
        words = "the model that the PruneJob makes; TLT's file is not read"
        if invented:
            words += "; without a training spec beside this one, it is first trained as this one says"
        t.changed(item, "model.from.pruneJobRef", pruned, words, kept=not invented)
    t.put("model.from", {"pruneJobRef": {"name": pruned}})
    assert t.parent is not None
    for to in _BROUGHT:
        given = t.got(to)
        same = given in (None, t.parent.got(to))
        words = "the pruned model brings it" if same else "the pruned model keeps its own, another value"
        said = t.entries_of(to)
        t.withdraw(to, words, kept=same)
        if not same and not said:  # TLT's value of an absent field
            t.assume(f"{to} {shown(given)}", words, kept=False)


def _pruning(name: str, pruned: str, outputs: _Outputs, t: Translation) -> Manifest:
    t.assume(
        f"PruneJob/{pruned} threshold {_PRUNING_THRESHOLD}",
        "TLT's default of -pth; the options of its prune command are in no spec",
    )
    spec = {
        "model": {"trainingJobRef": {"name": name}},
        "threshold": _PRUNING_THRESHOLD,
        "output": {"uri": outputs.of(pruned)},
    }
    comment = "threshold: TLT's default of prune -pth; the options of its command are in no spec."
    return _manifest("PruneJob", pruned, spec, comment)


def _export(model: str, name: str, outputs: _Outputs) -> Manifest:
    spec = {
        "model": {"trainingJobRef": {"name": model}},
        "precisions": ["fp32"],
        "output": {"uri": outputs.of(name)},
    }
    return _manifest("ExportJob", name, spec)


def _check(translations: Sequence[Translation], manifests: Sequence[Manifest]) -> None:
    """Refuse what leaves no valid manifest, by the fields of the specs that are the cause."""
    problems = [problem for t in translations for problem in t.problems]
    if not problems:
        for manifest in manifests:
            problems += _violations(translations, manifest)
    if problems:
        raise RunnerError(
            Reason.INVALID_SPEC,
            "\n  ".join(dict.fromkeys(problems)),
            "Correct these fields, or give the flags that are named.",
        )


def _violations(translations: Sequence[Translation], manifest: Manifest) -> Iterator[str]:
    body = manifest.body
    try:
        KINDS[body["kind"]].spec.model_validate(body["spec"])
    except ValidationError as error:
        for item in error.errors():
            to = ".".join(str(part) for part in item["loc"] if not isinstance(part, int))
            # A missing field has none itself; those beside it show where it belongs.
            near = (to, to.rpartition(".")[0])
            fields = [
                f"{entry.file}:{entry.line}: {entry.field} {entry.value}"
                for path in near
                for t in translations
                for entry in (t.entries_of(path) if path else [])
            ]
            # A rule of a whole section has many.
            causes = (
                "; ".join(list(dict.fromkeys(fields))[:4]) or f"{body['kind']}/{body['metadata']['name']}"
            )
            yield f"{causes}: {to}: {item['msg'].removeprefix('Value error, ')}"
