"""Statistics of a data set: counts and findings, kept for each shard and merged at the end.

Their size does not grow with the data: findings are listed up to a limit and counted beyond it, and the sizes
of boxes go into a histogram of fixed bins. The warnings of the report, sentences for a person to look at, are
written at the end from its counts. They stop nothing; a job is stopped by
:func:`tlt_runner.data.report.report.enforce_policy`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.records import Subset
from tlt_runner.data.report.report import (
    HARMLESS,
    LISTED,
    DatasetReport,
    ReportedClass,
    ReportedFinding,
    ReportedSize,
)
from tlt_runner.data.sample import Finding, Listing, Oddity, Problem, Sample, SampleOutcome

BINS_PER_OCTAVE = 4
"""Bins of the histogram of box sizes in each doubling of width or height."""
_BINS = 64
"""Bins of each axis: 1 to 65,536 pixels."""
_Item = TypeVar("_Item")


class DatasetStatistics(BaseModel):
    """Counts and findings of the images so far.

    They are written to sidecars with ``model_dump_json`` and read back with ``model_validate_json``.
    """

    model_config = ConfigDict(extra="forbid")

    images: int = 0
    usable_images: Counter[Subset] = Counter()
    images_without_objects: int = 0
    bad_images: int = 0
    clipped_boxes: int = 0
    ignored_regions: int = 0
    other_files: int = 0
    unlisted_images: int = 0
    outside_images: int = 0
    unlabelled_images: int = 0
    outlines: int = 0
    repeated_names: int = 0
    labels_without_image: int = 0
    side_files: int = 0
    leaked_images: int = 0
    duplicate_images: int = 0
    source_classes: Counter[str] = Counter()
    training_objects: Counter[int] = Counter()
    """Objects to train on, by class id."""
    validation_objects: Counter[int] = Counter()
    """Objects to validate on, by class id."""
    objects_per_image: Counter[int] = Counter()
    """Number of images by their number of objects."""
    difficult_validation_objects: Counter[int] = Counter()
    """Validation objects that evaluation leaves out of account, by class id."""
    turned_images: int = 0
    """Images with an EXIF orientation and with labels that lie, or reach, out of the pixels as stored."""
    ignored_per_image: Counter[int] = Counter()
    """Number of images by their number of ignored regions in the record."""
    box_sizes: Counter[int] = Counter()
    """Histogram: 4,096 times the class id plus 64 times the height's bin plus the width's bin -> objects."""
    odd_images: Counter[Oddity] = Counter()
    skipped_by_problem: Counter[Problem] = Counter()
    dropped_by_problem: Counter[Problem] = Counter()
    label_problems: Counter[Problem] = Counter()
    skipped: list[ReportedFinding] = []
    dropped: list[ReportedFinding] = []
    orphans: list[ReportedFinding] = []
    label_findings: list[ReportedFinding] = []
    named_side_files: list[str] = []
    outside: list[str] = []
    unlabelled: list[str] = []
    notes: list[str] = []
    label_warnings: list[str] = []
    odd: dict[Oddity, list[str]] = {}
    leaked: list[str] = []
    duplicates: list[str] = []
    turned: list[str] = []

    def add_listings(self, listings: Sequence[Listing]) -> None:
        """Add the contents of all folders at once, so that names that occur in several are counted."""
        # File name -> folders in which it occurs.
        folders: defaultdict[str, set[str]] = defaultdict(set)
        for listing in listings:
            self.images += listing.images
            self.other_files += listing.other_files - listing.read_files
            self.unlisted_images += listing.unlisted
            self.outside_images += len(listing.outside)
            self.labels_without_image += len(listing.orphans)
            self.side_files += len(listing.side_files)
            # The counts above are of all; lists end at the limit.
            _extend(self.named_side_files, map(_writable, listing.side_files))
            _extend(self.outside, map(_writable, listing.outside))
            # Training and validation data may share files, of which both readers say the same.
            _extend(self.notes, (note for note in map(_writable, listing.notes) if note not in self.notes))
            _extend(
                self.label_warnings,
                (text for text in map(_writable, listing.warnings) if text not in self.label_warnings),
            )
            self.label_problems.update(finding.problem for finding in listing.findings)
            _extend(self.orphans, map(_reported, listing.orphans))
            _extend(self.label_findings, map(_reported, listing.findings))
            # Images that were left out before any was opened: no label, wrong format, double name.
            for finding in listing.skipped:
                self._skip(finding)
            for sample in listing.samples:
                # A name in several folders is legal, each is an image of its own, but the report counts it.
                path = PurePosixPath(sample.name)
                folders[path.name].add(str(path.parent))
        self.repeated_names += sum(len(names) > 1 for names in folders.values())

    def add(self, sample: Sample, outcome: SampleOutcome, subset: Subset) -> None:
        """Add the outcome of one sample."""
        # Nothing of an image that is left out counts, not even its classes.
        if outcome.skipped is not None:
            self._skip(outcome.skipped)
            return
        self.usable_images[subset] += 1
        if sample.key is None:
            self.unlabelled_images += 1
            _extend(self.unlabelled, [_writable(sample.image_file)])
        # An odd image is used; it is only counted and listed.
        for oddity in outcome.oddities:
            self.odd_images[oddity] += 1
            _extend(self.odd.setdefault(oddity, []), [_writable(sample.image_file)])
        # The labels' own classes, before mapping: the report shows what targetClassMapping could name.
        self.source_classes.update(map(_writable, outcome.source_classes))
        self.ignored_regions += outcome.ignored
        self.images_without_objects += not outcome.objects
        self.clipped_boxes += outcome.clipped
        self.outlines += outcome.outlines
        # One bad image, however many of its lines were dropped.
        self.bad_images += any(finding.problem not in HARMLESS for finding in outcome.dropped)
        self.dropped_by_problem.update(finding.problem for finding in outcome.dropped)
        # A generator: findings beyond the limit are not even converted.
        _extend(self.dropped, (_reported(finding, sample.image_file) for finding in outcome.dropped))
        # Counters by class id; the report turns ids into names.
        objects = self.training_objects if subset == "training" else self.validation_objects
        objects.update(outcome.objects)
        if subset == "validation":
            self.difficult_validation_objects.update(outcome.difficult)
        # Of labels that fit the stored pixels none lies outside, or reaches far out.
        outside = any(finding.problem == Problem.OUTSIDE_IMAGE for finding in outcome.dropped)
        if Oddity.TURNED in outcome.oddities and (outside or outcome.reaching_out):
            self.turned_images += 1
            _extend(self.turned, [_writable(sample.image_file)])
        self.objects_per_image[len(outcome.objects)] += 1
        self.ignored_per_image[outcome.regions] += 1
        self.box_sizes.update(
            (_BINS * class_id + _bin(height)) * _BINS + _bin(width)
            for class_id, (height, width) in zip(outcome.objects, outcome.sizes, strict=False)
        )

    def add_duplicates(self, leaked: Sequence[str], duplicates: Sequence[str]) -> None:
        """Add images that occur twice, byte for byte.

        Args:
            leaked: Validation images that are training images, too; paths relative to the data set's root.
            duplicates: Training images that are another training image once more.
        """
        self.leaked_images += len(leaked)
        self.duplicate_images += len(duplicates)
        _extend(self.leaked, map(_writable, leaked))
        _extend(self.duplicates, map(_writable, duplicates))

    def merge(self, other: DatasetStatistics) -> None:
        """Add the counts and findings of another one. Associative; each list keeps its first 10,000."""
        for name in type(self).model_fields:
            # By type, so that a new field cannot be forgotten here.
            value, added = getattr(self, name), getattr(other, name)
            if isinstance(value, Counter):
                value.update(added)
            elif isinstance(value, int):
                setattr(self, name, value + added)
            elif isinstance(value, list):
                _extend(value, added)
            else:
                for oddity, names in added.items():
                    _extend(value.setdefault(oddity, []), names)

    def to_report(self, mapping: ClassMapping) -> DatasetReport:
        """Make the report, with the mapping by which the samples were converted."""
        # The labels' own classes were counted, so that the report can name those that the mapping leaves out.
        unmapped = {
            name: count for name, count in self.source_classes.items() if mapping.target(name) is None
        }
        # Every line is counted in exactly one of objects, dropped, unmapped and ignored; their sum is the
        # number of lines.
        objects = self.training_objects.total() + self.validation_objects.total()
        dropped = self.dropped_by_problem.total()
        classes = [
            ReportedClass(
                name=name,
                training=self.training_objects[class_id],
                validation=self.validation_objects[class_id],
                difficult=self.difficult_validation_objects[class_id],
            )
            for class_id, name in enumerate(mapping.class_names)
        ]
        by_class: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for key, count in self.box_sizes.items():
            by_class[key // _BINS**2][key] += count
        # Everything is sorted: the same data give the same bytes, whatever the order of the threads.
        report = DatasetReport(
            images=self.images,
            usable_images=self.usable_images.total(),
            training_images=self.usable_images["training"],
            validation_images=self.usable_images["validation"],
            images_without_objects=self.images_without_objects,
            odd_images=dict(sorted(self.odd_images.items())),
            bad_images=self.bad_images,
            lines=objects + dropped + sum(unmapped.values()) + self.ignored_regions,
            objects=objects,
            clipped_boxes=self.clipped_boxes,
            ignored_regions=self.ignored_regions,
            unused_regions=self.ignored_regions - _sum(self.ignored_per_image),
            turned_images=self.turned_images,
            # Two readers may have read the same file beside shared images.
            other_files=max(0, self.other_files),
            unlisted_images=self.unlisted_images,
            outside_images=self.outside_images,
            unlabelled_images=self.unlabelled_images,
            outlines=self.outlines,
            classes=classes,
            source_classes=dict(sorted(self.source_classes.items())),
            unmapped_classes=dict(sorted(unmapped.items())),
            unused_mapping_keys=mapping.unused_keys(self.source_classes),
            leaked_images=self.leaked_images,
            duplicate_images=self.duplicate_images,
            repeated_names=self.repeated_names,
            skipped_by_problem=dict(sorted(self.skipped_by_problem.items())),
            dropped_by_problem=dict(sorted(self.dropped_by_problem.items())),
            labels_without_image=self.labels_without_image,
            side_files=self.side_files,
            label_problems=dict(sorted(self.label_problems.items())),
            skipped=_in_order(self.skipped),
            dropped=_in_order(self.dropped),
            orphans=_in_order(self.orphans),
            label_findings=_in_order(self.label_findings),
            named_side_files=sorted(self.named_side_files),
            outside=sorted(self.outside),
            unlabelled=sorted(self.unlabelled),
            notes=self._notes(),
            odd={oddity: sorted(names) for oddity, names in sorted(self.odd.items())},
            leaked=sorted(self.leaked),
            duplicates=sorted(self.duplicates),
            box_sizes=_histogram(self.box_sizes),
            sizes_by_class={
                name: _histogram(by_class[class_id])
                for class_id, name in enumerate(mapping.class_names)
                if class_id in by_class
            },
            warnings=[],
        )
        # The warnings look at the finished report.
        warnings = [*self.label_warnings, *_warnings(report, mapping, sorted(self.turned))]
        return report.model_copy(update={"warnings": warnings})

    def _notes(self) -> list[str]:
        outlined = f"{self.outlines} objects have the bounding box of their polygon or rotated box"
        return [*self.notes, *([outlined] if self.outlines else [])]

    def _skip(self, finding: Finding) -> None:
        self.bad_images += 1
        self.skipped_by_problem[finding.problem] += 1
        _extend(self.skipped, [_reported(finding)])


def _sum(histogram: Counter[int]) -> int:
    return sum(number * images for number, images in histogram.items())


def _bin(pixels: float) -> int:
    """Find the bin of a side: bin i reaches from 2 ** (i / 4) to 2 ** ((i + 1) / 4) pixels."""
    # Clamped at both ends: sides below a pixel are dropped before, and none is above 65,536.
    return min(_BINS - 1, max(0, math.floor(math.log2(max(pixels, 1.0)) * BINS_PER_OCTAVE)))


def _histogram(sizes: Counter[int]) -> list[ReportedSize]:
    """Sum the objects of all classes in each bin."""
    bins: Counter[int] = Counter()
    for key, count in sizes.items():
        bins[key % _BINS**2] += count
    return [
        ReportedSize(width=_middle(key % _BINS), height=_middle(key // _BINS), objects=count)
        for key, count in sorted(bins.items())
    ]


def _middle(index: int) -> float:
    return round(2 ** ((index + 0.5) / BINS_PER_OCTAVE), 2)


def _reported(finding: Finding, image: str | None = None) -> ReportedFinding:
    return ReportedFinding(
        file=_writable(finding.file),
        line=finding.line,
        image=None if image is None else _writable(image),
        problem=finding.problem,
        message=_writable(finding.message),
        box=finding.box,
    )


def _writable(text: str) -> str:
    """Spell out lone surrogates, which file names and JSON can have and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _extend(listed: list[_Item], items: Iterable[_Item]) -> None:
    """Append up to the limit; items beyond it are not even made."""
    if len(listed) < LISTED:
        # The range goes first in zip: it ends without taking one item more.
        listed.extend(item for _, item in zip(range(LISTED - len(listed)), items, strict=False))


def _in_order(findings: Iterable[ReportedFinding]) -> list[ReportedFinding]:
    return sorted(findings, key=lambda finding: (finding.file, finding.line or 0))


IMBALANCE = 100
"""Ratio of objects between the largest and the smallest class from which on there is a warning."""
_NAMED = 10
_ODDITIES = {
    Oddity.WRONG_EXTENSION: "have the extension of another format, and are read by their content",
    Oddity.CMYK: "are CMYK, and become RGB without a colour profile: colours may be off",
    Oddity.SIXTEEN_BIT: "have 16 bits a channel, of which the upper 8 are kept",
    Oddity.GRAYSCALE: "are grayscale; with dataset.colorMode rgb they get three equal channels",
    Oddity.ALPHA: "have transparency, which is dropped: the colours stored below it count",
    Oddity.ANIMATED: "are animated, of which the still picture is used",
}


def _warnings(report: DatasetReport, mapping: ClassMapping, turned: Sequence[str]) -> list[str]:
    """Write one sentence for each warning; those of what is lost come first."""
    return [
        *_class_warnings(report, mapping),
        *_uncounted_warnings(report, turned),
        *_image_warnings(report),
    ]


def _class_warnings(report: DatasetReport, mapping: ClassMapping) -> list[str]:
    sentences = []
    unused = set(report.unused_mapping_keys)
    # Classes all of whose keys are unused: that they have no objects is said with the keys.
    absent = {name for key, name in mapping.targets.items() if key in unused} - {
        name for key, name in mapping.targets.items() if key not in unused
    }
    if unused:
        # Beside the unused keys stand the classes that exist: most often a key is misspelt.
        source_classes = _first(sorted(report.source_classes)) or "none"
        lost = f", so that nothing of {_quoted(sorted(absent))} is learnt or measured" if absent else ""
        sentences.append(
            f"targetClassMapping: no label uses {_quoted(report.unused_mapping_keys)}{lost}; the labels' "
            f"classes are: {source_classes}"
        )
    # ReportedClass has a field of each name.
    for subset, purpose in (("training", "cannot be learnt"), ("validation", "is not measured")):
        names = [
            item.name for item in report.classes if not getattr(item, subset) and item.name not in absent
        ]
        if names:
            subject = f"class {_quoted(names)} has" if len(names) == 1 else f"classes {_quoted(names)} have"
            what = "it" if len(names) == 1 else "each of them"
            sentences.append(f"{subject} no object for {subset}: {what} {purpose}")
    return [*sentences, *_imbalance_warnings(report.classes)]


def _quoted(names: Iterable[str]) -> str:
    """List names in full: a mapping has at most 500."""
    return ", ".join(map(repr, names))


def _uncounted_warnings(report: DatasetReport, turned: Sequence[str]) -> list[str]:
    """Write one sentence for each kind of label that was read and counts for less than an object."""
    sentences = []
    if report.ignored_regions:
        unused = (
            f"; {report.unused_regions} of them lie outside of the image or are of a class that is not "
            "learnt, and what they show is background"
        )
        sentences.append(
            f"ignored regions (DontCare, iscrowd), which are neither objects nor background: "
            f"{report.ignored_regions}{unused if report.unused_regions else ''}"
        )
    difficult = sum(item.difficult for item in report.classes)
    if difficult:
        validation = sum(item.validation for item in report.classes)
        only = [item.name for item in report.classes if item.validation and item.difficult == item.validation]
        lost = f"; of {_quoted(only)} all are, and nothing of it is measured" if only else ""
        sentences.append(
            "difficult objects (VOC difficult, KITTI occlusion of at least 1), which evaluation leaves out "
            f"of account: {difficult} of {validation} validation objects{lost}"
        )
    if report.turned_images:
        sentences.append(
            "images with an EXIF orientation whose labels lie outside of the pixels as stored, or reach out "
            "of them, as if they had been drawn on the turned view; such labels are cut or left out: "
            f"{report.turned_images} ({_first(turned, report.turned_images)})"
        )
    return sentences


def _imbalance_warnings(classes: Sequence[ReportedClass]) -> list[str]:
    # Of training objects only: validation objects teach nothing.
    trained = sorted((item for item in classes if item.training), key=lambda item: item.training)
    # Classes without any training object have a warning of their own.
    if not trained or trained[-1].training <= IMBALANCE * trained[0].training:
        return []
    rare, common = trained[0], trained[-1]
    return [
        f"classes are far from balanced: {rare.training} training objects of {rare.name!r}, "
        f"{common.training} of {common.name!r}; the rare one will hardly be learnt"
    ]


def _image_warnings(report: DatasetReport) -> list[str]:
    background = [item for item in report.dropped if item.problem not in HARMLESS]
    counts: dict[str, tuple[int, Sequence[str]]] = {
        "images left out, whose objects are not learnt (the reasons are in the report)": (
            sum(report.skipped_by_problem.values()),
            [item.file for item in report.skipped],
        ),
        "label lines dropped as wrong, whose objects are background in the images that are used": (
            sum(count for problem, count in report.dropped_by_problem.items() if problem not in HARMLESS),
            list(dict.fromkeys(item.file for item in background)),
        ),
        "images without a label, taken as images without objects (dataset.unlabelled)": (
            report.unlabelled_images,
            report.unlabelled,
        ),
        "images that no label file lists, which are no part of the data set": (
            report.outside_images,
            report.outside,
        ),
        "images without an object, which train background only": (report.images_without_objects, []),
        "validation images that are also training images, byte for byte, which makes metrics too good": (
            report.leaked_images,
            report.leaked,
        ),
        "training images that are another training image once more, byte for byte, and weigh double": (
            report.duplicate_images,
            report.duplicates,
        ),
        "file names in several folders, each an image of its own with its own label": (
            report.repeated_names,
            [],
        ),
        **{
            f"images that {_ODDITIES[oddity]}": (count, report.odd[oddity])
            for oddity, count in report.odd_images.items()
            # Of turned photos, spec.dataset.orientation and its evidence tell.
            if oddity in _ODDITIES
        },
        "entries of the image folders that are no .jpg, .jpeg or .png files and were not read": (
            report.other_files,
            [],
        ),
        "labels without an image": (
            report.labels_without_image,
            list(dict.fromkeys(item.file for item in report.orphans)),
        ),
        "label files or entries that cannot be used": (sum(report.label_problems.values()), []),
        "files among the labels that are no labels of boxes and were not used": (
            report.side_files,
            report.named_side_files,
        ),
        "images are in none of the lists (imageSet) and were not used": (report.unlisted_images, []),
    }
    return [
        f"{subject}: {count}{f' ({_first(names)})' if names else ''}"
        for subject, (count, names) in counts.items()
        if count
    ]


def _first(names: Sequence[str], count: int = 0) -> str:
    """The first names, and "..." where there are more: of these, or of the number given."""
    more = max(count, len(names)) > _NAMED
    return ", ".join([*names[:_NAMED], *(["..."] if more else [])])
