"""Hand-made worst files for data_fuzz_process: small ones that would become large."""

import re
import struct
import zlib
from collections.abc import Iterator

from data_fuzz_mutations import BOMB, pictures


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def images() -> Iterator[bytes]:
    """Yield pixels, text and profiles that would fill the memory, and headers that promise them."""
    yield from (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
    bomb = zlib.compress(bytes(64 << 20), 9)
    for width, height in ((1, 1), (30000, 30000), (1 << 31, 1 << 31), (65535, 4)):
        head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        text = _chunk(b"zTXt", b"Comment\0\0" + bomb) + _chunk(b"iCCP", b"icc\0\0" + bomb)
        yield b"\x89PNG\r\n\x1a\n" + head + text + _chunk(b"IDAT", bomb) + _chunk(b"IEND", b"")
    jpeg = pictures()[1]
    frame = re.search(rb"\xff\xc0\x00\x11\x08", jpeg)
    assert frame is not None
    yield jpeg[: frame.end()] + b"\xff\xff\xff\xff" + jpeg[frame.end() + 4 :]
    yield jpeg[:2] + b"\xff\xfe\xff\xff" + bytes(65533) + jpeg[2:]
    yield jpeg[:2] + b"\xff" * (1 << 20) + jpeg[2:]
    yield jpeg[:-2] + b"\xff\xd0" * (1 << 19) + jpeg[-2:]


def xml() -> Iterator[bytes]:
    yield b""
    yield BOMB % (b"a" * 60000, b"&a;" * 60000)
    many = (16 << 20) // 9
    yield b"<annotation>" + b"<object/>" * many + b"</annotation>"
    yield b"<annotation>" + b"<a>" * (5 << 20)
    yield b"<annotation " + b"a" * (15 << 20)
    yield b"<annotation>" + b"<object><name>" + b"a" * (15 << 20)
    yield b"<annotation " + b" ".join(b'a%d=""' % number for number in range(300_000)) + b"/>"
    yield b"<annotation>" + b"<!--" * (3 << 20)
    yield b"<annotation>" + b"&lt;" * (3 << 20)


def json() -> Iterator[bytes]:
    yield b""
    yield from (b"[" * (4 << 20), b'{"a":' * (1 << 20), b"9" * (4 << 20), b'"' + b"a" * (4 << 20))
    for entries in (b"{}," * (1 << 17), b"[]," * (1 << 17), b'{"id":1},' * (1 << 17)):
        lists = b",".join(b'"%s":[%s{}]' % (name, entries) for name in (b"images", b"categories"))
        yield b'{%s,"annotations":[%s{"bbox":[]}]}' % (lists, entries)


def lines() -> Iterator[bytes]:
    yield b""
    yield from (b"1 " * (7 << 20), b"11 " * (5 << 20), b"a" * (15 << 20), b"a\n" * 9_000, b"\n" * (15 << 20))
    yield b"0.5 " * (4 << 20)
    yield (b"0 0.5 0.5 0.1 " + b"9" * 1500 + b"\n") * 9_000


def yaml() -> Iterator[bytes]:
    yield b""
    yield b"names: " + b"[" * 100_000
    yield b"names: &a [x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"
    yield b"names: &a [*a]\n"
    yield b"names: !!python/object/apply:os.system ['true']\n"
    yield b"names: {99999999999999999999: a}\n"
    yield b"names: [" + b"a," * 100_000 + b"b]\n"
