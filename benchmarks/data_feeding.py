"""Feeding from records against a bare decode of the same images: what reading, changing and batching cost.

Photograph-like 1280 x 720 JPEGs are written into records of that size. A round reads them once each way: a
bare loop decodes the encoded images on all cores (cv2.imdecode in threads, the result thrown away); then
tf.data gives batches of 4, with mirroring as by default, with everything but mosaic on, and with mosaic
alone. The order alternates. Medians of the rounds' ratios, bare / fed, of wall time and of the process's CPU
time; where other work shares the cores, the latter says more.

    nice python benchmarks/data_feeding.py                  # 2,000 images, 5 rounds, 480 MB of scratch
    nice python benchmarks/data_feeding.py --images 600 --rounds 9
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np
import tensorflow as tf
from photographs import scene

from tlt_api.training import Augmentation
from tlt_runner.data import parallel, tfrecords
from tlt_runner.data.images import geometry
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Manifest, Records, Shard
from tlt_runner.data.sample import LabelledBox

HEIGHT, WIDTH, BATCH, OBJECTS, PER_SHARD = 720, 1280, 4, 8, 250
EVERYTHING = {
    "verticalFlip": 0.5,
    "zoomMin": 0.8,
    "zoomMax": 1.25,
    "translateMaxX": 64,
    "translateMaxY": 64,
    "rotateRadMax": 0.2,
    "colorShiftStddev": 0.02,
    "hueRotationMax": 15,
    "saturationShiftMax": 0.2,
    "contrastScaleMax": 0.2,
}
FED = {
    "mirrored": Augmentation(),
    "everything": Augmentation.model_validate(EVERYTHING),
    "mosaic": Augmentation.model_validate({"mosaic": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records, encoded = _records(Path(folder), arguments.images)
        runs = {"bare": lambda: _bare(encoded)}
        runs |= {name: lambda wanted=wanted: _fed(records, wanted) for name, wanted in FED.items()}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for number in range(arguments.rounds):
            for name in list(runs)[:: 1 if number % 2 else -1]:
                taken[name].append(_seconds(runs[name]))
    figures = {
        "benchmark": "data_feeding",
        "images": arguments.images,
        "kilobytes_per_image": round(sum(map(len, encoded)) / len(encoded) / 1000),
        "cores": parallel.workers(),
        "bare_images_per_second": round(arguments.images / float(np.median(taken["bare"], axis=0)[0])),
    }
    for name in FED:
        ratios = np.array(taken["bare"]) / np.array(taken[name])
        figures[f"ratio_{name}"], figures[f"cpu_ratio_{name}"] = np.median(ratios, axis=0).round(3).tolist()
    print(json.dumps(figures))


def _seconds(run: Callable[[], None]) -> tuple[float, float]:
    """Wall time and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _bare(encoded: list[bytes]) -> None:
    def decode(data: bytes) -> None:
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    with ThreadPoolExecutor(parallel.workers()) as executor:
        for _ in executor.map(decode, encoded):
            pass


def _fed(records: Records, augmentation: Augmentation) -> None:
    for _ in batches.training_batches(records, BATCH, 1, augmentation, 2 * OBJECTS, epoch=0):
        pass


def _records(folder: Path, images: int) -> tuple[Records, list[bytes]]:
    random = np.random.default_rng(0)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
    encoded = [
        cv2.imencode(".jpg", scene(random, WIDTH, HEIGHT), quality)[1].tobytes() for _ in range(images)
    ]
    shards = []
    for first in range(0, images, PER_SHARD):
        path = folder / f"{first:06d}.tfrecord"
        part = encoded[first : first + PER_SHARD]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number, data in enumerate(part, start=first):
                writer.write(_example(f"image/{number:06d}", data, random))
        size = path.stat().st_size
        shards.append(Shard(name=path.name, subset="training", images=len(part), size_bytes=size, sha256=""))
    manifest = Manifest(
        digest="",
        class_names=["thing"],
        height=HEIGHT,
        width=WIDTH,
        mode="stretch",
        training_images=images,
        validation_images=0,
        training_objects=[OBJECTS * images],
        validation_objects=[0],
        objects_per_image={OBJECTS: images},
        shards=shards,
    )
    return Records(folder, folder.as_uri(), "", manifest), encoded


def _example(name: str, encoded: bytes, random: np.random.Generator) -> bytes:
    corner = random.uniform(0, [HEIGHT - 200, WIDTH - 200], (OBJECTS, 2))
    edges = np.hstack([corner, corner + random.uniform(20, 200, (OBJECTS, 2))])
    boxes = [LabelledBox("thing", tuple(yxyx)) for yxyx in edges.tolist()]
    placement = geometry.placement(HEIGHT, WIDTH, HEIGHT, WIDTH, "stretch")
    return tfrecords.to_example(name, encoded, (HEIGHT, WIDTH), placement, boxes, [0] * OBJECTS)


if __name__ == "__main__":
    main()
