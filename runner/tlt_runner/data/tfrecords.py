"""Serialise a prepared image as a ``tf.train.Example``, and read it back.

Keys and units are TLT's (``frame/*``, ``target/*``; boxes in absolute pixels of the encoded image), with
ignored regions as boxes of a class id below -1 (:data:`tlt_runner.data.sample.IGNORED`), and with what is
needed to find the original's pixels again: its size, the scale and the offset.

The message is serialised here, not by protobuf's classes: conversion makes one for every image while it holds
the interpreter's lock, and its bytes must be the same in every process and with every version of protobuf
(ADR 12). Source: the Protocol Buffers encoding, ``tensorflow/core/example/feature.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_runner.data.images.geometry import Placement
from tlt_runner.data.sample import LabelledBox
from tlt_runner.errors import RunnerError

EVERY_CLASS = "DontCare"
"""Class name in the records of an ignored region that is of every class, as in KITTI."""


def to_example(
    name: str,
    encoded: bytes,
    original_size: tuple[int, int],
    placement: Placement,
    boxes: Sequence[LabelledBox],
    class_ids: Sequence[int],
) -> bytes:
    """Serialise one image.

    Args:
        name: ``frame/id``.
        encoded: JPEG of the network's size.
        original_size: Height and width of the original image.
        placement: Position of the original image in this one.
        boxes: Its objects, with the class to learn, and its ignored regions, in pixels of this image.
        class_ids: Class id of each.
    """
    return serialize(
        {
            "frame/id": bytes_feature([_text(name)]),
            "frame/height": int64_feature([placement.height]),
            "frame/width": int64_feature([placement.width]),
            "frame/encoded": bytes_feature([encoded]),
            "frame/original_height": int64_feature([original_size[0]]),
            "frame/original_width": int64_feature([original_size[1]]),
            "frame/scale_y": float_feature([placement.scale_y]),
            "frame/scale_x": float_feature([placement.scale_x]),
            "frame/offset_y": float_feature([placement.offset_y]),
            "frame/offset_x": float_feature([placement.offset_x]),
            "target/object_class": bytes_feature(_text(box.class_name or EVERY_CLASS) for box in boxes),
            "target/object_class_id": int64_feature(class_ids),
            "target/truncation": float_feature([box.truncation for box in boxes]),
            "target/occlusion": int64_feature(box.occlusion for box in boxes),
            "target/is_difficult": int64_feature(int(box.difficult) for box in boxes),
            "target/coordinates_x1": float_feature([box.yxyx[1] for box in boxes]),
            "target/coordinates_y1": float_feature([box.yxyx[0] for box in boxes]),
            "target/coordinates_x2": float_feature([box.yxyx[3] for box in boxes]),
            "target/coordinates_y2": float_feature([box.yxyx[2] for box in boxes]),
        }
    )


def _text(text: str) -> bytes:
    """Encode a name to the bytes of its file, whatever their encoding."""
    return text.encode(errors="surrogateescape")


def serialize(features: Mapping[str, bytes]) -> bytes:
    """Serialise named features as a ``tf.train.Example``, in the order of their names."""
    # Protobuf leaves the order of a map's entries open; sorted, equal features are equal bytes. An entry is a
    # message with the name as field 1 and the feature as field 2 (tags 0x0a and 0x12).
    # Entries are field 1 of Features, again with tag 0x0a.
    parts = []
    for name in sorted(features):
        key, value = name.encode(), features[name]
        value_start = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(value))
        parts += [b"\x0a", _varint(len(value_start) + len(value)), value_start, value]
    # An Example has one field, features (tag 0x0a): the message of all entries.
    length = sum(map(len, parts))
    return b"".join([b"\x0a", _varint(length), *parts])


def bytes_feature(values: Iterable[bytes]) -> bytes:
    """Serialise a list of byte strings."""
    # BytesList is field 1 of Feature (tag 0x0a); each string is a field 1 of the list.
    parts: list[bytes] = []
    for value in values:
        parts += [b"\x0a", _varint(len(value)), value]
    return _feature(b"\x0a", b"".join(parts))


def float_feature(values: Sequence[float]) -> bytes:
    """Serialise a list of float32."""
    # FloatList is field 2 (tag 0x12); its values are packed, four bytes each, little endian.
    return _feature(b"\x12", _packed(struct.pack(f"<{len(values)}f", *values)))


def int64_feature(values: Iterable[int]) -> bytes:
    """Serialise a list of int64."""
    # Int64List is field 3 (tag 0x1a); its values are packed varints.
    return _feature(b"\x1a", _packed(b"".join(map(_varint, values))))


def _feature(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _packed(content: bytes) -> bytes:
    # An empty list has no field of values, as protobuf writes it.
    return b"\x0a" + _varint(len(content)) + content if content else b""


def _varint(value: int) -> bytes:
    """Serialise a whole number, seven bits a byte; a negative one as its two's complement of 64 bits."""
    if 0 <= value < 128:
        return _SMALL[value]
    # Protobuf writes int64 so: -1 takes ten bytes.
    value &= (1 << 64) - 1
    digits = bytearray()
    # Seven bits a byte, the lowest first; the upper bit says that another byte follows.
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


# A table, because nearly all numbers of a record (lengths, class ids, flags) are below 128.
_SMALL = [bytes([value]) for value in range(128)]


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


def parse(serialized: Any, height: int, width: int, channels: int = 3) -> dict[str, Any]:
    """Read one image back, as tensors (called inside a tf.data map).

    Args:
        serialized: The record.
        height: Rows of the image.
        width: Columns of the image.
        channels: 3 for RGB, 1 for luma.

    Returns:
        ``image`` uint8 [height, width, channels], ``boxes`` float32 [N, 4] yxyx pixels, ``classes``
        int32 [N] (below -1: an ignored region), ``difficult`` bool [N], ``id`` string [], ``placement``
        float32 [6]: scale y, x, offset y, x, and height and width of the original image.
    """
    # The number of objects differs between images: lists are read as sparse and made dense below.
    features = {key: tf.io.VarLenFeature(kind) for key, kind in _LISTS.items()}
    scalars = {**_SCALARS, **_SCALE, **_ORIGINAL}
    features |= {key: tf.io.FixedLenFeature([], kind) for key, kind in scalars.items()}
    # Boxes are four lists, one an edge, as TLT has them; they are stacked to [N, 4] at the end.
    parsed = tf.io.parse_single_example(serialized, features)
    lists = {key: tf.sparse.to_dense(parsed[key]) for key in _LISTS}
    # The accurate transform, as simplejpeg's for training: both decode to the same pixels.
    image = tf.io.decode_jpeg(parsed["frame/encoded"], channels=channels, dct_method="INTEGER_ACCURATE")
    image = tf.ensure_shape(image, [height, width, channels])
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
        there is no object, below that an ignored region), ``id`` string [n].
    """
    # Lists are padded to the longest one of the batch: edges with 0, class ids with -1.
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
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Translate an error of a file operation."""
        # Anything but a file error passes unchanged.
        if not isinstance(error, tf.errors.OpError):
            return
        # TensorFlow has one code for a full disk and for want of memory; in a file operation it is the disk.
        reasons = {
            tf.errors.RESOURCE_EXHAUSTED: Reason.STORAGE_FULL,
            tf.errors.PERMISSION_DENIED: Reason.STORAGE_DENIED,
        }
        reason = reasons.get(error.error_code, Reason.STORAGE_UNAVAILABLE)
        raise RunnerError(reason, f"{self._path}: {error.message}") from error
