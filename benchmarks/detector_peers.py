"""A training step beside those of KerasHub and the TensorFlow Model Garden: arithmetic and images a second.

A C4 Faster R-CNN does other work for an image than detectors with a feature pyramid, so images a second alone
compare the architectures. What compares the implementations is how much of the arithmetic that a step asks of
the machine is done in a second: operations of convolutions and dense layers, forward and backward, counted by
shapes in each one's own traced graph (:mod:`graph_flops`), divided by the time of the whole step.

Each detector runs in a process of its own (:mod:`peer_steps`), in the environment of its package, which pip
makes under ``--environments`` from peers-*.txt where it is not there yet (2.3 and 2.9 GB). The processes take
turns, one step each, in an order that changes; ratios are medians of the rounds' ratios, of wall time and of
CPU time. Where other work shares the cores the latter says more.

    nice python benchmarks/detector_peers.py
    nice python benchmarks/detector_peers.py --size 512 --rounds 5
    nice python benchmarks/detector_peers.py --detectors "ours, 512 proposals" "Model Garden Faster R-CNN"

The Model Garden's Faster R-CNN trains its head on 512 proposals an image, hence ours with as many.
"""

import argparse
import json
import statistics
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parent
ENVIRONMENTS_FOLDER = FOLDER.parent / ".cache" / "peers"
ENVIRONMENTS = {
    "ours": None,
    "ours, 512 proposals": None,
    "keras-hub RetinaNet": "keras-hub",
    "Model Garden RetinaNet": "tf-models",
    "Model Garden Faster R-CNN": "tf-models",
}
"""Detector -> name of its environment, described by peers-<name>.txt."""


class Peer:
    """A child process that takes a training step on request."""

    def __init__(self, name: str, python: Path, size: int, batch: int) -> None:
        self.name = name
        self.taken: list[dict[str, float]] = []
        self._process = subprocess.Popen(
            [python, FOLDER / "peer_steps.py", name, f"--size={size}", f"--batch={batch}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._answer()
        self.flops, self.megabytes = ready["flops"], ready["megabytes"]

    def step(self) -> None:
        """Take a step and note its time."""
        assert self._process.stdin is not None
        self._process.stdin.write("1\n")
        self._process.stdin.flush()
        self.taken.append(self._answer())

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()

    def rate(self, number: int, clock: str) -> float:
        """Operations a second in a step."""
        return self.flops / self.taken[number][clock]

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}; its messages are above")
        answer: dict[str, float] = json.loads(line)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="pixels, of both sides")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--detectors", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS_FOLDER)
    arguments = parser.parse_args()
    peers = [
        Peer(name, environment(arguments.environments, ENVIRONMENTS[name]), arguments.size, arguments.batch)
        for name in arguments.detectors
    ]
    for number in range(arguments.rounds):
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            peer.step()
    for peer in peers:
        peer.stop()
    figures = {
        "benchmark": "detector_peers",
        "size": arguments.size,
        "batch": arguments.batch,
        "detectors": {peer.name: described(peer, arguments.batch) for peer in peers},
        "ours_to_peer": {
            ours.name: {peer.name: ratios(ours, peer) for peer in peers if ENVIRONMENTS[peer.name]}
            for ours in peers
            if ENVIRONMENTS[ours.name] is None
        },
    }
    print(json.dumps(figures))


def environment(folder: Path, name: str | None) -> Path:
    """The Python of an environment, which is made where it is missing."""
    if name is None:
        return Path(sys.executable)
    installed, ready = folder / name, folder / name / "ready"
    python = installed / "bin" / "python"
    if not ready.exists():
        print(f"installing {name} into {installed}", file=sys.stderr)
        venv.create(installed, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", FOLDER / f"peers-{name}.txt"]
        subprocess.run(install, check=True)
        ready.touch()
    return python


def described(peer: Peer, batch: int) -> dict[str, float]:
    wall, cpu = (statistics.median(step[clock] for step in peer.taken) for clock in ("wall", "cpu"))
    return {
        "gigaflops_a_step": round(peer.flops / 1e9, 1),
        "wall_ms": round(1e3 * wall, 1),
        "cpu_ms": round(1e3 * cpu, 1),
        "gigaflops_a_second": round(peer.flops / 1e9 / wall, 1),
        "gigaflops_a_cpu_second": round(peer.flops / 1e9 / cpu, 1),
        "images_a_second": round(batch / wall, 2),
        "peak_megabytes": peer.megabytes,
    }


def ratios(ours: Peer, other: Peer) -> dict[str, float]:
    """Ratios of arithmetic a second, ours to the other detector's; medians of the rounds."""
    return {
        clock: round(
            statistics.median(
                ours.rate(number, clock) / other.rate(number, clock) for number in range(len(ours.taken))
            ),
            3,
        )
        for clock in ("wall", "cpu")
    }


if __name__ == "__main__":
    main()
