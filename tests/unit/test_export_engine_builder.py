"""The error when the engine builder of the spec is not installed."""

import importlib.util

import pytest

from tlt_api.exportjob import Engine
from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.export import engine


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_missing_tensorrt_says_which_image_and_node_to_use():
    with pytest.raises(RunnerError, match="tensorrt") as caught:
        engine.check_capabilities(Engine(builder="tensorrt"))
    assert caught.value.reason == Reason.ENGINE_BUILD_FAILED
    assert "gpu extra" in caught.value.hint
