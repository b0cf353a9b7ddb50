"""A batch of encoded images to a batch of training samples: decode, compose, change, pad to a fixed shape.

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
from tlt_runner.data.input_pipeline import augment, mosaic
from tlt_runner.data.input_pipeline.augment import Floats, Pixels

PADDING_CLASS = -1
NAMES_SEPARATOR = b"\n"
"""Between the names of a mosaic's images."""
_ALIGNMENT = 64
"""Bytes to which TensorFlow wants arrays aligned; it copies others."""


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: [N, 4] yxyx, in pixels.
        classes: int32 [N].
        out_of_sight: How many there were that are not among these.
    """

    boxes: Floats
    classes: npt.NDArray[np.int32]
    out_of_sight: int = 0


@dataclass(frozen=True)
class _Drawn:
    """What happens to an image.

    Attributes:
        change: To the image, or to the mosaic.
        four: The images of a mosaic by their places in the batch; empty where there is none.
        quadrants: Where they go.
    """

    change: augment.Change
    four: tuple[int, ...] = ()
    quadrants: tuple[mosaic.Quadrant, ...] = ()


@dataclass(frozen=True)
class Feeder:
    """Makes training samples.

    Attributes:
        augmentation: Random changes.
        height: Rows of every image.
        width: Columns of every image.
        max_objects: Places for objects (G).
        seed: With epoch and place, what the changes depend on.
        epoch: Number of the epoch.
        executor: Its threads do the work.
    """

    augmentation: Augmentation
    height: int
    width: int
    max_objects: int
    seed: int
    epoch: int
    executor: Executor

    def samples(
        self,
        encoded: npt.NDArray[np.object_],
        names: npt.NDArray[np.object_],
        boxes: npt.NDArray[np.float32],
        classes: npt.NDArray[np.int32],
        places: npt.NDArray[np.int64],
        own: npt.NDArray[np.int64],
    ) -> tuple[
        Pixels, npt.NDArray[np.object_], npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]
    ]:
        """Decode images and change each of them; of a mosaic's batch only some.

        Args:
            encoded: JPEG data [B].
            names: Bytes [B].
            boxes: [B, N, 4] yxyx, in pixels.
            classes: [B, N]; -1 where there is no object.
            places: Places in the epoch's order [B].
            own: Which of the B to make samples of, [S]; the others are there for mosaics.

        Returns:
            Images [S, H, W, 3], names [S] (a mosaic's are joined, its own first), boxes [S, G, 4],
            classes [S, G], and objects left out [S, 2]: out of sight or too small after the change, and
            beyond the G that there is room for.
        """
        cv2.setNumThreads(1)  # the executor's threads are enough
        images = _aligned((len(own), self.height, self.width, 3))
        objects = [
            Objects(boxes_of[labels >= 0], labels[labels >= 0])
            for boxes_of, labels in zip(boxes, classes, strict=True)
        ]
        drawn = [self._draw(int(one), places) for one in own]
        # What a mosaic takes is decoded at once; otherwise each image is decoded where it is used.
        taken = sorted({one for each in drawn for one in each.four})
        decoded = dict(zip(taken, self.executor.map(_decode, encoded[taken]), strict=True))

        def make(place: int) -> Objects:
            index, each = int(own[place]), drawn[place]
            if each.four:
                image, found = self._composed(each, decoded, objects)
            elif index in decoded:
                image, found = decoded[index], objects[index]
            else:
                image, found = _decode(encoded[index], out=images[place]), objects[index]
            augment.paint(image, each.change, out=images[place])
            return self._changed(found, each.change)

        padded = [self._padded(made) for made in self.executor.map(make, range(len(own)))]
        made_boxes, made_classes, left_out = (np.stack(part) for part in zip(*padded, strict=True))
        named = [
            NAMES_SEPARATOR.join(names[list(dict.fromkeys((one, *each.four)))])
            for one, each in zip(own.tolist(), drawn, strict=True)
        ]
        return images, np.array(named, object), made_boxes, made_classes, left_out

    def _draw(self, index: int, places: npt.NDArray[np.int64]) -> _Drawn:
        """What happens to the image at ``index`` of a batch; a mosaic takes three others, anywhere in it."""
        random = augment.generator(self.seed, self.epoch, int(places[index]))
        change = augment.draw(self.augmentation, self.height, self.width, random)
        enough = self.augmentation.mosaic > 0 and len(places) >= mosaic.IMAGES
        if not enough or random.random() >= self.augmentation.mosaic:
            return _Drawn(change)
        others = np.delete(np.arange(len(places)), index)
        four = random.permutation([index, *random.choice(others, mosaic.IMAGES - 1, replace=False)])
        return _Drawn(change, tuple(four.tolist()), tuple(mosaic.draw(self.height, self.width, random)))

    def _composed(
        self, drawn: _Drawn, images: Mapping[int, Pixels], objects: Sequence[Objects]
    ) -> tuple[Pixels, Objects]:
        boxes, kept = mosaic.move_boxes(
            [objects[one].boxes for one in drawn.four], drawn.quadrants, self.augmentation.min_visible
        )
        classes = np.concatenate([objects[one].classes for one in drawn.four])
        image = mosaic.paint([images[one] for one in drawn.four], drawn.quadrants)
        return image, Objects(boxes[kept], classes[kept], int(np.count_nonzero(~kept)))

    def _changed(self, objects: Objects, change: augment.Change) -> Objects:
        boxes, kept = augment.cut_boxes(
            augment.move_boxes(objects.boxes, change.affine),
            np.array([0, 0, self.height, self.width]),
            self.augmentation.min_visible,
        )
        gone = int(np.count_nonzero(~kept))
        return Objects(boxes[kept], objects.classes[kept], objects.out_of_sight + gone)

    def _padded(self, objects: Objects) -> tuple[Floats, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        count = min(len(objects.classes), self.max_objects)
        boxes = np.zeros((self.max_objects, 4), np.float32)
        classes = np.full(self.max_objects, PADDING_CLASS, np.int32)
        boxes[:count], classes[:count] = objects.boxes[:count], objects.classes[:count]
        return boxes, classes, np.array([objects.out_of_sight, len(objects.classes) - count], np.int32)


def _decode(data: bytes, out: Pixels | None = None) -> Pixels:
    # Conversion has judged it; what is left of complaints are harmless fields.
    return simplejpeg.decode_jpeg(data, "RGB", buffer=out, strict=False)


def _aligned(shape: tuple[int, ...]) -> Pixels:
    size = int(np.prod(shape))
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)
