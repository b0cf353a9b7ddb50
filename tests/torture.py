"""Make a folder with every problem that data can have; test_data_torture.py has the expected findings."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from tlt_api.dataset import Dataset
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.storage import Storage

HEIGHT, WIDTH = 100, 200
SIZE = {"width": 64, "height": 64}
REST = "0 0 0 0 0 0 0"
CAR = f"Car 0 0 0 20 10 100 50 {REST}"
IMAGES, LABELS = "training/image_2", "training/label_2"


def pixels(seed: int, channels: int = 3) -> np.ndarray:
    """A smooth picture with some noise: compresses like a photograph, and no two are the same."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 10, channels)).astype(np.uint8)
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return (
        smooth.reshape(HEIGHT, WIDTH, channels) // 2 + random.integers(0, 64, (HEIGHT, WIDTH, channels))
    ).astype(np.uint8)


def jpeg(seed: int) -> bytes:
    return cv2.imencode(".jpg", pixels(seed))[1].tobytes()


def png(seed: int, channels: int = 3) -> bytes:
    return cv2.imencode(".png", pixels(seed, channels))[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def turned(data: bytes) -> bytes:
    """The JPEG with an EXIF orientation of 6: a viewer turns it by 90 degrees."""
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def animated(data: bytes) -> bytes:
    """The PNG as an animation of one frame: an acTL chunk behind the header's 33 bytes."""
    return data[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)) + data[33:]


def bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    """The PNG with one bit of its picture changed, and the old checksum."""
    position = data.index(b"IDAT") + 100
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


LINES = [
    CAR,  # 1: an object
    "Car 0 0 0 1 2 3",  # 2
    f"Car 0 0 0 20 10 100 nan {REST}",  # 3
    f"Car 0 0 0 20 10 wide 50 {REST}",  # 4
    f"Car 0 0 0 100 10 20 50 {REST}",  # 5: inverted
    f"Car 0 0 0 20 10 20 50 {REST}",  # 6: no area
    f"Car 0 0 0 300 10 400 50 {REST}",  # 7: outside
    f"Car 0 0 0 -50 -50 20 10 {REST}",  # 8: an object, cut at the edge
    f"Car 0 0 0 20 10 21 50 {REST}",  # 9: 1 * 64 / 200 = 0.32 pixels wide
    f"Tram 0 0 0 20 10 100 50 {REST}",  # 10: not mapped
    f"DontCare -1 -1 -10 0 0 10 10 {REST}",  # 11: ignored
    "",  # 12: no line
    f"Car 0 7 0 20 10 100 50 {REST}",  # 13
    f"Car 0 0 0 20 -inf 100 50 {REST}",  # 14
    f"Car 0 0.5 0 20 10 100 50 {REST}",  # 15
    f"Car 0 0 0 20 10 1e9 50 {REST}",  # 16
    f"{'x' * 129} 0 0 0 20 10 100 50 {REST}",  # 17
    f"CAR 0 0 0 20 10 100 50 {REST}",  # 18: an object
]


class Folder:
    """Data set to which files are added."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str | bytes, content: bytes) -> None:
        path = os.fsencode(self.root) + b"/" + os.fsencode(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)

    def sample(self, name: str | bytes, image: bytes, label: str | bytes = CAR) -> None:
        """An image with its label."""
        raw = os.fsencode(name)
        self.put(os.fsencode(f"{IMAGES}/") + raw, image)
        stem = os.path.splitext(raw)[0]
        text = label if isinstance(label, bytes) else f"{label}\n".encode()
        self.put(os.fsencode(f"{LABELS}/") + stem + b".txt", text)

    def torture(self) -> None:
        self._sound()
        self._unusual()
        self._broken_images()
        self._names()
        self._labels()

    def _sound(self) -> None:
        self.sample("good.jpg", jpeg(1))
        self.sample("score.jpg", jpeg(2), f"{CAR} 0.9")
        self.sample("copy.jpg", jpeg(1))
        self.put("testing/image_2/good.jpg", jpeg(3))
        self.put("testing/label_2/good.txt", f"Pedestrian 0 0 0 20 10 100 50 {REST}\n".encode())
        self.put("testing/image_2/leak.jpg", jpeg(2))
        self.put("testing/label_2/leak.txt", f"{CAR}\n".encode())

    def _unusual(self) -> None:
        self.sample("odd/extension.jpg", png(10))
        ink = np.ascontiguousarray(pixels(11, 4))
        self.sample("odd/cmyk.jpg", simplejpeg.encode_jpeg(ink, colorspace="CMYK"))
        self.sample("odd/deep.png", cv2.imencode(".png", pixels(12).astype(np.uint16) * 257)[1].tobytes())
        self.sample("odd/grey.jpg", cv2.imencode(".jpg", pixels(13, 1))[1].tobytes())
        self.sample("odd/alpha.png", png(14, 4))
        self.sample("odd/turned.jpg", turned(jpeg(15)))
        self.sample("odd/animated.png", animated(png(16)))

    def _broken_images(self) -> None:
        self.sample("bad/zero.jpg", b"")
        self.sample("bad/text.jpg", b"this is a text with the name of an image")
        self.sample("bad/gif.jpg", b"GIF89a" + bytes(40))
        whole = jpeg(20)
        self.sample("bad/cut.jpg", whole[: len(whole) // 2])
        self.sample("bad/grey_half.jpg", whole[: len(whole) // 2] + b"\xff\xd9")
        self.sample("bad/cut.v2.png", png(21)[:5000])
        self.sample("bad/flipped.png", flipped(png(22)))
        self.sample("bad/bomb.png", bomb(60_000))
        self.sample("bad/moving.gif", b"GIF89a" + bytes(40))
        self.sample("bad/scan.tiff", b"II*\0" + bytes(40))
        (self.root / IMAGES / "bad/link.jpg").symlink_to("nowhere.jpg")

    def _names(self) -> None:
        self.sample("names/with space.jpg", jpeg(30))
        self.sample("names/größe 图 😀.jpg", jpeg(31))
        self.put(f"{IMAGES}/names/caf\u00e9.jpg", jpeg(32))
        self.put(f"{LABELS}/names/cafe\u0301.txt", f"{CAR}\n".encode())
        self.sample(b"names/latin\xe9.jpg", jpeg(33))
        self.sample("names/two\nlines.jpg", jpeg(34))
        self.sample("names/twin.jpg", jpeg(35))
        self.put(f"{IMAGES}/names/twin.png", png(36))
        self.sample("names/a/same.jpg", jpeg(37))
        self.sample("names/b/same.jpg", jpeg(38))
        self.put(f"{IMAGES}/names/a/flat.jpg", jpeg(39))
        self.put(f"{IMAGES}/names/b/flat.jpg", jpeg(40))
        self.put(f"{LABELS}/flat.txt", f"{CAR}\n".encode())
        self.put(f"{IMAGES}/notes.md", b"not an image")
        self.put(f"{IMAGES}/.hidden.jpg", jpeg(41))

    def _labels(self) -> None:
        self.sample("labels/lines.jpg", jpeg(50), "\n".join(LINES))
        self.sample("labels/crlf.jpg", jpeg(51), f"{CAR}\r\n{CAR}\r\n".encode())
        self.sample("labels/bom.jpg", jpeg(52), b"\xef\xbb\xbf" + CAR.encode())
        self.sample("labels/latin.jpg", jpeg(53), f"Fußgänger 0 0 0 20 10 100 50 {REST}".encode("latin-1"))
        self.sample("labels/utf16.jpg", jpeg(54), CAR.encode("utf-16"))
        self.sample("labels/empty.jpg", jpeg(55), b"")
        self.put(f"{IMAGES}/labels/alone.jpg", jpeg(56))
        self.put(f"{LABELS}/labels/orphan.txt", f"{CAR}\n".encode())
        self.sample("labels/twice.jpg", jpeg(57))
        self.put(f"{LABELS}/labels/twice.TXT", f"{CAR}\n".encode())


def dataset(root: Path, **changes: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "vehicle", "van": "vehicle", "pedestrian": "person"},
            "imageSize": SIZE,
            "badSamples": {"maxFraction": 1.0},
            **changes,
        }
    )


def tortured(root: Path, **changes: Any) -> Dataset:
    Folder(root).torture()
    held_out = {"images": "testing/image_2", "labels": "testing/label_2"}
    return dataset(root, validation=held_out, **changes)


def report_of(data: Dataset, storage: Storage, folder: Path) -> dict[str, Any]:
    prepare(data, storage, f"file://{folder}")
    return json.loads((folder / "dataset-report.json").read_text())


def findings(listed: list[dict[str, Any]]) -> dict[tuple[str, int | None], tuple[str, str]]:
    """File and line -> problem and message."""
    by_position = {(item["file"], item.get("line")): (item["problem"], item["message"]) for item in listed}
    assert len(by_position) == len(listed)
    return by_position
