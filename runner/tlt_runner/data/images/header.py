"""Header of an image file, read before a pixel is decoded, and the error of a file that cannot be used.

:mod:`tlt_runner.data.images.jpeg` and :mod:`tlt_runner.data.images.png` make headers; everyone else gets them
from :mod:`tlt_runner.data.images.decode`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlt_runner.data.sample import Oddity, Problem

MAX_PIXELS = 100_000_000
"""Pixels of an image at most: 300 MB decoded, which each worker may hold."""
MAX_SIDE = 65_500
"""Rows or columns at most; libjpeg's limit."""
MAX_PARTS = 200_000
"""Segments or chunks of a file at most: a PNG of the largest size in parts of 8 KiB has as many."""
_ORIENTATION_TAG = 0x0112


class BadImageError(Exception):
    """Raised for an image that cannot be used.

    Attributes:
        problem: Kind of problem.
        message: Expected and got.
    """

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a whole image file.

    Attributes:
        kind: Format of the content, whatever the file's suffix.
        height: Rows as stored.
        width: Columns as stored.
        oddities: Unusual properties.
        fits_records: True if the file itself can be a record's ``frame/encoded``: a grey or colour JPEG of
            8 bits, baseline or progressive, which ``tf.io.decode_jpeg`` reads.
        orientation: EXIF orientation: 1 upright, 2 to 8 mirrored or turned; 5 to 8 swap height and width.
    """

    kind: Literal["JPEG", "PNG"]
    height: int
    width: int
    oddities: tuple[Oddity, ...]
    fits_records: bool
    orientation: int


def check_size(height: int, width: int) -> None:
    """Refuse an image that would not fit in memory, before anything is decoded.

    Raises:
        BadImageError: ``HugeImage``; ``CorruptImage`` where a side is 0.
    """
    if not height or not width:
        raise BadImageError(
            Problem.CORRUPT_IMAGE, f"expected a header with a size, got {width} x {height} pixels"
        )
    # By the header alone: a decompression bomb is a few bytes that claim gigabytes.
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise BadImageError(
            Problem.HUGE_IMAGE,
            f"expected at most {MAX_PIXELS // 1_000_000} million pixels and {MAX_SIDE} a side, got {width} x "
            f"{height}",
        )


def check_parts(count: int) -> None:
    """Refuse a file whose parts would take minutes to walk through.

    Raises:
        BadImageError: ``CorruptImage``.
    """
    # Each part is a step of a loop in Python: millions of empty ones would hold a worker for minutes.
    if count > MAX_PARTS:
        raise BadImageError(Problem.CORRUPT_IMAGE, f"expected at most {MAX_PARTS} segments or chunks")


def orientation(tiff: bytes) -> int:
    """Read the orientation tag of a TIFF header's first directory (EXIF); 1 if there is no valid one."""
    # TIFF begins with its byte order: II is little, MM is big endian.
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    # Slices of a damaged header are empty and read as 0: no entry, and no error.
    start = int.from_bytes(tiff[4:8], order)
    entries = int.from_bytes(tiff[start : start + 2], order)
    # An entry has 12 bytes: tag (2), type (2), count (4) and value. Their number is not trusted: they end
    # with the header.
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(tiff) - 11), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == _ORIENTATION_TAG:
            value = int.from_bytes(tiff[entry + 8 : entry + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1
