"""Preparation against the work that no preparation can avoid, on all cores, in one run.

    python benchmarks/data_conversion.py [--images 2000] [--memory-images 5000] [--rounds 3]

Prints one JSON line:
* ``resize``: seconds of a bare loop (read, decode, resize to 1248 x 704, encode at quality 95; threads on all
  cores) / seconds of ``prepare`` to that size. Wanted: at least 0.8.
* ``no_resize``: the same loop / ``prepare`` of images that need no resize. Wanted: at least 5.
* ``cached``: seconds of a second ``prepare`` of the larger set / of the first. Wanted: a few per cent.
* ``memory``: peak resident memory of a process that prepares the larger set / of one that prepares a tenth
  of it. Wanted: at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import photographs

from tlt_api.dataset import Dataset
from tlt_runner.data.parallel import workers
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.storage import Storage

RESIZED = (1248, 704)
AS_IT_IS = (1280, 720)


def bare_loop(images: list[Path], size: tuple[int, int]) -> float:
    def one(path: Path) -> int:
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return len(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])

    start = time.perf_counter()
    with ThreadPoolExecutor(workers()) as threads:
        sum(threads.map(one, images))
    return time.perf_counter() - start


def prepared(root: Path, out: Path, size: tuple[int, int]) -> float:
    dataset = Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "car", "person": "person"},
            "imageSize": {"width": size[0], "height": size[1]},
        }
    )
    start = time.perf_counter()
    prepare(dataset, Storage(scratch=out / "scratch"), f"file://{out}")
    return time.perf_counter() - start


def in_a_process_of_its_own(root: Path, out: Path) -> tuple[float, float, int]:
    """Return the seconds of the first and of the second preparation, and the peak memory in KiB."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import data_conversion as b, tensorflow
from pathlib import Path
root, out = Path({str(root)!r}), Path({str(out)!r})
seconds = [b.prepared(root, out, b.RESIZED) for _ in range(2)]
peak = next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(*seconds, peak)
"""
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    first, second, peak = answer.stdout.split()[-3:]
    return float(first), float(second), int(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--memory-images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    folder = Path(tempfile.mkdtemp(prefix="tlt-benchmark-"))
    try:
        print(json.dumps(measure(folder, options.images, options.memory_images, options.rounds)))
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, count: int, memory_count: int, rounds: int) -> dict[str, object]:
    small, large, few = folder / "set", folder / "large", folder / "few"
    photographs.make(small, count)
    images = sorted((small / "training" / "image_2").iterdir())
    prepared(small, folder / "warm", AS_IT_IS)  # imports, page cache
    resize, no_resize, loops = [], [], []
    for number in range(rounds):
        before = bare_loop(images, RESIZED)
        with_resize = prepared(small, folder / f"resize-{number}", RESIZED)
        without = prepared(small, folder / f"same-{number}", AS_IT_IS)
        after = bare_loop(images, RESIZED)
        loop = (before + after) / 2
        loops.append(loop)
        resize.append(loop / with_resize)
        no_resize.append(loop / without)
        for name in ("resize", "same"):
            shutil.rmtree(folder / f"{name}-{number}")
    photographs.make(large, memory_count)
    photographs.make(few, memory_count // 10)
    first, second, peak = in_a_process_of_its_own(large, folder / "large-out")
    _, _, peak_of_few = in_a_process_of_its_own(few, folder / "few-out")
    return {
        "benchmark": "data_conversion",
        "images": count,
        "cores": workers(),
        "resize": round(statistics.median(resize), 3),
        "no_resize": round(statistics.median(no_resize), 2),
        "bare_loop_ms_per_image": round(1000 * statistics.median(loops) / count, 2),
        "cached": round(second / first, 4),
        "cached_seconds": round(second, 2),
        "memory": round(peak / peak_of_few, 3),
        "memory_mib": [peak_of_few // 1024, peak // 1024],
        "memory_images": [memory_count // 10, memory_count],
    }


if __name__ == "__main__":
    main()
