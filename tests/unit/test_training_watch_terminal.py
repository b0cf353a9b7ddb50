"""The view of a training for people: a live table on a terminal, one line elsewhere."""

import io
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from tlt_api import resources
from tlt_api.base import API_VERSION
from tlt_api.resources import Resource
from tlt_api.status import Metrics, Phase, Progress
from tlt_runner.local import table
from tlt_runner.local.view import LiveView
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
