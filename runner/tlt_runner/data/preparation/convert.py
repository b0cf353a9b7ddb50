"""One sample to one record: check or decode, bring to size, let the boxes follow. Worker threads run it.

The decoders, cv2 and zlib release the interpreter's lock, so threads use the cores, and nothing has to be
sent between processes. An image that has the network's size already keeps its bytes: it is checked, not
decoded. That costs less than half of a decode and encode, and loses nothing.
"""

from __future__ import annotations

import numpy as np

from tlt_api.dataset import ImageSize
from tlt_runner.data import box_transform, tfrecords
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import decode, geometry
from tlt_runner.data.sample import Converted, Reader, Sample


def convert(sample: Sample, data: bytes, reader: Reader, mapping: ClassMapping, size: ImageSize) -> Converted:
    """Make the record of one sample. Bad data are in the result, never an exception.

    Args:
        sample: Of the reader's listing.
        data: Bytes of its image.
        reader: Reads its label.
        mapping: Classes to learn.
        size: The network's input.
    """
    try:
        head = decode.header(data, sample.image_file)
        original_size = (head.height, head.width)
        labels = reader.read(sample, original_size)
        box_transform.check_label(head, labels)
        where = geometry.placement(*original_size, size.height, size.width, size.mode)
        encoded = _encoded(data, head, where)
    except decode.BadImageError as error:
        return box_transform.refused(sample, error)
    placed = box_transform.place(labels.boxes, sample, mapping, original_size, where)
    objects = tfrecords.Objects(
        names=[target for _, target, _ in placed.kept],
        class_ids=[mapping.class_names.index(target) for _, target, _ in placed.kept],
        boxes=np.array([edges for _, _, edges in placed.kept]).reshape(-1, 4),
        truncation=[box.truncation for box, _, _ in placed.kept],
        occlusion=[box.occlusion for box, _, _ in placed.kept],
        difficult=[box.difficult for box, _, _ in placed.kept],
    )
    return Converted(
        example=tfrecords.to_example(sample.name, encoded, original_size, where, objects),
        dropped=[*labels.findings, *placed.dropped],
        objects=list(objects.class_ids),
        sizes=[(y2 - y1, x2 - x1) for y1, x1, y2, x2 in objects.boxes.tolist()],
        source_classes=[box.class_name for box in labels.boxes],
        clipped=placed.clipped,
        ignored=labels.ignored,
        oddities=head.oddities,
    )


def _encoded(data: bytes, head: decode.Header, where: geometry.Placement) -> bytes:
    """The JPEG for the record: the file itself where nothing has to change."""
    if head.fits_records and (head.height, head.width) == (where.height, where.width):
        decode.check(data, head)
        return data
    return decode.encode(geometry.place_image(decode.pixels(data, head), where))
