"""A report always fits into a termination message, and keeps what matters most."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tlt_api.runreport import TERMINATION_MESSAGE_LIMIT, RunReport, to_termination_message
from tlt_api.status import Artifact, ClassMetric, Failure, Metrics

ARTIFACT = Artifact(name="best", uri="pvc://d/best.keras", sha256="a" * 64, size_bytes=1)


def test_a_short_report_is_not_shortened() -> None:
    report = RunReport(metrics=Metrics(m_ap=0.9), artifacts=[ARTIFACT])
    assert RunReport.model_validate_json(to_termination_message(report)) == report


def test_per_class_metrics_are_dropped_from_the_message_before_the_mean() -> None:
    classes = [ClassMetric(name=f"class {i}", average_precision=0.5) for i in range(500)]
    report = RunReport(metrics=Metrics(m_ap=0.5, per_class=classes), artifacts=[ARTIFACT])
    carried = RunReport.model_validate_json(to_termination_message(report))
    assert carried.metrics == Metrics(m_ap=0.5)
    assert carried.artifacts == [ARTIFACT]


def test_checkpoints_of_epochs_are_dropped_from_the_message_before_best_and_last() -> None:
    made = [ARTIFACT, ARTIFACT.model_copy(update={"name": "last"})]
    made += [ARTIFACT.model_copy(update={"name": f"epoch-{epoch:04d}"}) for epoch in range(100)]
    report = RunReport(metrics=Metrics(m_ap=0.5), artifacts=made)
    carried = RunReport.model_validate_json(to_termination_message(report))
    assert carried.metrics == report.metrics
    assert [item.name for item in carried.artifacts or ()] == ["best", "last"]


def test_a_text_of_control_characters_is_cut_by_its_length_in_json() -> None:
    failure = Failure(reason="Internal", message="\x00" * 20000, hint="\U0001f600" * 20000)
    assert len(to_termination_message(RunReport(failure=failure)).encode()) <= TERMINATION_MESSAGE_LIMIT


def test_the_limit_counts_bytes_not_characters() -> None:
    failure = Failure(reason="Internal", message="\u6f22" * 3000)
    text = to_termination_message(RunReport(failure=failure))
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT


@given(st.text(max_size=20000), st.text(max_size=20000), st.integers(0, 80))
def test_every_report_fits_into_the_termination_message(message: str, hint: str, artifacts: int) -> None:
    failure = Failure(reason="Internal", message=message, hint=hint)
    text = to_termination_message(RunReport(failure=failure, artifacts=[ARTIFACT] * artifacts))
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT
    assert json.loads(text)["failure"]["reason"] == "Internal"
