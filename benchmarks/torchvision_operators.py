"""Differences of RoI pooling and suppression from torchvision's, and cost beside torchvision's, on a CPU.

Largest differences of pooling's values and gradients from ``roi_align(aligned=True)``, with sampling ratio 2
and adaptive sampling; number of boxes that only one of ours and ``nms`` keeps. Both forms of each operator
(tlt_runner.detector.kernels). The boxes of adaptive sampling have sides below 4 * P * 16 pixels, up to which
as many samples are taken as by torchvision. Times are of one step of pooling, forward and backward.

    .venv/bin/pip install -r benchmarks/peers-torchvision.txt
    nice .venv/bin/python benchmarks/torchvision_operators.py
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext

# Before TensorFlow: loaded after it, the LLVM in PyTorch 2.15 ends the process.
import torch
from torchvision import ops as peer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from tlt_runner.detector import kernels, nms, roi

BINS = 7
CHANNELS = 256
PROPOSALS = 64
HEIGHT, WIDTH = 68, 120
"""Cells of the feature map of an image of 1920 x 1088 pixels."""


def main() -> None:
    random = np.random.default_rng(0)
    figures = {"benchmark": "torchvision_operators", "pooling": {}, "suppression": {}}
    for form in ("native", "portable"):
        for sampling, ratio in (("fixed", 2), ("adaptive", -1)):
            figures["pooling"][f"{form}, {sampling}"] = pooling(random, form, sampling, ratio)
        figures["suppression"][form] = {
            name: differences(boxes, form) for name, boxes in heaps(random).items()
        }
    print(json.dumps(figures))


def in_form(form: str):
    return kernels.portable() if form == "portable" else nullcontext()


def pooling(random: np.random.Generator, form: str, sampling: str, ratio: int) -> dict[str, float]:
    """Largest differences of values and gradients, and this form's CPU time by torchvision's."""
    features = random.normal(size=(1, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
    sides = random.uniform(8, 4 * BINS * 16, (PROPOSALS, 2))
    first = random.uniform(0, 1, sides.shape) * ([16 * HEIGHT, 16 * WIDTH] - sides)
    boxes = np.concatenate([first, first + sides], axis=1).astype(np.float32)
    upstream = random.normal(size=(PROPOSALS, BINS, BINS, CHANNELS)).astype(np.float32)

    @tf.function
    def step(features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape, in_form(form):
            tape.watch(features)
            pooled = roi.pool(features, tf.constant(boxes[None]), BINS, sampling)
        return pooled, tf.convert_to_tensor(tape.gradient(pooled, features, upstream))

    source = torch.from_numpy(features.transpose(0, 3, 1, 2).copy()).requires_grad_()
    rois = [torch.from_numpy(boxes[:, [1, 0, 3, 2]].copy())]
    weights = torch.from_numpy(upstream.transpose(0, 3, 1, 2).copy())

    def peer_step() -> tuple[torch.Tensor, torch.Tensor]:
        pooled = peer.roi_align(source, rois, BINS, 1 / 16, ratio, aligned=True)
        return pooled, torch.autograd.grad(pooled, source, weights)[0]

    ours, theirs = step(tf.constant(features)), peer_step()
    values, gradients = (
        float(np.abs(mine.numpy() - other.detach().numpy().transpose(0, 2, 3, 1)).max())
        for mine, other in zip(ours, theirs, strict=True)
    )
    ratio_of_times = cpu_seconds(lambda: step(tf.constant(features))) / cpu_seconds(peer_step)
    return {"values": values, "gradients": gradients, "cpu_ratio": round(ratio_of_times, 2)}


def heaps(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Boxes [N, 4], the best first: scattered, in clusters, on a grid of anchors, sliding, all equal."""
    corner = random.uniform(0, 800, (2000, 2))
    scattered = np.concatenate([corner, corner + random.uniform(20, 300, corner.shape)], axis=1)
    clusters = scattered[random.integers(0, 40, 2000)] + random.normal(size=(2000, 4)) * 6
    cells = np.array([[y, x] for y in range(40) for x in range(50)])
    ramp = np.concatenate([16.0 * cells, 16.0 * cells + 128], axis=1)
    sliding = np.arange(1000)[:, None] * np.array([0.0, 1, 0, 1]) + [0, 0, 10, 10]
    equal = np.tile([[10.0, 10, 50, 50]], (1000, 1))
    made = {"scattered": scattered, "clusters": clusters, "ramp": ramp, "sliding": sliding, "equal": equal}
    return {name: boxes.astype(np.float32) for name, boxes in made.items()}


def differences(boxes: np.ndarray, form: str) -> dict[str, int]:
    """Boxes that one of the two keeps and the other does not, at three thresholds; by class at 0.5."""
    scores = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    turned = torch.from_numpy(boxes[:, [1, 0, 3, 2]].copy())
    classes = np.arange(len(boxes), dtype=np.int32) * 7 % 20
    counts = {}
    for threshold in (0.3, 0.5, 0.7):
        expected = set(peer.nms(turned, scores, threshold).tolist())
        counts[str(threshold)] = len(expected ^ kept(boxes, threshold, form, None))
    by_class = set()
    # Not batched_nms, which moves classes apart by offsets and so rounds coordinates.
    for one in range(20):
        rows = np.flatnonzero(classes == one)
        by_class |= set(rows[peer.nms(turned[rows], scores[rows], 0.5).numpy()].tolist())
    counts["classes"] = len(by_class ^ kept(boxes, 0.5, form, classes))
    return counts


def kept(boxes: np.ndarray, threshold: float, form: str, classes: np.ndarray | None) -> set[int]:
    valid = np.ones((1, len(boxes)), bool)
    groups = None if classes is None else classes[None]
    with in_form(form):
        best, keep = nms.suppress(boxes[None], valid, threshold, len(boxes), groups, 20)
    return set(np.asarray(best)[np.asarray(keep)].tolist())


def cpu_seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return sorted(times)[2]


if __name__ == "__main__":
    main()
