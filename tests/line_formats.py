"""The label formats of one line an object, KITTI and YOLO, each with a line and a way to read a label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.kitti import KittiReader
from tlt_runner.data.formats.yolo import YoloReader
from tlt_runner.data.sample import Labels, Sample

HEIGHT, WIDTH = 200, 400
"""Size of the image, in pixels."""
LABEL = "labels/a.txt"
"""The label file as findings name it."""
YOLO_NAMES = {0: "bicycle", 1: "motorbike"}


@dataclass(frozen=True)
class LineFormat:
    """A format whose labels are text with one object a line.

    Attributes:
        line: A line without any fault.
        reader: Makes a reader of a folder of images and one of labels.
    """

    line: str
    reader: Callable[[SourceFolder, SourceFolder], KittiReader | YoloReader]

    def reader_of(self, folder: Path) -> KittiReader | YoloReader:
        """Return a reader of images and labels that lie in one folder."""
        return self.reader(SourceFolder(folder, "images"), SourceFolder(folder, "labels"))

    def read(self, folder: Path, content: bytes) -> Labels:
        """Write a label into the folder, and read it."""
        (folder / "a.txt").write_bytes(content)
        return self.reader_of(folder).read(sample_in(folder), (HEIGHT, WIDTH))


def sample_in(folder: Path) -> Sample:
    """Return the sample a, whose image and label lie in the folder."""
    return Sample("images/a", "a", folder / "a.jpg", "images/a.jpg", LABEL, folder / "a.txt")


KITTI = LineFormat("Car 0.50 2 -1.57 10.5 20 30.25 40 1.5 1.6 4.0 1.0 1.7 46.7 -1.6", KittiReader)
YOLO = LineFormat("1 0.5 0.5 0.25 0.5", lambda images, labels: YoloReader(images, labels, YOLO_NAMES))
