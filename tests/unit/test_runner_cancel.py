"""A run that was asked to stop ends by one error, and says where."""

from __future__ import annotations

import pytest

from tlt_api.failures import CLASSES, Reason
from tlt_runner.cancel import Stop
from tlt_runner.errors import InterruptedRunError


def test_a_run_goes_on_until_it_is_asked_to_stop() -> None:
    stop = Stop()
    assert not stop.requested()
    stop.raise_if("while pruning")


def test_a_stop_request_ends_the_run_with_its_message() -> None:
    stop = Stop()
    stop.request()
    assert stop.requested()
    with pytest.raises(InterruptedRunError, match=r"^stopped while pruning$") as caught:
        stop.raise_if("while pruning")
    assert caught.value.reason == Reason.INTERRUPTED
    assert caught.value.hint == CLASSES[Reason.INTERRUPTED].hint


def test_a_caller_may_replace_the_hint() -> None:
    stop = Stop()
    stop.request()
    with pytest.raises(InterruptedRunError) as caught:
        stop.raise_if("before the folder was complete", "Run it again: it starts over.")
    assert caught.value.hint == "Run it again: it starts over."
