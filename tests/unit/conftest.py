"""Settings of the unit ring: no TensorFlow, whose import alone takes a quarter of the ring's time."""

import sys
from collections.abc import Iterator

import pytest

import forked

forked.preload(
    "numpy",
    "tlt_runner.cli",
    "tlt_runner.local.flow",
    "tlt_runner.process",
    "tlt_runner.data.preparation.prepare",
)


# By module: tests/unit is no package, so that a wider scope would reach into other rings of the session.
@pytest.fixture(scope="module", autouse=True)
def refuse_tensorflow() -> Iterator[None]:
    """Let a test that imports TensorFlow fail: it belongs to the ring ``integration``."""
    finder = forked.Refuse({"tensorflow", "keras"})
    sys.meta_path.insert(0, finder)
    yield
    sys.meta_path.remove(finder)
