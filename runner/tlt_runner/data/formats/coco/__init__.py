"""COCO labels, read and written: JSON files that list images, annotations and categories.

:mod:`~tlt_runner.data.formats.coco.file` checks one file and its entries (boxes are ``[x, y, width,
height]``), :mod:`~tlt_runner.data.formats.coco.merge` joins several files; the reader here finds the images.

Several files make one data set (instances_train.json, instances_val.json): ids count within their file,
categories are joined by name, and entries of one image in several files add up. An annotation that another
file holds already (the persons of person_keypoints_*.json) counts once. ``iscrowd`` regions are ignored
regions of their category: what lies in their boxes is neither that category nor background.

An entry belongs to the image with its ``file_name``, which tools write in many ways
(:mod:`~tlt_runner.data.formats.coco.file_names`). An image that no file lists is no part of the data set,
unless the data set says otherwise (``dataset.unlabelled``). A file without boxes beside others
(captions_*.json) is a side file, and named. After :meth:`CocoReader.listing` five numbers an object are in
memory, and no JSON.

Folders are written as ``images/{train,val}`` and ``annotations/instances_{train,val}.json``. ``file_name`` is
relative to the subset's image folder, as in COCO's own train2017. Images and annotations are written as they
come, none is kept in memory; because both are lists of one JSON object, annotations wait in a file beside it
until the images are complete.
"""

from __future__ import annotations

import json
import posixpath
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

from tlt_api.dataset import Shapes, Unlabelled
from tlt_api.failures import Reason
from tlt_runner.data.formats import folders, kinds, names
from tlt_runner.data.formats.coco import file as coco_file
from tlt_runner.data.formats.coco.merge import Image, Merged
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.format import DatasetRoot, ExportedImage, Format, Writer
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Listing, Problem, Sample, listed
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.storage import join, relative

SUFFIX = ".json"
LOOKED_AT = 10
"""Files that cannot be used and are looked at, for the name of the tool that wrote them."""


class CocoReader:
    """Reads a folder of images and the JSON files that label them.

    Args:
        images: Folder of images.
        files: Path relative to the data set's root, for messages, and path of each JSON file.
        unlabelled: What an image is that no file lists; None: no part of the data set.
        shapes: What is done with annotations that have an outline and no box.
    """

    def __init__(
        self,
        images: SourceFolder,
        files: Sequence[tuple[str, Path]],
        unlabelled: Unlabelled | None = None,
        shapes: Shapes = "refuse",
    ) -> None:
        self.images = images
        self._shapes: Shapes = shapes
        self._unlabelled = unlabelled
        self.files = files
        self._images: dict[str, Image] = {}
        self._classes: list[str] = []

    @classmethod
    def open(cls, root: DatasetRoot, images: str, labels: str) -> Self:
        """Open a folder below a data set's root; ``labels`` is a JSON file or a folder of them."""
        dataset = root.dataset
        files = _json_files(root, labels)
        return cls(root.folder(images), files, dataset.unlabelled, dataset.shapes)

    def listing(self) -> Listing:
        """Read the JSON files and find their images.

        Raises:
            RunnerError: ``NoLabels``: none of the files can be used.
        """
        image_files = folders.find_images(self.images)
        # Images before labels: an entry is kept only if its image is in the folder.
        merged = Merged(self.images, image_files.names, self._shapes)
        used: list[tuple[str, Path]] = []
        refused: list[Finding] = []
        others: list[Finding] = []
        for file, path in self.files:
            try:
                merged.add(coco_file.load(file, path))
                used.append((file, path))
            except coco_file.FileError as error:
                # The standard layout has captions_*.json beside instances_*.json: no reason to complain.
                (others if error.other_kind else refused).append(error.finding)
        if not used:
            got = listed([*refused, *others]) if refused or others else "no .json file"
            tool = next(filter(None, (kinds.explain(path) for _, path in self.files[:LOOKED_AT])), None)
            got += f"; it is {tool}" if tool else ""
            message = f"expected a COCO file with images, annotations and categories, got {got}"
            raise RunnerError(Reason.NO_LABELS, message)
        merged.finish()
        # From here on only these are kept: five numbers an object instead of the parsed JSON.
        self._images, self._classes = merged.images, merged.classes
        # The labels of any image may be in a file that cannot be read: then none is without a label for sure.
        lost = f"; {refused[0].file} may have one and cannot be used" if refused else ""
        samples, skipped, outside = self._samples(image_files.names, used[0][0], lost)
        return Listing(
            samples=samples,
            images=len(image_files.names) + len(image_files.skipped) - len(outside),
            skipped=[*image_files.skipped, *skipped],
            orphans=merged.orphans,
            findings=[*refused, *merged.findings],
            other_files=image_files.other_files,
            label_files=used,
            side_files=[finding.file for finding in others],
            outside=outside,
            read_files=sum(self.images.holds(file) for file, _ in used),
            notes=merged.notes,
            warnings=merged.warnings,
        )

    def _samples(
        self, images: Sequence[str], first_file: str, lost: str
    ) -> tuple[list[Sample], list[Finding], list[str]]:
        """Sort the images of the folder.

        Args:
            images: Paths relative to the folder.
            first_file: The file to name for an image without an entry.
            lost: Says which file may have the entry of an image without one; "" if all were read.

        Returns:
            The samples, images that cannot be used, and images that are no part of the data set.
        """
        unlabelled = "bad" if lost else self._unlabelled
        # By stem: records name an image without its suffix, so 1.jpg and 1.png would be one.
        samples: dict[str, Sample] = {}
        skipped: list[Finding] = []
        outside: list[str] = []
        for name in images:
            # The key is composed Unicode for matching; the stem is the name as it is in the file system.
            key, stem = names.stem(name), posixpath.splitext(name)[0]
            image = self._images.get(name)
            if image is None and unlabelled is None:
                outside.append(self.images.file(name))
            elif image is None and unlabelled == "bad":
                message = f"expected an entry of images[] with the file_name {name[:200]!r}, got none{lost}"
                skipped.append(Finding(self.images.file(name), Problem.NO_LABEL, message))
            elif key in samples:
                message = f"{posixpath.basename(samples[key].image_file)} has the same stem and is used"
                skipped.append(Finding(self.images.file(name), Problem.DUPLICATE_NAME, message))
            else:
                samples[key] = Sample(
                    name=self.images.file(stem),
                    stem=stem,
                    image=self.images.path / name,
                    image_file=self.images.file(name),
                    label_file=first_file if image is None else image.label_file,
                    key=None if image is None else name,
                )
        return list(samples.values()), skipped, outside

    def classes(self, sample: Sample) -> Counter[str]:
        """Count an image's objects by class."""
        # The boxes are in memory already; no size is needed, since they are in pixels.
        return Counter(box.class_name for box in self.read(sample, (0, 0)).boxes)

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        """Return the annotations of an image; their pixels are absolute: ``image_size`` is not used."""
        if sample.key is None:
            return Labels()
        image = self._images[str(sample.key)]
        boxes, ignored = (
            tuple(LabelledBox(self._classes[number], box) for number, box in items)
            for items in (image.objects.items(), image.crowds.items())
        )
        return Labels(boxes, tuple(image.findings), ignored, image.size, image.outlines)

    def image_summary(self) -> str:
        """Count the files of the image folder by kind, for messages."""
        return folders.content_summary(self.images.path)

    def label_summary(self) -> str:
        """Describe the label files, for messages: they can be used, or the listing would have failed."""
        return "COCO files that list other images"


def _json_files(root: DatasetRoot, labels: str) -> list[tuple[str, Path]]:
    """List every COCO file: its path relative to the root and its path, sorted."""
    name = relative(labels)
    # labels may be one JSON file, or a folder of them.
    if name.lower().endswith(SUFFIX):
        try:
            return [(name, root.file(name))]
        except NotFoundError as error:
            raise RunnerError(Reason.DATASET_NOT_FOUND, error.message) from error
    folder = root.folder(labels)
    # The whole folder is one data set: its files are merged.
    uri = root.dataset.uri
    with storage_errors(uri):
        files, findings = folders.find_labels(folder, SUFFIX)
        if not files:
            raise RunnerError(
                Reason.NO_LABELS,
                f"expected .json files in {join(uri, folder.relative)}, which has "
                f"{folders.content_summary(folder.path)}",
            )
    # A file that cannot be read may hold annotations of any image: without it objects would be background.
    if findings:
        hint = "Repair the file: without it, its objects would be background in images that other files list."
        raise RunnerError(Reason.NO_LABELS, str(findings[0]), hint)
    return [(folder.file(name), folder.path / name) for name in files.values()]


LABEL_FILES: dict[Subset, str] = {
    "training": "annotations/instances_train.json",
    "validation": "annotations/instances_val.json",
}


class CocoWriter(Writer):
    """Writes one JSON file for each subset; classes are numbers from 1."""

    image_folders = {"training": "images/train", "validation": "images/val"}
    dataset = {
        "format": "coco",
        "images": image_folders["training"],
        "labels": LABEL_FILES["training"],
        "validation": {"images": image_folders["validation"], "labels": LABEL_FILES["validation"]},
    }

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        super().__init__(root, classes)
        (root / "annotations").mkdir()
        self._files = {subset: _Instances(root / name, self._classes) for subset, name in LABEL_FILES.items()}

    @classmethod
    def region_loss(cls, region: LabelledBox) -> str | None:
        """Say that a region of every class is lost: a crowd has a category."""
        return None if region.class_name else "lost"

    def add(self, image: ExportedImage) -> None:
        """Write one image and its annotations."""
        self._files[image.subset].add(image)

    def close(self) -> None:
        """Complete both files."""
        for file in self._files.values():
            file.close()


class _Instances:
    """Writes one JSON file, entry by entry."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._path = path
        # From 1, as in COCO's own files.
        self._category = {name: number for number, name in enumerate(classes, start=1)}
        # In the JSON all annotations come after all images: until then they wait in a second file.
        self._annotations_path = path.with_suffix(".annotations")
        # ASCII is enough: json.dumps escapes everything else.
        self._images: IO[str] = path.open("x", encoding="ascii")
        self._annotations: IO[str] = self._annotations_path.open("x", encoding="ascii")
        self._image_count = self._annotation_count = 0
        categories = [{"id": number, "name": name} for name, number in self._category.items()]
        self._images.write(f'{{"categories": {json.dumps(categories)},\n"images": [')

    def add(self, image: ExportedImage) -> None:
        height, width = image.size
        self._image_count += 1
        entry = {
            "id": self._image_count,
            "file_name": f"{image.name}{image.suffix}",
            "height": height,
            "width": width,
        }
        # The comma stands before every entry but the first, so that no entry has to know whether it is the
        # last.
        _append(self._images, entry, first=self._image_count == 1)
        # Ids count from 1: pycocotools takes an annotation id of 0 for no match.
        crowds = [region for region in image.regions if region.class_name]
        for place, box in enumerate([*image.boxes, *crowds]):
            self._annotation_count += 1
            annotation = self._annotation(box, self._annotation_count, place >= len(image.boxes))
            _append(self._annotations, annotation, first=self._annotation_count == 1)

    def close(self) -> None:
        self._annotations.close()
        with self._images, self._annotations_path.open(encoding="ascii") as annotations:
            # The annotations are copied behind the images; the JSON is never in memory as a whole.
            self._images.write('],\n"annotations": [')
            shutil.copyfileobj(annotations, self._images)
            self._images.write("]}\n")
        self._annotations_path.unlink()

    def _annotation(self, box: LabelledBox, number: int, is_crowd: bool) -> dict[str, Any]:
        y1, x1, y2, x2 = box.yxyx
        return {
            "id": number,
            "image_id": self._image_count,
            "category_id": self._category[box.class_name],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(is_crowd),
            "segmentation": [],
        }


def _append(stream: IO[str], item: dict[str, Any], *, first: bool) -> None:
    stream.write(("\n" if first else ",\n") + json.dumps(item))


FORMAT = Format(CocoReader.open, CocoWriter, images="images", labels="annotations")
