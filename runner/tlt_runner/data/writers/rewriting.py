"""One image of a folder in the making: checked, left as it is or brought to size, its boxes with it.

Called by :mod:`tlt_runner.data.preparation.export_folder` in worker threads; the counterpart of
:mod:`tlt_runner.data.preparation.convert`, which makes records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tlt_api.dataset import ImageSize
from tlt_runner.data import box_transform
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import decode, geometry
from tlt_runner.data.sample import Converted, LabelledBox, Reader, Sample

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}


@dataclass(frozen=True)
class Rewritten:
    """An image and its objects as they are to be written.

    Attributes:
        data: The file.
        suffix: ``.jpg`` or ``.png``, by its content.
        size: Height and width in pixels.
        boxes: Objects, inside the image, of the mapping's target classes.
        converted: What became of the sample, for the report.
    """

    data: bytes
    suffix: str
    size: tuple[int, int]
    boxes: Sequence[LabelledBox]
    converted: Converted


def rewrite(
    sample: Sample, data: bytes, reader: Reader, mapping: ClassMapping, target: ImageSize | None
) -> Rewritten:
    """Bring one image and its boxes to ``target``, or leave them as they are.

    Args:
        sample: Of the reader's listing.
        data: Bytes of its image.
        reader: Reads its label.
        mapping: The labels' classes as they are to be written.
        target: The new size; None keeps the image's own.

    Raises:
        BadImageError: The image cannot be used.
    """
    head = decode.header(data, sample.image_file)
    original_size = (head.height, head.width)
    labels = reader.read(sample, original_size)
    box_transform.check_label(head, labels)
    height, width = original_size if target is None else (target.height, target.width)
    where = geometry.placement(*original_size, height, width, "stretch" if target is None else target.mode)
    suffix = _SUFFIXES[head.kind]
    if (height, width) == original_size:
        decode.check(data, head)
    else:
        data = decode.encode(geometry.place_image(decode.pixels(data, head), where))
        suffix = _SUFFIXES["JPEG"]
    placed = box_transform.place(labels.boxes, sample, mapping, original_size, where)
    boxes = [
        replace(box, class_name=name, yxyx=(edges[0], edges[1], edges[2], edges[3]))
        for box, name, edges in ((box, name, edges.tolist()) for box, name, edges in placed.kept)
    ]
    converted = Converted(
        dropped=[*labels.findings, *placed.dropped],
        objects=[mapping.class_names.index(box.class_name) for box in boxes],
        sizes=[(box.yxyx[2] - box.yxyx[0], box.yxyx[3] - box.yxyx[1]) for box in boxes],
        source_classes=[box.class_name for box in labels.boxes],
        clipped=placed.clipped,
        ignored=labels.ignored,
        oddities=head.oddities,
    )
    return Rewritten(data, suffix, (height, width), boxes, converted)
