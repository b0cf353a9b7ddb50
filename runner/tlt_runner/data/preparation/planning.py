"""Plan a conversion: the subset of each sample, and the shard into which it goes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.parallel import StageProgress, in_order, workers
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
"""Factor of the number of shards of a subset, so that 2, 4 or 8 readers read equally many."""
FEWEST_TO_SHARE = 64
"""Images of a subset from which that holds; fewer are one shard."""


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """Sample with its subset.

    Attributes:
        sample: The image with its label.
        reader: Reads the label.
        subset: Training or validation.
    """

    sample: Sample
    reader: Reader
    subset: Subset


@dataclass(frozen=True)
class PlannedShard:
    """Shard to be made.

    Attributes:
        name: File name.
        subset: Training or validation.
        items: The images, in the records' order.
    """

    name: str
    subset: Subset
    items: Sequence[PlannedSample]

    @property
    def sidecar(self) -> str:
        """Name of the file beside the shard that describes its content."""
        return str(PurePosixPath(self.name).with_suffix(".json"))


@dataclass(frozen=True)
class Assignment:
    """Assignment of all samples to subsets.

    Attributes:
        items: Every sample, training before validation, each subset sorted by name.
        classes: Number of objects of all samples by their own class.
        ungrouped: Samples that the file of groups does not name.
        unused_groups: Names in that file that are no samples.
        spaced_classes: Classes of KITTI lines with a space in them, which the format separates columns by.
    """

    items: Sequence[PlannedSample]
    classes: Counter[str]
    ungrouped: int
    unused_groups: int
    spaced_classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """Warnings of the report about the file of groups, and about names of classes."""
        warnings = []
        if self.spaced_classes:
            named = ", ".join(
                f"{name!r} ({count})" for name, count in sorted(self.spaced_classes.items())[:10]
            )
            warnings.append(
                f"{sum(self.spaced_classes.values())} KITTI lines have a class with a space: {named}; all "
                "columns before the last 14 or 15, which are numbers, are taken for the class"
            )
        if self.ungrouped:
            warnings.append(
                f"{self.ungrouped} images are not in the file of groups; each is a group of its own"
            )
        if self.unused_groups:
            warnings.append(f"{self.unused_groups} names in the file of groups are no usable images")
        return warnings


def plan(
    sources: Sequence[Source], dataset: Dataset, storage: Storage, progress: StageProgress | None = None
) -> Assignment:
    """Split the samples into training and validation. Reads every label once, opens no image.

    Args:
        sources: Folders of the data set.
        dataset: How images are held out, and which classes count.
        storage: Reads the file of groups.
        progress: Ends the work when it is to stop.

    Raises:
        RunnerError: ``InvalidSpec`` for a file of groups that cannot be read, or where all images are one.
    """
    mapping = ClassMapping(dataset.target_class_mapping)
    all_classes: Counter[str] = Counter()
    items: list[PlannedSample] = []
    ungrouped = unused = 0
    # The labels of all images are read before the first image is opened: the split needs every class.
    for source in sources:
        samples = source.listing.samples
        # The split looks at the classes to learn: those that the mapping leaves out must not decide it.
        to_learn: list[frozenset[str]] = []
        for counts in _classes(source, progress):
            all_classes.update(counts)
            targets = map(mapping.target, counts)
            to_learn.append(frozenset(target for target in targets if target is not None))
        # A folder that is named for a subset belongs to it as a whole.
        held: Sequence[bool] = [source.subset == "validation"] * len(samples)
        # Only a folder that is named for neither subset is split; the others are what the spec says.
        if source.subset is None:
            grouping = _grouping(samples, dataset, storage)
            ungrouped, unused = ungrouped + grouping.ungrouped, unused + grouping.unused
            fraction, seed = dataset.validation.fraction or 0.0, dataset.validation.seed
            held = split.held_out(grouping.groups, to_learn, fraction, seed)
        # The reader stays with the sample: two sources may be of two readers.
        for sample, is_held in zip(samples, held, strict=True):
            items.append(PlannedSample(sample, source.reader, "validation" if is_held else "training"))
    # Training before validation, by name: an order that depends on neither threads nor the file system.
    items.sort(key=lambda item: (item.subset, item.sample.name))
    spaced = {name: count for name, count in all_classes.items() if " " in name}
    return Assignment(items, all_classes, ungrouped, unused, spaced if dataset.format == "kitti" else {})


def _classes(source: Source, progress: StageProgress | None) -> Iterator[Counter[str]]:
    with ThreadPoolExecutor(workers()) as threads:
        for _, counts in in_order(threads, source.reader.classes, source.listing.samples, progress, BATCH):
            yield counts


def _grouping(samples: Sequence[Sample], dataset: Dataset, storage: Storage) -> split.Grouping:
    by = dataset.validation.group_by
    table: dict[str, str] = {}
    if by is not None and by.file is not None:
        uri = join(dataset.uri, by.file)
        with storage_errors(uri):
            # Fetched and not read in place: the file may be in a bucket.
            table = split.read_groups(storage.fetch(uri), uri)
    grouping = split.grouping(samples, by, table)
    # With one group everything would be training data; usually the separator or the file is the wrong one.
    if by is not None and len(samples) > 1 and len(set(grouping.groups)) == 1:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"spec.dataset.validation.groupBy: expected several groups, so that some can be held out, got "
            f"all {len(samples)} images in one, {grouping.groups[0]!r}",
            "Group by another separator or file, or name the validation images yourself.",
        )
    return grouping


def shards(items: Iterable[PlannedSample]) -> list[PlannedShard]:
    """Cut each subset into files of equal size.

    Images are in the order of a hash of their name; numbers of images differ by one at most.
    """
    # By a hash of the name, not by name: neighbouring names are often frames of one recording, and training's
    # shuffle buffer mixes only what is near in the files.
    by_subset: dict[Subset, list[PlannedSample]] = {subset: [] for subset in SUBSETS}
    for item in sorted(items, key=lambda item: (_hash(item.sample.name), item.sample.name)):
        by_subset[item.subset].append(item)
    planned = []
    for subset, subset_items in by_subset.items():
        images = len(subset_items)
        count = shard_count(images)
        # The name says how many there are, so that a missing shard shows in a listing of the folder.
        for number in range(count):
            name = f"{subset}-{number:05d}-of-{count:05d}.tfrecord"
            # Integer arithmetic spreads the remainder: shards differ by one image at most.
            part = subset_items[number * images // count : (number + 1) * images // count]
            planned.append(PlannedShard(name, subset, part))
    return planned


def shard_count(images: int) -> int:
    """Return the number of files of a subset of ``images`` images."""
    # Rounded up, as the multiple below.
    count = -(-images // IMAGES_PER_SHARD)
    return count if images < FEWEST_TO_SHARE else -(-count // SHARDS_TOGETHER) * SHARDS_TOGETHER


def duplicates(items: Sequence[PlannedSample], images: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
    """Find images that occur twice, byte for byte.

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
        # setdefault notes the first image of a digest, and tells whether there was one before.
        if item.subset == "training" and first.setdefault(digest, name) != name:
            repeated.append(item.sample.image_file)
    # Against all training images, also those that are duplicates themselves.
    held_out = (item.sample for item in items if item.subset == "validation")
    return [sample.image_file for sample in held_out if images[sample.name] in first], repeated


def _hash(name: str) -> bytes:
    # Not hash(): Python salts it anew in every process.
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()
