"""Join several COCO files to one data set."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlt_api.dataset import Shapes
from tlt_runner.data.formats.coco import file as coco_file
from tlt_runner.data.formats.coco.file import Box, CocoFile, Id
from tlt_runner.data.formats.coco.file_names import SPELLED, Found, Names
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.format import EntryError
from tlt_runner.data.sample import Finding, Problem

_NUMBERS = 5
"""Numbers stored for each object: class, top, left, bottom, right."""
_Object = tuple[int, Box]
"""Class number, box."""
_NONE: frozenset[_Object] = frozenset()
MAX_FINDINGS = 10_000
"""Entries that get a finding each; further ones are counted, so that a bad file does not fill the memory."""


_CROWD_SHARE = 0.1
"""Share of crowds among a file's annotations from which on there is a warning; 0.012 in COCO itself."""


class Boxes:
    """Class number and box (top, left, bottom, right) of objects or regions, in 40 bytes each."""

    def __init__(self) -> None:
        self._numbers: array[float] = array("d")

    def add(self, item: _Object) -> None:
        """Append one."""
        self._numbers.extend((item[0], *item[1]))

    def __len__(self) -> int:
        """Return their number."""
        return len(self._numbers) // _NUMBERS

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
        outlines: Number of both that are the bounding box of an outline.
    """

    label_file: str
    size: tuple[int, int] | None
    findings: list[Finding] = field(default_factory=list)
    objects: Boxes = field(default_factory=Boxes)
    crowds: Boxes = field(default_factory=Boxes)
    outlines: int = 0


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


@dataclass
class _Guessed:
    """An image that a file_name may lead to, and the entries that have this file_name."""

    value: str
    image: Image
    guesses: list[Found]
    entries: list[tuple[str, str]] = field(default_factory=list)
    """File and name of each entry."""


class Merged:
    """Images, annotations and classes of all COCO files of a data set.

    Args:
        images: The image folder.
        names: Paths of its images relative to it.
        shapes: What is done with annotations that have an outline and no box.

    Attributes:
        images: By path relative to the image folder, of the images that a file names.
        orphans: Entries of images[] without an image in the folder.
        findings: Other entries that cannot be used and belong to no image.
        classes: Class names by number.
        warnings: Files most of whose annotations count for nothing: one sentence each.
    """

    def __init__(self, images: SourceFolder, names: Sequence[str], shapes: Shapes = "refuse") -> None:
        self.images: dict[str, Image] = {}
        self.orphans: list[Finding] = []
        self.findings: list[Finding] = []
        self.classes: list[str] = []
        self.warnings: list[str] = []
        self._names = Names(images, names)
        self._shapes: Shapes = shapes
        self._folder = images
        # By file_name: images that it may lead to, looked up once all files are read.
        self._guessed: dict[str, _Guessed] = {}
        # True once the folders of a file_name led to an image: then other folders lead elsewhere.
        self._folders_count = False
        # File and peculiarity -> number of entries, and an example.
        self._peculiar: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}
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

    def finish(self) -> None:
        """Find the images of the names that can only be guessed, once all files are added."""
        # The likelier ones first: what they lead to, another one cannot have.
        by_rank: dict[int, list[_Guessed]] = defaultdict(list)
        for guessed in self._guessed.values():
            by_rank[_rank(guessed.guesses[0])].append(guessed)
        for rank in sorted(by_rank):
            claims = Counter(name for guessed in by_rank[rank] for name in self._claims(guessed))
            for guessed in by_rank[rank]:
                self._place(guessed, self._problem(guessed, claims))

    def _place(self, guessed: _Guessed, reason: str | None) -> None:
        """Give an image its annotations, or report the entries for a reason."""
        found, image = guessed.guesses[0], guessed.image
        if reason is None:
            self.images[found.name] = image
            self._folders_count = self._folders_count or found.folders is True
        for file, entry in guessed.entries:
            if reason is None:
                self._note(file, found, guessed.value)
            else:
                count = len(image.objects) + len(image.crowds) + len(image.findings)
                refused = _Refused(entry, Problem.LABEL_WITHOUT_IMAGE, reason, count)
                self.orphans.append(refused.finding(file))

    @staticmethod
    def _claims(guessed: _Guessed) -> set[str]:
        return {guess.name for guess in guessed.guesses}

    def _problem(self, guessed: _Guessed, claims: Mapping[str, int]) -> str | None:
        """Say why a guess does not hold; None if it does."""
        guesses = self._claims(guessed)
        missing = f"expected {self._folder.file(guessed.value[:200])}, which does not exist; "
        found = guessed.guesses[0]
        candidate = self._folder.file(found.name)
        if len(guesses) > 1:
            both = " or ".join(sorted(map(self._folder.file, guesses))[:2])
            return f"{missing}it could be {both}: correct file_name"
        if found.name in self.images:
            return f"{missing}it could be {candidate}, which another entry names"
        if claims[found.name] > 1:
            return f"{missing}it could be {candidate}, and so could other entries: correct file_name"
        # The base name alone says little where the folders tell images apart.
        if found.folders is False and self._folders_count:
            return (
                f"{missing}{candidate} is not taken for it, since the folders of other entries lead to images"
            )
        elsewhere = self._names.elsewhere(guessed.value)
        if elsewhere is not None:
            return f"{missing}{candidate} is not taken for it, since there is {elsewhere}"
        return None

    def _note(self, file: str, found: Found, value: str) -> None:
        if found.how is not None:
            key = (file, found.how)
            self._peculiar[key] += 1
            self._examples.setdefault(key, f"{value[:200]!r} is {self._folder.file(found.name)}")

    @property
    def notes(self) -> list[str]:
        """Sentences on names that were not as they should be, and were found."""
        return [
            f"{file}: the file_name of {count} images {how} (for example {self._examples[file, how]})"
            for (file, how), count in self._peculiar.items()
        ]

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
        image = self._image_named(file.file, coco_file.entry_name("images", index, entry), entry)
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

    def _image_named(self, file: str, entry_name: str, entry: Mapping[str, Any]) -> Image:
        """Return the image in the folder that an entry's file_name means, or may mean.

        Raises:
            EntryError: There is none, or several.
        """
        value = coco_file.file_name(entry)
        found = self._names.find(value)
        if found is not None:
            self._folders_count = self._folders_count or found.folders is True
            self._note(file, found, value)
            return self.images.setdefault(found.name, Image(file, None))
        guesses = self._names.guess(value)
        if guesses:
            guessed = self._guessed.setdefault(value, _Guessed(value, Image(file, None), guesses))
            guessed.entries.append((file, entry_name))
            return guessed.image
        message = f"expected {self._folder.file(value[:200])}, which does not exist"
        rivals = self._names.rivals(value)
        if rivals:
            message += f"; it could be {' or '.join(rivals)}: write the folder into file_name"
        else:
            message += ", nor does an image of that name or stem in another folder or with another extension"
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
        crowds_by_class: Counter[int] = Counter()
        used = 0
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
                objects = frozenset(image.objects.items())
                before[id(image)] = (objects or _NONE, frozenset(image.crowds.items()) or _NONE)
            try:
                is_crowd = coco_file.is_crowd(entry)
                item = self._object(entry, classes)
            except EntryError as error:
                self._refuse(image.findings, file, "annotations", index, entry, error)
                continue
            used += 1
            crowds_by_class[item[0]] += is_crowd
            if item in before[id(image)][is_crowd]:
                repeated += 1
            else:
                (image.crowds if is_crowd else image.objects).add(item)
                image.outlines += not coco_file.has_box(entry)
        self._warn_of_crowds(file.file, crowds_by_class, used)
        return repeated

    def _object(self, entry: Mapping[str, Any], classes: Mapping[Id, int]) -> _Object:
        """Read class number and box of an annotation."""
        key = coco_file.identity(entry, "category_id")
        if key not in classes:
            message = f"expected an id of categories[], got category_id {key!r:.40}"
            raise EntryError(Problem.UNKNOWN_CLASS, message)
        if coco_file.has_box(entry):
            return classes[key], coco_file.box(entry)
        return classes[key], coco_file.outline_box(entry, self._shapes)

    def _warn_of_crowds(self, file: str, by_class: Counter[int], annotations: int) -> None:
        """Warn of a file with more crowds than people mark: they are masks that a tool wrote so."""
        crowds = by_class.total()
        if not crowds or crowds < _CROWD_SHARE * annotations:
            return
        counts = [f"{self.classes[number]} {count}" for number, count in by_class.most_common(5) if count]
        share = f"all {annotations}" if crowds == annotations else f"{crowds} of {annotations}"
        self.warnings.append(
            f"{file}: {share} annotations have iscrowd: 1 ({', '.join(counts)}): they are regions to leave "
            "out of account, neither learnt nor judged. Tools (CVAT, datumaro) write masks drawn with a "
            "brush so: export boxes or polygons, or set iscrowd to 0 where one annotation marks one object"
        )


def _rank(found: Found) -> int:
    """Order guesses: by the whole path, with another extension, by its end."""
    if found.how == SPELLED:
        return 0
    return 1 if found.folders else 2


def _image_of(entry: Mapping[str, Any], images: Mapping[Id, Image | _Refused]) -> Image | _Refused:
    key = coco_file.identity(entry, "image_id")
    if key not in images:
        raise EntryError(Problem.LABEL_WITHOUT_IMAGE, f"expected an id of images[], got image_id {key!r:.40}")
    return images[key]


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"
