"""Status reports: accumulation, derived fields, throttling, and an API server that does not answer."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_api.base import StatusModel
from tlt_api.failures import Reason
from tlt_api.runreport import TERMINATION_MESSAGE_LIMIT, RunReport
from tlt_api.runspec import Owner
from tlt_api.status import (
    RUNNER_FIELDS,
    Artifact,
    ExportStatus,
    Failure,
    Metrics,
    Progress,
    Section,
    field_of,
)
from tlt_runner import exits, process
from tlt_runner.status import lines
from tlt_runner.status.apiserver import ApiServer, ApiServerError, OwnerGoneError
from tlt_runner.status.file import LocalReporter
from tlt_runner.status.kubernetes import KubernetesReporter
from tlt_runner.status.lines import ProgressLines, duration
from tlt_runner.status.reporter import Pacing, interval_after

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def artifact(name: str, size: int = 1) -> Artifact:
    return Artifact(name=name, uri=f"pvc://c/{name}", sha256="0" * 64, size_bytes=size)


class Server:
    """An API server that records the statuses it is sent, or fails with ``error``."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.taken: list[dict[str, Any]] = []
        self.error: ApiServerError | None = None
        self.tried = Event()

    def __call__(self, status: Mapping[str, Any], timeout: float) -> None:
        with self.lock:
            self.tried.set()
            if self.error is not None:
                raise self.error
            self.taken.append(dict(status))


def test_reported_sections_accumulate_and_progress_gets_a_time() -> None:
    reporter = LocalReporter(None, now=lambda: NOON)
    reporter.progress(Progress(stage="train", epoch=1, epochs=3))
    reporter.report(Metrics(m_ap=0.5))
    assert reporter.snapshot().to_status() == {
        "progress": {"stage": "train", "epoch": 1, "epochs": 3, "lastUpdateTime": "2026-01-01T12:00:00Z"},
        "metrics": {"mAP": 0.5},
    }


def test_an_artifact_of_the_same_name_is_replaced_in_its_place() -> None:
    reporter = LocalReporter(None)
    for item in (artifact("best", 1), artifact("last", 2), artifact("best", 3)):
        reporter.artifact(item)
    assert [(item.name, item.size_bytes) for item in reporter.snapshot().artifacts or ()] == [
        ("best", 3),
        ("last", 2),
    ]


def test_lowest_map_and_largest_drop_come_from_the_exports() -> None:
    reporter = LocalReporter(None)
    reporter.report(ExportStatus(precision="fp32", m_ap=0.8, m_ap_drop=-0.01))
    reporter.report(ExportStatus(precision="fp16", m_ap=0.7, m_ap_drop=0.09))
    status = reporter.snapshot().to_status()
    assert (status["lowestMAP"], status["largestDrop"]) == (0.7, 0.09)


def test_an_export_of_the_same_precision_is_replaced_in_its_position() -> None:
    reporter = LocalReporter(None)
    for precision, score in (("fp32", 0.8), ("fp16", 0.7), ("fp32", 0.6)):
        reporter.report(ExportStatus(precision=precision, m_ap=score))
    exports = reporter.snapshot().exports or ()
    assert [(item.precision, item.m_ap) for item in exports] == [("fp32", 0.6), ("fp16", 0.7)]
    assert reporter.snapshot().lowest_m_ap == 0.6


@pytest.mark.parametrize("section", Section.__subclasses__())
def test_every_section_has_a_field_and_a_line_of_text(section: type[StatusModel]) -> None:
    assert field_of(section) in RUNNER_FIELDS
    assert lines.line.dispatch(section) is not lines.line.dispatch(object)


def test_an_unknown_section_type_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="got Failure"):
        LocalReporter(None).report(Failure(reason="Internal"))  # type: ignore[arg-type]


def test_exports_without_figures_derive_nothing() -> None:
    reporter = LocalReporter(None)
    reporter.report(ExportStatus(precision="fp32"))
    assert set(reporter.snapshot().to_status()) == {"exports"}


def test_progress_waits_for_the_interval_and_results_do_not() -> None:
    pacing = Pacing(interval=5.0)
    assert pacing.wait(100.0) is None
    pacing.changed(urgent=False)
    assert pacing.wait(100.0) == 0
    pacing.sending(100.0)
    pacing.arrived()
    pacing.changed(urgent=False)
    assert pacing.wait(101.0) == 4.0
    pacing.changed(urgent=True)
    assert pacing.wait(101.0) == 0


@pytest.mark.parametrize(
    ("elapsed", "least", "seconds"),
    [
        (0, 5, 5),
        (600, 5, 5),
        (3600, 5, 30),
        (7200, 5, 60),
        (5 * 86400, 5, 60),
        (60, 100, 100),  # a thousand others run
        (5 * 86400, 100, 100),
    ],
)
def test_the_interval_grows_with_the_length_of_the_run(elapsed: float, least: float, seconds: float) -> None:
    assert interval_after(elapsed, least) == seconds


def reports_of_a_run(seconds: int, least: float, every: int = 1) -> int:
    """Count the reports of a run with progress ``every`` so many seconds, on a clock that is set."""
    pacing, reports = Pacing(least, began=0.0), 0
    for now in range(0, seconds, every):
        pacing.changed(urgent=False)
        if pacing.wait(float(now)) == 0:
            pacing.sending(float(now))
            pacing.arrived()
            reports += 1
    return reports


def test_a_run_of_a_minute_has_twelve_reports_and_one_of_a_day_one_a_minute() -> None:
    assert reports_of_a_run(60, least=5) == 12
    assert reports_of_a_run(60, least=100) == 1  # the first comes at once
    day, two_days = (reports_of_a_run(days * 86400, least=5, every=20) for days in (1, 2))
    assert two_days - day == 24 * 60


def test_results_come_at_once_in_a_long_run_too() -> None:
    pacing = Pacing(5, began=0.0)
    pacing.changed(urgent=False)
    pacing.sending(86400.0)
    pacing.changed(urgent=False)
    assert pacing.wait(86401.0) == 59
    pacing.changed(urgent=True)
    assert pacing.wait(86401.0) == 0


def test_a_promise_allows_for_the_pace_of_reports_and_for_a_lost_one() -> None:
    server = Server()
    reporter = KubernetesReporter(server, interval=90)
    reporter.progress(Progress(stage="train", next_within_seconds=300))
    # 90 s between reports, a minute until a failed one is tried again, 10 s for the request.
    assert reporter.snapshot().to_status()["progress"]["nextWithinSeconds"] == 300 + 90 + 60 + 10
    reporter.progress(Progress(stage="build"))
    assert "nextWithinSeconds" not in reporter.snapshot().to_status()["progress"]
    assert reporter.close(30)


def test_a_step_that_hangs_lets_its_promise_pass_whatever_else_is_reported() -> None:
    clock = [NOON]
    reporter = LocalReporter(None, now=lambda: clock[0])
    reporter.progress(Progress(stage="train", step=7, next_within_seconds=300))
    clock[0] = NOON + timedelta(hours=1)
    # The thread that writes checkpoints goes on.
    writer = Thread(target=lambda: reporter.artifact(artifact("last")))
    writer.start()
    writer.join()
    reporter.report(Metrics(m_ap=0.5))
    progress = reporter.snapshot().to_status()["progress"]
    assert (progress["lastUpdateTime"], progress["nextWithinSeconds"]) == ("2026-01-01T12:00:00Z", 301)


def test_the_wait_grows_with_failures_and_success_resets_it() -> None:
    pacing = Pacing(interval=5.0, longest_wait=4.0)
    waits = []
    for _ in range(4):
        pacing.changed(urgent=True)
        pacing.sending(0.0)
        waits.append(pacing.failed(0.0))
    assert waits == [1.0, 2.0, 4.0, 4.0]
    assert pacing.wait(1.0) == 3.0
    pacing.sending(4.0)
    pacing.arrived()
    pacing.changed(urgent=True)
    assert pacing.wait(4.0) == 0


def test_a_change_during_sending_is_sent_afterwards() -> None:
    pacing = Pacing(interval=5.0)
    pacing.changed(urgent=True)
    pacing.sending(0.0)
    pacing.changed(urgent=True)
    pacing.arrived()
    assert pacing.pending


def test_the_last_state_arrives_on_close() -> None:
    server = Server()
    reporter = KubernetesReporter(server, interval=3600)
    reporter.progress(Progress(epoch=1))
    assert server.tried.wait(30)
    for epoch in range(2, 200):
        reporter.progress(Progress(epoch=epoch))
    assert reporter.close(30)
    assert server.taken[-1]["progress"]["epoch"] == 199
    assert len(server.taken) <= 3


def test_an_unreachable_server_loses_nothing_once_it_is_back() -> None:
    server = Server()
    server.error = ApiServerError("connection refused")
    reporter = KubernetesReporter(server)
    reporter.artifact(artifact("best"))
    assert server.tried.wait(30)
    reporter.report(Metrics(m_ap=0.5))
    with server.lock:
        server.error = None
    assert reporter.close(30)
    assert server.taken[-1]["metrics"] == {"mAP": 0.5}
    assert server.taken[-1]["artifacts"][0]["name"] == "best"
    assert reporter.failed >= 1


def test_close_gives_up_when_the_server_never_answers() -> None:
    server = Server()
    server.error = ApiServerError("connection refused")
    reporter = KubernetesReporter(server)
    reporter.report(Metrics(m_ap=0.5))
    assert not reporter.close(0.1)
    assert server.taken == []


def test_a_refused_report_is_retried_rarely_and_once_more_on_close() -> None:
    server = Server()
    server.error = ApiServerError("HTTP 403 Forbidden", 403)
    reporter = KubernetesReporter(server)
    reporter.report(Metrics(m_ap=0.5))
    assert server.tried.wait(30)
    reporter.report(Metrics(m_ap=0.6))
    assert not reporter.close(5)
    assert reporter.failed == 2


def test_a_first_report_that_comes_before_the_status_names_the_job_is_sent_again_soon() -> None:
    reporter = KubernetesReporter(Server())
    waits = []
    for _ in range(6):
        reporter.failed += 1
        waits.append(reporter._shortest_wait(ApiServerError("no pod of its present attempt", 422)))
    assert waits == [0, 0, 0, 0, 30, 30]
    reporter.sent, reporter.failed = 1, 1
    assert reporter._shortest_wait(ApiServerError("no pod of its present attempt", 422)) == 30
    assert reporter.close(5)


def test_nothing_is_sent_to_a_resource_that_is_gone() -> None:
    server = Server()
    server.error = OwnerGoneError("HTTP 404 NotFound", 404)
    reporter = KubernetesReporter(server)
    reporter.report(Metrics(m_ap=0.5))
    assert server.tried.wait(30)
    server.error = None
    reporter.report(Metrics(m_ap=0.6))
    assert not reporter.close(5)
    assert server.taken == []


def test_a_bug_in_sending_does_not_end_the_reports() -> None:
    server = Server()
    calls: list[int] = []

    def send(status: Mapping[str, Any], timeout: float) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        server(status, timeout)

    reporter = KubernetesReporter(send)
    reporter.report(Metrics(m_ap=0.5))
    assert reporter.close(30)
    assert server.taken[-1]["metrics"] == {"mAP": 0.5}


def test_the_local_report_is_whole_on_disk_after_close(tmp_path: Path) -> None:
    clock = [0.0]
    reporter = LocalReporter(tmp_path / "report.json", now=lambda: NOON, monotonic=lambda: clock[0])
    for epoch in (1, 2, 3):
        reporter.progress(Progress(epoch=epoch))
    early = json.loads((tmp_path / "report.json").read_text())
    reporter.close(0)
    late = json.loads((tmp_path / "report.json").read_text())
    assert (early["progress"]["epoch"], late["progress"]["epoch"]) == (1, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_progress_lines_come_by_epoch_or_every_ten_seconds() -> None:
    printed: list[str] = []
    progress_lines = ProgressLines(printed.append)
    for second, epoch in ((0, 1), (1, 1), (2, 2), (11, 2), (12, 2)):
        progress = Progress(stage="train", epoch=epoch, step=second)
        progress_lines.progress(progress, NOON + timedelta(seconds=second))
    assert printed == ["train, epoch 1, step 0", "train, epoch 2, step 2", "train, epoch 2, step 12"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45, "45s"), (200, "3m20s"), (7500, "2h5m"), (3600, "1h"), (273600, "3d4h")],
)
def test_durations_read_as_ages_of_kubectl(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_outside_a_pod_there_is_no_api_server(tmp_path: Path) -> None:
    assert ApiServer.of_this_pod({}, tmp_path) is None
    assert ApiServer.of_this_pod({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path) is None


def test_in_a_pod_the_service_account_names_the_api_server(tmp_path: Path) -> None:
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}
    server = ApiServer.of_this_pod(environment, tmp_path)
    assert server == ApiServer("10.0.0.1", 6443, tmp_path / "token", tmp_path / "ca.crt")


names = st.text(min_size=1, max_size=80)
reports = st.builds(
    RunReport,
    metrics=st.none() | st.builds(Metrics, m_ap=st.floats(0, 1)),
    artifacts=st.none()
    | st.lists(
        st.builds(Artifact, name=names, uri=names, sha256=names, size_bytes=st.integers(0)), max_size=60
    ),
)


@given(report=reports, message=st.text(max_size=6000), hint=st.text(max_size=3000))
def test_a_termination_message_is_json_within_the_limit(
    tmp_path_factory: pytest.TempPathFactory, report: RunReport, message: str, hint: str
) -> None:
    file = tmp_path_factory.mktemp("pod") / "termination-log"
    failure = exits.failure(Reason.INTERNAL, message, hint)
    process.leave_message(report, failure, process.Surroundings(Path(), termination=file))
    text = file.read_bytes()
    assert len(text) <= TERMINATION_MESSAGE_LIMIT
    assert RunReport.model_validate_json(text).failure is not None


def test_success_leaves_a_termination_message_too(tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    report = RunReport(artifacts=[artifact("best")])
    process.leave_message(report, None, process.Surroundings(Path(), termination=file))
    assert RunReport.model_validate_json(file.read_text()) == report


@pytest.mark.parametrize(("code", "answer"), [(200, {"message": "<html>"}), (307, {})])
def test_an_answer_without_an_object_is_no_sign_that_the_owner_is_gone(
    code: int, answer: dict[str, Any]
) -> None:
    class Proxied(ApiServer):
        def _patch(self, path: str, body: str, timeout: float) -> Any:
            return code, {}, answer

    server = Proxied("10.0.0.1", 6443, Path("token"), Path("ca.crt"))
    owner = Owner(kind="PruneJob", namespace="default", name="p", uid="u-1")
    with pytest.raises(ApiServerError, match=f"HTTP {code}: expected the object") as caught:
        server.apply_status(owner, {}, 1)
    assert not isinstance(caught.value, OwnerGoneError)
