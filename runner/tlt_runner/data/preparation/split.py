"""Split samples into training and validation by a hash of name and seed, stratified by class, in groups.

Pure but for :func:`read_groups`. Preparation calls it with the classes that the labels name.

A group (of one image, unless groupBy joins several) has a draw in [0, 1) that depends on its name and the
seed alone, and is held out when the draw is below the fraction. Groups are compared within their stratum, the
rarest class that they show of those that another group shows, too; only where a stratum's share would be off
by more than a tenth (or half a group), the line is moved to the nearest draw with which it is not. So shares
hold for rare classes too, and images that come or go move no others, but for a few at the line of a small
stratum. A group that shares no class with another one goes to the training set.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tlt_api.dataset import GroupBy
from tlt_api.failures import Reason
from tlt_runner.data.formats import lines
from tlt_runner.data.sample import Sample
from tlt_runner.errors import RunnerError

TOLERANCE = 0.1
"""Relative deviation of a stratum's held-out share from which the line is moved."""
MAX_BYTES = 256 << 20
"""Largest size of a file of groups."""
_SUFFIXES = {".jpg", ".jpeg", ".png"}


def draw(name: str, seed: int) -> float:
    """Draw a number in [0, 1) that depends on the seed and the name alone."""
    # A hash instead of a random generator: the draw of an image does not depend on which others there are.
    text = f"{seed}:{name}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


@dataclass
class _Group:
    """Images that stay together.

    Attributes:
        draw: Its number in [0, 1).
        images: Number of images.
        classes: Classes of their objects.
    """

    draw: float
    images: int = 0
    classes: set[str] = field(default_factory=set)


def held_out(
    groups: Sequence[str], classes: Sequence[Iterable[str]], fraction: float, seed: int
) -> list[bool]:
    """Decide for each image whether it is held out.

    Args:
        groups: Group of each image; images of one group stay together.
        classes: Classes of each image's objects.
        fraction: Share to hold out, above 0 and below 1.
        seed: Seed of the draw.
    """
    members: dict[str, _Group] = {}
    for name, image_classes in zip(groups, classes, strict=True):
        group = members.setdefault(name, _Group(draw(name, seed)))
        group.images += 1
        group.classes.update(image_classes)
    # Sorted by draw once: each stratum is then in the order of its draws.
    ordered = sorted(members.items(), key=lambda item: (item[1].draw, item[0]))
    # Class -> number of groups that show it.
    spread = Counter(name for _, group in ordered for name in group.classes)
    held = _by_stratum([group for _, group in ordered], spread, fraction)
    _show_every_class_on_both_sides([group for _, group in ordered], spread, held)
    chosen = {name for (name, _), is_held in zip(ordered, held, strict=True) if is_held}
    return [name in chosen for name in groups]


def _by_stratum(ordered: Sequence[_Group], spread: Mapping[str, int], fraction: float) -> list[bool]:
    strata: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(ordered):
        # A class that no other group shows cannot be on both sides, so it decides nothing.
        shared = [name for name in group.classes if spread[name] > 1]
        # A group with such classes only is in no stratum, and stays in training: held out, its classes could
        # not be learnt. Groups without objects are a stratum of their own ("").
        if shared or not group.classes:
            strata[min(shared, key=lambda name: (spread[name], name), default="")].append(index)
    if all(len(members) == 1 for members in strata.values()):
        # No two groups are in one stratum, so none could be divided: draw among all of them.
        strata = defaultdict(list, {"": list(range(len(ordered)))})
    # The lowest draws of each stratum, up to its line, are held out.
    held = [False] * len(ordered)
    for members in strata.values():
        for index in members[: _line([ordered[index] for index in members], fraction)]:
            held[index] = True
    return held


def _line(stratum: Sequence[_Group], fraction: float) -> int:
    """Number of groups of a stratum, from the lowest draw, that are held out; of several, one at least."""
    # A single group cannot be on both sides: it stays in training.
    if len(stratum) == 1:
        return 0
    sums = [0]
    for group in stratum:
        sums.append(sums[-1] + group.images)
    # The draw alone decides where it comes close enough, so that new images do not move old ones. Groups
    # differ in size: half of the largest one is as close as a cut between two groups may come.
    target = fraction * sums[-1]
    # As many groups as the draw alone would hold out; cuts that are close enough are compared with it.
    drawn = sum(group.draw < fraction for group in stratum)
    slack = max(TOLERANCE * target, max(group.images for group in stratum) / 2)
    both_sides = range(1, len(stratum))
    fitting = [count for count in both_sides if abs(sums[count] - target) <= slack]
    # Else the line goes to the nearest cut that is close enough, or to the closest cut there is.
    if fitting:
        return min(fitting, key=lambda count: (abs(count - drawn), count))
    return min(both_sides, key=lambda count: (abs(sums[count] - target), count))


def _show_every_class_on_both_sides(
    ordered: Sequence[_Group], spread: Mapping[str, int], held: list[bool]
) -> None:
    """Move a group of each class whose groups all fell on one side, because rarer classes decided.

    No group is moved that would leave a side without another class of several groups.
    """
    # Held out or not -> number of groups on that side that show a class.
    sides: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for group, is_held in zip(ordered, held, strict=True):
        sides[is_held].update(group.classes)
    for name in sorted(sides[True] | sides[False]):
        if spread[name] == 1 or (sides[True][name] and sides[False][name]):
            continue
        # The class is on one side only. Groups next to the line move first: theirs is the closest draw.
        side = sides[True][name] > 0
        candidates = [index for index, group in enumerate(ordered) if name in group.classes]
        for index in reversed(candidates) if side else candidates:
            # Each of its other classes must keep a group on this side, unless it has but this one.
            classes = ordered[index].classes
            if all(sides[side][other] > 1 or spread[other] == 1 for other in classes - {name}):
                held[index] = not side
                sides[side].subtract(classes)
                sides[not side].update(classes)
                break


@dataclass(frozen=True)
class Grouping:
    """Groups of samples.

    Attributes:
        groups: One a sample.
        ungrouped: Samples that the file of groups does not name; each is a separate group.
        unused: Names in that file that are no samples.
    """

    groups: list[str]
    ungrouped: int = 0
    unused: int = 0


def grouping(samples: Sequence[Sample], by: GroupBy | None, table: Mapping[str, str]) -> Grouping:
    """Find the group of each sample.

    Args:
        samples: The samples.
        by: How they are grouped; None makes each sample a separate group.
        table: Image name -> group, from :func:`read_groups`, where ``by`` names a file.
    """
    if by is None:
        return Grouping([sample.stem for sample in samples])
    if by.separator is not None:
        return Grouping([_prefix(sample.stem, by.separator) for sample in samples])
    groups, used, ungrouped = [], set(), 0
    for sample in samples:
        # The file may name images relative to the image folder or to the data set's root.
        key = next((name for name in (sample.stem, sample.name) if name in table), None)
        used.add(key)
        ungrouped += key is None
        # A group of its own: no name in the file begins with a NUL, so it cannot join one by accident.
        groups.append(f"\0{sample.stem}" if key is None else table[key])
    return Grouping(groups, ungrouped, len(table.keys() - used))


def _prefix(stem: str, separator: str) -> str:
    """Cut a stem at its last separator; a separator without "/" is searched in the file name only."""
    folder, slash, name = stem.rpartition("/")
    if "/" in separator:
        return stem.rpartition(separator)[0] or stem
    return folder + slash + (name.rpartition(separator)[0] or name)


def read_groups(path: Path, name: str) -> dict[str, str]:
    """Read the group of each image, by its name without suffix.

    Args:
        path: TLT's sequence map (``.json``: sequence -> list of frames) or a table of two columns, image name
            and group, with a comma or white space between; a first line ``image,group`` is a heading.
        name: Name of the file in errors.

    Raises:
        OSError: The storage fails.
        RunnerError: ``InvalidSpec`` with the file and the line or field at fault.
    """
    try:
        text = lines.text(path, MAX_BYTES)
    except ValueError as error:
        raise _wrong(name, str(error)) from error
    pairs = _of_sequences(text, name) if path.suffix.lower() == ".json" else _of_table(text, name)
    table: dict[str, str] = {}
    for image, group, position in pairs:
        # The same image may be named several times, as long as its group is the same.
        key = _without_suffix(image)
        if table.setdefault(key, group) != group:
            raise _wrong(
                name, f"{position}: expected one group for {image!r}, got {table[key]!r} and {group!r}"
            )
    return table


def _of_sequences(text: str, name: str) -> Iterable[tuple[str, str, str]]:
    try:
        sequences = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(name, f"expected JSON: {error}") from error
    # The file is not trusted: a list, or frames that are no texts, must not fail later without a position.
    if not isinstance(sequences, dict):
        raise _wrong(name, f"expected an object, sequence -> list of frames, got {type(sequences).__name__}")
    for sequence, frames in sequences.items():
        if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
            raise _wrong(name, f"{sequence!r}: expected a list of frame names, got {str(frames)[:80]}")
        for frame in frames:
            yield frame, sequence, repr(sequence)


def _of_table(text: str, name: str) -> Iterable[tuple[str, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            columns = next(csv.reader([line], skipinitialspace=True)) if "," in line else line.split()
        except csv.Error as error:
            raise _wrong(name, f"line {number}: {error}") from error
        columns = [column.strip() for column in columns]
        if len(columns) != 2 or not all(columns):
            raise _wrong(
                name,
                f"line {number}: expected two columns, image and group, with a comma or white space between, "
                f"got {line[:80]!r}",
            )
        # A heading is optional, and only this one is recognised.
        if number == 1 and [column.lower() for column in columns] == ["image", "group"]:
            continue
        yield columns[0], columns[1], f"line {number}"


def _without_suffix(image: str) -> str:
    path = PurePosixPath(image)
    return str(path.with_suffix("")) if path.suffix.lower() in _SUFFIXES else str(path)


def _wrong(name: str, message: str) -> RunnerError:
    return RunnerError(
        Reason.INVALID_SPEC, f"{name}: {message}", "Correct spec.dataset.validation.groupBy.file."
    )
