"""Training and validation folders that share images: one inside the other, or one with two label files."""

from __future__ import annotations

from dataclasses import replace

from tlt_api.failures import Reason
from tlt_runner.data.sample import Finding, Listing, Problem
from tlt_runner.errors import RunnerError


def separate(
    training: Listing, training_place: str, validation: Listing, validation_place: str
) -> tuple[Listing, Listing]:
    """Take what is held out away from what is trained on, and report every image once.

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
    if not same and not _is_below(validation_place, training_place):
        return training, validation
    trained_on = {sample.image_file for sample in training.samples}
    held_out = {sample.image_file for sample in validation.samples}
    skipped = [finding for finding in validation.skipped if finding.file not in trained_on]
    validation = _of(validation, skipped=skipped, other_files=0 if same else validation.other_files)
    seen = held_out | {finding.file for finding in skipped}
    reported = {*validation.orphans, *validation.findings}
    if trained_on and trained_on <= seen:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected images to train on, got {training_place or '.'}, all of whose images are held out: "
            "validation has the same",
        )
    twice = sorted(trained_on & held_out) if same else []
    message = "expected labels for training or for validation, got both: it is held out"
    training = _of(
        replace(training, samples=[sample for sample in training.samples if sample.image_file not in seen]),
        skipped=[finding for finding in training.skipped if finding.file not in seen],
        other_files=training.other_files if same else training.other_files - validation.other_files,
    )
    return replace(
        training,
        orphans=[finding for finding in training.orphans if finding not in reported],
        findings=[finding for finding in training.findings if finding not in reported]
        + [Finding(file, Problem.DUPLICATE_NAME, message) for file in twice],
    ), validation


def _of(listing: Listing, *, skipped: list[Finding], other_files: int) -> Listing:
    images = len(listing.samples) + len(skipped)
    return replace(listing, skipped=skipped, images=images, other_files=other_files)


def _is_below(place: str, folder: str) -> bool:
    return place != folder and (not folder or place.startswith(f"{folder}/"))
