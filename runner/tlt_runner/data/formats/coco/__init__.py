"""COCO labels: JSON files that list images, annotations and categories.

:mod:`~tlt_runner.data.formats.coco.file` checks one file and its entries,
:mod:`~tlt_runner.data.formats.coco.merge` joins several files,
:mod:`~tlt_runner.data.formats.coco.reader` finds their images.
"""

from tlt_runner.data.formats.coco.reader import CocoReader
from tlt_runner.data.formats.coco.writer import CocoWriter
from tlt_runner.data.formats.format import Format

FORMAT = Format(CocoReader.open, CocoWriter, images="images", labels="annotations")
