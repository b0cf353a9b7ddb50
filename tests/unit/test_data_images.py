"""Image files: damaged ones are refused, whole ones decode, and their unusual properties are reported."""

import errno
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tlt_runner.data.images import decode
from tlt_runner.data.images.header import MAX_PIXELS
from tlt_runner.data.sample import Oddity, Problem

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
_COLOURS = np.array([[[200, 40, 30], [30, 160, 60]], [[40, 60, 190], [0, 0, 0]]], np.uint8)
PATCHES = _COLOURS.repeat(32, 0).repeat(32, 1)
"""RGB [64, 64, 3]: four patches of one colour."""


def _encoded(suffix: str, pixels: np.ndarray = PIXELS, *flags: int) -> bytes:
    return bytes(cv2.imencode(suffix, pixels, list(flags))[1])


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


JPEG = _encoded(".jpg")
PROGRESSIVE = _encoded(".jpg", PIXELS, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
PNG = _encoded(".png")
SCAN = JPEG.index(b"\xff\xda")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(*chunks: bytes, width: int = 60, height: int = 40, depth: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join((PNG[:8], _chunk(b"IHDR", head), *chunks, _chunk(b"IEND", b"")))


ROWS = b"".join(b"\0" + PIXELS[row, :, ::-1].tobytes() for row in range(40))
IDAT = _chunk(b"IDAT", zlib.compress(ROWS))


def _inspect(data: bytes, file_name: str) -> decode.Header:
    """Check a file as conversion does if it keeps the bytes."""
    head = decode.header(data, file_name)
    decode.check(data, head)
    return head


def _refusal(judge: Callable[[bytes, str], object], data: bytes) -> decode.BadImageError:
    with pytest.raises(decode.BadImageError) as caught:
        judge(data, "a.jpg")
    return caught.value


def _problem(data: bytes) -> Problem:
    """Both judges say the same."""
    problem = _refusal(_inspect, data).problem
    assert _refusal(decode.decode, data).problem == problem
    return problem


def _exif(orientation: int, order: str = "little") -> bytes:
    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)  # type: ignore[arg-type]

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + b"\0\0"
    start = b"II" if order == "little" else b"MM"
    return start + number(42, 2) + number(8, 4) + number(1, 2) + entry + b"\0\0\0\0"


def _with_segment(content: bytes, marker: bytes = b"\xff\xe1") -> bytes:
    return JPEG[:2] + marker + struct.pack(">H", 2 + len(content)) + content + JPEG[2:]


def test_a_whole_jpeg_is_inspected_decodes_and_can_be_kept() -> None:
    head = _inspect(JPEG, "a/b.JPG")
    assert head == decode.Header("JPEG", 40, 60, (), fits_records=True, orientation=1)
    decoded = decode.decode(JPEG, "a/b.JPG")
    assert decoded.header == head
    assert decoded.pixels.shape == (40, 60, 3)


def test_a_progressive_jpeg_is_walked_through_all_its_scans_and_can_be_kept() -> None:
    assert PROGRESSIVE.count(b"\xff\xda") > 3
    assert _inspect(PROGRESSIVE, "a.jpg").fits_records
    assert decode.decode(PROGRESSIVE, "a.jpg").pixels.shape == (40, 60, 3)


def test_a_grey_jpeg_becomes_three_channels_and_can_be_kept() -> None:
    grey = _encoded(".jpg", PIXELS[..., 0])
    decoded = decode.decode(grey, "a.jpg")
    assert decoded.pixels.shape == (40, 60, 3)
    assert np.array_equal(decoded.pixels[..., 0], decoded.pixels[..., 2])
    assert decoded.header.oddities == (Oddity.GRAYSCALE,)
    assert decoded.header.fits_records


def test_cmyk_comes_out_in_its_colours_with_and_without_adobes_mark() -> None:
    adobe = _saved(Image.fromarray(PATCHES).convert("CMYK"), "JPEG", quality=95)
    mark = adobe.index(b"\xff\xee")
    for data in (adobe, adobe[:mark] + adobe[mark + 16 :]):
        decoded = decode.decode(data, "a.jpg")
        assert decoded.header.oddities == (Oddity.CMYK,)
        assert not decoded.header.fits_records
        assert np.abs(decoded.pixels[..., ::-1].astype(int) - PATCHES).max() <= 3


def test_ycck_comes_out_in_its_colours_with_black_as_a_fourth_ink() -> None:
    # Light of cyan 200, magenta 100, yellow 40 behind a black that lets half of it through: 128 / 255.
    light = np.full((32, 32, 4), (200, 100, 40, 128), np.uint8)
    ycck = simplejpeg.encode_jpeg(light, quality=100, colorspace="CMYK", colorsubsampling="444")
    assert ycck[ycck.index(b"Adobe") + 11] == 2
    decoded = decode.decode(ycck, "a.jpg")
    assert np.abs(decoded.pixels[16, 16, ::-1].astype(int) - (100, 50, 20)).max() <= 2


@pytest.mark.parametrize(
    ("pixels", "oddities"),
    [
        (PIXELS, ()),
        (PIXELS[..., 0], (Oddity.GRAYSCALE,)),
        (np.dstack([PIXELS, np.zeros((40, 60), np.uint8)]), (Oddity.ALPHA,)),
        (PIXELS.astype(np.uint16) * 257, (Oddity.SIXTEEN_BIT,)),
    ],
    ids=["colour", "grey", "alpha", "16 bit"],
)
def test_png_of_any_depth_becomes_eight_bit_colour(pixels: np.ndarray, oddities: tuple[Oddity, ...]) -> None:
    decoded = decode.decode(_encoded(".png", pixels), "a.png")
    assert decoded.header.oddities == oddities
    assert not decoded.header.fits_records
    # Also what is wholly transparent keeps its colour, and 16 bits keep their upper half.
    grey = pixels.ndim == 2
    assert np.array_equal(decoded.pixels, np.repeat(PIXELS[..., :1], 3, 2) if grey else PIXELS)


def test_a_palette_with_a_transparent_colour_keeps_that_colour() -> None:
    palette = Image.fromarray(PIXELS[..., ::-1]).quantize(16)
    decoded = decode.decode(_saved(palette, "PNG", transparency=3), "a.png")
    assert decoded.header.oddities == (Oddity.ALPHA,)
    assert np.array_equal(decoded.pixels[..., ::-1], np.asarray(palette.convert("RGB")))


def test_the_still_image_of_an_animation_is_decoded() -> None:
    control = _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 60, 40, 0, 0, 1, 10, 0, 0))
    frame = _chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(bytes(len(ROWS))))
    animated = _png(_chunk(b"acTL", struct.pack(">II", 1, 0)), IDAT, control, frame)
    decoded = decode.decode(animated, "a.png")
    assert decoded.header.oddities == (Oddity.ANIMATED,)
    assert np.array_equal(decoded.pixels, PIXELS)


@pytest.mark.parametrize(("data", "name"), [(PNG, "a.jpg"), (JPEG, "a.png"), (JPEG, "a")])
def test_a_wrong_extension_is_an_oddity_and_no_problem(data: bytes, name: str) -> None:
    assert _inspect(data, name).oddities == (Oddity.WRONG_EXTENSION,)


@pytest.mark.parametrize("order", ["little", "big"])
def test_an_orientation_tag_is_reported_and_not_applied(order: str) -> None:
    jpeg = decode.decode(_with_segment(b"Exif\0\0" + _exif(6, order)), "a.jpg")
    png = decode.decode(_png(_chunk(b"eXIf", _exif(6, order)), IDAT), "a.png")
    assert (jpeg.header.oddities, jpeg.header.orientation) == ((Oddity.TURNED,), 6)
    assert (png.header.oddities, png.header.orientation) == ((Oddity.TURNED,), 6)
    assert np.array_equal(jpeg.pixels, decode.decode(JPEG, "a.jpg").pixels)
    assert np.array_equal(png.pixels, PIXELS)


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_an_upright_or_meaningless_orientation_is_not_odd(orientation: int) -> None:
    assert _inspect(_with_segment(b"Exif\0\0" + _exif(orientation)), "a.jpg").oddities == ()


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.999))
def test_a_jpeg_cut_anywhere_is_refused(part: float) -> None:
    _problem(JPEG[: max(1, int(part * len(JPEG)))])


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.999))
def test_a_png_cut_anywhere_is_refused(part: float) -> None:
    _problem(PNG[: max(1, int(part * len(PNG)))])


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from([JPEG, PROGRESSIVE, PNG]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_check_and_decode_refuse_the_same_mutated_files(
    data: bytes, changes: list[tuple[float, int]]
) -> None:
    mutated = bytearray(data)
    for fraction, value in changes:
        mutated[int(fraction * len(mutated))] = value
    verdicts: list[object] = []
    for judge in (_inspect, decode.decode):
        try:
            result = judge(bytes(mutated), "a.jpg")
            verdicts.append(result.header if isinstance(result, decode.Decoded) else result)
        except decode.BadImageError as error:
            verdicts.append(error.problem)
    assert verdicts[0] == verdicts[1]


def test_the_end_marker_of_an_embedded_thumbnail_does_not_count() -> None:
    whole = _with_segment(JPEG)
    assert _inspect(whole, "a.jpg").oddities == ()
    assert _problem(whole[:-200]) == Problem.TRUNCATED_IMAGE


@pytest.mark.parametrize(
    "data",
    [
        JPEG + b"camera trailer" * 100,
        JPEG[:-2] + b"ab" + JPEG[-2:],
        JPEG[:-2] + bytes(500) + JPEG[-2:],
        JPEG[:-2] + b"\xff" * 500 + JPEG[-2:],
        JPEG.replace(b"JFIF\0\x01", b"JFIF\0\x07"),
        JPEG[: SCAN + 12] + b"\x0a" + JPEG[SCAN + 13 :],
        JPEG[:2] + JPEG[20:SCAN] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x07" + JPEG[SCAN:],
        PNG + b"trailer",
        _png(_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"junk" * 50)), IDAT),
        _png(b"\0\0\0\x05tEXthello\0\0\0\0", IDAT),
    ],
    ids=[
        "trailer",
        "two bytes before the end",
        "zeros before the end",
        "fill before the end",
        "unknown JFIF version",
        "spectral end of a baseline scan",
        "unknown Adobe transform",
        "PNG trailer",
        "broken colour profile",
        "wrong checksum of a text",
    ],
)
def test_fields_that_do_not_affect_pixels_do_not_refuse_an_image(
    data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "a.png" if data.startswith(PNG[:8]) else "a.jpg"
    assert _inspect(data, name).oddities == ()
    whole = PNG if name == "a.png" else JPEG
    assert np.array_equal(decode.decode(data, name).pixels, decode.decode(whole, name).pixels)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:-400] + JPEG[-2:],
        JPEG[: SCAN + 100] + bytes(700) + JPEG[SCAN + 800 :],
        JPEG[:-2] + bytes(range(1, 200)) + JPEG[-2:],
        PROGRESSIVE[:-900] + PROGRESSIVE[-2:],
        (JPEG[:-400] + JPEG[-2:]).replace(b"JFIF\0\x01", b"JFIF\0\x07"),
        JPEG[: SCAN + 12] + b"\x0a" + JPEG[SCAN + 13 : -400] + JPEG[-2:],
        JPEG[:20] + b"abc" + JPEG[20:],
        b"\xff\xd8\xff" + b"\x00" * 1000,
    ],
    ids=[
        "data end early",
        "a hole of zeros",
        "data left over",
        "progressive data end early",
        "a harmless complaint comes first",
        "another harmless complaint comes first",
        "bytes between segments",
        "no segments",
    ],
)
def test_damage_between_intact_ends_is_detected_and_nothing_is_printed(
    data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _problem(data) == Problem.CORRUPT_IMAGE
    assert capfd.readouterr().err == ""


def test_a_flipped_bit_in_a_png_is_detected_by_its_checksum() -> None:
    position = PNG.index(b"IDAT") + 100
    assert (
        _problem(PNG[:position] + bytes([PNG[position] ^ 1]) + PNG[position + 1 :]) == Problem.CORRUPT_IMAGE
    )


@pytest.mark.parametrize(
    "data",
    [
        _png(_chunk(b"IDAT", b"no zlib stream")),
        _png(_chunk(b"IDAT", zlib.compress(ROWS[:-1000]))),
        _png(),
        _png(IDAT, colour=3),
        _png(IDAT, depth=7),
        _png(IDAT, width=0),
        PNG[:8] + IDAT + _chunk(b"IEND", b""),
    ],
    ids=["no stream", "rows missing", "no data", "no palette", "bad depth", "no width", "no header"],
)
def test_a_malformed_png_is_refused(data: bytes) -> None:
    assert _problem(data) == Problem.CORRUPT_IMAGE


def test_the_message_names_the_kind_of_a_file_that_is_no_image() -> None:
    assert _problem(b"") == Problem.EMPTY_FILE
    assert _problem(b"not an image at all") == Problem.UNREADABLE_IMAGE
    assert _problem(JPEG[: len(JPEG) // 2]) == Problem.TRUNCATED_IMAGE
    assert _problem(PNG[: len(PNG) // 2]) == Problem.TRUNCATED_IMAGE
    assert _problem(b"\xff\xd8\xff\xd9") == Problem.TRUNCATED_IMAGE


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (_saved(Image.fromarray(PIXELS), "GIF"), "a GIF image"),
        (_saved(Image.fromarray(PIXELS), "BMP"), "a BMP image"),
        (_saved(Image.fromarray(PIXELS), "WEBP"), "a WebP image"),
        (_saved(Image.fromarray(PIXELS), "TIFF"), "a TIFF image"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; the images were not fetched"),
        (bytes(5000), "zeros: a copy that was never finished"),
        (b"P6\n1 1\n255\nabc", "a file that begins with b'P6\\n1 1\\n2'"),
    ],
    ids=["gif", "bmp", "webp", "tiff", "html", "lfs", "zeros", "other"],
)
def test_the_message_names_the_kind_of_other_content_under_an_image_name(data: bytes, kind: str) -> None:
    refusal = _refusal(_inspect, data)
    assert refusal.problem == Problem.UNREADABLE_IMAGE
    assert refusal.message == f"expected a JPEG or PNG image, got {kind}"


def _jpeg_of_size(height: int, width: int) -> bytes:
    frame = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:frame] + struct.pack(">HH", height, width) + JPEG[frame + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        _png(IDAT, width=10_000, height=10_001),
        _png(IDAT, width=1, height=2**31 - 1),
        _jpeg_of_size(65_535, 65_535),
        _jpeg_of_size(1, 65_535),
    ],
    ids=["just above", "one column", "JPEG", "JPEG of one row"],
)
def test_a_decompression_bomb_is_refused_by_its_header(data: bytes) -> None:
    assert _problem(data) == Problem.HUGE_IMAGE


def test_a_jpeg_with_endless_scans_over_many_pixels_is_refused() -> None:
    frame = JPEG.index(b"\xff\xc0")
    head = JPEG[:frame] + b"\xff\xc2" + _jpeg_of_size(9_999, 10_000)[frame + 2 : SCAN]
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x01\x00"
    assert MAX_PIXELS >= 9_999 * 10_000
    assert _problem(head + 500 * scan + b"\xff\xd9") == Problem.HUGE_IMAGE


def test_a_png_with_far_more_data_than_pixels_is_refused() -> None:
    swelling = [_chunk(b"IDAT", bytes(10_000)) for _ in range(10)]
    assert _problem(_png(IDAT, *swelling)) == Problem.HUGE_IMAGE


def test_a_png_text_chunk_is_not_decompressed() -> None:
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))
    assert _inspect(_png(text, IDAT), "a.png").oddities == ()


@pytest.mark.parametrize(
    "data",
    [JPEG[:2] + b"\xff\xfe\x00\x02" * 200_001 + JPEG[2:], _png(_chunk(b"tEXt", b"") * 200_001, IDAT)],
    ids=["segments", "chunks"],
)
def test_a_file_with_too_many_segments_or_chunks_is_refused(data: bytes) -> None:
    assert _problem(data) == Problem.CORRUPT_IMAGE


@pytest.mark.parametrize(
    ("offset", "value"),
    [(1, 0xC3), (1, 0xC5), (4, 12), (9, 2)],
    ids=["lossless", "hierarchical", "12 bit", "2"],
)
def test_kinds_of_jpeg_that_cannot_be_decoded_are_named(offset: int, value: int) -> None:
    offset += JPEG.index(b"\xff\xc0")
    assert _problem(JPEG[:offset] + bytes([value]) + JPEG[offset + 1 :]) == Problem.UNSUPPORTED_IMAGE


def test_an_arithmetic_coded_jpeg_cannot_be_kept() -> None:
    data = JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1)
    assert not decode.header(data, "a.jpg").fits_records


def test_formats_of_phones_are_unsupported() -> None:
    assert _problem(PNG[:8] + _chunk(b"CgBI", b"\0\0\0\0") + PNG[8:]) == Problem.UNSUPPORTED_IMAGE


def test_a_file_that_cannot_be_opened_is_a_problem_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("gone.jpg", "circle.jpg", "pipe.jpg"):
        with pytest.raises(decode.BadImageError) as caught:
            decode.read(tmp_path / name)
        assert caught.value.problem == Problem.UNREADABLE_IMAGE
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert decode.read(tmp_path / "a.jpg") == JPEG


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(decode.MAX_FILE_BYTES + 1)
    with pytest.raises(decode.BadImageError) as caught:
        decode.read(tmp_path / "a.jpg")
    assert caught.value.problem == Problem.HUGE_IMAGE


class _FailingPath(type(Path())):  # type: ignore[misc]
    def open(self, *_: object, **__: object) -> io.BufferedReader:
        raise OSError(errno.EIO, "Input/output error")


def test_a_failing_disk_is_an_error_and_not_a_finding_about_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(OSError, match="Input/output"):
        decode.read(_FailingPath(tmp_path / "a.jpg"))


@pytest.mark.parametrize("segments", [0, 1, 5], ids=["none", "one", "more than HEADER_BYTES"])
def test_the_size_of_a_file_stands_behind_any_number_of_segments(tmp_path: Path, segments: int) -> None:
    before = b"".join([_with_segment(bytes(65_000))[2:65_006]] * segments)
    assert (len(before) > decode.HEADER_BYTES) == (segments == 5)
    (tmp_path / "a.jpg").write_bytes(JPEG[:2] + before + JPEG[2:])
    assert decode.size_of_file(tmp_path / "a.jpg") == (40, 60)


def test_the_size_of_a_file_without_one_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG[:20])
    with pytest.raises(decode.BadImageError) as caught:
        decode.size_of_file(tmp_path / "a.jpg")
    assert caught.value.problem == Problem.TRUNCATED_IMAGE


def test_encoded_pixels_are_close_to_the_original() -> None:
    smooth = cv2.GaussianBlur(PIXELS, (0, 0), 5)
    back = decode.decode(decode.encode(smooth), "a.jpg").pixels
    assert np.abs(back.astype(int) - smooth.astype(int)).mean() < 2
