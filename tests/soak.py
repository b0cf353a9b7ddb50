"""Soak test of the operator: random faults of a real control plane for some minutes.

``make soak MINUTES=60``, or ``PYTHONPATH=tests python -m soak --minutes 60 --seed 7``. Each round makes one
fault while five runs are under way and waits until they have ended (:mod:`operator_ring.faults`). Printed are
the seed, a line for each round, and a table in Markdown: rounds of each fault, seconds from its end until
rest, and violations of the invariants. The exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import patience
from cluster.control_plane import control_plane
from operator_ring.faults import FAULTS, Outcome, play, scene
from operator_ring.live import NODE_MANIFEST, Api

ROOT = Path(__file__).parents[1]
_NAMESPACE = "soak"


def main() -> int:
    """Make faults for as long as the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    outcomes = _play(random.Random(arguments.seed), arguments.minutes * 60)
    print(table(outcomes))
    return 1 if any(outcome.problems for each in outcomes.values() for outcome in each) else 0


def _play(chance: random.Random, seconds: float) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {name: [] for name in FAULTS}
    with control_plane() as plane, TemporaryDirectory() as folder:
        plane.kubectl("apply", "-k", ROOT / "crds")
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", patience.KUBECTL)
        plane.apply(NODE_MANIFEST)
        api = Api(plane.kubeconfig)
        api.create({"kind": "Namespace", "metadata": {"name": _NAMESPACE}})
        api.create({"kind": "ServiceAccount", "metadata": {"name": "tlt-runner", "namespace": _NAMESPACE}})
        with scene(plane, api, _NAMESPACE, plane.kubeconfig, Path(folder)) as it:
            end = time.monotonic() + seconds
            order: list[str] = []
            while time.monotonic() < end:
                # Each fault once, in a random order, before any comes again.
                order = order or chance.sample(list(FAULTS), len(FAULTS))
                name = order.pop()
                outcome = play(it, FAULTS[name])
                outcomes[name].append(outcome)
                print(f"{outcome.seconds:6.1f} s  {name}  {'; '.join(outcome.problems)}", flush=True)
        api.close()
    return outcomes


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Return the table of what each fault cost."""
    lines = [
        "| fault | rounds | seconds until rest, median | at most | violations |",
        "|---|---|---|---|---|",
    ]
    for name, each in outcomes.items():
        if each:
            seconds = [outcome.seconds for outcome in each]
            violations = sum(len(outcome.problems) for outcome in each)
            median = statistics.median(seconds)
            lines.append(f"| {name} | {len(each)} | {median:.1f} | {max(seconds):.1f} | {violations} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
