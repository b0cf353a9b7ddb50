"""Check that image files are whole, sound and of a size that fits in memory, and decode them.

Decoders are lenient: a cut-off JPEG comes out grey, without a word. So the container is read to its end
first, then the data are decoded by a decoder whose warnings count. Orientation tags (EXIF) are not applied:
labels speak of the pixels as they are stored, as in TLT, and TensorFlow's decoder ignores the tags too.

Called by conversion, by the report and by inference. :func:`header` comes first; then :func:`check` is for
callers that keep the file's bytes, :func:`pixels` for callers that need pixels (:func:`decode` is both);
the two refuse the same files.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from tlt_runner.data.images import jpeg, png
from tlt_runner.data.images.header import BadImageError as BadImageError
from tlt_runner.data.images.header import Header as Header
from tlt_runner.data.images.header import check_size
from tlt_runner.data.sample import Oddity, Problem

JPEG_QUALITY = 95
MAX_FILE_BYTES = 1 << 29
"""Bytes of a file at most; a PNG of the largest size that does not compress has as many."""
HEADER_BYTES = 1 << 18
"""Bytes within which the size of an image stands, mostly: EXIF and a colour profile come before it."""
_SUFFIXES = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
# Offset, signature and name of what people have under the name of a JPEG or PNG, for messages.
_OTHER_KINDS = (
    (0, b"GIF8", "a GIF image"),
    (0, b"BM", "a BMP image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif", "a HEIC image"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<", "an HTML or XML page"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"version https://git-lfs", "a Git LFS pointer; the images were not fetched"),
    (0, bytes(8), "zeros: a copy that was never finished"),
)
FILES_OWN_ERRORS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}
"""Errors of one file, whose storage works."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Whole and sound image.

    Attributes:
        header: Its header.
        pixels: uint8 [height, width, 3], BGR, as stored (not turned).
    """

    header: Header
    pixels: npt.NDArray[np.uint8]


def read(path: Path, most: int = -1) -> bytes:
    """Read the bytes of an image file.

    Args:
        path: The file.
        most: Bytes from the beginning to read at most; -1 means all: header and check need the end.

    Raises:
        BadImageError: This one file cannot be read (no right to, a broken link, no regular file, too large).
        OSError: The storage fails, which says nothing about the file.
    """
    try:
        # A pipe would block the reader for ever, and a device has no end.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError(Problem.UNREADABLE_IMAGE, "expected a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImageError(
                Problem.HUGE_IMAGE, f"expected at most {MAX_FILE_BYTES} bytes, got {status.st_size}"
            )
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        # A failing disk says nothing about the image, so the run ends instead of leaving images out.
        if error.errno not in FILES_OWN_ERRORS:
            raise
        raise BadImageError(Problem.UNREADABLE_IMAGE, f"cannot be opened: {error.strerror}") from error


def header(data: bytes, file_name: str) -> Header:
    """Read an image's container from its start to its end; its data are not looked into.

    Args:
        data: The file's bytes.
        file_name: For its extension.

    Raises:
        BadImageError: The file is empty, no JPEG or PNG, cut off, of a kind that cannot be decoded, or too
            large.
    """
    if not data:
        raise BadImageError(Problem.EMPTY_FILE, "expected an image, got 0 bytes")
    # By content: a file with the suffix of the other format is used, too, and reported as an oddity.
    if data.startswith(jpeg.START):
        head = jpeg.header(data)
    elif data.startswith(png.START):
        head = png.header(data)
    else:
        raise BadImageError(Problem.UNREADABLE_IMAGE, f"expected a JPEG or PNG image, got {_kind_of(data)}")
    if PurePosixPath(file_name).suffix.lower() in _SUFFIXES[head.kind]:
        return head
    return replace(head, oddities=(Oddity.WRONG_EXTENSION, *head.oddities))


def size(data: bytes) -> tuple[int, int]:
    """Read height and width of a JPEG or PNG, also of a file that was cut off behind its header.

    Raises:
        BadImageError: The file is of another kind, states no size, or is too large.
    """
    if data.startswith(jpeg.START):
        # Without walking to the end of the file: this is for pictures of damaged files.
        height, width = jpeg.size(data)
    elif data.startswith(png.START):
        height, width = png.size(data)
    else:
        raise BadImageError(Problem.UNREADABLE_IMAGE, f"expected a JPEG or PNG image, got {_kind_of(data)}")
    check_size(height, width)
    return height, width


def size_of_file(path: Path) -> tuple[int, int]:
    """Read height and width of a JPEG or PNG file; of most files only the beginning is read.

    Raises:
        BadImageError: As :func:`read` and :func:`size`.
        OSError: The storage fails, which says nothing about the file.
    """
    try:
        return size(read(path, HEADER_BYTES))
    except BadImageError as error:
        # Segments of a camera's own (previews, maps of depth) may come first, of any length.
        if error.problem is not Problem.TRUNCATED_IMAGE:
            raise
    return size(read(path))


def _kind_of(data: bytes) -> str:
    for offset, signature, kind in _OTHER_KINDS:
        if data.startswith(signature, offset):
            return kind
    return f"a file that begins with {data[:8]!r}"


def check(data: bytes, head: Header) -> None:
    """Read the data of a whole file as far as needed to know that they are sound.

    Raises:
        BadImageError: ``CorruptImage``.
    """
    # A JPEG's coefficients can be read without making pixels; PNG data cannot be checked short of decoding
    # them.
    if head.kind == "JPEG":
        jpeg.check(data)
    else:
        png.pixels(data)


def pixels(data: bytes, head: Header) -> npt.NDArray[np.uint8]:
    """Decode a whole file: uint8 [height, width, 3] BGR, as stored (not turned).

    Raises:
        BadImageError: ``CorruptImage``.
    """
    return jpeg.pixels(data, head) if head.kind == "JPEG" else png.pixels(data)


def decode(data: bytes, file_name: str) -> Decoded:
    """Read a file's header and decode its pixels.

    Raises:
        BadImageError: As :func:`header` and :func:`pixels`.
    """
    head = header(data, file_name)
    return Decoded(head, pixels(data, head))


def encode(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels (uint8 [height, width, 3], BGR) as JPEG of quality 95."""
    import cv2

    # cv2 returns False for pixels that it cannot encode.
    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise ValueError(f"cannot encode pixels of shape {image.shape} and type {image.dtype}")
    return bytes(data)
