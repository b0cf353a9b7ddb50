"""The bytes of a tf.train.Example by the protocol; test_data_prepare has TensorFlow read them."""

import struct

import pytest

from lazy import Lazy

tfrecords = Lazy("tlt_runner.data.tfrecords")


def test_features_are_serialised_in_the_order_of_their_names() -> None:
    message = tfrecords.serialize(
        {"b": tfrecords.int64_feature([1, 300]), "a": tfrecords.bytes_feature([b"xy", b""])}
    )
    a = b"\x0a\x06" + b"\x0a\x02xy" + b"\x0a\x00"
    b = b"\x1a\x05" + b"\x0a\x03" + b"\x01" + b"\xac\x02"
    entries = b"\x0a\x0d\x0a\x01a\x12\x08" + a + b"\x0a\x0c\x0a\x01b\x12\x07" + b
    assert message == b"\x0a" + bytes([len(entries)]) + entries


def test_floats_are_packed_little_endian() -> None:
    assert tfrecords.float_feature([1.5, -2.0]) == b"\x12\x0a\x0a\x08" + struct.pack("<2f", 1.5, -2.0)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("bytes", [], b"\x0a\x00"),
        ("float", [], b"\x12\x00"),
        ("int64", [], b"\x1a\x00"),
        ("int64", [-1], b"\x1a\x0c\x0a\x0a" + b"\xff" * 9 + b"\x01"),
    ],
)
def test_empty_lists_and_negative_numbers_serialise(kind: str, values: list[int], expected: bytes) -> None:
    assert getattr(tfrecords, f"{kind}_feature")(values) == expected
