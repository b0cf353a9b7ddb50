"""PNG files: checks that they are whole and sound, and decodes them.

Called by :mod:`tlt_runner.data.images.decode`. The decoder sees the chunks that make the picture and no
others, so that no text, colour profile, animation or transparency can change it, fail in it or swell in it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tlt_runner.data.images.header import BadImageError, Header, check_parts, check_size, orientation
from tlt_runner.data.sample import Oddity, Problem

START = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of a sample by colour type: grey, colour, palette, grey with alpha, colour with alpha."""
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by colour type."""
_GREY, _PALETTE, _WITH_ALPHA = (0, 4), 3, (4, 6)


def header(data: bytes) -> Header:
    """Walk through the chunks to the end.

    Raises:
        BadImageError: The file ends before its IEND chunk, a checksum is wrong, its header makes no sense, or
            it is too large.
    """
    fields, exif_orientation, compressed = b"", 1, 0
    kinds: set[bytes] = set()
    for kind, start, end in _chunks(data):
        # The standard wants IHDR first.
        if not kinds:
            fields = _fields(kind, data[start:end])
        if kind == b"eXIf":
            exif_orientation = orientation(data[start:end])
        # The picture may be divided into any number of IDAT chunks.
        elif kind == b"IDAT":
            compressed += end - start
        kinds.add(kind)
    height, width = _header_size(fields)
    depth, colour = fields[8], fields[9]
    # A row has one byte for its filter before its samples.
    _check_data(compressed, height * (1 + width * depth * _SAMPLES[colour] // 8))
    needed = {b"IDAT", b"PLTE"} if colour == _PALETTE else {b"IDAT"}
    if missing := needed - kinds:
        raise BadImageError(
            Problem.CORRUPT_IMAGE, f"expected PNG chunks {sorted(needed)}, got none of {missing}"
        )
    applies_by_oddity = {
        Oddity.SIXTEEN_BIT: depth == 16,
        Oddity.GRAYSCALE: colour in _GREY,
        # tRNS makes single colours or palette entries transparent, without an alpha channel.
        Oddity.ALPHA: colour in _WITH_ALPHA or b"tRNS" in kinds,
        Oddity.TURNED: exif_orientation != 1,
        Oddity.ANIMATED: b"acTL" in kinds,
    }
    return Header(
        kind="PNG",
        height=height,
        width=width,
        oddities=tuple(oddity for oddity, applies in applies_by_oddity.items() if applies),
        fits_records=False,
        orientation=exif_orientation,
    )


def size(data: bytes) -> tuple[int, int]:
    """Read height and width from the IHDR chunk, also of a file that was cut off behind it.

    Raises:
        BadImageError: There is no such chunk, or the image is too large.
    """
    for kind, start, end in _chunks(data):
        return _header_size(_fields(kind, data[start:end]))
    raise BadImageError(Problem.TRUNCATED_IMAGE, "the PNG has no chunk")


def _header_size(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[4:8], "big"), int.from_bytes(content[:4], "big")


def _fields(kind: bytes, content: bytes) -> bytes:
    """Check the IHDR chunk and return its content."""
    if kind != b"IHDR" or len(content) != 13:
        raise BadImageError(Problem.CORRUPT_IMAGE, f"expected an IHDR chunk of 13 bytes first, got {kind!r}")
    check_size(*_header_size(content))
    depth, colour, compression, filtering, interlace = content[8:]
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise BadImageError(
            Problem.CORRUPT_IMAGE,
            f"no PNG has bit depth {depth}, colour type {colour}, compression {compression}, filter "
            f"{filtering} and interlace {interlace}",
        )
    return content


def _check_data(compressed: int, raw: int) -> None:
    """Refuse data that could swell to far more than the pixels: the decoder reads it to its end."""
    # Even pixels that do not compress take about their own size; twice that and 64 KiB leave room.
    if compressed > 2 * raw + (1 << 16):
        raise BadImageError(
            Problem.HUGE_IMAGE, f"expected at most {raw} bytes of pixels, got {compressed} and compressed"
        )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of every chunk; IEND is the last."""
    offset, count = len(START), 0
    # A chunk has a length, a kind and a checksum of four bytes each, beside its content.
    while offset + 12 <= len(data):
        check_parts(count := count + 1)
        length = int.from_bytes(data[offset : offset + 4], "big")
        end = offset + 12 + length
        # The file ends within this chunk.
        if end > len(data):
            break
        kind = data[offset + 4 : offset + 8]
        # Checksums of other chunks do not matter: the decoder never sees them.
        if _is_critical(kind):
            # A decoder that does not know a critical chunk cannot show the picture.
            if kind not in _PICTURE:
                raise BadImageError(Problem.UNSUPPORTED_IMAGE, f"PNG chunk {kind!r} is in no standard")
            checksum = zlib.crc32(memoryview(data)[offset + 4 : end - 4])
            if checksum != int.from_bytes(data[end - 4 : end], "big"):
                raise BadImageError(
                    Problem.CORRUPT_IMAGE, f"checksum of PNG chunk {kind!r} at byte {offset} is wrong"
                )
        yield kind, offset + 8, end - 4
        # Whatever is behind IEND is no part of the picture.
        if kind == b"IEND":
            return
        offset = end
    raise BadImageError(
        Problem.TRUNCATED_IMAGE, f"the PNG ends after {len(data)} bytes without its IEND chunk"
    )


def _is_critical(kind: bytes) -> bool:
    """Return True for a chunk that the picture needs: its kind begins with a capital letter (bit 5 is 0)."""
    return not kind[0] & 0x20


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode to uint8 [height, width, 3] BGR, as stored (not turned).

    Of 16 bits the upper 8 are kept. Alpha is dropped, not composited: what is transparent shows the colour
    that is stored there, as in TensorFlow and Pillow. Of an animation it is the still image that every reader
    shows.

    Raises:
        BadImageError: ``CorruptImage``.
    """
    import cv2

    # Each chunk with its length and kind (8 bytes) before and its checksum (4 bytes) behind the content.
    picture = b"".join(
        (START, *(data[start - 8 : end + 4] for kind, start, end in _chunks(data) if kind in _PICTURE))
    )
    try:
        # 8 bits and three channels whatever the file has: grey is repeated, 16 bits lose their lower half.
        image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BadImageError(Problem.CORRUPT_IMAGE, f"the pixels do not decode: {error.err}") from error
    if image is None:
        raise BadImageError(Problem.CORRUPT_IMAGE, "the pixels do not decode, though all checksums are right")
    return np.asarray(image, np.uint8)
