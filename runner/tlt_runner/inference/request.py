"""The request of ``tlt infer``, and its checks, which come before TensorFlow is imported.

A misspelt folder or model is answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tlt_api.failures import Reason
from tlt_runner.data.formats import folders
from tlt_runner.data.formats.names import printable
from tlt_runner.data.sample import Finding
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.inference import output_folder
from tlt_runner.storage import Storage


@dataclass(frozen=True)
class Request:
    """Arguments of an inference.

    Attributes:
        model: A .keras file: its path, or its address.
        images: Folder of images, with its sub-folders.
        output: Folder to write to: new, empty, or of an earlier inference.
        score: Lowest score of a detection that is drawn and listed; None for the model's own thresholds.
    """

    model: str
    images: Path
    output: Path
    score: float | None


@dataclass(frozen=True)
class CheckedRequest:
    """Model and images of a request, found and checked.

    Attributes:
        model: The model's file.
        images: Paths of the images relative to their folder, sorted.
        unusable: Entries that look like images and cannot be read, each with its reason.
        other_files: Entries of the folder that are no images, sorted.
    """

    model: Path
    images: Sequence[str]
    unusable: Sequence[Finding]
    other_files: Sequence[str]


def check(request: Request, storage: Storage) -> CheckedRequest:
    """List the images, fetch the model, and refuse an output folder of someone else. Nothing is written.

    Args:
        request: The command's arguments.
        storage: Reads the model.

    Raises:
        RunnerError: DatasetNotFound where there is no image; InvalidSpec for the output folder, or where
            there is no model; the storage's reasons.
    """
    with storage_errors(str(request.images)):
        # The cheapest checks come first; the model, which may be a download, is last.
        _check_folders(request)
        # No mount: this folder is the user's own, and links in it may lead anywhere.
        images = folders.find_images(folders.SourceFolder(request.images, ""))
        # With unusable images only, the inference still runs: its report lists the reasons.
        if not images.names and not images.skipped:
            raise RunnerError(
                Reason.DATASET_NOT_FOUND,
                f"expected images ({', '.join(folders.IMAGE_SUFFIXES)}) in {request.images} or below, "
                f"got none: it holds {folders.content_summary(request.images)}",
                "Name the folder of images with --images.",
            )
        other_files = _other_files(request.images, images)
    with storage_errors(str(request.output)):
        output_folder.refuse_foreign(request.output)
    return CheckedRequest(storage.fetch(_address(request.model)), images.names, images.skipped, other_files)


def _check_folders(request: Request) -> None:
    if not request.images.is_dir():
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected a folder of images, got {request.images}, which is none",
            "Name the folder of images with --images.",
        )
    # Resolved: a link could lead one folder into the other.
    source, target = request.images.resolve(), request.output.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected an output folder apart from the images, got {target} for images in {source}",
            "Name another folder with --output: the results would be images of the next inference.",
        )


def _other_files(folder: Path, images: folders.Images) -> list[str]:
    """Return the entries of a folder that are no images."""
    # The listing knows only their number; their names are for the report.
    image_files = {*images.names, *(finding.file for finding in images.skipped)}
    names = (printable(name) for name, _ in folders.scan(folder))
    return sorted(name for name in names if name not in image_files)


def _address(model: str) -> str:
    return model if "://" in model else f"file://{Path(model).resolve()}"
