"""The view of a training for people: a live table on a terminal, one line elsewhere."""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from tlt_api import resources
from tlt_api.base import API_VERSION
from tlt_api.resources import Resource
from tlt_api.status import ClassCount, DatasetStatus, Metrics, Phase, Progress
from tlt_runner.local import table
from tlt_runner.local.state import Folders
from tlt_runner.local.view import LiveView, PlainView
from tlt_runner.status.lines import progress_line

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PROGRESS = Progress(
    stage="train",
    epoch=3,
    epochs=10,
    step=50,
    steps=100,
    loss=0.25,
    learning_rate=5e-4,
    images_per_second=12.0,
    eta_seconds=200,
)
LINE = "train, epoch 3/10, step 50/100, loss 0.25, learning rate 0.0005, 12.0 images/s, 3m20s to go"


def training(phase: Phase = Phase.RUNNING) -> Resource:
    dataset = {
        "uri": "pvc://data/digits",
        "targetClassMapping": {"one": "one"},
        "imageSize": {"width": 64, "height": 64},
    }
    parsed = resources.parse(
        {
            "apiVersion": API_VERSION,
            "kind": "TrainingJob",
            "metadata": {"name": "digits"},
            "spec": {"dataset": dataset, "output": {"uri": "pvc://data/out"}},
        }
    )
    status = {"phase": phase, "progress": PROGRESS, "metrics": Metrics(m_ap=0.875)}
    return replace(parsed, status=parsed.status.model_copy(update=status))


def test_a_line_shows_epoch_step_loss_rate_throughput_and_time_left() -> None:
    assert progress_line(PROGRESS) == LINE


def test_a_running_training_shows_its_best_map_so_far() -> None:
    assert table.activity(training()) == f"{LINE}; so far mAP 0.8750"


def test_the_bar_counts_steps_of_all_epochs() -> None:
    assert table.share_done(training()) == 0.35
    assert table.share_done(training(Phase.SUCCEEDED)) is None


def test_a_terminal_shows_line_and_bar() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=200)
    with LiveView(console) as view:
        view.show([training()], NOON)
    text = output.getvalue()
    assert f"{LINE}; so far mAP 0.8750" in text
    assert "━━━━━━━" in text


def reported(phase: Phase = Phase.RUNNING, **sections: object) -> Resource:
    running = training(phase)
    status = {"metrics": None, "progress": None, **sections}
    return replace(running, status=running.status.model_copy(update=status))


DATASET = DatasetStatus(
    images=8,
    objects=9,
    training_images=6,
    validation_images=2,
    classes=[ClassCount(name="one", objects=9)],
    report_uri="pvc://data/out/dataset-report.html",
    warnings=7,
    first_warnings=["a", "b", "c", "d", "e"],
)


def test_plain_output_shows_data_set_warnings_report_and_each_better_map() -> None:
    printed: list[str] = []
    view = PlainView(printed.append)
    started = reported()
    prepared = reported(dataset=DATASET)
    first = reported(dataset=DATASET, progress=PROGRESS, metrics=Metrics(m_ap=0.5, epoch=2))
    later = reported(dataset=DATASET, progress=PROGRESS, metrics=Metrics(m_ap=0.75, epoch=3))
    for seconds, resource in enumerate((started, prepared, prepared, first, first, later)):
        view.show([resource], NOON + timedelta(seconds=seconds))
    view.show([later], NOON + timedelta(seconds=20))
    view.show([replace(later, status=later.status.model_copy(update={"phase": Phase.SUCCEEDED}))], NOON)
    assert printed == [
        "TrainingJob/digits: Running: starting",
        "TrainingJob/digits: data set: 8 images (6 to train on, 2 to validate on), 9 objects, 0 images "
        "skipped, 0 objects dropped; by class: one 9; 7 warnings, see pvc://data/out/dataset-report.html",
        *(f"TrainingJob/digits: warning: {text}" for text in "abcde"),
        "TrainingJob/digits: warning: and 2 more in the dataset report",
        "TrainingJob/digits: best mAP so far 0.5000 after epoch 2",
        f"TrainingJob/digits: {LINE}; so far mAP 0.5000",
        "TrainingJob/digits: best mAP so far 0.7500 after epoch 3",
        f"TrainingJob/digits: {LINE}; so far mAP 0.7500",
        "TrainingJob/digits: Succeeded: mAP 0.7500",
    ]


def test_the_report_of_a_refused_data_set_is_named() -> None:
    printed: list[str] = []
    PlainView(printed.append).show([reported(Phase.FAILED, dataset=DATASET)], NOON)
    assert "see pvc://data/out/dataset-report.html" in printed[0]


def test_a_resource_that_is_not_run_again_has_no_news() -> None:
    printed: list[str] = []
    PlainView(printed.append).show([reported(Phase.SUCCEEDED, dataset=DATASET)], NOON)
    assert printed == ["TrainingJob/digits: Succeeded"]


def test_a_terminal_keeps_the_warnings_above_the_table() -> None:
    output = io.StringIO()
    with LiveView(Console(file=output, force_terminal=True, width=200)) as view:
        view.show([reported(dataset=DATASET)], NOON)
        view.show([reported(dataset=DATASET)], NOON)
    assert output.getvalue().count("TrainingJob/digits: warning: b") == 1


def test_the_end_lists_the_dataset_report_with_its_path(tmp_path: Path) -> None:
    folders = Folders.of(tmp_path, None)
    report = folders.volumes / "data/out/dataset-report.html"
    report.parent.mkdir(parents=True)
    report.write_text("x" * 1234)
    rows = table.artifacts([reported(dataset=DATASET)], folders)
    assert rows[1:] == [["TrainingJob/digits", "dataset report", str(report), "1,234"]]
