"""What each sample is for, and into which file its record goes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.parallel import in_order, workers
from tlt_runner.data.preparation import split
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.records import SUBSETS, Subset
from tlt_runner.data.sample import Reader, Sample
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.storage import Storage, join

BATCH = 16
"""Labels that a thread reads at a time."""
IMAGES_PER_SHARD = 256
SHARDS_TOGETHER = 8
"""The number of files is a multiple of this, so that 2, 4 or 8 readers get the same share ..."""
FEWEST_TO_SHARE = 64
"""... from so many images on; fewer are one file."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A sample and what it is for.

    Attributes:
        sample: The image with its label.
        reader: Reads the label.
        subset: What it is for.
    """

    sample: Sample
    reader: Reader
    subset: Subset


@dataclass(frozen=True)
class PlannedShard:
    """A file of records to be made.

    Attributes:
        name: File name.
        subset: What it is for.
        items: The images, in the records' order.
    """

    name: str
    subset: Subset
    items: Sequence[Planned]

    @property
    def sidecar(self) -> str:
        """Name of the file beside it that says what is in it."""
        return str(PurePosixPath(self.name).with_suffix(".json"))


@dataclass(frozen=True)
class Plan:
    """The whole.

    Attributes:
        items: Every sample: those to train on first, each by name.
        classes: Objects of all samples, by their own class.
        ungrouped: Samples that the file of groups does not name.
        unused_groups: Names in that file that are no samples.
    """

    items: Sequence[Planned]
    classes: Counter[str]
    ungrouped: int
    unused_groups: int

    @property
    def warnings(self) -> list[str]:
        """What a person should look at."""
        warnings = []
        if self.ungrouped:
            warnings.append(
                f"{self.ungrouped} images are not in the file of groups; each is a group of its own"
            )
        if self.unused_groups:
            warnings.append(f"{self.unused_groups} names in the file of groups are no usable images")
        return warnings


def plan(
    found: Sequence[Source], dataset: Dataset, storage: Storage, check: Callable[[], None] = lambda: None
) -> Plan:
    """Decide what each sample is for; reads every label once, opens no image.

    Args:
        found: Folders of the data set.
        dataset: How images are held out, and which classes count.
        storage: Reads the file of groups.
        check: Called before each sample; raises to stop.

    Raises:
        RunnerError: ``InvalidSpec`` for a file of groups that cannot be read, or where all images are one.
    """
    mapping = ClassMapping(dataset.target_class_mapping)
    all_classes: Counter[str] = Counter()
    items: list[Planned] = []
    ungrouped = unused = 0
    for source in found:
        samples = source.listing.samples
        to_learn: list[frozenset[str]] = []
        for counts in _classes(source, check):
            all_classes.update(counts)
            targets = map(mapping.target, counts)
            to_learn.append(frozenset(target for target in targets if target is not None))
        held: Sequence[bool] = [source.subset == "validation"] * len(samples)
        if source.subset is None:
            grouping = _grouping(samples, dataset, storage)
            ungrouped, unused = ungrouped + grouping.ungrouped, unused + grouping.unused
            fraction, seed = dataset.validation.fraction or 0.0, dataset.validation.seed
            held = split.held_out(grouping.groups, to_learn, fraction, seed)
        for sample, is_held in zip(samples, held, strict=True):
            items.append(Planned(sample, source.reader, "validation" if is_held else "training"))
    items.sort(key=lambda item: (item.subset, item.sample.name))
    return Plan(items, all_classes, ungrouped, unused)


def _classes(source: Source, check: Callable[[], None]) -> Iterator[Counter[str]]:
    with ThreadPoolExecutor(workers()) as threads:
        for _, counts in in_order(threads, source.reader.classes, source.listing.samples, check, BATCH):
            yield counts


def _grouping(samples: Sequence[Sample], dataset: Dataset, storage: Storage) -> split.Grouping:
    by = dataset.validation.group_by
    table: dict[str, str] = {}
    if by is not None and by.file is not None:
        uri = join(dataset.uri, by.file)
        with storage_errors(uri):
            table = split.read_groups(storage.fetch(uri), uri)
    grouping = split.grouping(samples, by, table)
    if by is not None and len(samples) > 1 and len(set(grouping.groups)) == 1:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"spec.dataset.validation.groupBy: expected several groups, so that some can be held out, got "
            f"all {len(samples)} images in one, {grouping.groups[0]!r}",
            "Group by another separator or file, or name the validation images yourself.",
        )
    return grouping


def shards(items: Iterable[Planned]) -> list[PlannedShard]:
    """Cut each subset into files that are alike.

    Images are in the order of a hash of their name; numbers of images differ by one at most.
    """
    by_subset: dict[Subset, list[Planned]] = {subset: [] for subset in SUBSETS}
    for item in sorted(items, key=lambda item: (_place(item.sample.name), item.sample.name)):
        by_subset[item.subset].append(item)
    planned = []
    for subset, its_items in by_subset.items():
        images = len(its_items)
        count = shard_count(images)
        for number in range(count):
            name = f"{subset}-{number:05d}-of-{count:05d}.tfrecord"
            mine = its_items[number * images // count : (number + 1) * images // count]
            planned.append(PlannedShard(name, subset, mine))
    return planned


def shard_count(images: int) -> int:
    """Number of files for so many images."""
    count = -(-images // IMAGES_PER_SHARD)
    return count if images < FEWEST_TO_SHARE else -(-count // SHARDS_TOGETHER) * SHARDS_TOGETHER


def duplicates(items: Sequence[Planned], images: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
    """Images that are there twice, byte for byte.

    Args:
        items: Every sample.
        images: Digest of each image, by the name of its sample.

    Returns:
        Validation images that are training images, too; training images that are another training image once
        more. Paths relative to the data set's root.
    """
    first: dict[bytes, str] = {}
    repeated = []
    for item in items:
        name, digest = item.sample.name, images[item.sample.name]
        if item.subset == "training" and first.setdefault(digest, name) != name:
            repeated.append(item.sample.image_file)
    held_out = (item.sample for item in items if item.subset == "validation")
    return [sample.image_file for sample in held_out if images[sample.name] in first], repeated


def _place(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()
