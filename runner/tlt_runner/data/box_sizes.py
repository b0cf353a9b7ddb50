"""Read the sizes of the training objects, to which anchors are fitted.

Called by training with ``anchors.auto`` and by ``tlt anchors``. The records are read, but no image is
decoded. Augmentation (zoom, mosaic) is not in it: the sizes are those of the images as prepared.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlt_runner.data import tfrecords
from tlt_runner.data.records import Records

log = logging.getLogger(__name__)
MOST = 200_000
"""Number of sizes that are enough to fit anchors; of more, as many are drawn at random."""
_BATCH = 256
_EDGES = {edge: tf.io.VarLenFeature(tf.float32) for edge in tfrecords.EDGES}


def training_sizes(records: Records, most: int = MOST, seed: int = 0) -> npt.NDArray[np.float32]:
    """Read height and width of the objects of the training images.

    Args:
        records: Prepared data.
        most: Largest number of sizes; of more objects as many are drawn at random.
        seed: Seed of that draw.

    Returns:
        [N, 2], in pixels of the network's input, in no meaningful order; the same for the same objects,
        however they are spread over files.
    """
    serialized = tf.data.TFRecordDataset(
        [str(path) for path in records.files("training")], num_parallel_reads=tf.data.AUTOTUNE
    )
    parts = [_sizes(batch) for batch in serialized.batch(_BATCH).prefetch(2)]
    sizes = np.concatenate([np.zeros((0, 2), np.float32), *parts])
    # Sorted first, so that the draw does not depend on how the objects are spread over files.
    sizes = sizes[np.lexsort(sizes.T)]
    if len(sizes) <= most:
        return sizes
    log.info("anchors are fitted to %d of the %d training boxes, drawn at random", most, len(sizes))
    return sizes[np.random.default_rng(seed).choice(len(sizes), most, replace=False)]


def _sizes(serialized: Any) -> npt.NDArray[np.float32]:
    parsed = tf.io.parse_example(serialized, _EDGES)
    top, left, bottom, right = (parsed[key].values.numpy() for key in _EDGES)
    return np.stack([bottom - top, right - left], axis=-1)
