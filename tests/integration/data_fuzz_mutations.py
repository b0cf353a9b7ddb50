"""Seed files of data_fuzz_process, and their mutations."""

import json
import math
import random
import re
import struct
import zlib
from typing import Any

import cv2
import numpy as np

HEIGHT, WIDTH = 24, 32

KITTI = b"""Car 0.50 2 -1.57 1.5 2 30.25 20 1.5 1.6 4.0 1.0 1.7 46.7 -1.6
DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10
Pedestrian 0.00 0 0.1 10 11 12 13 1.8 0.6 0.9 -3.1 1.6 12.2 0.3 0.98
"""
YOLO = b"0 0.5 0.5 0.25 0.125\n1 0.1 0.2 0.05 0.06 0.9\n1 0.999 0.5 0.002 1\n"
VOC = b"""<?xml version="1.0" encoding="UTF-8"?>
<annotation><folder>VOC2012</folder><filename>a.jpg</filename>
<size><width>32</width><height>24</height><depth>3</depth></size><segmented>0</segmented>
<object><name>person</name><pose>Left</pose><truncated>1</truncated><occluded>0</occluded>
<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>
<part><name>head</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></part>
</object><!-- a comment --><object><name>dog</name><bndbox><xmin>7</xmin><ymin>8</ymin><xmax>9</xmax>
<ymax>10</ymax></bndbox></object></annotation>
"""
COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 32, "height": 24},
        {"id": 2, "file_name": "b/c.jpg", "width": 32, "height": 24},
        {"id": 3, "file_name": "gone.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2.5, 3, 4], "iscrowd": 0, "area": 12},
        {"id": 2, "image_id": 2, "category_id": 90, "bbox": [5, 6, 7, 8], "segmentation": [[1, 2, 3, 4]]},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
    "categories": [{"id": 7, "name": "car"}, {"id": 90, "name": "person", "supercategory": "x"}],
}
YAML = b"path: data\ntrain: images/train\nnc: 2\nnames:\n  0: car\n  1: person\n"

BOMB = (
    b'<!DOCTYPE b [<!ENTITY a "%s"><!ENTITY b "%s">]>'
    b"<annotation><object><name>&b;</name></object></annotation>"
)
TOKENS = [
    *(b"NaN", b"nan", b"inf", b"-Infinity", b"1e999", b"-1e999", b"1e-320", b"-0", b"1_0", b"0x10", b"1,5"),
    *(b"9" * 400, b"9" * 5000, b"-1", b"2", b"1e7", b"true", b"null", b"\xd9\xa3", b"+", b".", b"e", b"1e"),
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\r",
        b"\n",
        b"\r\n",
        b"\t",
        b"\x1a",
        b"\x85",
    ),
    *(
        b"<a>" * 2000,
        b"[" * 2000,
        b'{"a":' * 2000,
        b"<object>",
        b"</object>",
        b"<object/>",
        b"<bndbox>",
        b"]]>",
    ),
    *(
        b"<![CDATA[",
        b"&#x0;",
        b"&#55296;",
        b"&lol;",
        b"<?xml?>",
        b"<!--",
        b"-->",
        BOMB % (b"a" * 99, b"&a;" * 99),
    ),
    *(
        b'"',
        b"\\",
        b"\\ud800",
        b"\\u0000",
        b"../",
        b"{}",
        b"[]",
        b",",
        b":",
        b"- ",
        b"&a [*a]",
        b"<<: *a",
        b"!!x ",
    ),
    *(
        b"a" * 5000,
        b" " * 5000,
        b"DontCare",
        b'encoding="utf-7"',
        b'encoding="idna"',
        "männchen".encode("latin-1"),
    ),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 1.5, 10**400, math.nan, math.inf, -math.inf, 1e300, 5e-324),
    *(
        "",
        " ",
        "1",
        "NaN",
        "a.jpg",
        "../a.jpg",
        "/etc/passwd",
        "a\\b",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "b/c.jpg",
    ),
    *([], {}, [[]], [1, 2, 3, 4], [1, 2, 3], {"id": 1}, [None] * 4, [1, 2, "3", 4], [[[[]]]], {"": {}}),
]


def mutate(draw: random.Random, data: bytes) -> bytes:
    """Apply one to four changes of any kind."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice((_flip, _cut, _double, _insert, _insert, _replace, _replace, _replace, _drop))(
            draw, data
        )
    return data


def _span(draw: random.Random, data: bytes) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 1, 4, 40, 400)))


def _flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8)) if data else 0):
        changed[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(changed)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _drop(draw: random.Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + data[end:]


def _double(draw: random.Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + data[start:end] * draw.choice((2, 3, 200)) + data[end:]


def _insert(draw: random.Random, data: bytes) -> bytes:
    start, _ = _span(draw, data)
    return data[:start] + draw.choice(TOKENS) + data[start:]


def _replace(draw: random.Random, data: bytes) -> bytes:
    """Replace a word or number by a token."""
    words = list(re.finditer(rb"[\w.\-]+", data))
    if not words:
        return data
    word = draw.choice(words)
    return data[: word.start()] + draw.choice(TOKENS) + data[word.end() :]


def mutate_xml(draw: random.Random, data: bytes) -> bytes:
    """Change, drop or double up to three elements; at times the text as well."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        element = draw.choice(list(re.finditer(rb"<(\w+)>([^<]*)</\1>", data)) or [None])
        if element is None:
            break
        text = draw.choice([element[0] * 2, b"", b"<%s/>" % element[1]] + [b"<%s>%s</%s>"] * 5)
        if b"%s" in text:
            text = text % (element[1], draw.choice(TOKENS), element[1])
        data = data[: element.start()] + text + data[element.end() :]
    return mutate(draw, data) if draw.random() < 0.2 else data


def mutate_json(draw: random.Random, content: Any) -> bytes:
    """Change up to three values of a JSON document, or take them away; at times the text as well."""
    content = json.loads(json.dumps(content))
    for _ in range(draw.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        _collect(content, places)
        parent, key = draw.choice(places)
        kind = draw.randrange(4)
        if kind == 0 or not parent:
            parent.pop(key)
        elif kind == 1 and isinstance(parent, list):
            parent.append(parent[key])
        else:
            parent[key] = draw.choice(VALUES)
        if not content:
            break
    text = json.dumps(content).encode()
    return mutate(draw, text) if draw.random() < 0.3 else text


def _collect(node: Any, places: list[tuple[Any, Any]]) -> None:
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        places.append((node, key))
        if isinstance(node[key], dict | list):
            _collect(node[key], places)


def pictures() -> list[bytes]:
    random_pixels = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    smooth = cv2.resize(random_pixels[:3, :4], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    encoded = []
    for pixels in (smooth, smooth[:, :, 0]):
        encoded.append(cv2.imencode(".png", pixels)[1].tobytes())
        for flags in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]):
            encoded.append(cv2.imencode(".jpg", pixels, flags)[1].tobytes())
    return encoded


def mutate_picture(draw: random.Random, seeds: list[bytes]) -> bytes:
    """Change bytes of a picture, its checksums with or without them, or the size in its header."""
    data = draw.choice(seeds)
    if draw.random() < 0.3:
        return mutate(draw, data)
    if draw.random() < 0.3:
        return _resized(draw, data)
    data = draw.choice((_flip, _flip, _cut, _double, _drop))(draw, data)
    return _with_checksums(data) if data.startswith(b"\x89PNG") else data


def _resized(draw: random.Random, data: bytes) -> bytes:
    height, width = (draw.choice((0, 1, 7, 4000, 65535, 1 << 31)) for _ in range(2))
    if data.startswith(b"\x89PNG"):
        return _with_checksums(data[:16] + struct.pack(">II", width, height) + data[24:])
    frame = re.search(rb"\xff[\xc0-\xc2]\x00[\x0b\x11]\x08", data)
    assert frame is not None
    size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return data[: frame.end()] + size + data[frame.end() + 4 :]


def _with_checksums(data: bytes) -> bytes:
    """Replace the checksums of a PNG's chunks by those of their bytes."""
    out, offset = bytearray(data[:8]), 8
    while offset + 12 <= len(data):
        end = offset + 12 + int.from_bytes(data[offset : offset + 4], "big")
        if end > len(data):
            break
        out += data[offset : end - 4] + struct.pack(">I", zlib.crc32(data[offset + 4 : end - 4]))
        offset = end
    return bytes(out + data[offset:])
