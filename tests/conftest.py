"""Fixtures of all rings: the real cluster of tests/cluster."""

import os
from pathlib import Path

import quick_imports  # noqa: F401

pytest_plugins = ["cluster.fixtures", "parallel"]

# Processes that tests start in other folders find sitecustomize, too.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
