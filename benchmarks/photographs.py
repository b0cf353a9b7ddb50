"""JPEGs that compress like photographs (gradients, shapes, noise), with KITTI labels: food for benchmarks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SCENES = 64
"""Different pictures; each file carries its number in a comment, so that no two have the same bytes."""


def scene(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a picture, uint8 [height, width, 3]."""
    coarse = random.integers(0, 256, (height // 60, width // 64, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(60):
        x, y = int(random.integers(0, width - 20)), int(random.integers(0, height - 20))
        corner = x + int(random.integers(10, 200)), y + int(random.integers(10, 200))
        cv2.rectangle(image, (x, y), corner, [int(value) for value in random.integers(0, 256, 3)], -1)
    noise = random.normal(0, 6, (height, width, 1))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def make(root: Path, images: int, width: int = 1280, height: int = 720, quality: int = 85) -> None:
    """Write ``training/image_2/*.jpg`` and ``training/label_2/*.txt`` below a folder."""
    random = np.random.default_rng(0)
    folders = [root / "training" / name for name in ("image_2", "label_2")]
    for folder in folders:
        folder.mkdir(parents=True)
    encoded = []
    for _ in range(min(SCENES, images)):
        _, data = cv2.imencode(".jpg", scene(random, width, height), [cv2.IMWRITE_JPEG_QUALITY, quality])
        encoded.append(bytes(data))
    for number in range(images):
        comment = f"{number:08d}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        data = encoded[number % len(encoded)]
        (folders[0] / f"{number:06d}.jpg").write_bytes(data[:2] + segment + data[2:])
        lines = []
        for _ in range(8):
            x, y = random.uniform(0, width - 130), random.uniform(0, height - 130)
            w, h = random.uniform(20, 120, 2)
            kind = "car" if random.random() < 0.7 else "person"
            lines.append(f"{kind} 0 0 0 {x:.2f} {y:.2f} {x + w:.2f} {y + h:.2f} 0 0 0 0 0 0 0\n")
        (folders[1] / f"{number:06d}.txt").write_text("".join(lines))
