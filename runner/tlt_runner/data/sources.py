"""Which folders a data set names, what they hold, and which image is for training or validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from tlt_api.failures import Reason
from tlt_api.trainingjob import Dataset
from tlt_runner.data.formats.folders import Place
from tlt_runner.data.formats.kitti import KittiReader
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Listing, Reader, Sample
from tlt_runner.errors import RunnerError
from tlt_runner.storage import NotFoundError, Storage, join, storage_errors


@dataclass(frozen=True)
class Source:
    """A folder of images with a folder of labels.

    Attributes:
        reader: Reads them.
        listing: What they hold.
        subset: What they are for; None means that the split decides image by image.
    """

    reader: Reader
    listing: Listing
    subset: Subset | None


@dataclass(frozen=True)
class Planned:
    """A sample and what it is for."""

    sample: Sample
    reader: Reader
    subset: Subset


def find(dataset: Dataset, storage: Storage) -> list[Source]:
    """The folders of a data set.

    Raises:
        RunnerError: ``DatasetNotFound`` or ``NoLabels``, naming the place and what is there.
    """
    held_out = dataset.validation
    if held_out.images is None or held_out.labels is None:
        return [_source(dataset, storage, *dataset.places, None)]
    return [
        _source(dataset, storage, *dataset.places, "training"),
        _source(dataset, storage, held_out.images, held_out.labels, "validation"),
    ]


def _source(dataset: Dataset, storage: Storage, images: str, labels: str, subset: Subset | None) -> Source:
    image_uri, label_uri = join(dataset.uri, images), join(dataset.uri, labels)
    try:
        image_folder, label_folder = storage.folder(image_uri), storage.folder(label_uri)
    except NotFoundError as error:
        raise RunnerError(Reason.DATASET_NOT_FOUND, error.message) from error
    reader = KittiReader(Place(image_folder, images.strip("/")), Place(label_folder, labels.strip("/")))
    with storage_errors(dataset.uri):
        listing = reader.listing()
    if not listing.images:
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected .jpg, .jpeg or .png images in {image_uri}, got {listing.other_files} other files",
        )
    if not listing.samples:
        have = f"{len(listing.orphans)} labels of other names" if listing.orphans else "no .txt file"
        raise RunnerError(
            Reason.NO_LABELS,
            f"expected labels named like the {listing.images} images in {label_uri}, which has {have}; "
            f"{listing.skipped[0].file}: {listing.skipped[0].message}",
        )
    return Source(reader, listing, subset)


def draw(stem: str, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the image's stem alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{stem}".encode()).digest()[:8], "big") / 2**64


def plan(sources: Sequence[Source], dataset: Dataset) -> list[Planned]:
    """What each sample is for, sorted by subset and name.

    An image is held out when its draw is below ``validation.fraction``: other images that come or go do not
    move it. Only where that would leave a side empty, the image with the lowest (highest) draw goes there.
    """
    fraction, seed = dataset.validation.fraction or 0.0, dataset.validation.seed
    drawn = {
        (place, sample.name): draw(sample.image.stem, seed)
        for place, source in enumerate(sources)
        if source.subset is None
        for sample in source.listing.samples
    }
    threshold = fraction
    if len(drawn) > 1:
        ordered = sorted(drawn.values())
        threshold = ordered[1] if ordered[0] >= fraction else min(fraction, ordered[-1])
    planned = []
    for place, source in enumerate(sources):
        for sample in source.listing.samples:
            subset = source.subset
            if subset is None:
                subset = "validation" if drawn[place, sample.name] < threshold else "training"
            planned.append(Planned(sample, source.reader, subset))
    return sorted(planned, key=lambda item: (item.subset, item.sample.name))
