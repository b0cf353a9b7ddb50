"""Fixtures of all rings (cluster, namespaces of operator tests), and the order of parallel workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["cluster.fixtures", "operator_ring.fixtures"]

# Files that take longest, longest first: `make` hands whole files to its workers in this order, so that the
# workers end at about the same time. `pytest --durations=0` shows what changed.
LONGEST_FIRST = [
    "test_training_workers",
    "test_runner_local_flow",
    "test_detector_backbones",
    "test_training_replicas",
    "test_operator_flow",
    "test_operator_kills",
    "test_operator_nodes",
    "test_training_backends",
    "test_infer_task",
    "test_training_steps_replicas",
    "test_training_resume",
    "test_pruning_shapes",
    "test_pruning_detector",
    "test_export_engine",
    "test_export_task",
    "test_training_run",
]
_RANKS = {name: rank for rank, name in enumerate(LONGEST_FIRST)}

# Processes that tests start in other folders find sitecustomize, too.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has one core, and so have the processes that its tests start.
    for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(variable, "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests of a parallel run by file, longest first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _RANKS.get(Path(item.path).stem, len(_RANKS)))
