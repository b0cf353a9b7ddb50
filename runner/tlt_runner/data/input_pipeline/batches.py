"""Turn records into batches of tensors, for the training loop, the evaluation and the exporters.

Shapes are static (ground truth is padded, the last validation batch is filled up), so that XLA compiles a
step once. Images are bytes: a consumer makes floats of them on its device, inside its compiled step. Nothing
is kept decoded: decoding costs less than a training step. Order and augmentation depend on the seed, the
epoch and the image's position alone: a run that resumes in the middle of an epoch sees the same images.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.training import Augmentation
from tlt_runner.data import parallel, tfrecords
from tlt_runner.data.input_pipeline import mosaic
from tlt_runner.data.input_pipeline.samples import SampleMaker
from tlt_runner.data.input_pipeline.worker_slice import WHOLE, WorkerSlice
from tlt_runner.data.records import Records
from tlt_runner.data.sample import PADDING
from tlt_runner.errors import RunnerError

SHUFFLE_BYTES = 64 << 20
"""Largest size of the encoded images in the shuffle buffer; a smaller subset is shuffled as a whole. The
buffer is filled before the first image comes out, while decoding waits."""
FILES_AT_ONCE = 16
"""Files that are read in turns, in an order drawn for each epoch. Preparation writes images in the order of a
hash of their name; both together mix subsets that are larger than the shuffle buffer."""

COLOUR_CHANNELS = 3
"""Channels of an RGB image."""


def steps_of(records: Records, batch_size: int) -> int:
    """Return the number of batches of an epoch.

    Raises:
        RunnerError: ``InvalidSpec`` when there are fewer images than a batch takes.
    """
    images = records.manifest.training_images
    # The partial batch is dropped, so an epoch would have no step at all.
    if images < batch_size:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected at least as many training images as a step takes, got {images} images for steps of "
            f"{batch_size} (batchSizePerGPU x gradientAccumulationSteps x GPUs x nodes)",
            "Lower spec.training.batchSizePerGPU or gradientAccumulationSteps, or add images.",
        )
    return images // batch_size


def training_batches(
    records: Records,
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    max_objects: int,
    epoch: int,
    first_batch: int = 0,
    worker_slice: WorkerSlice = WHOLE,
    channels: int = COLOUR_CHANNELS,
) -> tf.data.Dataset:
    """Make one epoch of training images, shuffled and augmented; the last partial batch is dropped.

    Several workers read the same files in the same order, and each decodes the images of its slice (and
    those that a mosaic of it takes), so that together they see what one would.

    Args:
        records: Prepared data.
        batch_size: Images of a batch, all replicas of all workers together (B of a single worker).
        seed: Seed of order and augmentation, together with the epoch.
        augmentation: Random changes.
        max_objects: Objects of an image at most; further ones, the smallest, become ignored regions.
        epoch: Number of the epoch.
        first_batch: Batches to leave out at the beginning, without decoding them; the others are the same.
        worker_slice: This worker's part of a batch; B is its number of images.
        channels: C, 3 for RGB or 1 for luma.

    Returns:
        Batches of ``image`` uint8 [B, H, W, C], ``boxes`` float32 [B, G, 4] yxyx pixels (zeros where
        there is no object), ``classes`` int32 [B, G] (-1 there, below that in ignored regions), ``id`` string
        [B] (of a mosaic: all four, joined by a line break) and ``left_out`` int32 [B, 2]: objects that the
        changes moved out of sight or made too small, and objects beyond ``max_objects``. Difficult objects
        are objects here. G is ``max_objects``, and more where the data can have ignored regions
        (:meth:`Manifest.training_rows`).

    Raises:
        RunnerError: ``InvalidSpec`` when there are fewer images than a batch takes.
    """
    manifest = records.manifest
    # Raises for too few images, before anything is read.
    steps_of(records, batch_size)
    workers = parallel.workers()
    sample_maker = SampleMaker(
        augmentation,
        manifest.height,
        manifest.width,
        channels,
        max_objects,
        manifest.training_rows(max_objects, mosaic.IMAGES if augmentation.mosaic else 1),
        seed,
        epoch,
        _threads(workers),
    )
    # A prime far above any number of epochs: no two pairs of seed and epoch share an order.
    data = _shuffled(records, order=seed * 1_000_003 + epoch).enumerate()
    data = data.batch(batch_size, drop_remainder=True)
    # A mosaic takes four images; smaller batches are joined for the map, and divided again afterwards.
    together = -(-mosaic.IMAGES // batch_size) if augmentation.mosaic else 1
    if together > 1:
        # Whole batches only were kept above, so the joined ones end at the same image as single ones.
        data = data.unbatch().batch(together * batch_size)
    # Skipped before the map, so that nothing is decoded for batches that a resumed epoch has had.
    data = data.skip(first_batch // together)
    chosen = worker_slice.positions(batch_size, together)
    # Enough images at a time for all workers, and a batch that is being handed on.
    calls = 1 + -(-workers // len(chosen))
    # In order, whichever thread is ready first: an epoch must be the same again.
    data = data.map(partial(_load, sample_maker, chosen), num_parallel_calls=calls, deterministic=True)
    size = worker_slice.size(batch_size)
    if together > 1:
        data = data.unbatch().batch(size, drop_remainder=True).skip(first_batch % together)
    return data.map(partial(_with_static_shapes, size)).prefetch(1)


@cache
def _threads(workers: int) -> ThreadPoolExecutor:
    """Make one thread pool for all epochs: TensorFlow keeps every mapped function, with all it refers to."""
    return ThreadPoolExecutor(workers, thread_name_prefix="feed")


def _shuffled(records: Records, order: int) -> tf.data.Dataset:
    files = tf.data.Dataset.from_tensor_slices([str(path) for path in records.files("training")])
    # Only some files are open at a time: their order differs between epochs, too.
    # The order is fixed by the seed of this epoch; reshuffling would draw another one at each iteration.
    files = files.shuffle(len(files), seed=order, reshuffle_each_iteration=False)
    data = files.interleave(
        tf.data.TFRecordDataset,
        cycle_length=FILES_AT_ONCE,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return data.shuffle(_shuffle_buffer(records), seed=order, reshuffle_each_iteration=False)


def _load(sample_maker: SampleMaker, chosen: Any, positions: Any, serialized: Any) -> dict[str, Any]:
    """Make samples of the images at ``chosen`` of a batch; only a mosaic takes from the others."""
    # Several batches at a time may end with fewer images.
    chosen = tf.boolean_mask(chosen, chosen < tf.size(positions, tf.int64))
    # Without mosaic the images of other workers are not needed: they are never decoded here.
    if not sample_maker.augmentation.mosaic:
        positions, serialized = tf.gather(positions, chosen), tf.gather(serialized, chosen)
        chosen = tf.range(tf.size(positions, tf.int64))
    parsed = tfrecords.parse_encoded(serialized)
    # numpy_function and not py_function: arrays without eager tensors, and the executor's threads do the
    # work. Not stateful: equal inputs give equal samples.
    image, names, boxes, classes, left_out = tf.numpy_function(
        sample_maker.samples,
        [parsed["encoded"], parsed["id"], parsed["boxes"], parsed["classes"], positions, chosen],
        [tf.uint8, tf.string, tf.float32, tf.int32, tf.int32],
        stateful=False,
    )
    room = sample_maker.rows
    return {
        "image": tf.ensure_shape(
            image, [None, sample_maker.height, sample_maker.width, sample_maker.channels]
        ),
        "boxes": tf.ensure_shape(boxes, [None, room, 4]),
        "classes": tf.ensure_shape(classes, [None, room]),
        "id": tf.ensure_shape(names, [None]),
        "left_out": tf.ensure_shape(left_out, [None, 2]),
    }


def _with_static_shapes(batch_size: int, batch: dict[str, Any]) -> dict[str, Any]:
    return {key: tf.ensure_shape(value, [batch_size, *value.shape[1:]]) for key, value in batch.items()}


def validation_batches(
    records: Records,
    batch_size: int,
    limit: int | None = None,
    worker_slice: WorkerSlice = WHOLE,
    channels: int = COLOUR_CHANNELS,
) -> tf.data.Dataset:
    """Make batches of the validation images in a fixed order, each once; black images fill up the last one.

    Args:
        records: Prepared data.
        batch_size: Images of a batch, all workers together (B of a single worker).
        limit: Images at most; None means all.
        worker_slice: This worker's part of a batch; all workers have the same number of batches.
        channels: C, 3 for RGB or 1 for luma.

    Returns:
        Batches as :func:`training_batches` gives them, not augmented, with every object and ignored region
        of the largest image (G), ignored regions with their class ids, ``difficult`` bool [B, G],
        ``placement`` float32 [B, 6] (how to get back to the original image's pixels; see
        :func:`tfrecords.parse`) and ``valid`` bool [B], which is False for what fills up.
    """
    manifest = records.manifest
    rows = manifest.most_boxes
    data = tf.data.TFRecordDataset([str(path) for path in records.files("validation")])
    images = manifest.validation_images
    if limit is not None:
        images = min(images, limit)
        data = data.take(images)
    # Every image counts in the evaluation, so the last batch is filled up instead of dropped.
    missing = -images % batch_size
    # The padding is no record but an empty text, of which a blank image is made.
    data = data.concatenate(tf.data.Dataset.from_tensors("").repeat(missing))
    chosen = worker_slice.positions(batch_size)
    # Each worker takes its slice of a batch before the images are decoded.
    data = data.batch(batch_size, drop_remainder=True).map(lambda batch: tf.gather(batch, chosen)).unbatch()

    def load(serialized: Any) -> dict[str, Any]:
        sample = tfrecords.parse(serialized, manifest.height, manifest.width, channels)
        return {**_fixed_shape(sample, rows), "valid": tf.constant(True)}

    # element_spec is known without reading: load is traced once for its shapes.
    blank = _blank(data.map(load).element_spec)
    data = data.map(
        # Decoding an empty text would be an error, so both branches are functions and one of them runs.
        lambda serialized: tf.cond(tf.equal(serialized, ""), lambda: blank, lambda: load(serialized)),
        num_parallel_calls=parallel.workers(),
        deterministic=True,
    )
    return data.batch(worker_slice.size(batch_size), drop_remainder=True).prefetch(2)


def _blank(spec: dict[str, tf.TensorSpec]) -> dict[str, Any]:
    """Make a black image without objects that is not valid."""
    blank = {name: tf.zeros(one.shape, one.dtype) for name, one in spec.items() if one.dtype != tf.string}
    return {**blank, "id": tf.constant(""), "classes": tf.fill(spec["classes"].shape, PADDING)}


def _shuffle_buffer(records: Records) -> int:
    shards = [shard for shard in records.manifest.shards if shard.subset == "training"]
    images = sum(shard.images for shard in shards)
    mean_bytes = max(1, sum(shard.size_bytes for shard in shards) // images)
    # Counted in bytes, not in images: the buffer holds encoded images, of 20 KB or of 2 MB.
    return max(1, min(images, SHUFFLE_BYTES // mean_bytes))


def _fixed_shape(sample: dict[str, Any], rows: int) -> dict[str, Any]:
    count = tf.minimum(tf.shape(sample["classes"])[0], rows)
    missing = rows - count
    return {
        **sample,
        "boxes": tf.ensure_shape(tf.pad(sample["boxes"][:count], [[0, missing], [0, 0]]), [rows, 4]),
        "classes": tf.ensure_shape(
            tf.pad(sample["classes"][:count], [[0, missing]], constant_values=PADDING), [rows]
        ),
        "difficult": tf.ensure_shape(tf.pad(sample["difficult"][:count], [[0, missing]]), [rows]),
    }
