"""Join several COCO files to one data set."""

from __future__ import annotations

import posixpath
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlt_runner.data.formats.coco import file as coco_file
from tlt_runner.data.formats.coco.file import Box, CocoFile, EntryError, Id
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.names import composed
from tlt_runner.data.sample import Finding, Problem

_NUMBERS = 5
"""Numbers stored for each object: class, top, left, bottom, right."""
_Object = tuple[int, Box]
"""Class number, box."""
_NONE: frozenset[_Object] = frozenset()
MAX_FINDINGS = 10_000
"""Entries that get a finding each; further ones are counted, so that a bad file does not fill the memory."""


class Boxes:
    """Class number and box (top, left, bottom, right) of objects or regions, in 40 bytes each."""

    def __init__(self) -> None:
        self._numbers: array[float] = array("d")

    def add(self, item: _Object) -> None:
        """Append one."""
        self._numbers.extend((item[0], *item[1]))

    def items(self) -> Iterator[_Object]:
        """Yield all, in the order in which they were added."""
        for start in range(0, len(self._numbers), _NUMBERS):
            number, y1, x1, y2, x2 = self._numbers[start : start + _NUMBERS]
            yield int(number), (y1, x1, y2, x2)


@dataclass
class Image:
    """Annotations of one image in all files.

    Attributes:
        label_file: The first file that names it.
        size: Height and width.
        findings: Entries of it that cannot be used.
        objects: Its objects.
        crowds: Its crowd regions.
    """

    label_file: str
    size: tuple[int, int] | None
    findings: list[Finding] = field(default_factory=list)
    objects: Boxes = field(default_factory=Boxes)
    crowds: Boxes = field(default_factory=Boxes)


@dataclass
class _Refused:
    """An entry of images[] that leads to no image, and its number of annotations."""

    entry: str
    problem: Problem
    message: str
    annotations: int = 0

    def finding(self, file: str) -> Finding:
        lost = f"; annotations that go with it: {self.annotations}" if self.annotations else ""
        return Finding(file, self.problem, f"{self.entry}: {self.message}{lost}", entry=self.entry)


class Merged:
    """Images, annotations and classes of all COCO files of a data set.

    Args:
        images: The image folder.
        names: Paths of its images relative to it.

    Attributes:
        images: By path relative to the image folder, of the images that a file names.
        orphans: Entries of images[] without an image in the folder.
        findings: Other entries that cannot be used and belong to no image.
        classes: Class names by number.
    """

    def __init__(self, images: SourceFolder, names: Sequence[str]) -> None:
        self.images: dict[str, Image] = {}
        self.orphans: list[Finding] = []
        self.findings: list[Finding] = []
        self.classes: list[str] = []
        # Composed Unicode -> the name as it is in the folder: macOS stores letters and accents apart.
        self._names = {composed(name): name for name in names}
        # Name without folders -> the image of that name, and a second one if there is one.
        self._bare: dict[str, str] = {}
        self._rivals: dict[str, str] = {}
        for name in names:
            bare = composed(posixpath.basename(name))
            if self._bare.setdefault(bare, name) != name:
                self._rivals[bare] = name
        self._folder = images
        # The image folder's own path, whose end a file_name may repeat.
        self._above = tuple(map(composed, images.path.parts))
        # Class name -> number, for all files together; category ids count within their file.
        self._numbers: dict[str, int] = {}
        self._refused = 0
        self._further = Counter[Problem]()

    def add(self, file: CocoFile) -> None:
        """Join the entries of a file to those of the files before."""
        images = self._add_images(file)
        repeated = self._add_annotations(file, images, self._class_numbers(file))
        if repeated:
            message = f"annotations an earlier file has too (same class and box), counted once: {repeated}"
            self.findings.append(Finding(file.file, Problem.DUPLICATE_NAME, message))
        for refused in images.values():
            if isinstance(refused, _Refused):
                # An entry without its image is an orphan, as a label file without one; others are problems of
                # the file.
                orphan = refused.problem == Problem.LABEL_WITHOUT_IMAGE
                (self.orphans if orphan else self.findings).append(refused.finding(file.file))
        for problem, count in self._further.items():
            message = f"entries beyond the first {MAX_FINDINGS} that cannot be used: {count}"
            self.findings.append(Finding(file.file, problem, message))
        self._further.clear()

    def _refuse(
        self, to: list[Finding], file: CocoFile, name: str, index: int, entry: object, error: EntryError
    ) -> None:
        """Add a finding for an entry, or only count it where there are too many."""
        # A file with millions of bad entries must not fill the memory with findings.
        if self._refused == MAX_FINDINGS:
            self._further[error.problem] += 1
            return
        self._refused += 1
        message = f"{coco_file.entry_name(name, index, entry)}: {error}"
        to.append(Finding(file.file, error.problem, message, box=error.box))

    def _add_images(self, file: CocoFile) -> dict[Id, Image | _Refused]:
        """Add the images of a file; return them by their id in it."""
        images: dict[Id, Image | _Refused] = {}
        for index, entry in enumerate(file.images):
            try:
                key = coco_file.identity(coco_file.fields(entry), "id")
                if key in images:
                    raise EntryError(Problem.DUPLICATE_NAME, "an earlier entry has the same id and is used")
            except EntryError as error:
                self._refuse(self.findings, file, "images", index, entry, error)
                continue
            # An entry that leads to no image keeps its id: its annotations are counted with it, and not
            # reported one by one.
            try:
                images[key] = self._image(file, index, entry)
            except EntryError as error:
                name = coco_file.entry_name("images", index, entry)
                images[key] = _Refused(name, error.problem, str(error))
        return images

    def _image(self, file: CocoFile, index: int, entry: Mapping[str, Any]) -> Image:
        name = self._name_of(coco_file.file_name(entry))
        image = self.images.setdefault(name, Image(file.file, None))
        try:
            size = coco_file.image_size(entry)
            # Two files that name one image must agree on its size; boxes depend on it.
            if size and image.size and size != image.size:
                message = f"expected {_pixels(image.size)} as in an earlier entry, got {_pixels(size)}"
                raise EntryError(Problem.SIZE_MISMATCH, message)
            image.size = image.size or size
        except EntryError as error:
            self._refuse(image.findings, file, "images", index, entry, error)
        return image

    def _name_of(self, parts: tuple[str, ...]) -> str:
        """Find the image in the folder that a file_name means.

        It is taken as it stands, else from the folders above, else, without a folder, from the one sub-folder
        that has it.

        Raises:
            EntryError: There is none, or several.
        """
        parts = tuple(map(composed, parts))
        # Leading folders of the file_name may repeat the end of the image folder's own path.
        for above in range(min(len(parts), len(self._above) + 1)):
            name = self._names.get("/".join(parts[above:]))
            if name is not None and parts[:above] == self._above[len(self._above) - above :]:
                return name
        # A bare name is searched in the sub-folders; two images of that name are ambiguous.
        bare, rival = self._bare.get("/".join(parts)), self._rivals.get("/".join(parts))
        if bare is not None and rival is None:
            return bare
        message = f"expected {self._folder.file('/'.join(parts)[:200])}, which does not exist"
        if rival is not None:
            message += f"; it could be {bare} or {rival}: write the folder into file_name"
        raise EntryError(Problem.LABEL_WITHOUT_IMAGE, message)

    def _class_numbers(self, file: CocoFile) -> dict[Id, int]:
        """Number the classes of a file by category id; categories of one name are one class."""
        numbers: dict[Id, int] = {}
        for index, entry in enumerate(file.categories):
            try:
                key = coco_file.identity(coco_file.fields(entry), "id")
                if key in numbers:
                    raise EntryError(Problem.DUPLICATE_NAME, "an earlier entry has the same id and is used")
                name = coco_file.class_name(entry)
            except EntryError as error:
                self._refuse(self.findings, file, "categories", index, entry, error)
                continue
            numbers[key] = self._numbers.setdefault(name, len(self._numbers))
            # A new name, which has got the next number.
            if numbers[key] == len(self.classes):
                self.classes.append(name)
        return numbers

    def _add_annotations(
        self, file: CocoFile, images: Mapping[Id, Image | _Refused], classes: Mapping[Id, int]
    ) -> int:
        """Add the annotations to their images; return the number of those that an earlier file has, too."""
        before: dict[int, tuple[frozenset[_Object], frozenset[_Object]]] = {}
        repeated = 0
        for index, entry in enumerate(file.annotations):
            try:
                image = _image_of(coco_file.fields(entry), images)
            except EntryError as error:
                self._refuse(self.findings, file, "annotations", index, entry, error)
                continue
            # Their image is reported once, with the number of its annotations.
            if isinstance(image, _Refused):
                image.annotations += 1
                continue
            # Objects of earlier files only: two equal annotations within one file are two objects. By id(),
            # because an image is mutable while it is filled, and has no hash.
            if id(image) not in before:
                objects, crowds = image.objects.items(), image.crowds.items()
                before[id(image)] = (frozenset(objects) or _NONE, frozenset(crowds) or _NONE)
            try:
                is_crowd = coco_file.is_crowd(entry)
                item = _object(entry, classes)
            except EntryError as error:
                self._refuse(image.findings, file, "annotations", index, entry, error)
                continue
            if item in before[id(image)][is_crowd]:
                repeated += 1
            else:
                (image.crowds if is_crowd else image.objects).add(item)
        return repeated


def _image_of(entry: Mapping[str, Any], images: Mapping[Id, Image | _Refused]) -> Image | _Refused:
    key = coco_file.identity(entry, "image_id")
    if key not in images:
        raise EntryError(Problem.LABEL_WITHOUT_IMAGE, f"expected an id of images[], got image_id {key!r:.40}")
    return images[key]


def _object(entry: Mapping[str, Any], classes: Mapping[Id, int]) -> _Object:
    """Read class number and box of an annotation."""
    key = coco_file.identity(entry, "category_id")
    if key not in classes:
        message = f"expected an id of categories[], got category_id {key!r:.40}"
        raise EntryError(Problem.UNKNOWN_CLASS, message)
    return classes[key], coco_file.box(entry)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"
