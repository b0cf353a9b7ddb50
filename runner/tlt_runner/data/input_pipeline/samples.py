"""Turn a batch of encoded images into training samples: decode, compose, augment, pad to a fixed shape.

Called by :mod:`tlt_runner.data.input_pipeline.batches` inside a map, on arrays; knows no TensorFlow. The
images of a batch are worked on side by side (simplejpeg and cv2 release the interpreter's lock) and written
where the batch will lie, because copies of them are a fifth of the work (720p: 5.2 instead of 6.2 ms of a
core per image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from tlt_api.training import Augmentation
from tlt_runner.data.images.geometry import SMALLEST_SIDE
from tlt_runner.data.input_pipeline import augment, mosaic
from tlt_runner.data.input_pipeline.augment import Floats, Pixels
from tlt_runner.data.sample import IGNORED, PADDING

NAMES_SEPARATOR = b"\n"
"""Separator of the names of a mosaic's images."""
_ALIGNMENT = 64
"""Bytes to which TensorFlow wants arrays aligned; it copies others."""


@dataclass(frozen=True)
class Objects:
    """Objects and ignored regions of one image.

    Attributes:
        boxes: [N, 4] yxyx, in pixels.
        classes: int32 [N]; below -1 for an ignored region.
        out_of_sight: Number of objects that changes have moved out of sight or made too small.
    """

    boxes: Floats
    classes: npt.NDArray[np.int32]
    out_of_sight: int = 0


@dataclass(frozen=True)
class _Drawn:
    """Random draw of one sample.

    Attributes:
        change: Augmentation of the image, or of the mosaic.
        four: Indices in the batch of the images of a mosaic; empty without mosaic.
        quadrants: Their quadrants.
    """

    change: augment.Change
    four: tuple[int, ...] = ()
    quadrants: tuple[mosaic.Quadrant, ...] = ()


@dataclass(frozen=True)
class SampleMaker:
    """Makes training samples.

    Attributes:
        augmentation: Random changes.
        height: Rows of every image.
        width: Columns of every image.
        channels: 3 for RGB, 1 for luma.
        max_objects: Objects of an image at most; further ones, the smallest, become ignored regions.
        rows: Rows for objects and ignored regions (G), at least ``max_objects``.
        seed: Seed of the changes, with the epoch and the image's position.
        epoch: Number of the epoch.
        executor: Its threads do the work.
    """

    augmentation: Augmentation
    height: int
    width: int
    channels: int
    max_objects: int
    rows: int
    seed: int
    epoch: int
    executor: Executor

    def samples(
        self,
        encoded: npt.NDArray[np.object_],
        names: npt.NDArray[np.object_],
        boxes: npt.NDArray[np.float32],
        classes: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int64],
        chosen: npt.NDArray[np.int64],
    ) -> tuple[
        Pixels, npt.NDArray[np.object_], npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]
    ]:
        """Decode images and change each of them.

        Args:
            encoded: JPEG data [B].
            names: Bytes [B].
            boxes: [B, N, 4] yxyx, in pixels.
            classes: [B, N]; -1 where there is no object, below that for an ignored region.
            positions: Positions in the epoch's order [B].
            chosen: Indices of the images to make samples of, [S]; the others are there for mosaics.

        Returns:
            Images [S, H, W, C], names [S] (a mosaic's are joined, its own first), boxes [S, G, 4],
            classes [S, G], and objects left out [S, 2]: out of sight or too small after the change, and
            beyond ``max_objects``.
        """
        cv2.setNumThreads(1)  # the executor's threads are enough
        # One array for the batch; each thread writes its own rows.
        images = _aligned((len(chosen), self.height, self.width, self.channels))
        objects = [
            Objects(boxes_of[labels != PADDING], labels[labels != PADDING])
            for boxes_of, labels in zip(boxes, classes, strict=True)
        ]
        # All draws come first: they show which images the mosaics need.
        drawn = [self._draw(int(index), positions) for index in chosen]
        # Images of mosaics are decoded first; any other is decoded where it is used.
        # An image in several mosaics is decoded once.
        mosaic_images = sorted({index for draw in drawn for index in draw.four})
        pixels = self.executor.map(lambda data: _decode(data, self.channels), encoded[mosaic_images])
        decoded = dict(zip(mosaic_images, pixels, strict=True))

        def make(row: int) -> Objects:
            index, draw = int(chosen[row]), drawn[row]
            # A mosaic, an image that a mosaic has needed already, or an image of this row only, which is
            # decoded straight into its place in the batch.
            if draw.four:
                image, contained = self._composed(draw, decoded, objects)
            elif index in decoded:
                image, contained = decoded[index], objects[index]
            else:
                image, contained = _decode(encoded[index], self.channels, images[row]), objects[index]
            augment.paint(image, draw.change, out=images[row])
            return self._changed(contained, draw.change)

        padded = [self._padded(made) for made in self.executor.map(make, range(len(chosen)))]
        made_boxes, made_classes, left_out = (np.stack(part) for part in zip(*padded, strict=True))
        # dict.fromkeys: unique names, the sample's own first, in the mosaic's order.
        named = [
            NAMES_SEPARATOR.join(names[list(dict.fromkeys((index, *draw.four)))])
            for index, draw in zip(chosen.tolist(), drawn, strict=True)
        ]
        # dtype object: as bytes numpy would cut zeros off the end of a name.
        return images, np.array(named, object), made_boxes, made_classes, left_out

    def _draw(self, index: int, positions: npt.NDArray[np.int64]) -> _Drawn:
        """Draw the change of the image at ``index`` of a batch; a mosaic takes three others of the batch."""
        random = augment.generator(self.seed, self.epoch, int(positions[index]))
        # Before the mosaic's numbers: switching mosaic on does not alter the other changes.
        change = augment.draw(self.augmentation, self.height, self.width, random)
        enough = self.augmentation.mosaic > 0 and len(positions) >= mosaic.IMAGES
        if not enough or random.random() >= self.augmentation.mosaic:
            return _Drawn(change)
        # Three other images of the batch, without repetition, in a random order with this one.
        others = np.delete(np.arange(len(positions)), index)
        four = random.permutation([index, *random.choice(others, mosaic.IMAGES - 1, replace=False)])
        return _Drawn(change, tuple(four.tolist()), tuple(mosaic.draw(self.height, self.width, random)))

    def _composed(
        self, drawn: _Drawn, images: Mapping[int, Pixels], objects: Sequence[Objects]
    ) -> tuple[Pixels, Objects]:
        boxes, kept = mosaic.move_boxes(
            [objects[index].boxes for index in drawn.four],
            drawn.quadrants,
            [self._min_visible(objects[index].classes) for index in drawn.four],
        )
        classes = np.concatenate([objects[index].classes for index in drawn.four])
        # Objects that the mosaic has cut away are counted, and added to those that the change cuts away.
        image = mosaic.paint([images[index] for index in drawn.four], drawn.quadrants)
        return image, Objects(boxes[kept], classes[kept], int(np.count_nonzero(classes[~kept] >= 0)))

    def _changed(self, objects: Objects, change: augment.Change) -> Objects:
        boxes, kept = augment.cut_boxes(
            augment.move_boxes(objects.boxes, change.affine),
            np.array([0, 0, self.height, self.width]),
            self._min_visible(objects.classes),
            self._min_sides(objects.classes),
        )
        # Objects that a mosaic has lost already are counted in out_of_sight, so both are added.
        lost = int(np.count_nonzero(objects.classes[~kept] >= 0))
        return Objects(boxes[kept], objects.classes[kept], objects.out_of_sight + lost)

    def _min_visible(self, classes: npt.NDArray[np.int32]) -> Floats:
        """Share [N] that must stay visible: of an object the configured one, of an ignored region any."""
        return np.where(classes >= 0, self.augmentation.min_visible, 0.0)

    def _min_sides(self, classes: npt.NDArray[np.int32]) -> Floats:
        """Height and width [N, 2] that must be left: of an object the configured ones, of a region any."""
        sides = self.augmentation.min_height, self.augmentation.min_width
        return np.where(classes[:, None] >= 0, sides, SMALLEST_SIDE)

    def _padded(self, objects: Objects) -> tuple[Floats, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        # A fixed number of rows, so that XLA compiles a step once.
        kept = np.flatnonzero(objects.classes >= 0)
        beyond = max(0, len(kept) - self.max_objects)
        if beyond:
            # The largest stay, in the order of the label.
            sides = objects.boxes[kept, 2:] - objects.boxes[kept, :2]
            kept = kept[np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[: self.max_objects])]
        # Objects beyond maxObjects are there, and must not be learnt as background.
        regions = enclose(np.delete(objects.boxes, kept, axis=0), self.rows - len(kept))
        filled = len(kept) + len(regions)
        boxes = np.zeros((self.rows, 4), np.float32)
        classes = np.full(self.rows, PADDING, np.int32)
        boxes[: len(kept)], classes[: len(kept)] = objects.boxes[kept], objects.classes[kept]
        # Losses ask whether a region is ignored, not for which class.
        boxes[len(kept) : filled], classes[len(kept) : filled] = regions, IGNORED
        return boxes, classes, np.array([objects.out_of_sight, beyond], np.int32)


def enclose(regions: Floats, count: int) -> Floats:
    """Cover regions [N, 4] yxyx by at most ``count`` boxes: themselves, or boxes around neighbours.

    Halved by the longer extent until each half has its share of the boxes.
    """
    if len(regions) <= count:
        return regions
    if count == 1:
        return np.concatenate([regions[:, :2].min(axis=0), regions[:, 2:].max(axis=0)])[None]
    centres = regions[:, :2] + regions[:, 2:]
    order = np.argsort(centres[:, np.argmax(np.ptp(centres, axis=0))], kind="stable")
    middle = len(order) // 2
    halves = (order[:middle], count // 2), (order[middle:], count - count // 2)
    return np.concatenate([enclose(regions[half], share) for half, share in halves])


def _decode(data: bytes, channels: int, out: Pixels | None = None) -> Pixels:
    # Conversion has checked it; remaining complaints are about harmless fields. A JPEG stores the luma as
    # such: its colours are not even decoded.
    return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", buffer=out, strict=False)


def _aligned(shape: tuple[int, ...]) -> Pixels:
    size = int(np.prod(shape))
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    # numpy promises 16 bytes only; the slice begins at the next multiple of the alignment.
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)
