"""Find the folders and lists of images that a data set names, with their contents.

Training and validation data may share images (one folder inside the other, or one folder with two label
files) and label files (the standard COCO layout, where ``annotations`` has those of ``train2017`` and of
``val2017``): :func:`separate` takes them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data import formats
from tlt_runner.data.preparation import image_sets
from tlt_runner.data.preparation.image_sets import ImageSet
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, Listing, Problem, Reader, listed
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.storage import Storage, join, relative

_COMPARE = "Compare the names of the labels (of coco: file_name) with the names of the images."


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
    parts = _divided(dataset, storage)
    listings = [part.listing for part in parts]
    # Over all parts: labels without an image are reported with the training images alone.
    orphans = sum(map(_lost_labels, listings))
    unlabelled = sum(len(listing.unlabelled) + len(listing.outside) for listing in listings)
    # As many labels without an image as images without a label: their names probably do not match, and
    # objects would be background. A data set that says what its images without a label are is believed.
    if dataset.unlabelled is None and 0 < unlabelled <= orphans:
        parts = [replace(part, listing=_as_bad(part.listing, orphans)) for part in parts]
    for part in parts:
        _require_samples(dataset, part)
    return [Source(part.reader, part.listing, part.subset) for part in parts]


@dataclass(frozen=True)
class _Part:
    """Source that has not been checked yet, with its image folder relative to the root."""

    reader: Reader
    listing: Listing
    images: str
    subset: Subset | None


def _divided(dataset: Dataset, storage: Storage) -> list[_Part]:
    """List the folders, each image in one part at most."""
    images, labels = formats.image_and_label_paths(dataset)
    held_out = dataset.validation
    # The folder's own listing first; lists of images and separate folders only narrow it.
    reader, listing = _open(dataset, storage, images, labels)
    # Separate folders for validation.
    if held_out.images is not None and held_out.labels is not None:
        held_out_images = relative(held_out.images)
        validation_reader, validation = _open(dataset, storage, held_out_images, held_out.labels)
        listing, validation = separate(listing, images, validation, held_out_images)
        # imageSet is a list of the training folder; the validation folder is used as a whole.
        listing = _listed(dataset, storage, listing, images)
        return [
            _Part(reader, listing, images, "training"),
            _Part(validation_reader, validation, held_out_images, "validation"),
        ]
    # One folder, divided by lists.
    if held_out.image_set is not None:
        training, validation = _two_lists(dataset, storage, listing, images, held_out.image_set)
        return [
            _Part(reader, training, images, "training"),
            _Part(reader, validation, images, "validation"),
        ]
    # One folder that the split divides at random, by validation.fraction.
    return [_Part(reader, _listed(dataset, storage, listing, images), images, None)]


def _open(dataset: Dataset, storage: Storage, images: str, labels: str) -> tuple[Reader, Listing]:
    reader = formats.open_reader(dataset, storage, images, labels)
    with storage_errors(dataset.uri):
        return reader, reader.listing()


def _require_samples(dataset: Dataset, part: _Part) -> None:
    """Fail if a part has no image with a label."""
    reader, listing = part.reader, part.listing
    if any(sample.key is not None for sample in listing.samples):
        return
    folder = join(dataset.uri, part.images)
    use = f" for {part.subset}" if part.subset else ""
    # Three failures that need three remedies: no image at all, no usable image, or no label.
    if not listing.images and not listing.outside:
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected .jpg, .jpeg or .png images{use} in {folder}, which has {reader.image_summary()}",
        )
    # If only labels are missing, the labels are probably elsewhere or of another format.
    unlabelled = [finding for finding in listing.skipped if finding.problem == Problem.NO_LABEL]
    unlabelled += _unlabelled(listing, _lost_labels(listing))
    if not unlabelled:
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected images{use} in {folder} that can be used, got {listing.images} that cannot; "
            f"{listing.skipped[0]}",
        )
    # What the reader refused says most often why no label fits.
    refused = [*listing.findings, *listing.orphans]
    raise RunnerError(
        Reason.NO_LABELS,
        f"expected labels of the {listing.images + len(listing.outside)} images{use} in {folder}; where they "
        f"should be there is: {reader.label_summary()}; {unlabelled[0].file}: {unlabelled[0].message}"
        + (f"; labels that lead to no image: {listed(refused)}" if refused else ""),
        # The taxonomy's hint blames the folder of the labels, in which there are some.
        _COMPARE if refused else None,
    )


def _lost_labels(listing: Listing) -> int:
    """Count the labels of a listing that lead to no image, and entries of them that cannot be used."""
    label_files = {file for file, _ in listing.label_files}
    entries = [
        finding
        for finding in listing.findings
        if finding.file in label_files and finding.problem != Problem.DUPLICATE_NAME
    ]
    return len(listing.orphans) + len(entries)


def _as_bad(listing: Listing, orphans: int) -> Listing:
    """Make bad samples of images without a label."""
    samples = [sample for sample in listing.samples if sample.key is not None]
    skipped = [*listing.skipped, *_unlabelled(listing, orphans)]
    return replace(listing, samples=samples, skipped=skipped, outside=[], images=len(samples) + len(skipped))


def _unlabelled(listing: Listing, orphans: int) -> list[Finding]:
    """Make a finding for each image without a label that has none yet."""
    expected = [
        (sample.image_file, f"expected {sample.label_file}, which does not exist")
        for sample in listing.samples
        if sample.key is None
    ]
    expected += [(file, "expected an entry of a label file, got none") for file in listing.outside]
    lost = f"; labels without an image: {orphans}, so the names may not match" if orphans else ""
    return [Finding(file, Problem.NO_LABEL, f"{message}{lost}") for file, message in expected]


def _listed(dataset: Dataset, storage: Storage, listing: Listing, images: str) -> Listing:
    """Select the images that the data set's list names; all of them where it has none."""
    if dataset.image_set is None:
        return listing
    image_set = _image_set(dataset, storage, listing, images, dataset.image_set)
    selected = image_sets.select(listing, images, image_set.keys)
    return replace(
        selected,
        findings=[*listing.findings, *image_set.findings],
        unlisted=_files(listing) - _files(selected),
    )


def _two_lists(
    dataset: Dataset, storage: Storage, listing: Listing, images: str, validation_file: str
) -> tuple[Listing, Listing]:
    """Split one folder by lists. Findings that are about no image are reported with the training images."""
    held_out = _image_set(dataset, storage, listing, images, validation_file)
    validation = image_sets.select(listing, images, held_out.keys)
    # Findings of the folder are reported once, with the training images; else they would count twice.
    findings = [*listing.findings, *held_out.findings]
    # Without a list for training, everything that is not held out is trained on.
    if dataset.image_set is None:
        keys = image_sets.keys(listing, images) - held_out.keys
    else:
        image_set = _image_set(dataset, storage, listing, images, dataset.image_set)
        keys = image_set.keys - held_out.keys
        message = f"expected in one list, got it in {dataset.image_set}, too: it is held out"
        findings += image_set.findings
        findings += [
            Finding(sample.image_file, Problem.DUPLICATE_NAME, message)
            for sample in validation.samples
            if image_sets.key(sample.image_file, images) in image_set.keys
        ]
    training = image_sets.select(listing, images, keys)
    # Images in neither list: not used, and one number of the report.
    unlisted = _files(listing) - _files(training) - _files(validation)
    return (
        replace(training, findings=findings, unlisted=unlisted),
        replace(
            validation,
            findings=[],
            orphans=[],
            other_files=0,
            read_files=0,
            side_files=[],
            notes=[],
            warnings=[],
        ),
    )


def _files(listing: Listing) -> int:
    return listing.images + len(listing.outside)


def _image_set(dataset: Dataset, storage: Storage, listing: Listing, images: str, file: str) -> ImageSet:
    uri = join(dataset.uri, file)
    try:
        path = storage.fetch(uri)
    except NotFoundError as error:
        raise RunnerError(Reason.DATASET_NOT_FOUND, f"list of images: {error.message}") from error
    with storage_errors(uri):
        return image_sets.load(path, relative(file), listing, images)


def separate(
    training: Listing, training_folder: str, validation: Listing, validation_folder: str
) -> tuple[Listing, Listing]:
    """Take the held-out images away from the training images, and report every image and label once.

    Args:
        training: Contents of the training folder, with sub-folders.
        training_folder: The training folder, relative to the data set's root.
        validation: Contents of the validation folder, with sub-folders.
        validation_folder: The validation folder, relative to the data set's root.

    Raises:
        RunnerError: ``InvalidSpec`` when the training folder is inside the validation folder.
    """
    same = training_folder == validation_folder
    # Every training image would be a validation image, too, and held out.
    if _is_below(training_folder, validation_folder):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected training images outside of validation.images ({validation_folder or '.'}), "
            f"got images: {training_folder}",
        )
    if same or _is_below(validation_folder, training_folder):
        training, validation = _share_images(training, validation, training_folder, same=same)
    return _share_labels(training, validation)


def _share_images(
    training: Listing, validation: Listing, training_folder: str, *, same: bool
) -> tuple[Listing, Listing]:
    """Hold out the images that are in the validation folder, or labelled for it."""
    validation = _without_labelled(training, validation, same=same)
    trained_on = {sample.image_file for sample in training.samples}
    held_out = {sample.image_file for sample in validation.samples}
    # An image without a validation label that has a training label is trained on: nothing to report.
    skipped = [finding for finding in validation.skipped if finding.file not in trained_on]
    validation = _with_skipped(validation, skipped=skipped, other_files=0 if same else validation.other_files)
    # An image that neither side can use is reported once, with the validation images.
    held_out_or_skipped = held_out | {finding.file for finding in skipped}
    # Nothing would be left to train on.
    labelled = {sample.image_file for sample in training.samples if sample.key is not None}
    if labelled and labelled <= held_out_or_skipped:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected images to train on, got {training_folder or '.'}, all of whose images are held out: "
            "validation has the same",
        )
    # Labelled in both files of one folder: held out, and reported. In nested folders that is normal.
    twice = sorted(trained_on & held_out) if same else []
    message = "expected labels for training or for validation, got both: it is held out"
    # The validation folder was listed twice, once as part of the training folder.
    others = training.other_files if same else max(0, training.other_files - validation.other_files)
    training = _with_skipped(
        replace(
            training,
            samples=[sample for sample in training.samples if sample.image_file not in held_out_or_skipped],
        ),
        skipped=[finding for finding in training.skipped if finding.file not in held_out_or_skipped],
        other_files=others,
    )
    # An image that no label file lists is counted once, and not at all where the other subset lists it.
    listed = trained_on | held_out_or_skipped
    counted = listed.union(validation.outside)
    training = replace(training, outside=[file for file in training.outside if file not in counted])
    validation = replace(validation, outside=[file for file in validation.outside if file not in listed])
    doubles = [Finding(file, Problem.DUPLICATE_NAME, message) for file in twice]
    return replace(training, findings=[*training.findings, *doubles]), validation


def _without_labelled(training: Listing, validation: Listing, *, same: bool) -> Listing:
    """Take images without a validation label away that have a training label, or are of the same folder."""
    # In one folder for both only labels tell the subsets apart; an image without any is trained on, once.
    labelled = {sample.image_file for sample in training.samples if same or sample.key is not None}
    samples = [
        sample for sample in validation.samples if sample.key is not None or sample.image_file not in labelled
    ]
    return replace(validation, samples=samples, images=len(samples) + len(validation.skipped))


def _share_labels(training: Listing, validation: Listing) -> tuple[Listing, Listing]:
    """Report the contents of shared label files once; an orphan there has an image in neither folder."""
    # An entry of a shared file whose image is in the other folder is no orphan.
    shared = _read_by(training) & _read_by(validation)
    without_image = _entries(training.orphans) & _entries(validation.orphans)

    def is_orphan(finding: Finding) -> bool:
        return finding.file not in shared or (finding.file, finding.entry) in without_image

    reported = set(training.findings)
    side_files = set(training.side_files)
    return replace(training, orphans=list(filter(is_orphan, training.orphans))), replace(
        validation,
        orphans=[finding for finding in validation.orphans if finding.file not in shared],
        findings=[finding for finding in validation.findings if finding not in reported],
        side_files=[file for file in validation.side_files if file not in side_files],
    )


def _read_by(listing: Listing) -> set[str]:
    return {file for file, _ in listing.label_files}


def _entries(findings: Sequence[Finding]) -> set[tuple[str, str]]:
    return {(finding.file, finding.entry) for finding in findings}


def _with_skipped(listing: Listing, *, skipped: list[Finding], other_files: int) -> Listing:
    images = len(listing.samples) + len(skipped)
    return replace(listing, skipped=skipped, images=images, other_files=other_files)


def _is_below(path: str, folder: str) -> bool:
    return path != folder and (not folder or path.startswith(f"{folder}/"))
