"""Readers of two folders, images and labels, in which a label file has the name of its image.

The base class of the readers of KITTI, VOC and YOLO labels. No file is opened to find out which label belongs
to which image.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import basename, splitext
from typing import ClassVar, Self

from tlt_api.dataset import Unlabelled
from tlt_runner.data.formats import folders, kinds
from tlt_runner.data.formats.folders import IMAGE_SUFFIXES, SourceFolder, file_of
from tlt_runner.data.formats.format import DatasetRoot
from tlt_runner.data.formats.names import printable, stem
from tlt_runner.data.sample import Finding, Labels, Listing, Problem, Sample

_NAMED = 3
"""Images that a message names."""


@dataclass(frozen=True)
class FolderReader(ABC):
    """Reads a folder of images and a folder of labels with the same names.

    Attributes:
        images: Folder of images.
        labels: Folder of labels.
        unlabelled: What an image without a label file is.
        suffix: Suffix of label files, in lower case.
    """

    images: SourceFolder
    labels: SourceFolder
    unlabelled: Unlabelled = field(default="bad", kw_only=True)
    suffix: ClassVar[str]

    @classmethod
    def open(cls, root: DatasetRoot, images: str, labels: str) -> Self:
        """Open two folders below a data set's root."""
        # Tools write a file for every image, an empty one where there is no object: a missing one is lost.
        unlabelled = root.dataset.unlabelled or "bad"
        return cls(root.folder(images), root.folder(labels), unlabelled=unlabelled)

    def listing(self) -> Listing:
        """Pair images and labels by name."""
        return pair(self.images, self.labels, self.suffix, self.unlabelled)

    def classes(self, sample: Sample) -> Counter[str]:
        """Count the objects of a label file by class."""
        # A size of one pixel: coordinates that are shares of the image's size keep their order.
        return Counter(box.class_name for box in self.read(sample, (1, 1)).boxes)

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        """Read one label file; an image without one has no objects."""
        if sample.key is None:
            return Labels()
        # key is an object for all formats; of these it is the label's path.
        return self.read_file(Path(str(sample.key)), sample.label_file, image_size)

    @abstractmethod
    def read_file(self, path: Path, file: str, image_size: tuple[int, int]) -> Labels:
        """Read one label file.

        Args:
            path: The file.
            file: Its path relative to the data set's root, for messages.
            image_size: Height and width of its image.

        Raises:
            OSError: The storage fails.
        """

    def image_summary(self) -> str:
        """Count the files of the image folder by kind, for messages."""
        return folders.content_summary(self.images.path)

    def label_summary(self) -> str:
        """Count the files of the label folder by kind, for messages, and name those of a tool."""
        tool = kinds.explain_folder(self.labels.path)
        return folders.content_summary(self.labels.path) + (f"; {tool}" if tool else "")


_SIDE_FILE = re.compile(
    r"(predefined_)?classes|labels|names|notes|readme.*|train|val|valid|test|trainval", re.IGNORECASE
)
"""Names of what tools and people put beside labels, where no image has them."""


def pair(images: SourceFolder, labels: SourceFolder, suffix: str, unlabelled: Unlabelled = "bad") -> Listing:
    """Give every image the label of the same name.

    The label of ``a/000001.jpg`` is ``a/000001`` with the suffix below the labels' folder. Where there is
    none, it is ``000001`` in the labels' folder itself, if no other image has that name.

    Args:
        images: The images' folder.
        labels: The labels'.
        suffix: How labels end, in lower case.
        unlabelled: What an image without a label is. One whose label is there and cannot be opened is bad.

    Returns:
        The listing; a sample's ``key`` is the path of its label, None without one.

    Raises:
        OSError: A folder cannot be listed.
    """
    image_files = folders.find_images(images)
    label_names, findings = folders.find_labels(labels, suffix)
    # Images that cannot be used keep their stems: their labels are no orphans.
    stems = {stem(name): name for name in (*image_files.names, *_names(images, image_files.skipped))}
    # Labels that lie flat and could be of images in several sub-folders.
    rivals = _rivals(stems, label_names)
    paths = {name: labels.path / name for name in label_names.values()}
    closed = _closed(labels, findings, suffix)
    samples: dict[str, Sample] = {}
    skipped = list(image_files.skipped)
    for name in image_files.names:
        key = stem(name)
        # The label at the same relative path first, then one that lies flat in the labels' folder.
        label = label_names.get(key) or label_names.get(_flat(key, rivals))
        # 1.jpg and 1.png would be two images of one label.
        if key in samples:
            message = f"{basename(samples[key].image_file)} has the same stem and is used"
            skipped.append(Finding(images.file(name), Problem.DUPLICATE_NAME, message))
        elif label is None and (
            unlabelled == "bad" or closed is None or not closed.isdisjoint((key, basename(key)))
        ):
            message = f"expected {labels.file(splitext(name)[0] + suffix)}, which does not exist"
            skipped.append(Finding(images.file(name), Problem.NO_LABEL, message))
        # A label outside of the sub-folders fits every image of its name: with several, none of them gets it.
        elif label is not None and key not in label_names and len(rivals[basename(key)]) > 1:
            message = _ambiguous(labels.file(label), rivals[basename(key)])
            skipped.append(Finding(images.file(name), Problem.DUPLICATE_NAME, message))
        else:
            samples[key] = Sample(
                name=images.file(splitext(name)[0]),
                stem=splitext(name)[0],
                image=images.path / name,
                image_file=images.file(name),
                label_file=labels.file(label or splitext(name)[0] + suffix),
                key=None if label is None else paths[label],
            )
    # classes.txt or train.txt beside the labels is a list that tools leave there, and no orphaned label.
    without_image = [name for key, name in label_names.items() if key not in stems and key not in rivals]
    side_files = {name for name in without_image if _SIDE_FILE.fullmatch(basename(stem(name)))}
    # Side files are left out of the fingerprint: a note that is edited makes no new records.
    label_files = {labels.file(name): path for name, path in paths.items() if name not in side_files}
    return Listing(
        samples=list(samples.values()),
        images=len(image_files.names) + len(image_files.skipped),
        skipped=sorted(skipped, key=file_of),
        orphans=[_orphan(images, labels, name) for name in without_image if name not in side_files],
        findings=findings,
        # Labels that lie beside the images do not count as other files.
        other_files=image_files.other_files - sum(images.holds(labels.file(name)) for name in paths),
        label_files=list(label_files.items()),
        side_files=[labels.file(name) for name in without_image if name in side_files],
    )


def _closed(labels: SourceFolder, findings: Sequence[Finding], suffix: str) -> set[str] | None:
    """Stems of labels that are there and cannot be opened; None: a whole folder, so of any image."""
    closed: set[str] = set()
    for finding in findings:
        if finding.problem == Problem.UNREADABLE_LABEL:
            (name,) = _names(labels, [finding])
            if splitext(name)[1].lower() != suffix:
                return None
            closed.add(stem(name))
    return closed


def _rivals(stems: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, list[str]]:
    """Labels in no sub-folder and without an image of their own -> images of that name in sub-folders."""
    rivals: dict[str, list[str]] = defaultdict(list)
    # A label with an image at the same relative path belongs to that image alone.
    free = {key for key in labels if "/" not in key and key not in stems}
    if free:
        for key, name in stems.items():
            if basename(key) in free:
                rivals[basename(key)].append(name)
    return dict(rivals)


def _flat(key: str, rivals: Mapping[str, Sequence[str]]) -> str:
    return basename(key) if basename(key) in rivals else key


def _ambiguous(label: str, rivals: Sequence[str]) -> str:
    named = [printable(name) for name in sorted(rivals)]
    if len(named) > _NAMED:
        named = [*named[: _NAMED - 1], f"{len(named) - _NAMED + 1} others"]
    images = f"{', '.join(named[:-1])} or {named[-1]}"
    return f"{label} could belong to {images}: put labels into the same sub-folders"


def _orphan(images: SourceFolder, labels: SourceFolder, name: str) -> Finding:
    expected = f"expected {images.file(splitext(name)[0])} with one of {', '.join(IMAGE_SUFFIXES)}"
    return Finding(labels.file(name), Problem.LABEL_WITHOUT_IMAGE, expected)


def _names(folder: SourceFolder, findings: Sequence[Finding]) -> list[str]:
    """Paths, relative to the folder, of the files at fault."""
    return [finding.file[len(folder.relative) + 1 if folder.relative else 0 :] for finding in findings]
