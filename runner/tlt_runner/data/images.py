"""Is this file a whole image? Decoders are lenient: a cut-off JPEG comes out grey, without a word.

So the container is read to its end marker first, then the pixels are decoded. Orientation tags (EXIF) are
not applied: labels speak of the pixels as they are stored, as in TLT, and TensorFlow's decoder ignores the
tags too.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tlt_runner.data.sample import Oddity, Problem

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_QUALITY = 95
_SCAN_ENDS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END, _SCAN, _EXIF = 0xD9, 0xDA, 0xE1
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_ORIENTATION_TAG = 0x0112
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class BadImageError(Exception):
    """An image that cannot be used.

    Attributes:
        problem: What kind.
        message: Expected and got.
    """

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message


@dataclass(frozen=True)
class Jpeg:
    """What the segments of a whole JPEG say.

    Attributes:
        components: Colour components: 1 grey, 3 colour, 4 CMYK.
        orientation: EXIF orientation: 1 upright, 2 to 8 mirrored or turned.
    """

    components: int
    orientation: int


@dataclass(frozen=True)
class Decoded:
    """A whole image.

    Attributes:
        pixels: uint8 [height, width, 3], BGR, as stored (not turned).
        oddities: What is unusual about the file.
        fits_records: Whether the file itself can be a record's ``frame/encoded``: a grey or colour JPEG.
    """

    pixels: npt.NDArray[np.uint8]
    oddities: tuple[Oddity, ...]
    fits_records: bool


def decode(data: bytes) -> Decoded:
    """Check and decode a JPEG or PNG file.

    Raises:
        BadImageError: The file is empty, no image, cut off, or does not decode.
    """
    if not data:
        raise BadImageError(Problem.EMPTY_FILE, "expected an image, got 0 bytes")
    jpeg = None
    if data.startswith(JPEG_START):
        jpeg = read_jpeg(data)
    elif data.startswith(PNG_START):
        _check_png(data)
    else:
        raise BadImageError(
            Problem.UNREADABLE_IMAGE, f"expected a JPEG or PNG file, got one that begins with {data[:8]!r}"
        )
    return Decoded(
        pixels=_decode_pixels(data),
        oddities=(Oddity.TURNED,) if jpeg is not None and jpeg.orientation != 1 else (),
        fits_records=jpeg is not None and jpeg.components in (1, 3),
    )


def _decode_pixels(data: bytes) -> npt.NDArray[np.uint8]:
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadImageError(Problem.UNREADABLE_IMAGE, f"the decoder refused it: {error.err}") from error
    if image is None:
        raise BadImageError(Problem.UNREADABLE_IMAGE, "the decoder refused it")
    return image


def read_jpeg(data: bytes) -> Jpeg:
    """Walk through a JPEG's segments to its end.

    Raises:
        BadImageError: The file ends before its end-of-image marker, or its segments make no sense.
    """
    place, components, orientation = 2, 0, 1
    while place + 2 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF:
            raise BadImageError(Problem.UNREADABLE_IMAGE, f"expected a JPEG marker at byte {place}")
        if marker == _END and components:
            return Jpeg(components, orientation)
        if marker in _STANDALONE or marker == 0xFF:
            place += 1 if marker == 0xFF else 2
            continue
        segment = data[place + 4 : place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")]
        if marker in _FRAMES and len(segment) > 5:
            components = segment[5]
        elif marker == _EXIF and segment.startswith(b"Exif\0\0"):
            orientation = _orientation(segment[6:])
        place += 4 + len(segment)
        if marker == _SCAN:
            found = _SCAN_ENDS.search(data, place)
            place = found.start() if found else len(data)
    raise BadImageError(
        Problem.TRUNCATED_IMAGE, f"the JPEG ends after {len(data)} bytes without its end-of-image marker"
    )


def _orientation(tiff: bytes) -> int:
    """The orientation tag of a TIFF header's first directory; 1 where there is none."""
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    start = int.from_bytes(tiff[4:8], order)
    entries = int.from_bytes(tiff[start : start + 2], order)
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(tiff) - 11), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == _ORIENTATION_TAG:
            return int.from_bytes(tiff[entry + 8 : entry + 10], order) or 1
    return 1


def _check_png(data: bytes) -> None:
    place = len(PNG_START)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 12 + length
        if end > len(data):
            break
        kind = data[place + 4 : place + 8]
        if zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImageError(
                Problem.UNREADABLE_IMAGE, f"checksum of PNG chunk {kind!r} at byte {place} is wrong"
            )
        if kind == b"IEND":
            return
        place = end
    raise BadImageError(
        Problem.TRUNCATED_IMAGE, f"the PNG ends after {len(data)} bytes without its IEND chunk"
    )


def encode(image: npt.NDArray[np.uint8]) -> bytes:
    """Pixels (uint8 [height, width, 3], BGR) as JPEG of quality 95."""
    import cv2

    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise BadImageError(Problem.UNREADABLE_IMAGE, f"cannot encode pixels of shape {image.shape}")
    return bytes(data)
