"""EXIF orientation of an image file: found without decoding, and applied to pixels.

Viewers and most annotation tools show a photo as its orientation tag says; decoders for training do not.
Whether the tag is applied is decided for a whole data set (:mod:`tlt_runner.data.preparation.conventions`).
Orientations: 1 upright, 2 mirrored, 3 upside down, 4 flipped, 5 to 8 the same with height and width swapped.
Source: CIPA DC-008 (Exif 2.32), 4.6.4 A, tag 0x0112.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tlt_runner.data.images.header import orientation as tiff_orientation
from tlt_runner.data.sample import Oddity

BLOCK = 1 << 16
"""Bytes that are read at a time; cameras write their tags at the beginning of the first 64 KiB."""
SWAPPED = range(5, 9)
"""Orientations that swap height and width."""
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_EXIF, _CHUNK = b"Exif\0\0", b"eXIf"
_APP1, _PIXELS = 0xE1, {0xDA, 0xD9}
"""Markers: the segment with EXIF, and start of scan and end of image, behind which there is none."""
_LONGEST = 1 << 16
_SMALL = 256
"""Bytes within which the tag's first entries lie."""


def digest_and_orientation(path: Path) -> tuple[bytes, int]:
    """Read a file once: its SHA-256, and its EXIF orientation (1 if it has none).

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        block = file.read(BLOCK)
        digest.update(block)
        found = of_block(block)
        # A PNG may have its tag behind the pixels; a JPEG has it in front, or none.
        if found == 1 and block.startswith(_PNG):
            found = _rest_of_png(file, block, digest)
        else:
            # The whole rest in one call, which releases the interpreter's lock.
            hashlib.file_digest(file, lambda: digest)
    return digest.digest(), found


def of_file(path: Path) -> int:
    """Find the EXIF orientation of a file; 1 if it has none.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        block = file.read(BLOCK)
        found = of_block(block)
        return _rest_of_png(file, block) if found == 1 and block.startswith(_PNG) else found


def of_block(data: bytes) -> int:
    """Find the EXIF orientation in the first bytes of a JPEG or PNG file; 1 if there is none."""
    if data.startswith(_JPEG):
        start = _exif_of_jpeg(data)
        return 1 if start is None else tiff_orientation(data[start : start + _LONGEST])
    if data.startswith(_PNG):
        start = data.find(_CHUNK)
        return 1 if start < 0 else tiff_orientation(data[start + len(_CHUNK) : start + _LONGEST])
    return 1


def _exif_of_jpeg(data: bytes) -> int | None:
    """Find where the TIFF header of EXIF begins, among the segments before the pixels."""
    offset = 2
    # Marker, length of two bytes that counts itself, content.
    while offset + 4 <= len(data) and data[offset] == 0xFF and data[offset + 1] not in _PIXELS:
        content = offset + 4
        if data[offset + 1] == _APP1 and data.startswith(_EXIF, content):
            return content + len(_EXIF)
        offset += 2 + max(2, int.from_bytes(data[offset + 2 : content], "big"))
    return None


def _rest_of_png(file: BinaryIO, block: bytes, digest: hashlib._Hash | None = None) -> int:
    """Look for the orientation in the rest of a PNG file, block by block, and hash it on the way."""
    found = 1
    while following := file.read(BLOCK):
        if digest is not None:
            digest.update(following)
        # The end of the block before: the tag may lie across two.
        window = block[-_SMALL:] + following
        start = window.find(_CHUNK)
        if start >= 0:
            found = tiff_orientation(window[start + len(_CHUNK) : start + _LONGEST])
        block = following
    return found


def upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Turn pixels [h, w, ...] as stored into the view that an EXIF orientation asks for.

    Returns:
        [h, w, ...], or for orientations 5 to 8 [w, h, ...]; contiguous.
    """
    # 5 to 8 are 1 to 4 of the transposed picture, but with the two axes' parts swapped: 6 is a quarter turn
    # clockwise (transposed, then mirrored), 8 one counter-clockwise.
    if orientation in SWAPPED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def applied(oddities: tuple[Oddity, ...]) -> tuple[Oddity, ...]:
    """Return the unusual properties of an image after :func:`upright`."""
    return tuple(Oddity.TURNED_UPRIGHT if oddity is Oddity.TURNED else oddity for oddity in oddities)


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Return height and width of an image after :func:`upright`."""
    return (width, height) if orientation in SWAPPED else (height, width)
