"""One prepared image as a ``tf.train.Example``, written and read back.

Keys and units are TLT's (``frame/*``, ``target/*``; boxes in absolute pixels of the encoded image), with
what is needed to find the original's pixels again: its size, the scale and the offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlt_api.failures import Reason
from tlt_runner.data import examples
from tlt_runner.data.images.geometry import Placement
from tlt_runner.errors import RunnerError


@dataclass(frozen=True)
class Objects:
    """The objects of one image, in pixels of the network's input.

    Attributes:
        names: Class names, after mapping.
        class_ids: Their ids.
        boxes: [N, 4] yxyx.
        truncation: 0 to 1.
        occlusion: 0 to 3.
        difficult: Whether evaluation leaves it out of account.
    """

    names: Sequence[str]
    class_ids: Sequence[int]
    boxes: npt.NDArray[np.floating[Any]]
    truncation: Sequence[float]
    occlusion: Sequence[int]
    difficult: Sequence[bool]


def to_example(
    name: str, encoded: bytes, original_size: tuple[int, int], where: Placement, objects: Objects
) -> bytes:
    """Serialise one image.

    Args:
        name: ``frame/id``.
        encoded: JPEG of the network's size.
        original_size: Height and width of the original image.
        where: How it was placed.
        objects: Its objects.
    """
    y1, x1, y2, x2 = objects.boxes.T.tolist() if len(objects.boxes) else ([], [], [], [])
    return examples.serialize(
        {
            "frame/id": examples.of_bytes([_text(name)]),
            "frame/height": examples.of_ints([where.height]),
            "frame/width": examples.of_ints([where.width]),
            "frame/encoded": examples.of_bytes([encoded]),
            "frame/original_height": examples.of_ints([original_size[0]]),
            "frame/original_width": examples.of_ints([original_size[1]]),
            "frame/scale_y": examples.of_floats([where.scale_y]),
            "frame/scale_x": examples.of_floats([where.scale_x]),
            "frame/offset_y": examples.of_floats([where.offset_y]),
            "frame/offset_x": examples.of_floats([where.offset_x]),
            "target/object_class": examples.of_bytes(map(_text, objects.names)),
            "target/object_class_id": examples.of_ints(objects.class_ids),
            "target/truncation": examples.of_floats(objects.truncation),
            "target/occlusion": examples.of_ints(objects.occlusion),
            "target/is_difficult": examples.of_ints(map(int, objects.difficult)),
            "target/coordinates_x1": examples.of_floats(x1),
            "target/coordinates_y1": examples.of_floats(y1),
            "target/coordinates_x2": examples.of_floats(x2),
            "target/coordinates_y2": examples.of_floats(y2),
        }
    )


def _text(text: str) -> bytes:
    """A name as its file has it, whatever its encoding."""
    return text.encode(errors="surrogateescape")


EDGES = tuple(f"target/coordinates_{edge}" for edge in ("y1", "x1", "y2", "x2"))
"""Keys of the boxes' edges: top, left, bottom, right."""
_LISTS = {
    "target/object_class_id": tf.int64,
    "target/is_difficult": tf.int64,
    **dict.fromkeys(EDGES, tf.float32),
}
_SCALARS = {"frame/id": tf.string, "frame/encoded": tf.string}
_SCALE = {f"frame/{name}": tf.float32 for name in ("scale_y", "scale_x", "offset_y", "offset_x")}
_ORIGINAL = {"frame/original_height": tf.int64, "frame/original_width": tf.int64}


def parse(serialized: Any, height: int, width: int) -> dict[str, Any]:
    """Read one image back, as tensors (called inside a tf.data map).

    Returns:
        ``image`` uint8 [height, width, 3] RGB, ``boxes`` float32 [N, 4] yxyx pixels, ``classes``
        int32 [N], ``difficult`` bool [N], ``id`` string [], ``placement`` float32 [6]: scale y, x, offset y,
        x, and height and width of the original image.
    """
    features = {key: tf.io.VarLenFeature(kind) for key, kind in _LISTS.items()}
    scalars = {**_SCALARS, **_SCALE, **_ORIGINAL}
    features |= {key: tf.io.FixedLenFeature([], kind) for key, kind in scalars.items()}
    parsed = tf.io.parse_single_example(serialized, features)
    lists = {key: tf.sparse.to_dense(parsed[key]) for key in _LISTS}
    image = tf.io.decode_jpeg(parsed["frame/encoded"], channels=3, dct_method="INTEGER_ACCURATE")
    image = tf.ensure_shape(image, [height, width, 3])
    return {
        "image": image,
        "boxes": tf.stack([lists[edge] for edge in EDGES], axis=-1),
        "classes": tf.cast(lists["target/object_class_id"], tf.int32),
        "difficult": lists["target/is_difficult"] > 0,
        "id": parsed["frame/id"],
        "placement": tf.stack([tf.cast(parsed[key], tf.float32) for key in (*_SCALE, *_ORIGINAL)]),
    }


def parse_encoded(serialized: Any) -> dict[str, Any]:
    """Read several images back, not decoded, as tensors (called inside a tf.data map).

    Args:
        serialized: string [n].

    Returns:
        ``encoded`` string [n], ``boxes`` float32 [n, N, 4] yxyx pixels, ``classes`` int32 [n, N] (-1 where
        there is no object), ``id`` string [n].
    """
    features: dict[str, Any] = {
        key: tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True) for key in EDGES
    }
    features["target/object_class_id"] = tf.io.FixedLenSequenceFeature(
        [], tf.int64, allow_missing=True, default_value=-1
    )
    features |= {key: tf.io.FixedLenFeature([], kind) for key, kind in _SCALARS.items()}
    parsed = tf.io.parse_example(serialized, features)
    return {
        "encoded": parsed["frame/encoded"],
        "boxes": tf.stack([parsed[edge] for edge in EDGES], axis=-1),
        "classes": tf.cast(parsed["target/object_class_id"], tf.int32),
        "id": parsed["frame/id"],
    }


class ShardWriter:
    """Writes one file of records.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with tensorflow_errors(path):
            self._writer: Any = tf.io.TFRecordWriter(str(path))

    def write(self, example: bytes) -> None:
        """Append a record."""
        with tensorflow_errors(self._path):
            self._writer.write(example)

    def close(self) -> None:
        """Finish the file; a second time does nothing."""
        with tensorflow_errors(self._path):
            self._writer.close()


class tensorflow_errors:  # noqa: N801 - reads as a statement, like contextlib's
    """Turn TensorFlow's file errors into the failure taxonomy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Translate an error of a file operation."""
        if not isinstance(error, tf.errors.OpError):
            return
        reasons = {
            tf.errors.RESOURCE_EXHAUSTED: Reason.STORAGE_FULL,
            tf.errors.PERMISSION_DENIED: Reason.STORAGE_DENIED,
        }
        reason = reasons.get(error.error_code, Reason.STORAGE_UNAVAILABLE)
        raise RunnerError(reason, f"{self._path}: {error.message}") from error
