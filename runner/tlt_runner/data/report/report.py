"""Dataset report: every image left out, every line dropped, and the reasons (dataset-report.json).

:class:`~tlt_runner.data.report.statistics.DatasetStatistics` are filled in while the data are converted. The
report is their frozen form: people read it, :mod:`tlt_runner.data.report.html` draws it, and
:func:`enforce_policy` decides by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tlt_api.base import StatusModel
from tlt_api.dataset import BadSamples
from tlt_api.failures import Reason
from tlt_api.status import FIRST_WARNINGS, WARNING_LENGTH, ClassCount, DatasetStatus, LabelConvention
from tlt_runner.data.sample import Oddity, Problem
from tlt_runner.errors import RunnerError

LISTED = 10_000
"""Findings that are listed one by one in each list; the counts are of all."""
NAMED_IN_ERROR = 10
"""Files that a failure names, and lines of each of them."""
_ROOM = 1_300
"""Characters of all files named in a failure: it fits into a pod's termination message and the status."""
HARMLESS = {Problem.TOO_SMALL}
"""Problems of dropped lines that do not count as bad data."""


class ReportedFinding(StatusModel):
    """Finding of the report, as it is stored in JSON."""

    file: str
    """The file at fault, relative to the data set's root."""
    line: int | None = None
    """Line of the file at fault, from 1; None if the file has no lines."""
    image: str | None = None
    """The image to which a dropped line belongs."""
    problem: Problem
    """Kind of problem."""
    message: str
    """Field, expected, got."""
    box: tuple[float, float, float, float] | None = None
    """Box of a dropped line, if it has one: top, left, bottom, right, in pixels of the image as stored, or
    as turned, if its EXIF orientation was applied."""


class ReportedClass(StatusModel):
    """Objects of one class to learn."""

    name: str
    """The class."""
    training: int
    """Number of training objects of the class."""
    validation: int
    """Number of validation objects of the class."""
    difficult: int = 0
    """Number of these validation objects that are difficult: evaluation leaves them out of account."""


class ReportedSize(StatusModel):
    """Objects of about one size: one bin of the histogram, a quarter of an octave wide and high."""

    width: float
    """Middle of the bin, in pixels of the network's input."""
    height: float
    """Middle of the bin, in pixels of the network's input."""
    objects: int
    """Objects in it."""


class DatasetReport(StatusModel):
    """Result of a preparation.

    ``images`` = ``usable_images`` + the sum of ``skipped_by_problem``. ``lines`` = ``objects`` + the sums of
    ``dropped_by_problem`` and ``unmapped_classes`` + ``ignored_regions``.
    """

    # Images, used or not.
    images: int
    """Image files found."""
    usable_images: int
    """Images in the records."""
    training_images: int
    """Usable images to train on."""
    validation_images: int
    """Usable images to validate on."""
    images_without_objects: int
    """Usable images without any object: background only."""
    odd_images: dict[Oddity, int]
    """Usable images with an unusual property, by property; the warnings say what is done about it."""
    bad_images: int
    """Images left out, or used without some of their lines because those are wrong."""
    # Label lines and the objects that they became.
    lines: int
    """Label lines of the usable images; of formats without lines, their entries."""
    objects: int
    """Label lines that became objects in the records."""
    clipped_boxes: int
    """Objects whose box was cut at the image's edge."""
    ignored_regions: int
    """Regions that the labels mark as "do not care"."""
    # Reports of earlier releases lack the fields with a default.
    unused_regions: int = 0
    """Ignored regions that are not in the records: outside of the image, or of a class that is not learnt."""
    turned_images: int = 0
    """Images with an EXIF orientation of which label lines lie outside of the pixels as stored, or reach
    out of them: the labels were drawn on the turned view."""
    outlines: int = 0
    """Label lines of usable images of which the bounding box of a polygon or a rotated box was taken."""
    # Files that are neither images nor labels of a sample.
    other_files: int
    """Entries of the image folders that are no images."""
    unlisted_images: int
    """Images that none of the data set's lists (imageSet) names; they are not among the images."""
    # Fields with a default came later: reports beside older records lack them.
    outside_images: int = 0
    """Images that no label file lists (coco): no part of the data set, and not among the images."""
    unlabelled_images: int = 0
    """Images without a label, taken as images without objects (dataset.unlabelled)."""
    # Classes, by the mapping and by the labels.
    classes: list[ReportedClass]
    """Objects by class to learn."""
    source_classes: dict[str, int]
    """Label lines of the usable images by their own class; lines that could not be read do not count."""
    unmapped_classes: dict[str, int]
    """Label lines by class, of classes that targetClassMapping does not name; they are no objects."""
    unused_mapping_keys: list[str]
    """Keys of targetClassMapping that no label uses."""
    # Images that occur more than once.
    leaked_images: int
    """Validation images that are also training images, byte for byte: they make the metrics too good."""
    duplicate_images: int
    """Training images that are another training image once more, byte for byte."""
    repeated_names: int
    """File names, without suffix, that occur in several folders; each is an image of its own."""
    # Counts of what was left out; they are complete.
    skipped_by_problem: dict[Problem, int]
    """Number of images left out, by problem."""
    dropped_by_problem: dict[Problem, int]
    """Number of label lines left out, by problem."""
    labels_without_image: int
    """Number of labels without an image."""
    side_files: int
    """Harmless files among the labels that hold no labels: lists, notes, captions."""
    label_problems: dict[Problem, int]
    """Number of label files, and of their entries or entries of lists that belong to no image, that could not
    be used, by problem."""
    # The same, one by one, as far as the lists go.
    skipped: list[ReportedFinding]
    """Images left out; at most 10,000."""
    dropped: list[ReportedFinding]
    """Label lines left out; at most 10,000."""
    orphans: list[ReportedFinding]
    """Labels without an image; at most 10,000."""
    label_findings: list[ReportedFinding]
    """Label files and entries that could not be used; at most 10,000."""
    named_side_files: list[str]
    """Files among the labels that hold no labels; at most 10,000."""
    outside: list[str] = []
    """Images that no label file lists; at most 10,000."""
    unlabelled: list[str] = []
    """Images without a label, taken as images without objects; at most 10,000."""
    odd: dict[Oddity, list[str]]
    """Images with an unusual property, by property; at most 10,000 each."""
    leaked: list[str]
    """Validation images that are also training images; at most 10,000."""
    duplicates: list[str]
    """Training images that are there already; at most 10,000."""
    box_sizes: list[ReportedSize]
    """Histogram of the objects' sizes."""
    sizes_by_class: dict[str, list[ReportedSize]]
    """Histogram of the objects' sizes for each class to learn."""
    notes: list[str] = []
    """How the labels were read: one sentence each."""
    layout: str | None = None
    """Places, class names and split that were found with layout auto."""
    coordinates: LabelConvention | None = None
    """Number of the first pixel in VOC labels, and what decided it."""
    orientation: LabelConvention | None = None
    """View of images with an EXIF orientation on which labels were drawn, and what decided it."""
    warnings: list[str]
    """Sentences for a person to look at."""

    @property
    def dropped_objects(self) -> int:
        """Number of label lines that did not become objects, apart from ignored regions."""
        return sum(self.unmapped_classes.values()) + sum(self.dropped_by_problem.values())


def require_both_subsets(report: DatasetReport) -> None:
    """Fail if there is no usable image for training, or none for validation.

    Raises:
        RunnerError: ``BadSamples``.
    """
    # Without training images nothing is learnt; without validation images no best model can be chosen.
    usable = {"training": report.training_images, "validation": report.validation_images}
    empty = [subset for subset, images in usable.items() if not images]
    if empty:
        raise RunnerError(
            Reason.BAD_SAMPLES,
            f"expected at least one usable image for training and one for validation, got none for "
            f"{' and '.join(empty)}: {report.usable_images} of {report.images} images are usable",
            "Add images, or correct spec.dataset.validation.",
        )


def enforce_policy(report: DatasetReport, policy: BadSamples) -> None:
    """Fail if the data have more bad samples than the policy allows.

    Raises:
        RunnerError: ``BadSamples``, naming the first ten files with their lines.
    """
    strict = policy.policy == "Fail"
    # Labels without an image and unusable label files spoil no image: only the strict policy counts them.
    label_problems = sum(report.label_problems.values())
    bad = report.bad_images + (report.labels_without_image + label_problems if strict else 0)
    # Of all images and not of the usable ones: images left out count as bad, so the share is 0 to 1.
    share = report.bad_images / max(1, report.images)
    # Skip tolerates a fraction of bad images, Fail not a single bad entry.
    if bad == 0 or (not strict and share <= policy.max_fraction):
        return
    # Images left out come first: they lose more than a dropped line.
    wrong = [
        *report.skipped,
        *(item for item in report.dropped if item.problem not in HARMLESS),
        *report.label_findings,
        *(report.orphans if strict else ()),
    ]
    allowed = (
        "none is allowed (badSamples.policy Fail)"
        if strict
        else f"badSamples.maxFraction allows {policy.max_fraction:g}"
    )
    raise RunnerError(
        Reason.BAD_SAMPLES,
        f"{report.bad_images} of {report.images} images ({share:.2%}) are bad, "
        f"{report.labels_without_image} labels have no image and {label_problems} label files or entries "
        f"cannot be used; {allowed}: {_named(wrong, _all_listed(report))}",
        _hint(report, strict=strict),
    )


def _hint(report: DatasetReport, *, strict: bool) -> str:
    """Say what to do about bad samples, and what more of them would cost."""
    advice = ["Repair the files named in the dataset report."]
    if Problem.NOT_A_BOX in report.skipped_by_problem:
        advice.append(
            "Polygons and rotated boxes: set dataset.shapes: boundingBox, or export boxes from the tool."
        )
    if Problem.UNREADABLE_LABEL in report.label_problems:
        advice.append("Images without a label may have theirs in the label files that cannot be read.")
    elif Problem.NO_LABEL in report.skipped_by_problem:
        mismatch = "compare their names with those of the labels without an image, and "
        advice.append(
            f"Images without a label: {mismatch if report.labels_without_image else ''}if they show no "
            "object, set dataset.unlabelled: background."
        )
    # What a larger fraction means is said with it: dropped lines are no longer objects, but what they mark is
    # still in the picture.
    if any(problem not in HARMLESS for problem in report.dropped_by_problem):
        advice.append(
            "Do not raise badSamples.maxFraction for label lines that are wrong: what they mark would be "
            "trained as background."
        )
    elif report.skipped_by_problem and not strict:
        advice.append(
            "With a larger badSamples.maxFraction the images named are left out, with all their objects."
        )
    return " ".join(advice)


def _all_listed(report: DatasetReport) -> bool:
    return max(map(len, (report.skipped, report.dropped, report.orphans, report.label_findings))) < LISTED


def _named(findings: Iterable[ReportedFinding], all_listed: bool) -> str:
    """Name the first ten files, each with its lines and its first finding, and count the others."""
    # One entry a file: a label with a thousand bad lines must not hide the other files.
    by_file: dict[str, list[ReportedFinding]] = {}
    for finding in findings:
        by_file.setdefault(finding.file, []).append(finding)
    # One file of each problem first: a rare problem must not hide behind ten files of another.
    problems: set[Problem] = set()
    first: list[tuple[str, list[ReportedFinding]]] = []
    others: list[tuple[str, list[ReportedFinding]]] = []
    for item in by_file.items():
        problem = item[1][0].problem
        (others if problem in problems else first).append(item)
        problems.add(problem)
    named: list[str] = []
    # A finding is never cut: the first one stands there in any case, and as many others as there is room for.
    for file, items in [*first, *others][:NAMED_IN_ERROR]:
        text = _file(file, items)
        if named and len(text) + sum(map(len, named)) > _ROOM:
            break
        named.append(text)
    more = len(by_file) - len(named)
    rest = [] if more <= 0 else [f"and {'' if all_listed else 'at least '}{more} more files"]
    return "; ".join([*named, *rest])


def _file(file: str, findings: Sequence[ReportedFinding]) -> str:
    lines = [str(item.line) for item in findings if item.line is not None]
    more = f" and {len(lines) - NAMED_IN_ERROR} more" if len(lines) > NAMED_IN_ERROR else ""
    start = f"{file}: line{'s' * (len(lines) > 1)} " if lines else f"{file}: "
    numbers = f"{', '.join(lines[:NAMED_IN_ERROR])}{more}: " if lines else ""
    return f"{start}{numbers}{findings[0].problem}: {findings[0].message}"


def to_status(
    report: DatasetReport, report_uri: str, digest: str | None = None, records_uri: str | None = None
) -> DatasetStatus:
    """Make the summary that goes into the resource's status.

    Args:
        report: The report.
        report_uri: The report's page.
        digest: Digest of the records, unless the data were refused.
        records_uri: Address of the records.
    """
    return DatasetStatus(
        images=report.usable_images,
        objects=report.objects,
        skipped=sum(report.skipped_by_problem.values()),
        dropped_objects=report.dropped_objects,
        training_images=report.training_images,
        validation_images=report.validation_images,
        unlabelled_images=report.unlabelled_images,
        unlisted_images=report.unlisted_images + report.outside_images,
        classes=[
            ClassCount(name=item.name, objects=item.training + item.validation) for item in report.classes
        ],
        digest=digest,
        records_uri=records_uri,
        report_uri=report_uri,
        layout=report.layout,
        coordinates=report.coordinates,
        orientation=report.orientation,
        warnings=len(report.warnings),
        first_warnings=[_shortened(text) for text in report.warnings[:FIRST_WARNINGS]] or None,
    )


def _shortened(text: str) -> str:
    return text if len(text) <= WARNING_LENGTH else f"{text[: WARNING_LENGTH - 3]}..."
