"""Cost of RoI pooling for one proposal more, forward and backward, by size of the image.

Pooling is timed for 64 and for 128 proposals, on the feature map of every size in turns: the difference is
the cost of 64 proposals, without what the map itself costs (its gradient is as large as the map). CPU time of
this process, medians of the rounds.

    nice python benchmarks/pooling_by_size.py
    nice python benchmarks/pooling_by_size.py --sizes 256 1920x1088 --rounds 101
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import train_step

from tlt_runner.detector import model as detector

COUNTS = (64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--sizes", nargs="+", default=["256", "1248x384", "1920x1088"])
    parser.add_argument("--rounds", type=int, default=51)
    arguments = parser.parse_args()
    runs = {
        size: [
            train_step.pooling_of(
                detector.build(train_step.configure(arguments.backbone, train_step.size_of(size), {}), 1),
                1,
                count,
            )
            for count in COUNTS
        ]
        for size in arguments.sizes
    }
    taken: dict[str, list[float]] = {size: [] for size in runs}
    for _ in range(arguments.rounds):
        for size, (few, many) in runs.items():
            taken[size].append((cpu_seconds(many) - cpu_seconds(few)) / (COUNTS[1] - COUNTS[0]))
    medians = {size: statistics.median(times) for size, times in taken.items()}
    first = medians[arguments.sizes[0]]
    figures = {
        size: {"cpu_us_per_proposal": round(1e6 * median, 1), "ratio": round(median / first, 3)}
        for size, median in medians.items()
    }
    print(json.dumps({"benchmark": "pooling_by_size", "backbone": arguments.backbone, "sizes": figures}))


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
