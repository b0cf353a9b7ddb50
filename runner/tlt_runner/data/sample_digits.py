"""Make a sample data set, without a download: scenes of handwritten digits in the KITTI layout.

The glyphs are the 1,797 real 8x8 scans that come inside scikit-learn (UCI "Optical Recognition of Handwritten
Digits"), scaled up smoothly and drawn in varied sizes and colours on cluttered backgrounds. Called by
``tlt sample-data``, by tests and by benchmarks.

Scenes of one call draw from one pool of glyphs. With ``glyphs="even"`` and ``glyphs="odd"`` two calls draw
from disjoint pools: use that where a held-out score must not depend on a glyph that was seen in training. (A
split by ``validation.fraction`` of one call shares glyphs, though never a scene.)

The command line reads the defaults for its help: numpy and OpenCV are imported when scenes are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels: TypeAlias = npt.NDArray[Any]

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SMALLEST, LARGEST = 0.125, 0.375
"""Height of a digit as a fraction of the scene's shorter side."""
MOST_DIGITS = 6
INK = 0.35
"""Opacity from which a pixel belongs to the digit, for its box."""
LEAST_CONTRAST = 70.0
"""Difference of brightness (0..255) between a digit and its background."""


@dataclass(frozen=True)
class Scenes:
    """Defaults of ``tlt sample-data``: number of scenes, their width and height in pixels, the seed."""

    images: int = 400
    width: int = 192
    height: int = 192
    seed: int = 7


@dataclass(frozen=True)
class Glyph:
    """Scanned digit: 8x8 opacities 0..1, and the digit."""

    opacity: Pixels
    digit: int


def generate(
    folder: Path,
    images: int,
    width: int,
    height: int,
    seed: int,
    classes: Sequence[int] | None = None,
    *,
    part: str = "training",
    glyphs: Literal["all", "even", "odd"] = "all",
) -> None:
    """Write scenes as ``<part>/image_2/000000.jpg`` and their labels as ``<part>/label_2/000000.txt``.

    The same arguments give the same bytes; a larger ``images`` only adds scenes.

    Args:
        folder: Root of the data set; made where it is missing.
        images: Number of scenes.
        width: Pixels of a scene.
        height: Pixels of a scene.
        seed: Seed of all random numbers.
        classes: Digits (0..9) that occur; None means all.
        part: Sub-folder.
        glyphs: Pool of scans: all, or those of even or odd number.

    Raises:
        RunnerError: ``InvalidSpec`` for impossible sizes or classes, or when scikit-learn is not installed.
    """
    import numpy as np

    digits = sorted(set(range(10) if classes is None else classes))
    # Below 64 pixels the smallest digit, an eighth of the side, would be smaller than its scan of 8 x 8.
    if images < 1 or min(width, height) < 64 or not digits or not set(digits) <= set(range(10)):
        raise RunnerError(
            Reason.INVALID_SPEC,
            "digits: expected images >= 1, width and height >= 64 and classes among 0..9, "
            f"got images={images}, width={width}, height={height}, classes={digits}",
        )
    pool = [glyph for glyph in _load_glyphs(glyphs) if glyph.digit in digits]
    image_folder, label_folder = folder / part / "image_2", folder / part / "label_2"
    for target in (image_folder, label_folder):
        target.mkdir(parents=True, exist_ok=True)

    def write(index: int) -> None:
        # One generator a scene: more images, or other threads, change no other scene.
        jpeg, lines = _scene(np.random.default_rng([seed, index]), pool, digits, width, height)
        (image_folder / f"{index:06d}.jpg").write_bytes(jpeg)
        (label_folder / f"{index:06d}.txt").write_text("".join(lines))

    with ThreadPoolExecutor() as threads:
        for _ in threads.map(write, range(images)):
            pass


def _load_glyphs(which: Literal["all", "even", "odd"]) -> list[Glyph]:
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RunnerError(
            Reason.INVALID_SPEC,
            "digits: scikit-learn, which holds the scans, is not installed",
            "pip install 'tlt-operator[demo]'",
        ) from error
    data = load_digits()
    selection = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}[which]
    # The scans count ink from 0 to 16.
    scans = zip(data.images[selection] / 16.0, data.target[selection], strict=True)
    return [Glyph(opacity.astype(np.float32), int(digit)) for opacity, digit in scans]


def _scene(
    random: np.random.Generator, pool: list[Glyph], digits: Sequence[int], width: int, height: int
) -> tuple[bytes, list[str]]:
    import cv2

    canvas = _background(random, width, height)
    by_digit = {digit: [glyph for glyph in pool if glyph.digit == digit] for digit in digits}
    drawn_boxes: list[tuple[int, int, int, int]] = []
    lines: list[str] = []
    for _ in range(int(random.integers(1, MOST_DIGITS + 1))):
        # The digit first, then one of its scans: all classes are equally frequent.
        digit = int(random.choice(digits))
        glyph = by_digit[digit][int(random.integers(len(by_digit[digit])))]
        # A digit without room has no label: the scene just has one digit less.
        box = _draw(random, canvas, glyph, drawn_boxes)
        if box is not None:
            drawn_boxes.append(box)
            y1, x1, y2, x2 = box
            # KITTI's columns: class, truncation, occlusion, angle, box, and seven of the third dimension.
            lines.append(f"{CLASS_NAMES[digit]} 0.00 0 0.00 {x1}.00 {y1}.00 {x2}.00 {y2}.00 0 0 0 0 0 0 0\n")
    encoded, jpeg = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not encoded:
        raise RunnerError(Reason.INTERNAL, f"digits: could not encode a scene of {width}x{height}")
    return jpeg.tobytes(), lines


def _draw(
    random: np.random.Generator, canvas: Pixels, glyph: Glyph, drawn_boxes: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Draw a digit where there is room; its box (yxyx, pixel edges) around the ink, or None without room."""
    import cv2
    import numpy as np

    height, width = canvas.shape[:2]
    side = min(height, width)
    size = int(random.integers(int(SMALLEST * side), int(LARGEST * side) + 1))
    # Digits differ in width as well as in size.
    stretch = float(random.uniform(0.75, 1.1))
    opacity = cv2.resize(glyph.opacity, (max(8, int(size * stretch)), size), interpolation=cv2.INTER_CUBIC)
    # Cubic interpolation overshoots, and leaves a grey haze around the ink: both are cut off.
    opacity = np.clip(opacity * 1.3 - 0.1, 0.0, 1.0)
    # The box encloses the ink, not the whole scan.
    rows, columns = np.flatnonzero((opacity > INK).any(1)), np.flatnonzero((opacity > INK).any(0))
    # A crowded scene may have no room left; after 20 places the digit is left out.
    for _ in range(20):
        top = int(random.integers(0, height - opacity.shape[0] + 1))
        left = int(random.integers(0, width - opacity.shape[1] + 1))
        box = (
            top + int(rows[0]),
            left + int(columns[0]),
            top + int(rows[-1]) + 1,
            left + int(columns[-1]) + 1,
        )
        if not any(_touch(box, other) for other in drawn_boxes):
            break
    else:
        return None
    # A view of the canvas: what is written to the patch is in the scene.
    patch = canvas[top : top + opacity.shape[0], left : left + opacity.shape[1]]
    colour = _contrasting(random, patch)
    patch[:] = np.rint(patch * (1 - opacity[..., None]) + colour * opacity[..., None]).astype(np.uint8)
    return box


def _touch(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Return True if two boxes overlap by more than a tenth of their smallest side in both directions."""
    # Digits may touch a little, but must not hide each other.
    slack = 0.1 * min(one[2] - one[0], one[3] - one[1], other[2] - other[0], other[3] - other[1])
    rows = min(one[2], other[2]) - max(one[0], other[0])
    columns = min(one[3], other[3]) - max(one[1], other[1])
    return rows > slack and columns > slack


def _contrasting(random: np.random.Generator, patch: Pixels) -> Pixels:
    """Draw a random colour (BGR) that stands out in brightness from the patch's mean."""
    brightness = float(patch.mean())
    # It ends soon: even beside a middle grey, one colour in ten is far enough away.
    while True:
        colour = random.uniform(0, 255, 3)
        if abs(float(colour.mean()) - brightness) >= LEAST_CONTRAST:
            return colour


def _background(random: np.random.Generator, width: int, height: int) -> Pixels:
    """Draw a gradient with distractors (lines, rectangles, ellipses) and noise: uint8 [height, width, 3]."""
    import cv2
    import numpy as np

    # Four corner colours, stretched over the scene: a gradient across and down.
    corners = random.uniform(30, 225, (2, 2, 3)).astype(np.float32)
    canvas = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(random.integers(4, 13))):
        colour = tuple(float(value) for value in random.uniform(0, 255, 3))
        start = (int(random.integers(width)), int(random.integers(height)))
        end = (int(random.integers(width)), int(random.integers(height)))
        thickness = int(random.integers(1, 4))
        kind = int(random.integers(3))
        # Drawn on a copy that is blended in below, so that distractors are half transparent.
        layer = canvas.copy()
        if kind == 0:
            cv2.line(layer, start, end, colour, thickness, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(layer, start, end, colour, thickness if random.random() < 0.5 else -1)
        else:
            axes = (int(random.integers(4, max(5, width // 5))), int(random.integers(4, max(5, height // 5))))
            angle = float(random.uniform(0, 180))
            cv2.ellipse(layer, start, axes, angle, 0, 360, colour, thickness, cv2.LINE_AA)
        weight = float(random.uniform(0.25, 0.7))
        canvas = canvas * (1 - weight) + layer * weight
    canvas += random.normal(0, random.uniform(2, 10), canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)
