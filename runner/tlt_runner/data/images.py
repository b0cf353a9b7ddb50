"""Is this file a whole image? Decoders are lenient: a cut-off JPEG comes out grey, without a word.

So the container is read to its end marker first, then the pixels are decoded. Orientation tags (EXIF) are
not applied: labels speak of the pixels as they are stored, as in TLT, and TensorFlow's decoder ignores the
tags too.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
import numpy.typing as npt

from tlt_runner.data.sample import Problem

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_QUALITY = 95
_SCAN_ENDS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END, _SCAN = 0xD9, 0xDA
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
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


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of a whole JPEG or PNG file: uint8 [height, width, 3], BGR.

    Raises:
        BadImageError: The file is empty, no image, cut off, or does not decode.
    """
    import cv2

    if not data:
        raise BadImageError(Problem.EMPTY_FILE, "expected an image, got 0 bytes")
    if data.startswith(JPEG_START):
        jpeg_components(data)
    elif data.startswith(PNG_START):
        _check_png(data)
    else:
        raise BadImageError(
            Problem.UNREADABLE_IMAGE, f"expected a JPEG or PNG file, got one that begins with {data[:8]!r}"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadImageError(Problem.UNREADABLE_IMAGE, f"the decoder refused it: {error.err}") from error
    if image is None:
        raise BadImageError(Problem.UNREADABLE_IMAGE, "the decoder refused it")
    return image


def jpeg_components(data: bytes) -> int:
    """Number of colour components (1 grey, 3 colour, 4 CMYK) of a JPEG that is whole.

    Raises:
        BadImageError: The file ends before its end-of-image marker, or its segments make no sense.
    """
    place, components = 2, 0
    while place + 2 <= len(data):
        if data[place] != 0xFF:
            raise BadImageError(Problem.UNREADABLE_IMAGE, f"expected a JPEG marker at byte {place}")
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _STANDALONE:
            place += 2
        elif marker == _END:
            if not components:
                raise BadImageError(
                    Problem.UNREADABLE_IMAGE, "expected a JPEG frame before the end of the image"
                )
            return components
        else:
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            if marker in _FRAMES and place + 9 < len(data):
                components = data[place + 9]
            place += 2 + length
            if marker == _SCAN:
                found = _SCAN_ENDS.search(data, place)
                place = found.start() if found else len(data)
    raise BadImageError(
        Problem.TRUNCATED_IMAGE, f"the JPEG ends after {len(data)} bytes without its end-of-image marker"
    )


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
    """Pixels (BGR) as JPEG."""
    import cv2

    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise BadImageError(Problem.UNREADABLE_IMAGE, f"cannot encode pixels of shape {image.shape}")
    return bytes(data)


def keeps_its_bytes(data: bytes) -> bool:
    """Whether a whole image file can go into the records as it is: a grey or colour JPEG."""
    return data.startswith(JPEG_START) and jpeg_components(data) in (1, 3)
