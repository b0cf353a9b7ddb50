"""A decoder that shrugs is not enough: which files are whole images."""

import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_runner.data import images
from tlt_runner.data.sample import Oddity, Problem

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def _encoded(suffix: str, pixels: np.ndarray = PIXELS, *flags: int) -> bytes:
    return bytes(cv2.imencode(suffix, pixels, list(flags))[1])


JPEG = _encoded(".jpg")
PNG = _encoded(".png")


def _problem(data: bytes) -> Problem:
    with pytest.raises(images.BadImageError) as caught:
        images.decode(data)
    return caught.value.problem


def test_a_whole_jpeg_decodes_and_can_be_kept() -> None:
    decoded = images.decode(JPEG)
    assert decoded.pixels.shape == (40, 60, 3)
    assert decoded.fits_records
    assert decoded.oddities == ()


def test_a_progressive_jpeg_is_walked_through_all_its_scans() -> None:
    progressive = _encoded(".jpg", PIXELS, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    assert progressive.count(b"\xff\xda") > 3
    assert images.decode(progressive).pixels.shape == (40, 60, 3)


def test_a_grey_jpeg_becomes_three_channels() -> None:
    decoded = images.decode(_encoded(".jpg", PIXELS[..., 0]))
    assert decoded.pixels.shape == (40, 60, 3)
    assert images.read_jpeg(_encoded(".jpg", PIXELS[..., 0])).components == 1


@pytest.mark.parametrize(
    "pixels",
    [PIXELS, PIXELS[..., 0], np.dstack([PIXELS, PIXELS[..., :1]]), PIXELS.astype(np.uint16) * 256],
    ids=["colour", "grey", "alpha", "16 bit"],
)
def test_png_of_any_depth_becomes_eight_bit_colour_and_is_encoded_anew(pixels: np.ndarray) -> None:
    decoded = images.decode(_encoded(".png", pixels))
    assert (decoded.pixels.dtype, decoded.pixels.shape) == (np.uint8, (40, 60, 3))
    assert not decoded.fits_records


def test_bytes_behind_the_end_marker_are_allowed() -> None:
    assert images.decode(JPEG + b"camera trailer").pixels.shape == (40, 60, 3)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.999))
def test_a_jpeg_cut_anywhere_is_refused(part: float) -> None:
    with pytest.raises(images.BadImageError):
        images.decode(JPEG[: max(1, int(part * len(JPEG)))])


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.999))
def test_a_png_cut_anywhere_is_refused(part: float) -> None:
    with pytest.raises(images.BadImageError):
        images.decode(PNG[: max(1, int(part * len(PNG)))])


def test_the_end_marker_of_an_embedded_thumbnail_does_not_count() -> None:
    thumbnail = b"\xff\xe1" + (2 + len(JPEG)).to_bytes(2, "big") + JPEG
    whole = JPEG[:2] + thumbnail + JPEG[2:]
    assert images.decode(whole).pixels.shape == (40, 60, 3)
    assert _problem(whole[:-200]) == Problem.TRUNCATED_IMAGE


def test_files_that_are_no_images_are_named_for_what_they_are() -> None:
    assert _problem(b"") == Problem.EMPTY_FILE
    assert _problem(b"not an image at all") == Problem.UNREADABLE_IMAGE
    assert _problem(JPEG[: len(JPEG) // 2]) == Problem.TRUNCATED_IMAGE
    assert _problem(PNG[: len(PNG) // 2]) == Problem.TRUNCATED_IMAGE
    assert _problem(b"\xff\xd8\xff\xd9") == Problem.TRUNCATED_IMAGE
    assert _problem(b"\xff\xd8\xff" + b"\x00" * 1000) == Problem.UNREADABLE_IMAGE


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum() -> None:
    place = PNG.index(b"IDAT") + 100
    damaged = PNG[:place] + bytes([PNG[place] ^ 1]) + PNG[place + 1 :]
    assert _problem(damaged) == Problem.UNREADABLE_IMAGE


def test_a_png_whose_pixels_do_not_decode_is_refused() -> None:
    header = PNG[:33]
    body = b"IDAT" + b"no zlib stream"
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    assert _problem(header + chunk + PNG[-12:]) == Problem.UNREADABLE_IMAGE


@pytest.mark.parametrize("order", ["little", "big"])
def test_an_orientation_tag_is_reported_and_not_applied(order: str) -> None:
    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)  # type: ignore[arg-type]

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(6, 2) + b"\0\0"
    tiff = (b"II" if order == "little" else b"MM") + number(42, 2) + number(8, 4) + number(1, 2) + entry
    segment = b"Exif\0\0" + tiff + b"\0\0\0\0"
    turned = JPEG[:2] + b"\xff\xe1" + (2 + len(segment)).to_bytes(2, "big") + segment + JPEG[2:]
    decoded = images.decode(turned)
    assert decoded.oddities == (Oddity.TURNED,)
    assert np.array_equal(decoded.pixels, images.decode(JPEG).pixels)


def test_what_is_encoded_is_close_to_what_was_given() -> None:
    smooth = cv2.GaussianBlur(PIXELS, (0, 0), 5)
    back = images.decode(images.encode(smooth)).pixels
    assert np.abs(back.astype(int) - smooth.astype(int)).mean() < 2
