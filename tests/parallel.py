"""How the workers of `pytest --numprocesses` share the tests: in units, the longest first.

A unit runs in one worker. It is a file, or several files that share what takes long to make. Loaded by
conftest; the Makefile's targets give the options `--dist loadfile --no-loadscope-reorder`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

UNITS = [
    ["tests/e2e/"],
    ["tests/integration/test_training_workers"],
    ["tests/integration/test_runner_local_flow"],
    [
        "tests/integration/cluster/",
        "tests/integration/test_api_admission",
        "tests/integration/test_operator_",
        "tests/integration/test_runner_status_reports",
    ],
    ["tests/integration/test_detector_backbones"],
    ["tests/integration/test_training_replicas"],
    ["tests/integration/test_training_backends"],
    ["tests/integration/test_infer_task"],
    ["tests/integration/test_training_steps_replicas"],
    ["tests/integration/test_training_resume"],
    ["tests/integration/test_pruning_shapes"],
    ["tests/integration/test_pruning_detector"],
    [
        "tests/integration/test_export_engine",
        "tests/integration/test_export_onnx",
        "tests/integration/test_detector_model",
    ],
    ["tests/integration/test_export_task"],
    ["tests/integration/test_training_run"],
]
"""Units by the beginnings of their files' paths. Workers get them in this order, the longest first, and so
end at about the same time. Every other file is a unit of its own and comes later. The option `--durations=0`
shows how long each test takes."""

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has a core of its own, and so have the processes that its tests start.
    for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(variable, "1")


def unit_of(nodeid: str) -> tuple[int, str]:
    """The unit of a test: its place in the order, and its name."""
    for place, files in enumerate(UNITS):
        if nodeid.startswith(tuple(files)):
            return place, files[0]
    return len(UNITS), nodeid.partition("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests of a worker by unit; within a unit, and without workers, they stay as collected."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: unit_of(item.nodeid)[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out units where pytest-xdist would hand out files."""
    from xdist.scheduler import LoadFileScheduling

    class Units(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)[1]

    return Units(config, log) if config.getvalue("dist") == "loadfile" else None
