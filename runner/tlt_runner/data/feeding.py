"""One group of encoded images to training samples: decode, compose, change, pad to a fixed shape.

Called by :mod:`tlt_runner.data.pipeline` inside a parallel map, on arrays; knows no TensorFlow. What takes
time (simplejpeg, cv2) releases the interpreter's lock, so that the map's threads use the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from tlt_api.trainingjob import Augmentation
from tlt_runner.data import augment, mosaic
from tlt_runner.data.augment import Floats, Pixels

PADDING_CLASS = -1
cv2.setNumThreads(1)  # the map is parallel already


@dataclass(frozen=True)
class Sample:
    """Pixels and objects of one image.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        boxes: float32 [N, 4] yxyx, in pixels.
        classes: int32 [N].
        out_of_sight: Objects of the image or images it was made of that are not among these.
    """

    image: Pixels
    boxes: Floats
    classes: npt.NDArray[np.int32]
    out_of_sight: int = 0


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
    """

    augmentation: Augmentation
    height: int
    width: int
    max_objects: int
    seed: int
    epoch: int

    @property
    def group(self) -> int:
        """Images that are taken together."""
        return mosaic.IMAGES if self.augmentation.mosaic else 1

    def samples(
        self,
        encoded: npt.NDArray[np.object_],
        boxes: npt.NDArray[np.float32],
        classes: npt.NDArray[np.int32],
        places: npt.NDArray[np.int64],
    ) -> tuple[Pixels, npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Decode a group of images and change each of them.

        Args:
            encoded: JPEG data [n].
            boxes: [n, N, 4] yxyx, in pixels.
            classes: [n, N]; -1 where there is no object.
            places: Places in the epoch's order [n].

        Returns:
            Images [n, H, W, 3], boxes [n, G, 4], classes [n, G], and objects left out [n, 2]: out of sight
            or too small after the change, and beyond the G that there is room for.
        """
        plain = [
            Sample(simplejpeg.decode_jpeg(data, "RGB"), own[objects >= 0], objects[objects >= 0])
            for data, own, objects in zip(encoded, boxes, classes, strict=True)
        ]
        made = [self._one(plain, index, int(place)) for index, place in enumerate(places)]
        images = made[0].image[None] if len(made) == 1 else np.stack([sample.image for sample in made])
        padded = [self._padded(sample) for sample in made]
        padded_boxes, padded_classes, left_out = (np.stack(part) for part in zip(*padded, strict=True))
        return images, padded_boxes, padded_classes, left_out

    def _one(self, plain: Sequence[Sample], index: int, place: int) -> Sample:
        random = augment.generator(self.seed, self.epoch, place)
        change = augment.draw(self.augmentation, self.height, self.width, random)
        sample = plain[index]
        # The last images of an epoch, where they are fewer than four, stay by themselves.
        if len(plain) == mosaic.IMAGES and random.random() < self.augmentation.mosaic:
            sample = self._composed([*plain[index:], *plain[:index]], random)
        moved, kept = augment.cut_boxes(
            augment.move_boxes(sample.boxes, change.affine),
            np.array([0, 0, self.height, self.width]),
            self.augmentation.min_visible,
        )
        return Sample(
            image=augment.paint(sample.image, change),
            boxes=moved[kept],
            classes=sample.classes[kept],
            out_of_sight=sample.out_of_sight + int(np.count_nonzero(~kept)),
        )

    def _composed(self, four: Sequence[Sample], random: np.random.Generator) -> Sample:
        quadrants = mosaic.draw(self.height, self.width, random)
        boxes, kept = mosaic.move_boxes(
            [sample.boxes for sample in four], quadrants, self.augmentation.min_visible
        )
        return Sample(
            image=mosaic.paint([sample.image for sample in four], quadrants),
            boxes=boxes[kept],
            classes=np.concatenate([sample.classes for sample in four])[kept],
            out_of_sight=int(np.count_nonzero(~kept)),
        )

    def _padded(self, sample: Sample) -> tuple[Floats, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        count = min(len(sample.classes), self.max_objects)
        boxes = np.zeros((self.max_objects, 4), np.float32)
        classes = np.full(self.max_objects, PADDING_CLASS, np.int32)
        boxes[:count], classes[:count] = sample.boxes[:count], sample.classes[:count]
        left_out = np.array([sample.out_of_sight, len(sample.classes) - count], np.int32)
        return boxes, classes, left_out
