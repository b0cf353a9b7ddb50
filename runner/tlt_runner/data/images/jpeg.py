"""JPEG files: checks that they are whole and sound, and decodes them.

Called by :mod:`tlt_runner.data.images.decode`. A JPEG has no checksum. Two kinds of damage can be detected: a
file that ends before its end marker (the segments are walked), and coefficients that do not decode (libjpeg's
warnings, which most decoders swallow, count as errors here). A few changed bits that decode to other pixels
cannot be detected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlt_runner.data.images.header import (
    MAX_PIXELS,
    BadImageError,
    Header,
    check_parts,
    check_size,
    orientation,
)
from tlt_runner.data.sample import Oddity, Problem

START = b"\xff\xd8\xff"
# In entropy-coded data FF 00 is a stuffed FF and FF D0 to D7 are restart markers; any other marker ends them.
_SCAN_ENDS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FILL = re.compile(rb"\xff{2,}")
_END, _SCAN, _APP0, _EXIF, _ADOBE = 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
# TEM, the restart markers and the start of the image have no content, so no length.
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
# SOF0 to SOF15; DHT (C4), JPG (C8) and DAC (CC) lie between them.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# SOF0 baseline and SOF1 extended, SOF2 progressive, SOF9 and SOF10 the same with arithmetic coding.
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = {0xC0, 0xC1}, {0xC2}, {0xC9, 0xCA}
_DECODABLE = _SEQUENTIAL | _PROGRESSIVE | _ARITHMETIC
_USUAL_SCANS = 20
"""Scans that an image of the largest size may have; each costs a pass over all of it. Encoders make 10."""
# Complaints of libjpeg about fields that decide nothing: every decoder goes on with the usual value.
_HARMLESS_FIELDS = re.compile(r"unknown JFIF revision|Invalid SOS parameters|Unknown Adobe color transform")
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PADDING = 4
"""Bytes before the end marker that cameras leave there; a decoder that lost its position leaves more."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Marker segment; ``data[start:end]`` is its content, without marker and length."""

    marker: int
    start: int
    end: int


def header(data: bytes) -> Header:
    """Walk through the segments to the end.

    Raises:
        BadImageError: The file ends before its end-of-image marker, its segments make no sense, it is of a
            kind that cannot be decoded, or it is too large.
    """
    frame, exif_orientation, scans = b"", 1, 0
    for segment in _segments(data):
        content = data[segment.start : segment.end]
        if not frame and _is_frame(segment):
            # Marker, then precision, height, width and number of components: what is looked at below.
            frame = bytes([segment.marker]) + content[:6]
        # APP1 may hold XMP instead; only EXIF begins with this text.
        elif segment.marker == _EXIF and content.startswith(b"Exif\0\0"):
            exif_orientation = orientation(content[6:])
        scans += segment.marker == _SCAN
    if not frame or not scans:
        raise BadImageError(Problem.TRUNCATED_IMAGE, "the JPEG has an end marker but no image before it")
    # The frame: marker, precision, height and width (2 bytes each), number of components.
    process, precision, components = frame[0], frame[1], frame[6]
    height, width = _frame_size(frame[1:])
    if process not in _DECODABLE or precision != 8 or components not in (1, 3, 4):
        raise BadImageError(
            Problem.UNSUPPORTED_IMAGE,
            "expected a baseline or progressive JPEG of 8 bits with 1, 3 or 4 components, got process "
            f"SOF{process - 0xC0}, {precision} bits, {components} components",
        )
    check_size(height, width)
    # A progressive file of few bytes can ask for thousands of passes over a huge image.
    if scans * height * width > _USUAL_SCANS * MAX_PIXELS:
        raise BadImageError(
            Problem.HUGE_IMAGE, f"expected about 10 scans, got {scans} over {width} x {height} pixels"
        )
    applies_by_oddity = {
        Oddity.GRAYSCALE: components == 1,
        Oddity.CMYK: components == 4,
        Oddity.TURNED: exif_orientation != 1,
    }
    return Header(
        kind="JPEG",
        height=height,
        width=width,
        oddities=tuple(oddity for oddity, applies in applies_by_oddity.items() if applies),
        # Others are encoded anew, because tf.io.decode_jpeg reads the records.
        fits_records=process in _SEQUENTIAL | _PROGRESSIVE and components != 4,
        orientation=exif_orientation,
    )


def size(data: bytes) -> tuple[int, int]:
    """Read height and width from the first frame's header, also of a file that was cut off behind it.

    Raises:
        BadImageError: There is no such header.
    """
    for segment in _segments(data):
        if _is_frame(segment):
            return _frame_size(data[segment.start : segment.end])
    raise BadImageError(Problem.TRUNCATED_IMAGE, "the JPEG has an end marker but no image before it")


def _is_frame(segment: _Segment) -> bool:
    return segment.marker in _FRAMES and segment.end - segment.start > 5


def _frame_size(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield every segment, the end marker last."""
    offset, count = 2, 0
    while offset + 2 <= len(data):
        check_parts(count := count + 1)
        marker = data[offset + 1]
        if data[offset] != 0xFF:
            raise BadImageError(Problem.CORRUPT_IMAGE, f"expected a JPEG marker at byte {offset}")
        if marker == _END:
            yield _Segment(marker, offset, offset)
            return
        # Markers without a length, and fill bytes, of which there may be any number before a marker.
        if marker in _STANDALONE or marker == 0xFF:
            fill = _FILL.match(data, offset)
            offset = fill.end() - 1 if fill else offset + 2
            continue
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        # A length counts its own two bytes.
        if length < 2 <= len(data) - offset - 2:
            raise BadImageError(Problem.CORRUPT_IMAGE, f"JPEG segment at byte {offset} has length {length}")
        end = offset + 2 + length
        if end > len(data):
            break
        yield _Segment(marker, offset + 4, end)
        offset = end
        if marker == _SCAN:
            # Entropy-coded data follow; they end at the next marker that is no restart marker.
            scan_end = _SCAN_ENDS.search(data, offset)
            offset = scan_end.start() if scan_end else len(data)
    raise BadImageError(
        Problem.TRUNCATED_IMAGE, f"the JPEG ends after {len(data)} bytes without its end-of-image marker"
    )


def check(data: bytes) -> None:
    """Read every coefficient, at an eighth of the size: 0.6 times the cost of :func:`pixels` (measured).

    Raises:
        BadImageError: ``CorruptImage``.
    """
    _decode(data, "GRAY", eighth=True)


def pixels(data: bytes, head: Header) -> npt.NDArray[np.uint8]:
    """Decode to uint8 [height, width, 3] BGR, as stored (not turned).

    CMYK is multiplied out, without a colour profile: ``red = cyan * black``, both as the light that is left
    (255 is no ink), which is how Adobe and with it everyone stores them.

    Raises:
        BadImageError: ``CorruptImage``.
    """
    if Oddity.CMYK not in head.oddities:
        return _decode(data, "BGR")
    # 16 bits, because a product of two bytes needs them; + 127 rounds to the nearest.
    light = _decode(data, "CMYK").astype(np.uint16)
    return ((light[..., 2::-1] * light[..., 3:] + 127) // 255).astype(np.uint8)


def _decode(data: bytes, colours: str, eighth: bool = False) -> npt.NDArray[np.uint8]:
    import simplejpeg

    # Entropy decoding, which meets the damage, is complete at any scale; only the transform is cheaper.
    cheap = {"fastdct": True, "fastupsample": True, "min_height": 1, "min_width": 1} if eighth else {}
    strict = True
    # The decoder stops at the first complaint; one about harmless fields must not hide one about the data.
    for _ in range(3):
        try:
            # With strict, libjpeg's warnings are errors.
            return np.asarray(simplejpeg.decode_jpeg(data, colours, strict=strict, **cheap))
        except ValueError as error:
            # The text is kept, because the name of an exception ends with its except block.
            complaint = str(error)
        # Mend the field, or tolerate the padding, and decode again: anything else is damage.
        if _HARMLESS_FIELDS.search(complaint):
            data = _with_usual_fields(data)
        elif strict and _is_padding(complaint, data):
            strict = False
        else:
            break
    raise BadImageError(Problem.CORRUPT_IMAGE, f"the data between start and end do not decode: {complaint}")


def _is_padding(complaint: str, data: bytes) -> bool:
    left_over = _LEFT_OVER.search(complaint)
    if left_over is None:
        return False
    # Padding is a few bytes, or zeros of any number; anything else is data that were not decoded.
    count = int(left_over[1])
    # The last segment is the end marker.
    *_, end = _segments(data)
    return count <= _PADDING or not data[end.start - count : end.start].strip(b"\0")


def _is_adobe(data: bytes, segment: _Segment) -> bool:
    return segment.marker == _ADOBE and data.startswith(b"Adobe", segment.start)


def _with_usual_fields(data: bytes) -> bytes:
    """Replace harmless fields by the values that decoders assume anyway."""
    usual = bytearray(data)
    sequential, components = False, 3
    for segment in _segments(data):
        # The number of components is the sixth byte of a frame.
        if segment.marker in _FRAMES:
            sequential, components = segment.marker in _SEQUENTIAL, data[segment.start + 5]
        # Spectral selection 0 to 63, no approximation: the only values of a sequential file by the standard.
        elif segment.marker == _SCAN and sequential:
            usual[segment.end - 3 : segment.end] = b"\x00\x3f\x00"
        # The major version of JFIF, of which there is only 1.
        elif segment.marker == _APP0 and data.startswith(b"JFIF\0", segment.start):
            usual[segment.start + 5] = 1
        elif _is_adobe(data, segment) and data[segment.start + 11] > 2:
            # Adobe's colour transform: 1 is YCbCr, 2 is YCCK of four components; there is none above.
            usual[segment.start + 11] = 2 if components == 4 else 1
    return bytes(usual)
