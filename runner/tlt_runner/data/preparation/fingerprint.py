"""Fingerprint of a data set: a digest of all files and options, by which its records are found again.

It is the first pass of a preparation, and the only one of a second job with the same data. Every file is read
once; no image is decoded, and no label parsed but those of images with an EXIF orientation. What is seen on
the way tells by which conventions the labels are read (:mod:`tlt_runner.data.preparation.conventions`); where
that moves a box or turns an image, it is part of the digest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.formats.format import EdgeEvidence
from tlt_runner.data.images import orientation
from tlt_runner.data.parallel import StageProgress, in_order, workers
from tlt_runner.data.preparation import conventions
from tlt_runner.data.preparation.conventions import Clues, Conventions, EdgeCounter
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.records import SCHEMA
from tlt_runner.data.sample import Sample
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.files import sha256_of
from tlt_runner.storage import Storage, join

NO_CONTENT = "0" * 64
BATCH = 16
"""Files that a thread reads at a time."""
_OPTIONS = {"format", "class_names", "target_class_mapping", "image_size", "validation"}
"""Fields of a data set that change records, beside the files that it names."""
_LATER_OPTIONS = {"shapes"}
"""Later fields that change records, which count once they differ from their default. What ``unlabelled``
changes is in the samples and findings."""


@dataclass(frozen=True, slots=True)
class HashedFile:
    """File with its digest at the time when it was read.

    Attributes:
        name: Path relative to the data set's root.
        path: The file.
        sha256: Digest of its content.
        state: Inode, size and times of change; while they are the same, so is the content.
    """

    name: str
    path: Path
    sha256: str
    state: tuple[int, ...]

    def raise_if_changed(self) -> None:
        """Check that the content is still the same.

        Raises:
            RunnerError: ``StorageUnavailable``: the next attempt reads it anew.
        """
        try:
            # A file that was touched, or copied over itself, still has the same content.
            if _state(self.path) != self.state and _sha256(self.path) != self.sha256:
                raise changed(self.name)
        except FileNotFoundError as error:
            raise changed(self.name) from error


@dataclass(frozen=True)
class Fingerprint:
    """Digests of a data set and its files.

    Attributes:
        digest: Digest of content and options: ``sha256:...``.
        images: Digest of each image, by the name of its sample.
        labels: Label files, by name.
        lists: Files of names and groups that the data set's options point to.
        conventions: How the labels are read.
    """

    digest: str
    images: dict[str, bytes]
    labels: dict[str, HashedFile]
    lists: Sequence[HashedFile]
    conventions: Conventions


def changed(file: str) -> RunnerError:
    """Make the error for a file that changed while it was being prepared."""
    return RunnerError(
        Reason.STORAGE_UNAVAILABLE,
        f"{file}: expected a data set that stays as it is, but this file changed while it was being prepared",
        "Let the data set rest while a job prepares it; the next attempt reads it anew.",
    )


def fingerprint(
    dataset: Dataset, storage: Storage, sources: Sequence[Source], progress: StageProgress
) -> Fingerprint:
    """Hash every file and option.

    Args:
        dataset: What to read and how.
        storage: Reads the files that the data set names beside images and labels.
        sources: Its folders.
        progress: Advances by an image at a time.
    """
    # Only options that change records: a job with another policy for bad samples finds the same records.
    options = dataset.model_dump(mode="json", include=_OPTIONS)
    # Fields that came later count once they are set: records of before keep their digest.
    options |= dataset.model_dump(mode="json", include=_LATER_OPTIONS, exclude_defaults=True)
    # Records hold JPEG files, whose bytes depend on the encoder.
    content = hashlib.sha256(
        json.dumps([SCHEMA, metadata.version("opencv-python-headless"), options], sort_keys=True).encode()
    )
    # The lists of images and groups themselves, whose names alone say nothing.
    lists = [_hashed((name, _fetched(dataset, storage, field, name))) for field, name in _lists(dataset)]
    # The lists by their content: an edited list makes other records.
    content.update("".join(f"{item.sha256}\n" for item in lists).encode())
    labels: dict[str, HashedFile] = {}
    images: dict[str, bytes] = {}
    clues = Clues()
    labelled = functools.partial(_label, conventions.edge_evidence_of(dataset))
    with storage_errors(dataset.uri), ThreadPoolExecutor(workers()) as threads:
        for source in sources:
            # Reading waits for the disk and hashing releases the interpreter's lock: threads help with both.
            # Results come in the listing's order, so that the digest does not depend on the threads.
            listing = source.listing
            # Files that cannot be used are in the report, which is stored with the records.
            for finding in (*listing.skipped, *listing.orphans, *listing.findings):
                content.update(_encoded(f"{finding}\n"))
            # Counts of files that were not used are in the report, too.
            counts = f"{listing.images} {listing.other_files} {listing.unlisted}"
            content.update(f"{source.subset} {counts}\n".encode())
            for file in listing.outside:
                content.update(_encoded(f"outside {file}\n"))
            for _, (label, edges) in in_order(threads, labelled, listing.label_files, progress, BATCH):
                clues.edges += edges
                content.update(_encoded(f"{label.name} {label.sha256}\n"))
                labels[label.name] = label
            for sample, (image, turned) in in_order(threads, _image, listing.samples, progress, BATCH):
                content.update(_encoded(f"{sample.name} {sample.image_file} {image.hex()}\n"))
                images[sample.name] = image
                clues.add_image(source.reader, sample, turned)
                progress.advance()
        decided = conventions.decide(dataset, clues, progress)
    # Nothing for the conventions of before: records that were made by them are found again.
    content.update(_encoded(decided.changes))
    return Fingerprint(f"sha256:{content.hexdigest()}", images, labels, lists, decided)


def _lists(dataset: Dataset) -> list[tuple[str, str]]:
    """List the data set's fields that name a file, each with the file."""
    by = dataset.validation.group_by
    named = {
        "imageSet": dataset.image_set,
        "validation.imageSet": dataset.validation.image_set,
        "validation.groupBy.file": by.file if by is not None else None,
    }
    return [(field, name) for field, name in named.items() if name is not None]


def _fetched(dataset: Dataset, storage: Storage, field: str, name: str) -> Path:
    try:
        return storage.fetch(join(dataset.uri, name))
    except NotFoundError as error:
        raise RunnerError(Reason.DATASET_NOT_FOUND, f"spec.dataset.{field}: {error.message}") from error


def _label(count_edges: EdgeCounter, item: tuple[str, Path]) -> tuple[HashedFile, EdgeEvidence]:
    """Return the digest of a label file and its boxes at the edges."""
    # Read twice, the second time from the system's cache; nothing is read again where no edge is counted.
    return _hashed(item), count_edges(*item)


def _hashed(item: tuple[str, Path]) -> HashedFile:
    name, path = item
    try:
        # Taken before the content is read: a change in between is noticed later, as a change of the state.
        state = _state(path)
        return HashedFile(name, path, _sha256(path), state)
    except FileNotFoundError as error:
        raise changed(name) from error


def _image(sample: Sample) -> tuple[bytes, int]:
    """Return the digest of an image and its EXIF orientation."""
    try:
        return orientation.digest_and_orientation(sample.image)
    except PermissionError:
        return bytes.fromhex(NO_CONTENT), 1
    except FileNotFoundError as error:
        raise changed(sample.image_file) from error


def _sha256(path: Path) -> str:
    """Return the digest of a file; if it may not be read, which is a finding, one that no file has."""
    try:
        return sha256_of(path)
    except PermissionError:
        return NO_CONTENT


def _state(path: Path) -> tuple[int, ...]:
    # Not the time of access, which reading changes.
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def digest_of(data: bytes) -> bytes:
    """Return the digest of an image's content, as :attr:`Fingerprint.images` has it."""
    # Bytes and not text: there is one for each image, and half the memory.
    return hashlib.sha256(data).digest()


def _encoded(text: str) -> bytes:
    # File names that are no UTF-8 reach Python as lone surrogates, which encode() alone refuses.
    return text.encode(errors="surrogateescape")
