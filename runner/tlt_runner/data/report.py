"""What preparation found: every image left out, every line dropped, and why (dataset-report.json).

A tally is filled in while the data are converted, by one thread; the report is its frozen form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tlt_api.base import StatusModel
from tlt_api.failures import Reason
from tlt_api.status import ClassCount, DatasetStatus
from tlt_api.trainingjob import BadSamples
from tlt_runner.data.records import Manifest
from tlt_runner.data.sample import Converted, Finding, Listing, Oddity, Problem
from tlt_runner.errors import RunnerError

LISTED = 10_000
"""Findings that are listed one by one in each list; the counts are of all."""
NAMED_IN_ERROR = 10
HARMLESS = {Problem.TOO_SMALL}
"""Dropped lines that say nothing against the data."""


class ReportedFinding(StatusModel):
    """One thing that is wrong."""

    file: str
    line: int | None = None
    problem: Problem
    message: str


class DatasetReport(StatusModel):
    """The whole of what preparation found."""

    images: int
    """Image files found."""
    usable_images: int
    """Images in the records."""
    images_without_objects: int
    """Of these, images without any object: background only."""
    odd_images: dict[Oddity, int]
    """Of these, images that are unusual, by how: what is done about it stands in the warnings."""
    bad_images: int
    """Images left out, or used without some of their lines because those are wrong."""
    objects: int
    """Objects in the records."""
    clipped_boxes: int
    """Of these, objects whose box was cut at the image's edge."""
    ignored_regions: int
    """Regions that the labels mark as "do not care"."""
    other_files: int
    """Entries of the image folders that are no images."""
    source_classes: dict[str, int]
    """Label lines of the usable images by their own class; lines that could not be read have none."""
    unmapped_classes: dict[str, int]
    """Of these, classes that targetClassMapping does not name; their lines are no objects."""
    unused_mapping_keys: list[str]
    """Keys of targetClassMapping that no label uses."""
    leaked_images: int
    """Validation images that are also training images, byte for byte: they make the metrics too good."""
    skipped_by_problem: dict[Problem, int]
    """Number of images left out, by why."""
    dropped_by_problem: dict[Problem, int]
    """Number of label lines left out, by why."""
    labels_without_image: int
    """Number of labels without an image."""
    skipped: list[ReportedFinding]
    """Images left out; at most 10,000."""
    dropped: list[ReportedFinding]
    """Label lines left out; at most 10,000."""
    orphans: list[ReportedFinding]
    """Labels without an image; at most 10,000."""
    warnings: list[str]
    """What a person should look at."""

    @property
    def dropped_objects(self) -> int:
        """Label lines that are no objects in the records, ignored regions apart."""
        return sum(self.unmapped_classes.values()) + sum(self.dropped_by_problem.values())


@dataclass
class Tally:
    """Counts and findings so far."""

    images: int = 0
    usable_images: int = 0
    images_without_objects: int = 0
    odd_images: Counter[Oddity] = field(default_factory=Counter)
    bad_images: int = 0
    clipped_boxes: int = 0
    ignored_regions: int = 0
    other_files: int = 0
    source_classes: Counter[str] = field(default_factory=Counter)
    skipped: list[Finding] = field(default_factory=list)
    dropped: list[Finding] = field(default_factory=list)
    orphans: list[Finding] = field(default_factory=list)
    skipped_by_problem: Counter[Problem] = field(default_factory=Counter)
    dropped_by_problem: Counter[Problem] = field(default_factory=Counter)
    labels_without_image: int = 0
    leaked: Sequence[str] = ()

    def add_listing(self, listing: Listing) -> None:
        """What a folder holds."""
        self.images += listing.images
        self.other_files += listing.other_files
        for finding in listing.skipped:
            self.skip(finding)
        for finding in listing.orphans:
            self.orphan(finding)
        for finding in listing.findings:
            self.drop(finding)

    def add(self, converted: Converted) -> None:
        """What became of one sample."""
        if converted.skipped is not None:
            self.skip(converted.skipped)
            return
        self.usable_images += 1
        self.odd_images.update(converted.oddities)
        self.source_classes.update(converted.source_classes)
        self.ignored_regions += converted.ignored
        self.images_without_objects += not converted.objects
        self.clipped_boxes += converted.clipped
        self.bad_images += any(finding.problem not in HARMLESS for finding in converted.dropped)
        for finding in converted.dropped:
            self.drop(finding)

    def skip(self, finding: Finding) -> None:
        """An image is left out."""
        self.bad_images += 1
        self.skipped_by_problem[finding.problem] += 1
        _note(self.skipped, finding)

    def drop(self, finding: Finding) -> None:
        """A label line is left out."""
        self.dropped_by_problem[finding.problem] += 1
        _note(self.dropped, finding)

    def orphan(self, finding: Finding) -> None:
        """A label has no image."""
        self.labels_without_image += 1
        _note(self.orphans, finding)

    def to_report(self, objects: int, mapped: dict[str, str | None], unused_keys: list[str]) -> DatasetReport:
        """The report.

        Args:
            objects: Objects in the records.
            mapped: Source class -> target class, or None when unmapped, of every class in the labels.
            unused_keys: Keys of the mapping that matched nothing.
        """
        unmapped = {name: count for name, count in sorted(self.source_classes.items()) if not mapped[name]}
        return DatasetReport(
            images=self.images,
            usable_images=self.usable_images,
            images_without_objects=self.images_without_objects,
            odd_images=dict(sorted(self.odd_images.items())),
            bad_images=self.bad_images,
            objects=objects,
            clipped_boxes=self.clipped_boxes,
            ignored_regions=self.ignored_regions,
            other_files=self.other_files,
            source_classes=dict(sorted(self.source_classes.items())),
            unmapped_classes=unmapped,
            unused_mapping_keys=unused_keys,
            leaked_images=len(self.leaked),
            skipped_by_problem=dict(sorted(self.skipped_by_problem.items())),
            dropped_by_problem=dict(sorted(self.dropped_by_problem.items())),
            labels_without_image=self.labels_without_image,
            skipped=_reported(self.skipped),
            dropped=_reported(self.dropped),
            orphans=_reported(self.orphans),
            warnings=self._warnings(unused_keys),
        )

    def _warnings(self, unused_keys: list[str]) -> list[str]:
        found = ", ".join(sorted(self.source_classes)) or "none"
        warnings = [
            f"targetClassMapping: no label uses class {key!r}; the labels' classes are: {found}"
            for key in unused_keys
        ]
        if self.images_without_objects:
            warnings.append(
                f"{self.images_without_objects} images have no object: they train background only"
            )
        if self.leaked:
            named = ", ".join(self.leaked[:NAMED_IN_ERROR])
            warnings.append(
                f"{len(self.leaked)} validation images are also training images, byte for byte, which makes "
                f"metrics too good: {named}{' ...' if len(self.leaked) > NAMED_IN_ERROR else ''}"
            )
        if self.odd_images[Oddity.TURNED]:
            warnings.append(
                f"{self.odd_images[Oddity.TURNED]} images have an EXIF orientation; labels are taken to speak "
                "of the pixels as stored, not as a viewer turns them"
            )
        if self.other_files:
            warnings.append(
                f"{self.other_files} entries of the image folders are no .jpg, .jpeg or .png files and were "
                "not read"
            )
        return warnings


def _note(findings: list[Finding], finding: Finding) -> None:
    if len(findings) < LISTED:
        findings.append(finding)


def _reported(findings: list[Finding]) -> list[ReportedFinding]:
    ordered = sorted(findings, key=lambda finding: (finding.file, finding.line or 0))
    return [
        ReportedFinding(file=item.file, line=item.line, problem=item.problem, message=item.message)
        for item in ordered
    ]


def judge(report: DatasetReport, policy: BadSamples) -> None:
    """Fail where the data have more bad samples than the policy allows.

    Raises:
        RunnerError: ``BadSamples``, naming the first ten files with their lines.
    """
    bad = report.bad_images + (report.labels_without_image if policy.policy == "Fail" else 0)
    share = report.bad_images / max(1, report.images)
    if bad == 0 or (policy.policy == "Skip" and share <= policy.max_fraction):
        return
    wrong = [
        *report.skipped,
        *(item for item in report.dropped if item.problem not in HARMLESS),
        *(report.orphans if policy.policy == "Fail" else ()),
    ]
    named = "; ".join(
        f"{item.file}{'' if item.line is None else f':{item.line}'}: {item.problem}: {item.message}"
        for item in wrong[:NAMED_IN_ERROR]
    )
    if policy.policy == "Fail":
        allowed = "none is allowed (badSamples.policy Fail)"
    else:
        allowed = f"badSamples.maxFraction allows {policy.max_fraction:g}"
    more = f"; and {len(wrong) - NAMED_IN_ERROR} more" if len(wrong) > NAMED_IN_ERROR else ""
    raise RunnerError(
        Reason.BAD_SAMPLES,
        f"{report.bad_images} of {report.images} images ({share:.2%}) are bad and "
        f"{report.labels_without_image} labels have no image; {allowed}: {named}{more}",
    )


def to_status(manifest: Manifest, report: DatasetReport, uri: str) -> DatasetStatus:
    """The part that goes into the resource's status."""
    counts = zip(manifest.class_names, manifest.objects, strict=True)
    return DatasetStatus(
        images=manifest.training_images + manifest.validation_images,
        objects=sum(manifest.objects),
        skipped=sum(report.skipped_by_problem.values()),
        dropped_objects=report.dropped_objects,
        training_images=manifest.training_images,
        validation_images=manifest.validation_images,
        classes=[ClassCount(name=name, objects=count) for name, count in counts],
        digest=manifest.digest,
        records_uri=uri,
    )
