"""Look at a folder of images and labels, and print the ``dataset`` block that reads it: ``tlt data``.

What it says about the folder is printed as comments, so that the whole output can be pasted into a manifest.
It finds the places as ``spec.dataset.layout: auto`` does, and reads every label with the readers of the jobs;
of the images only the headers of a few are read.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tlt_api.dataset import MOST_CLASSES, NOT_A_CLASS, Dataset
from tlt_api.failures import Reason
from tlt_api.status import LabelConvention
from tlt_runner.data.images import decode
from tlt_runner.data.preparation import conventions, layout, planning, sources
from tlt_runner.data.preparation.conventions import Conventions
from tlt_runner.data.preparation.layout import Layout
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.sample import Problem
from tlt_runner.errors import RunnerError
from tlt_runner.kubectl_yaml import dump
from tlt_runner.storage import Storage

SIZES = 500
"""Images of which the size is read."""
LARGEST = 1280
"""Longest side of the network's input that is proposed."""
SMALLEST, STRIDE = 64, 16
_ANY_CLASS = {"-": "-"}
_NAMED = 10


@dataclass(frozen=True)
class Described:
    """What a folder holds, in words and as the block that reads it.

    Attributes:
        lines: Sentences about the folder.
        block: Fields of ``spec.dataset``.
    """

    lines: Sequence[str]
    block: Mapping[str, Any]

    def __str__(self) -> str:
        """Return the block as YAML below the sentences as comments."""
        comments = "".join(f"# {line}\n" for line in self.lines)
        return comments + dump({"dataset": dict(self.block)})


def describe(folder: Path, volumes: Path) -> Described:
    """Look at a folder.

    Args:
        folder: The folder.
        volumes: Folder of claims: what is below it gets an address of its claim.

    Raises:
        RunnerError: ``DatasetNotFound`` or ``NoLabels``: it cannot be read; the message says what it has and
            what is missing.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise RunnerError(Reason.DATASET_NOT_FOUND, f"expected a folder, got {folder}, where {what} is")
    found = layout.find(folder)
    if found.fields is None:
        raise RunnerError(
            Reason.NO_LABELS,
            f"{folder} cannot be read as a data set: {found.missing}; it has "
            f"{'; '.join(found.seen) or 'no file'}",
            "docs/data.md has a table of annotation tools, with the export to choose and its format.",
        )
    # Sizes and classes are not known yet; nothing that is looked at here depends on them.
    provisional = {"targetClassMapping": _ANY_CLASS, "imageSize": {"width": SMALLEST, "height": SMALLEST}}
    places, outlined = dict(found.fields), 0
    with tempfile.TemporaryDirectory(prefix="tlt-", ignore_cleanup_errors=True) as scratch:
        storage = Storage(scratch=Path(scratch))
        parts, decided, plan = _read(folder, {**places, **provisional}, storage)
        if places["format"] in ("coco", "yolo"):
            boxed = _read(folder, {**places, "shapes": "boundingBox", **provisional}, storage)
            outlined = boxed[2].classes.total() - plan.classes.total()
            if outlined:
                places["shapes"] = "boundingBox"
                parts, decided, plan = boxed
    learnable = [name for name, _ in plan.classes.most_common() if name != NOT_A_CLASS and len(name) <= 128]
    if not learnable:
        raise RunnerError(
            Reason.NO_LABELS,
            f"{folder}: {found}: no object that could be learnt: {_objects(plan.classes)}; "
            + "; ".join(_peculiarities(found, decided, plan, parts)),
            "docs/data.md has a table of annotation tools, with the export to choose and its format.",
        )
    sizes = _sizes(parts)
    block: dict[str, Any] = {
        "uri": _address(folder, volumes),
        **places,
        "targetClassMapping": {name: name for name in sorted(learnable[:MOST_CLASSES])},
        "imageSize": _network_size(sizes),
    }
    subsets = Counter(item.subset for item in plan.items)
    lines = [
        *_contents(folder, found, parts, sizes),
        _objects(plan.classes),
        _split(found, subsets),
        *[f"objects drawn as polygons or rotated boxes, which get the box around them: {outlined}"]
        * bool(outlined),
        *_peculiarities(found, decided, plan, parts),
    ]
    return Described(lines, block)


def _read(
    folder: Path, fields: Mapping[str, Any], storage: Storage
) -> tuple[Sequence[Source], Conventions, planning.Assignment]:
    """Read all labels, as a job would with these fields of ``spec.dataset``."""
    dataset = Dataset.model_validate({"uri": f"file://{folder}", **fields})
    parts = sources.find(dataset, storage)
    decided = conventions.decide(dataset, conventions.look(dataset, parts))
    parts = decided.applied(parts)
    # The split is made, too: it tells how many images the default holds out.
    return parts, decided, planning.plan(parts, dataset, storage)


def _address(folder: Path, volumes: Path) -> str:
    """Return the address of a folder: in its claim, if it is below the folder of claims."""
    resolved, claims = folder.resolve(), volumes.resolve()
    if resolved.is_relative_to(claims) and resolved != claims:
        return f"pvc://{resolved.relative_to(claims)}"
    return f"file://{folder}"


def _contents(
    folder: Path, found: Layout, parts: Sequence[Source], sizes: Counter[tuple[int, int]]
) -> list[str]:
    images = sum(part.listing.images for part in parts)
    labelled = sum(sample.key is not None for part in parts for sample in part.listing.samples)
    lines = [f"{folder}: {found.parts[0].format.upper()}"]
    lines.append(f"images: {images}, of which {labelled} have a label{_size_range(sizes)}")
    return lines


def _size_range(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    areas = sorted(sizes, key=lambda size: size[0] * size[1])
    smallest, largest = (f"{width} x {height}" for height, width in (areas[0], areas[-1]))
    return f"; {smallest} pixels" if smallest == largest else f"; {smallest} to {largest} pixels"


def _objects(classes: Counter[str]) -> str:
    named = ", ".join(f"{name} {count}" for name, count in classes.most_common(_NAMED))
    more = f" and {len(classes) - _NAMED} more classes" if len(classes) > _NAMED else ""
    return f"objects: {classes.total()}{f' ({named}{more})' if classes else ''}"


def _split(found: Layout, subsets: Counter[Any]) -> str:
    counts = f"{subsets['training']} images to train on, {subsets['validation']} to validate on"
    if found.fields is not None and "validation" in found.fields:
        return f"split: {counts}, as found"
    return f"split: none found; by default a fifth is held out at random: {counts}"


def _peculiarities(
    found: Layout, decided: Conventions, plan: planning.Assignment, parts: Sequence[Source]
) -> list[str]:
    """Say what is unusual: notes, conventions and their doubts, and what cannot be used."""
    lines = [*found.notes, *_convention("coordinates", decided.coordinates)]
    lines += [*_convention("orientation", decided.orientation), *decided.warnings, *plan.warnings]
    said = [text for part in parts for text in (*part.listing.notes, *part.listing.warnings)]
    # Two folders with the class names of one file say the same.
    lines += dict.fromkeys(said)
    skipped = [finding for part in parts for finding in part.listing.skipped]
    for problem, count in sorted(Counter(finding.problem for finding in skipped).items()):
        first = next(finding for finding in skipped if finding.problem == problem)
        lines.append(f"images that are not used, {problem}: {count} (as {first.file}: {first.message})")
    listings = [part.listing for part in parts]
    counts = {
        "labels without an image": sum(len(listing.orphans) for listing in listings),
        "label files that cannot be used": sum(len(listing.findings) for listing in listings),
        "images that no label file lists, which are no part of the data set": sum(
            len(listing.outside) for listing in listings
        ),
        "entries of the image folders that are no images": sum(
            max(0, listing.other_files - listing.read_files) for listing in listings
        ),
        "images in none of the lists": sum(listing.unlisted for listing in listings),
    }
    return lines + [f"{what}: {count}" for what, count in counts.items() if count]


def _convention(name: str, convention: LabelConvention | None) -> list[str]:
    if convention is None:
        return []
    return [f"{name}: {convention.value}, by {convention.decided_by} ({convention.evidence})"]


def _sizes(parts: Sequence[Source]) -> Counter[tuple[int, int]]:
    """Count height and width of images spread evenly over the data set."""
    samples = [sample for part in parts for sample in part.listing.samples]
    step = -(-len(samples) // SIZES) or 1
    sizes: Counter[tuple[int, int]] = Counter()
    for sample in samples[::step]:
        try:
            sizes[decode.size_of_file(sample.image)] += 1
        except decode.BadImageError as error:
            if error.problem is Problem.HUGE_IMAGE:
                continue
    return sizes


def _network_size(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    """Propose a size of the network's input: that of most images, no side above :data:`LARGEST`."""
    height, width = sizes.most_common(1)[0][0] if sizes else (LARGEST, LARGEST)
    scale = min(1.0, LARGEST / max(height, width))
    proposed = {
        name: max(SMALLEST, side if scale == 1 else min(LARGEST, round(side * scale / STRIDE) * STRIDE))
        for name, side in (("width", width), ("height", height))
    }
    # Stretched alike, all images keep their shapes; others would be distorted each in its own way.
    ratios = [size[1] / size[0] for size in sizes]
    mode: Literal["stretch", "letterbox"] = "stretch"
    if ratios and max(ratios) > 1.05 * min(ratios):
        mode = "letterbox"
    return {**proposed, **({"mode": mode} if mode == "letterbox" else {})}
