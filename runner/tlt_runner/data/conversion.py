"""One sample to one record: decode, bring to size, let the boxes follow. Worker threads run it.

cv2 and zlib release the interpreter's lock, so threads use the cores, and nothing has to be sent between
processes.
"""

from __future__ import annotations

import numpy as np

from tlt_api.trainingjob import ImageSize
from tlt_runner.data import geometry, images, tfrecords
from tlt_runner.data.classes import ClassMapping
from tlt_runner.data.sample import Converted, Finding, LabelledBox, Problem, Reader, Sample

SMALLEST_SIDE = 1.0
"""Pixels of the network's input below which an object is dropped: no proposal can be that small."""


def convert(sample: Sample, reader: Reader, mapping: ClassMapping, size: ImageSize) -> Converted:
    """Make the record of one sample. Bad data are in the result, never an exception."""
    data = sample.image.read_bytes()
    try:
        image = images.decode(data)
    except images.BadImageError as error:
        return Converted(skipped=Finding(sample.image_file, error.problem, error.message))
    original_size = (image.pixels.shape[0], image.pixels.shape[1])
    labels = reader.read(sample, original_size)
    where = geometry.placement(*original_size, size.height, size.width, size.mode)
    dropped = list(labels.findings)
    kept: list[tuple[LabelledBox, str, np.ndarray]] = []
    clipped = 0
    for box in labels.boxes:
        target = mapping.target(box.class_name)
        if target is None:
            continue
        placed, problem = _place(box, original_size, where)
        if problem is not None:
            dropped.append(Finding(sample.label_file, problem, _why(problem, box, original_size), box.line))
            continue
        clipped += not _inside(box, original_size)
        kept.append((box, target, placed))
    objects = tfrecords.Objects(
        names=[target for _, target, _ in kept],
        class_ids=[mapping.class_names.index(target) for _, target, _ in kept],
        boxes=np.array([placed for _, _, placed in kept]).reshape(-1, 4),
        truncation=[box.truncation for box, _, _ in kept],
        occlusion=[box.occlusion for box, _, _ in kept],
        difficult=[box.difficult for box, _, _ in kept],
    )
    as_it_is = original_size == (size.height, size.width) and image.fits_records
    encoded = data if as_it_is else images.encode(geometry.place_image(image.pixels, where))
    return Converted(
        example=tfrecords.to_example(sample.name, encoded, original_size, where, objects),
        dropped=dropped,
        objects=list(objects.class_ids),
        sizes=[(y2 - y1, x2 - x1) for y1, x1, y2, x2 in objects.boxes.tolist()],
        source_classes=[box.class_name for box in labels.boxes],
        clipped=clipped,
        ignored=labels.ignored,
        oddities=image.oddities,
    )


def _place(
    box: LabelledBox, original_size: tuple[int, int], where: geometry.Placement
) -> tuple[np.ndarray, Problem | None]:
    inside = geometry.clip(np.array([box.yxyx]), *original_size)
    if not (inside[0, 0] < inside[0, 2] and inside[0, 1] < inside[0, 3]):
        return inside[0], Problem.OUTSIDE_IMAGE
    placed = where.to_network(inside)[0]
    if min(placed[2] - placed[0], placed[3] - placed[1]) < SMALLEST_SIDE:
        return placed, Problem.TOO_SMALL
    return placed, None


def _inside(box: LabelledBox, original_size: tuple[int, int]) -> bool:
    y1, x1, y2, x2 = box.yxyx
    return y1 >= 0 and x1 >= 0 and y2 <= original_size[0] and x2 <= original_size[1]


def _why(problem: Problem, box: LabelledBox, original_size: tuple[int, int]) -> str:
    y1, x1, y2, x2 = box.yxyx
    got = f"got xmin {x1:g}, ymin {y1:g}, xmax {x2:g}, ymax {y2:g}"
    if problem == Problem.OUTSIDE_IMAGE:
        return (
            f"expected a box that overlaps the image of {original_size[1]} x {original_size[0]} pixels, {got}"
        )
    return f"expected a box of at least {SMALLEST_SIDE:g} pixel a side after resizing, {got}"
