"""Bounded, ordered work."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes import RecordingReporter
from tlt_api.failures import Reason
from tlt_api.status import Progress
from tlt_runner.cancel import Stop
from tlt_runner.data import parallel
from tlt_runner.data.parallel import StageProgress, in_order, workers
from tlt_runner.errors import RunnerError
from tlt_runner.local import convert_to


def test_results_come_in_order_and_at_most_a_window_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    window = parallel.WINDOW * workers()
    with ThreadPoolExecutor(2) as threads:
        for position, (item, square) in enumerate(in_order(threads, lambda number: number**2, items())):
            assert (item, square) == (position, position**2)
            assert taken <= position + window


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with ThreadPoolExecutor(2) as threads, pytest.raises(ZeroDivisionError):
        list(in_order(threads, lambda number: 1 // number, [1, 0, 1]))


def test_a_stop_raises_interrupted_with_the_position() -> None:
    stop = Stop()
    progress = StageProgress("convert", 10, None, stop)
    progress.advance()
    progress.raise_if_stopped()
    stop.request()
    with pytest.raises(RunnerError, match="image 1 of 10") as caught:
        progress.raise_if_stopped()
    assert caught.value.reason == Reason.INTERRUPTED


def test_batches_change_neither_results_nor_order() -> None:
    with ThreadPoolExecutor(2) as threads:
        results = list(in_order(threads, lambda number: number**2, range(50), batch=16))
    assert results == [(number, number**2) for number in range(50)]


def test_the_speed_is_that_of_the_last_seconds_and_gives_the_time_left() -> None:
    now, reporter = 0.0, RecordingReporter()
    progress = StageProgress("convert", 1000, reporter, None, clock=lambda: now)  # type: ignore[arg-type]
    for _ in range(100):  # 100 images of 1 s: long ago
        now += 1
        progress.advance()
    for _ in range(300):  # 300 images of 0.1 s: the last 30 s
        now += 0.1
        progress.advance()
    last = reporter.progresses[-1]
    assert (last.stage, last.step) == ("convert", 400)
    assert last.images_per_second == pytest.approx(10, rel=0.06)
    assert last.eta_seconds == pytest.approx(60, abs=4)


def test_skipped_images_do_not_count_for_the_speed() -> None:
    now, reporter = 0.0, RecordingReporter()
    progress = StageProgress("convert", 1000, reporter, None, clock=lambda: now)  # type: ignore[arg-type]
    progress.skip(990)
    now = 5.0
    progress.advance()
    now = 10.0
    progress.advance()
    assert [(step.step, step.images_per_second, step.eta_seconds) for step in reporter.progresses] == [
        (991, None, None),
        (992, 0.2, 40),
    ]


def test_what_comes_before_the_first_image_says_nothing_about_the_time_left() -> None:
    now, reporter = 0.0, RecordingReporter()
    progress = StageProgress("convert", 226, reporter, None, clock=lambda: now)  # type: ignore[arg-type]
    now = 13.0  # listing, imports: 226 images would take 48m58s at this pace
    for _ in range(8):  # the threads' first images arrive at once
        progress.advance()
    assert {(step.images_per_second, step.eta_seconds) for step in reporter.progresses} == {(None, None)}
    for _ in range(24):
        now += 0.125
        progress.advance()
    last = reporter.progresses[-1]
    # 31 images since the first one, in three seconds.
    assert (last.step, last.images_per_second) == (32, 10.33)
    assert last.eta_seconds == 19  # 194 / 10.33 = 18.8


def test_a_finished_stage_has_no_time_left_however_short_it_was() -> None:
    reporter = RecordingReporter()
    progress = StageProgress("survey", 2, reporter, None, clock=lambda: 0.0)  # type: ignore[arg-type]
    progress.advance()
    progress.advance()
    assert [step.eta_seconds for step in reporter.progresses] == [None, 0]


def test_the_printed_progress_of_an_export_has_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    printer = convert_to._Printer(5000)
    for step in (999, 1000, 1001):
        printer.progress(Progress(stage="export", step=step, images_per_second=50.0, eta_seconds=80))
    assert capsys.readouterr().err == "1000 of 5000 images, 50 images/s, 80 s left\n"


def test_the_next_image_is_promised_within_half_an_hour_and_what_follows_within_an_hour() -> None:
    reporter = RecordingReporter()
    progress = StageProgress("survey", 2, reporter, None, clock=lambda: 0.0)  # type: ignore[arg-type]
    progress.advance()
    progress.advance()
    assert [step.next_within_seconds for step in reporter.progresses] == [1800, 3600]
