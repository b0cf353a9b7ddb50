"""Parts of a label format: the root in which its reader looks for files, and the base class of its writer.

Writers are called by :mod:`tlt_runner.data.preparation.export_folder`, which brings the images and names; a
writer knows where its format wants them and how it writes a label. Attributes of a box that each format can
hold::

              edges            truncation       occlusion              difficult
    kitti     6 decimals       6 decimals       0 to 3                 occlusion from 1 on, as in TLT
    voc       6 decimals       none or some     visible or occluded    yes
    coco      floating point   no               no                     no
    yolo      10 decimals of   no               no                     no
              the image's size
    labelme   floating point   no               no                     yes

Regions to leave out of account are of every class in kitti (DontCare), of one class in coco (iscrowd), and
cannot be said in voc, yolo and labelme. What a format cannot hold is counted (:meth:`Writer.lost`,
:meth:`Writer.region_loss`), never silently left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tlt_api.dataset import LONGEST_CLASS, Dataset
from tlt_api.failures import Reason
from tlt_runner.data.formats import kinds, names
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.records import Subset
from tlt_runner.data.sample import LabelledBox, Problem, Reader
from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage, join, relative


@dataclass(frozen=True)
class DatasetRoot:
    """The root of a data set (``spec.dataset.uri``).

    Attributes:
        dataset: The data set.
        storage: Reads its files.
    """

    dataset: Dataset
    storage: Storage

    def folder(self, path: str) -> SourceFolder:
        """Open a folder below the root.

        Raises:
            RunnerError: ``DatasetNotFound``, saying what is there instead.
        """
        name = relative(path)
        try:
            folder = self.storage.folder(join(self.dataset.uri, name))
            return SourceFolder(folder, name, self.storage.mount(self.dataset.uri))
        except NotFoundError as error:
            tool = self._tool_file(path)
            message = f"{name} is {tool}" if tool else error.message
            raise RunnerError(Reason.DATASET_NOT_FOUND, message) from error

    def _tool_file(self, path: str) -> str | None:
        """Name a file of an annotation tool that was given where a folder is wanted."""
        try:
            return kinds.explain(self.file(path)) if path.lower().endswith(kinds.SUFFIXES) else None
        except NotFoundError:
            return None

    def file(self, path: str) -> Path:
        """Fetch a file below the root.

        Raises:
            NotFoundError: There is none; the message says what is there instead.
        """
        return self.storage.fetch(join(self.dataset.uri, path))


@dataclass(frozen=True)
class EdgeEvidence:
    """Counts of boxes at the edges of their images, which tell whether a tool counts pixels from 0 or from 1.

    Attributes:
        boxes: Boxes looked at.
        at_zero: Boxes with a left or top edge from 0 to below 1, which pixels from 1 cannot have.
        at_one: Boxes with a left or top edge of exactly 1, and none below.
        at_end: Boxes with a right or bottom edge at the image's width or height.
        fractions: Boxes with an edge that is no whole number.
        zero_file: A file with a box at 0; "" if there is none.
        one_file: A file with a box at 1.
    """

    boxes: int = 0
    at_zero: int = 0
    at_one: int = 0
    at_end: int = 0
    fractions: int = 0
    zero_file: str = ""
    one_file: str = ""

    def __add__(self, other: EdgeEvidence) -> EdgeEvidence:
        """Add the counts of other files; the first file of each kind stays the example."""
        return EdgeEvidence(
            self.boxes + other.boxes,
            self.at_zero + other.at_zero,
            self.at_one + other.at_one,
            self.at_end + other.at_end,
            self.fractions + other.fractions,
            self.zero_file or other.zero_file,
            self.one_file or other.one_file,
        )


@dataclass(frozen=True)
class Format:
    """A label format: how a data set of it is read, how a folder of it is written.

    Attributes:
        open_reader: Makes the reader of a data set's images and labels; both places are relative to the root.
        writer: Writes the labels of a new folder.
        images: Default place of the images, relative to the root (``spec.dataset.images``).
        labels: Default place of the labels (``spec.dataset.labels``).
        edge_evidence: Takes the content of a label file and its name, and counts its boxes at the edges; None
            for a format whose tools agree on the number of the first pixel.
    """

    open_reader: Callable[[DatasetRoot, str, str], Reader]
    writer: type[Writer]
    images: str
    labels: str
    edge_evidence: Callable[[bytes, str], EdgeEvidence] | None = None


@dataclass(frozen=True)
class ExportedImage:
    """One image of the folder that is written, with its objects.

    Attributes:
        subset: Training or validation.
        name: Path below its image folder, without suffix.
        suffix: ``.jpg`` or ``.png``.
        size: Height and width in pixels.
        boxes: Objects inside the image, of classes that the writer was given.
        regions: Ignored regions inside the image, of such a class or (class "") of every class.
    """

    subset: Subset
    name: str
    suffix: str
    size: tuple[int, int]
    boxes: Sequence[LabelledBox]
    regions: Sequence[LabelledBox] = ()


class EntryError(Exception):
    """An entry, or a field of one, that cannot be used.

    Attributes:
        problem: What kind.
        box: The box at fault: top, left, bottom, right edge.
    """

    def __init__(
        self, problem: Problem, message: str, box: tuple[float, float, float, float] | None = None
    ) -> None:
        super().__init__(message)
        self.problem = problem
        self.box = box


class Writer(ABC):
    """Writes the labels of one folder. One thread calls :meth:`add`, image by image, and then :meth:`close`.

    Args:
        root: The folder; it exists.
        classes: Every class that will occur, sorted, as :meth:`class_name` gives them.
    """

    flat: ClassVar[bool] = False
    """True if image names must have neither sub-folders nor white space."""
    image_folders: ClassVar[Mapping[Subset, str]]
    """Image folder of each subset, relative to the root."""
    dataset: ClassVar[Mapping[str, Any]]
    """Fields of ``spec.dataset`` with which the folder is read back, beside uri, classes and size."""

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._root = root
        self._classes = tuple(classes)

    @classmethod
    def class_name(cls, source: str) -> str:
        """Return the name of a class in the format: the same name, if the format can hold it."""
        # XML is the strictest of the formats: a name that it can hold, the others can hold as well.
        return names.xml_text(source)[:LONGEST_CLASS]

    @classmethod
    def lost(cls, box: LabelledBox) -> tuple[str, ...]:
        """Name the attributes of a box that the format cannot hold: by default all but class and edges."""
        attributes = {"truncation": box.truncation, "occlusion": box.occlusion, "difficult": box.difficult}
        return tuple(name for name, value in attributes.items() if value)

    @classmethod
    def region_loss(cls, region: LabelledBox) -> str | None:
        """Say what becomes of an ignored region that the format cannot hold; None: it is written as it is."""
        return "lost"

    @abstractmethod
    def add(self, image: ExportedImage) -> None:
        """Write the labels of one image."""

    @abstractmethod
    def close(self) -> None:
        """Write the files that concern all images."""

    def _write(self, file: str, lines: Iterable[str]) -> None:
        """Write a text file, relative to the root, that is not there yet."""
        path = self._root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": two images of one name are a mistake here. Line feeds on every system, for equal bytes.
        with path.open("x", encoding="utf-8", newline="\n") as stream:
            stream.writelines(lines)

    def image_file(self, image: ExportedImage) -> str:
        """Return the path of an image, relative to the root."""
        return f"{self.image_folders[image.subset]}/{image.name}{image.suffix}"


def decimal(value: float, least_decimals: int = 0) -> str:
    """Format a coordinate: up to 6 decimals, no exponent, no zeros at the end beyond ``least_decimals``."""
    whole, _, decimals = f"{value:.6f}".partition(".")
    decimals = decimals.rstrip("0").ljust(least_decimals, "0")
    return f"{whole}.{decimals}" if decimals else whole
