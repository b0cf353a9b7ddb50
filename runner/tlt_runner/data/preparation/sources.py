"""Find the folders and lists of images that a data set names, with their contents."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data import formats
from tlt_runner.data.preparation import image_sets, overlap
from tlt_runner.data.preparation.image_sets import ImageSet
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, Listing, Problem, Reader
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.storage import Storage, join, relative


@dataclass(frozen=True)
class Source:
    """Folder of images with a folder of labels.

    Attributes:
        reader: Reads them.
        listing: Their contents.
        subset: Training or validation; None means that the split decides image by image.
    """

    reader: Reader
    listing: Listing
    subset: Subset | None


def find(dataset: Dataset, storage: Storage) -> list[Source]:
    """List the folders of a data set, and the parts of them that its lists of images name.

    No image is in two sources: one that is named for training and for validation is held out.

    Raises:
        RunnerError: ``DatasetNotFound`` or ``NoLabels``, naming the folder and its contents; ``InvalidSpec``.
    """
    images, labels = formats.places(dataset)
    held_out = dataset.validation
    reader, listing = _open(dataset, storage, images, labels)
    # Separate folders for validation.
    if held_out.images is not None and held_out.labels is not None:
        held_out_images = relative(held_out.images)
        validation_reader, validation = _open(dataset, storage, held_out_images, held_out.labels)
        listing, validation = overlap.separate(listing, images, validation, held_out_images)
        # imageSet is a list of the training folder; the validation folder is used as a whole.
        listing = _listed(dataset, storage, listing, images)
        return [
            _source(dataset, reader, listing, images, "training"),
            _source(dataset, validation_reader, validation, held_out_images, "validation"),
        ]
    # One folder, divided by lists.
    if held_out.image_set is not None:
        training, validation = _two_lists(dataset, storage, listing, images, held_out.image_set)
        return [
            _source(dataset, reader, training, images, "training"),
            _source(dataset, reader, validation, images, "validation"),
        ]
    # One folder that the split divides at random, by validation.fraction.
    listing = _listed(dataset, storage, listing, images)
    return [_source(dataset, reader, listing, images, None)]


def _open(dataset: Dataset, storage: Storage, images: str, labels: str) -> tuple[Reader, Listing]:
    reader = formats.open_reader(dataset, storage, images, labels)
    with storage_errors(dataset.uri):
        return reader, reader.listing()


def _source(dataset: Dataset, reader: Reader, listing: Listing, images: str, subset: Subset | None) -> Source:
    """Make a source, which must have samples."""
    if listing.samples:
        return Source(reader, listing, subset)
    folder = join(dataset.uri, images)
    use = f" for {subset}" if subset else ""
    # Three failures that need three remedies: no image at all, no usable image, or no label.
    if not listing.images:
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected .jpg, .jpeg or .png images{use} in {folder}, which has {reader.image_holdings()}",
        )
    # If only labels are missing, the labels are probably elsewhere or of another format.
    unlabelled = [finding for finding in listing.skipped if finding.problem == Problem.NO_LABEL]
    if not unlabelled:
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected images{use} in {folder} that can be used, got {listing.images} that cannot; "
            f"{listing.skipped[0]}",
        )
    raise RunnerError(
        Reason.NO_LABELS,
        f"expected labels of the {listing.images} images{use} in {folder}; where they should be there is: "
        f"{reader.label_holdings()}; {unlabelled[0].file}: {unlabelled[0].message}",
    )


def _listed(dataset: Dataset, storage: Storage, listing: Listing, images: str) -> Listing:
    """Select the images that the data set's list names; all of them where it has none."""
    if dataset.image_set is None:
        return listing
    chosen = _image_set(dataset, storage, listing, images, dataset.image_set)
    part = image_sets.select(listing, images, chosen.keys)
    return replace(
        part,
        findings=[*listing.findings, *chosen.findings],
        unlisted=listing.images - part.images,
    )


def _two_lists(
    dataset: Dataset, storage: Storage, listing: Listing, images: str, validation_file: str
) -> tuple[Listing, Listing]:
    """Split one folder by lists. Findings that are about no image are reported with the training images."""
    held_out = _image_set(dataset, storage, listing, images, validation_file)
    validation = image_sets.select(listing, images, held_out.keys)
    findings = [*listing.findings, *held_out.findings]
    # Without a list for training, everything that is not held out is trained on.
    if dataset.image_set is None:
        keys = image_sets.keys(listing, images) - held_out.keys
    else:
        chosen = _image_set(dataset, storage, listing, images, dataset.image_set)
        keys = chosen.keys - held_out.keys
        message = f"expected in one list, got it in {dataset.image_set}, too: it is held out"
        findings += chosen.findings
        findings += [
            Finding(sample.image_file, Problem.DUPLICATE_NAME, message)
            for sample in validation.samples
            if image_sets.key(sample.image_file, images) in chosen.keys
        ]
    training = image_sets.select(listing, images, keys)
    unlisted = listing.images - training.images - validation.images
    return (
        replace(training, findings=findings, unlisted=unlisted),
        replace(validation, findings=[], orphans=[], other_files=0, side_files=[]),
    )


def _image_set(dataset: Dataset, storage: Storage, listing: Listing, images: str, file: str) -> ImageSet:
    uri = join(dataset.uri, file)
    try:
        path = storage.fetch(uri)
    except NotFoundError as error:
        raise RunnerError(Reason.DATASET_NOT_FOUND, f"list of images: {error.message}") from error
    with storage_errors(uri):
        return image_sets.load(path, relative(file), listing, images)
