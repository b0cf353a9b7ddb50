"""Fixtures of all rings: the cluster of tests/cluster, and the namespaces of the operator's tests."""

import os
from pathlib import Path

import quick_imports  # noqa: F401

pytest_plugins = ["cluster.fixtures", "operator_ring.fixtures", "parallel"]

# Processes that tests start in other folders find sitecustomize, too.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
