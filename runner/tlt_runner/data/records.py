"""Prepared data: a folder of TFRecords with a manifest, ``dataset.json``, that is written last.

Preparation makes them; training, evaluation and export open them by address and digest. A folder without a
manifest, or whose files are not the manifest's, does not count as records.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from tlt_api.base import ApiModel, StatusModel
from tlt_api.failures import Reason
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.files import sha256_of
from tlt_runner.storage import PARALLEL_FILES, Storage, join

MANIFEST = "dataset.json"
REPORT = "dataset-report.json"
REPORT_PAGE = "dataset-report.html"
SCHEMA = 4
"""Version of the layout of records and report; part of the digest, so that old ones are made again."""
Subset = Literal["training", "validation"]
SUBSETS: tuple[Subset, ...] = ("training", "validation")


class Shard(ApiModel):
    """One TFRecord file."""

    name: str
    """File name."""
    subset: Subset
    """Training or validation."""
    images: int
    """Records in it."""
    size_bytes: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file."""


class Manifest(StatusModel):
    """Content of the records."""

    schema_version: int = SCHEMA
    """Version of the layout."""
    digest: str
    """Digest of the sources' content and of the options: ``sha256:...``."""
    class_names: list[str]
    """Classes; a class's id is its index here."""
    height: int
    """Rows of every image."""
    width: int
    """Columns of every image."""
    mode: Literal["stretch", "letterbox"]
    """Resize mode of the images."""
    orientation: Literal["stored", "exif"] = "stored"
    """View of images with an EXIF orientation: pixels as stored, or turned."""
    training_images: int
    """Images to train on."""
    validation_images: int
    """Images to validate on."""
    training_objects: list[int]
    """Objects to train on, by class id."""
    validation_objects: list[int]
    """Objects to validate on, by class id."""
    objects_per_image: dict[int, int]
    """Number of images by their number of objects."""
    ignored_per_image: dict[int, int] = {}
    """Number of images by their number of ignored regions; records of an older layout have none."""
    shards: list[Shard]
    """The files."""

    @property
    def objects(self) -> list[int]:
        """Objects by class id, training and validation."""
        pairs = zip(self.training_objects, self.validation_objects, strict=True)
        return [training + validation for training, validation in pairs]

    @property
    def most_objects(self) -> int:
        """Largest number of objects of an image; at least 1, for arrays that are never empty."""
        return max(1, max(self.objects_per_image, default=1))

    @property
    def most_boxes(self) -> int:
        """Number of rows that hold the objects and ignored regions of any one image; at least 1."""
        return self.most_objects + max(self.ignored_per_image, default=0)

    def training_rows(self, max_objects: int, images: int = 1) -> int:
        """Number of rows for the objects and ignored regions of a training image.

        Args:
            max_objects: Objects that are trained on at most; further ones become ignored regions.
            images: Number of images of which a training image is composed.

        Returns:
            ``max_objects``, and as many as the data can need for ignored regions, but no more than
            ``max_objects`` again: every row costs memory for every anchor.
        """
        regions = images * max(self.ignored_per_image, default=0)
        regions += max(0, images * self.most_objects - max_objects)
        return max_objects + min(max_objects, regions)

    def objects_beyond(self, max_objects: int) -> int:
        """Number of objects that do not fit if an image has room for ``max_objects``."""
        return sum(max(0, count - max_objects) * images for count, images in self.objects_per_image.items())


@dataclass(frozen=True)
class Records:
    """Records that can be read.

    Attributes:
        folder: The folder of the records in the file system.
        uri: Their address.
        digest: Digest of content and options.
        manifest: Their content.
    """

    folder: Path
    uri: str
    digest: str
    manifest: Manifest

    def files(self, subset: Subset) -> list[Path]:
        """List the TFRecord files of a subset, in order."""
        # In the manifest's order, which is the same for every worker.
        return [self.folder / shard.name for shard in self.manifest.shards if shard.subset == subset]


def load_records(storage: Storage, uri: str, digest: str | None = None) -> Records:
    """Open prepared records and verify every file.

    Args:
        storage: Reads the address.
        uri: Folder of the records.
        digest: The expected digest; None accepts any.

    Raises:
        RunnerError: ``DatasetNotFound`` when there are none; ``ChecksumMismatch`` when they are others or
            damaged.
    """
    try:
        # Of s3:// this downloads the records; of a claim it is the folder itself.
        folder = storage.folder(uri)
        storage.local_path(join(uri, MANIFEST))  # refuses a link that leads out of the claim
    except NotFoundError as error:
        raise RunnerError(Reason.DATASET_NOT_FOUND, f"prepared data set: {error.message}") from error
    path = folder / MANIFEST
    # The manifest is written last: a folder without it holds records of an unfinished run, or none.
    if not path.is_file():
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected prepared records with a {MANIFEST} at {uri}, which has none",
            "The conversion did not finish, or the address is another folder: run the TrainingJob again.",
        )
    try:
        # The manifest is renamed into place whole, so one that does not parse was damaged later, or is of a
        # release whose layout differs.
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunnerError(Reason.CHECKSUM_MISMATCH, f"{uri}/{MANIFEST} is damaged: {error}") from error
    # Somebody may have put other records at the address since the digest was noted.
    if digest is not None and manifest.digest != digest:
        raise RunnerError(
            Reason.CHECKSUM_MISMATCH, f"{uri}: expected records of digest {digest}, got {manifest.digest}"
        )

    def check(shard: Shard) -> None:
        # A manifest is data like others: neither its names nor links of such a name may lead out.
        verify(storage.local_path(join(uri, shard.name)) or folder / shard.name, shard, uri)

    # Hashing releases the interpreter's lock. list() waits for every file and raises the first error.
    with storage_errors(uri), ThreadPoolExecutor(PARALLEL_FILES) as threads:
        list(threads.map(check, manifest.shards))
    return Records(folder, uri, manifest.digest, manifest)


def verify(path: Path, shard: Shard, uri: str) -> None:
    """Check that a file is the shard that the manifest describes.

    Raises:
        RunnerError: ``ChecksumMismatch``.
    """
    # The size first: a shard that was cut off is refused without being read.
    size = path.stat().st_size if path.is_file() else None
    if size != shard.size_bytes:
        got = "no such file" if size is None else f"{size} bytes"
        raise RunnerError(
            Reason.CHECKSUM_MISMATCH, f"{uri}/{shard.name}: expected {shard.size_bytes} bytes, got {got}"
        )
    sha256 = sha256_of(path)
    if sha256 != shard.sha256:
        raise RunnerError(
            Reason.CHECKSUM_MISMATCH, f"{uri}/{shard.name}: expected sha256 {shard.sha256}, got {sha256}"
        )
