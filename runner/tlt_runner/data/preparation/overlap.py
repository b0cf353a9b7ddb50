"""Training and validation that share images or label files.

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
    training: Listing, training_place: str, validation: Listing, validation_place: str
) -> tuple[Listing, Listing]:
    """Take what is held out away from what is trained on, and report every image and label once.

    Args:
        training: All that the training folder holds, with sub-folders.
        training_place: That folder, relative to the data set's root.
        validation: The same of validation.
        validation_place: That folder.

    Raises:
        RunnerError: ``InvalidSpec`` when the training folder is inside the validation folder.
    """
    same = training_place == validation_place
    if _is_below(training_place, validation_place):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected training images outside of validation.images ({validation_place or '.'}), "
            f"got images: {training_place}",
        )
    if same or _is_below(validation_place, training_place):
        training, validation = _share_images(training, validation, training_place, same=same)
    return _share_labels(training, validation)


def _share_images(
    training: Listing, validation: Listing, training_place: str, *, same: bool
) -> tuple[Listing, Listing]:
    """What is in the validation folder, or labelled for it, is held out."""
    trained_on = {sample.image_file for sample in training.samples}
    held_out = {sample.image_file for sample in validation.samples}
    skipped = [finding for finding in validation.skipped if finding.file not in trained_on]
    validation = _of(validation, skipped=skipped, other_files=0 if same else validation.other_files)
    seen = held_out | {finding.file for finding in skipped}
    if trained_on and trained_on <= seen:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected images to train on, got {training_place or '.'}, all of whose images are held out: "
            "validation has the same",
        )
    twice = sorted(trained_on & held_out) if same else []
    message = "expected labels for training or for validation, got both: it is held out"
    others = training.other_files if same else max(0, training.other_files - validation.other_files)
    training = _of(
        replace(training, samples=[sample for sample in training.samples if sample.image_file not in seen]),
        skipped=[finding for finding in training.skipped if finding.file not in seen],
        other_files=others,
    )
    doubles = [Finding(file, Problem.DUPLICATE_NAME, message) for file in twice]
    return replace(training, findings=[*training.findings, *doubles]), validation


def _share_labels(training: Listing, validation: Listing) -> tuple[Listing, Listing]:
    """Of label files that both read, only what neither has an image for is an orphan; all is said once."""
    shared = _read_by(training) & _read_by(validation)
    without_image = _places(training.orphans) & _places(validation.orphans)

    def lonely(finding: Finding) -> bool:
        return finding.file not in shared or (finding.file, finding.entry) in without_image

    reported = set(training.findings)
    side_files = set(training.side_files)
    return replace(training, orphans=list(filter(lonely, training.orphans))), replace(
        validation,
        orphans=[finding for finding in validation.orphans if finding.file not in shared],
        findings=[finding for finding in validation.findings if finding not in reported],
        side_files=[file for file in validation.side_files if file not in side_files],
    )


def _read_by(listing: Listing) -> set[str]:
    return {file for file, _ in listing.label_files}


def _places(findings: Sequence[Finding]) -> set[tuple[str, str]]:
    return {(finding.file, finding.entry) for finding in findings}


def _of(listing: Listing, *, skipped: list[Finding], other_files: int) -> Listing:
    images = len(listing.samples) + len(skipped)
    return replace(listing, skipped=skipped, images=images, other_files=other_files)


def _is_below(place: str, folder: str) -> bool:
    return place != folder and (not folder or place.startswith(f"{folder}/"))
