"""Write the warnings of the dataset report: sentences for a person to look at.

:meth:`tlt_runner.data.report.statistics.DatasetStatistics.to_report` calls it. A warning stops nothing; a job
is stopped by :func:`tlt_runner.data.report.report.enforce_policy`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tlt_runner.data.report.report import DatasetReport, ReportedClass
from tlt_runner.data.sample import Oddity

IMBALANCE = 100
"""Ratio of objects between the largest and the smallest class from which on there is a warning."""
_NAMED = 10
_ODDITIES = {
    Oddity.WRONG_EXTENSION: "have the extension of another format, and are read by their content",
    Oddity.CMYK: "are CMYK, and become RGB without a colour profile: colours may be off",
    Oddity.SIXTEEN_BIT: "have 16 bits a channel, of which the upper 8 are kept",
    Oddity.GRAYSCALE: "are grayscale, and get three equal channels",
    Oddity.ALPHA: "have transparency, which is dropped: the colours stored below it count",
    Oddity.TURNED: (
        "have an EXIF orientation, which is not applied: labels are taken to speak of the pixels as stored"
    ),
    Oddity.ANIMATED: "are animated, of which the still picture is used",
}


def warnings(report: DatasetReport) -> list[str]:
    """Write one sentence for each warning."""
    return [*_of_classes(report), *_of_images(report)]


def _of_classes(report: DatasetReport) -> list[str]:
    # Beside an unused key stand the classes that exist: most often the key is misspelt.
    source_classes = _first(sorted(report.source_classes), len(report.source_classes)) or "none"
    sentences = [
        f"targetClassMapping: no label uses class {key!r}; the labels' classes are: {source_classes}"
        for key in report.unused_mapping_keys
    ]
    for subset, purpose in (("training", "it cannot be learnt"), ("validation", "it is not measured")):
        sentences += [
            f"class {item.name!r} has no object for {subset}: {purpose}"
            for item in report.classes
            if not getattr(item, subset)
        ]
    return [*sentences, *_of_imbalance(report.classes)]


def _of_imbalance(classes: Sequence[ReportedClass]) -> list[str]:
    trained = sorted((item for item in classes if item.training), key=lambda item: item.training)
    # Classes without any training object have a warning of their own.
    if not trained or trained[-1].training <= IMBALANCE * trained[0].training:
        return []
    rare, common = trained[0], trained[-1]
    return [
        f"classes are far from balanced: {rare.training} training objects of {rare.name!r}, "
        f"{common.training} of {common.name!r}; the rare one will hardly be learnt"
    ]


def _of_images(report: DatasetReport) -> list[str]:
    counts: dict[str, tuple[int, Sequence[str]]] = {
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
        },
        "entries of the image folders that are no .jpg, .jpeg or .png files and were not read": (
            report.other_files,
            [],
        ),
        "labels without an image": (report.labels_without_image, []),
        "label files or entries that cannot be used": (sum(report.label_problems.values()), []),
        "files among the labels that are no labels of boxes and were not used": (
            report.side_files,
            report.named_side_files,
        ),
        "images are in none of the lists (imageSet) and were not used": (report.unlisted_images, []),
    }
    return [
        f"{subject}: {count}{f' ({_first(names, count)})' if names else ''}"
        for subject, (count, names) in counts.items()
        if count
    ]


def _first(names: Sequence[str], count: int) -> str:
    return ", ".join([*names[:_NAMED], *(["..."] if count > _NAMED else [])])
