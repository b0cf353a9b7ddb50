"""Separate training and validation data that share images or label files.

Images: one folder inside the other, or one with two label files. Label files: the standard COCO layout, where
``annotations`` has those of ``train2017`` and of ``val2017``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tlt_api.failures import Reason
from tlt_runner.data.sample import Finding, Listing, Problem
from tlt_runner.errors import RunnerError


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
    trained_on = {sample.image_file for sample in training.samples}
    held_out = {sample.image_file for sample in validation.samples}
    # An image without a validation label that has a training label is trained on: nothing to report.
    skipped = [finding for finding in validation.skipped if finding.file not in trained_on]
    validation = _of(validation, skipped=skipped, other_files=0 if same else validation.other_files)
    held_out_or_skipped = held_out | {finding.file for finding in skipped}
    # Nothing would be left to train on.
    if trained_on and trained_on <= held_out_or_skipped:
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
    training = _of(
        replace(
            training,
            samples=[sample for sample in training.samples if sample.image_file not in held_out_or_skipped],
        ),
        skipped=[finding for finding in training.skipped if finding.file not in held_out_or_skipped],
        other_files=others,
    )
    doubles = [Finding(file, Problem.DUPLICATE_NAME, message) for file in twice]
    return replace(training, findings=[*training.findings, *doubles]), validation


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


def _of(listing: Listing, *, skipped: list[Finding], other_files: int) -> Listing:
    images = len(listing.samples) + len(skipped)
    return replace(listing, skipped=skipped, images=images, other_files=other_files)


def _is_below(path: str, folder: str) -> bool:
    return path != folder and (not folder or path.startswith(f"{folder}/"))
