"""Random changes of training images, boxes with them. Stateless: the same seed changes the same way."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tlt_api.trainingjob import Augmentation


def apply(sample: dict[str, Any], augmentation: Augmentation, seed: Any) -> dict[str, Any]:
    """Change one image.

    Args:
        sample: ``image`` uint8 [H, W, 3] and ``boxes`` float32 [N, 4] yxyx pixels, beside anything else.
        augmentation: What may happen.
        seed: int64 [2].
    """
    if augmentation.horizontal_flip == 0:
        return sample
    flip = tf.random.stateless_uniform([], seed) < augmentation.horizontal_flip
    image, boxes = sample["image"], sample["boxes"]
    changed_image, changed_boxes = tf.cond(
        flip, lambda: flip_horizontally(image, boxes), lambda: (image, boxes)
    )
    changed_image = tf.ensure_shape(changed_image, image.shape)
    return {**sample, "image": changed_image, "boxes": changed_boxes}


def flip_horizontally(image: Any, boxes: Any) -> tuple[Any, Any]:
    """Mirror left to right: ``image`` [H, W, 3], ``boxes`` [N, 4] yxyx pixels."""
    width = tf.cast(tf.shape(image)[1], boxes.dtype)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return tf.reverse(image, axis=[1]), tf.stack([y1, width - x2, y2, width - x1], axis=-1)
