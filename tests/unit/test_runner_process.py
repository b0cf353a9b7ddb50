"""Runs in processes of their own: exit code, termination message and report agree, whatever happens."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from forked import Forked
from tlt_api.failures import Reason
from tlt_api.status import Metrics, Progress
from tlt_runner import process
from tlt_runner.errors import RunnerError

SPEC = {
    "owner": {"kind": "PruneJob", "namespace": "default", "name": "p", "uid": "u-1"},
    "attempt": 1,
    "spec": {
        "model": {"uri": "pvc://data/model.keras"},
        "threshold": 0.5,
        "output": {"uri": "pvc://data/out"},
    },
}
STOPPABLE = """
context.reporter.progress(Progress(stage="prune", step=1))
print("ready", flush=True)
while not context.stop.requested(): time.sleep(0.05)
raise RunnerError(Reason.INTERRUPTED, "checkpoint of epoch 3 is written")
"""


def main(arguments: list[str]) -> int:
    """Execute a run in a folder, whose task is the Python of ``task.py`` there."""
    folder = Path(arguments[0])
    names = {"Metrics": Metrics, "Progress": Progress, "Reason": Reason, "RunnerError": RunnerError}
    code = compile((folder / "task.py").read_text(), "task.py", "exec")

    def task(spec: Any, run: Any, context: Any) -> None:
        exec(code, {**names, "Path": Path, "time": time, "sys": sys, "run": run, "context": context})

    surroundings = process.Surroundings(folder, folder / "report.json", folder / "termination.json")
    return process.execute("prune", folder / "run.json", surroundings, load=lambda command: task)


class Run:
    """A run in a process of its own whose task is a few lines of Python."""

    def __init__(self, folder: Path, body: str, spec: Any = SPEC) -> None:
        self.folder = folder
        (folder / "run.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
        (folder / "task.py").write_text(textwrap.dedent(body))
        self.process = Forked(f"{__name__}:main", [str(folder)], folder / "stdout", errors=folder / "stderr")

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, termination message, standard error."""
        code = self.process.wait(60)
        message = json.loads((self.folder / "termination.json").read_text())
        return code, message, (self.folder / "stderr").read_text()

    def until_ready(self, times: int = 1) -> None:
        """Wait until the task has printed "ready" so many times."""
        output = self.folder / "stdout"
        deadline = time.monotonic() + 60
        while not output.exists() or output.read_text().count("ready\n") < times:
            assert self.process.poll() is None, "it has ended"
            assert time.monotonic() < deadline, "it is not ready after 60 s"
            time.sleep(0.01)


def test_a_successful_run_leaves_report_and_termination_message(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        """
        context.reporter.report(Metrics(m_ap=0.9))
        context.reporter.progress(Progress(stage="prune", step=1))
        context.reporter.progress(Progress(stage="prune", step=2))
        (context.scratch / "file").write_text("x")
        """,
    )
    code, message, _ = run.end()
    assert code == 0
    assert "failure" not in message
    assert message["metrics"] == {"mAP": 0.9}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["progress"]["step"] == 2


def test_a_run_promises_to_report_before_it_does_anything_that_can_hang(tmp_path: Path) -> None:
    body = """
    progress = context.reporter.snapshot().progress
    print(progress.stage, progress.step, 3600 <= progress.next_within_seconds, flush=True)
    """
    assert Run(tmp_path, body).end()[0] == 0
    assert "None None True" in (tmp_path / "stdout").read_text()


@pytest.mark.parametrize(
    ("body", "reason", "code"),
    [
        ("raise RunnerError(Reason.NOTHING_TO_PRUNE, 'all filters are above 0.5')", "NothingToPrune", 28),
        ("raise MemoryError", "OutOfMemory", 12),
        ("raise OSError(28, 'No space left on device')", "StorageFull", 42),
        ("raise KeyboardInterrupt", "Interrupted", 75),
        ("sys.exit(0)", "Internal", 70),
        ("{}['x']", "Internal", 70),
        ("context.storage.fetch(run.inputs.model.uri)", "Internal", 70),
    ],
)
def test_each_kind_of_failure_has_its_exit_code_and_message(
    tmp_path: Path, body: str, reason: str, code: int
) -> None:
    got, message, error = Run(tmp_path, f"context.reporter.report(Metrics(m_ap=0.9))\n{body}").end()
    assert (got, message["failure"]["reason"]) == (code, reason)
    assert message["failure"]["exitCode"] == code
    assert message["metrics"] == {"mAP": 0.9}
    assert ("Traceback" in error) == (reason == "Internal")
    assert error.splitlines()[-2].startswith(f"tlt prune: {reason}: ")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("no json", "run.json: "),
        ({**SPEC, "attempt": "x"}, "runSpec.attempt: "),
        ({**SPEC, "spec": {**SPEC["spec"], "threshold": -1}}, "threshold: "),  # type: ignore[dict-item]
        ({**SPEC, "owner": {**SPEC["owner"], "kind": "ExportJob"}}, "got one of a ExportJob"),  # type: ignore[dict-item]
    ],
)
def test_a_wrong_run_spec_names_the_field(tmp_path: Path, spec: Any, expected: str) -> None:
    code, message, error = Run(tmp_path, "pass", spec).end()
    assert (code, message["failure"]["reason"]) == (2, Reason.INVALID_SPEC)
    assert expected in message["failure"]["message"]
    assert "Traceback" not in error


def test_a_run_spec_of_another_kind_is_refused(tmp_path: Path) -> None:
    export = {"model": {"uri": "pvc://data/m.keras"}, "output": {"uri": "pvc://data/out"}}
    owner = {**SPEC["owner"], "kind": "ExportJob"}  # type: ignore[dict-item]
    code, message, _ = Run(tmp_path, "pass", {**SPEC, "owner": owner, "spec": export}).end()
    assert code == 2
    assert "expected the RunSpec of a PruneJob" in message["failure"]["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_task_end_by_itself(tmp_path: Path, number: signal.Signals) -> None:
    run = Run(tmp_path, STOPPABLE)
    run.until_ready()
    run.process.send_signal(number)
    code, message, _ = run.end()
    assert code == 75
    assert message["failure"]["message"] == "checkpoint of epoch 3 is written"


def test_a_library_that_takes_the_signal_does_not_get_it(tmp_path: Path) -> None:
    run = Run(tmp_path, "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n" + STOPPABLE)
    run.until_ready()
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 75


def test_signals_are_blocked_before_any_library_starts_threads() -> None:
    code = "import sys; from tlt_runner import cli, process; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_second_signal_ends_a_task_that_ignores_the_first(tmp_path: Path) -> None:
    body = """
    context.reporter.report(Metrics(m_ap=0.9))
    print("ready", flush=True)
    while not context.stop.requested(): time.sleep(0.05)
    print("ready", flush=True)
    while True: time.sleep(0.05)
    """
    run = Run(tmp_path, body)
    for times in (1, 2):
        run.until_ready(times)
        run.process.send_signal(signal.SIGTERM)
    code, message, _ = run.end()
    assert (code, message["failure"]["reason"]) == (75, "Interrupted")
    assert message["metrics"] == {"mAP": 0.9}


def test_the_scratch_folder_is_gone_afterwards(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        "(context.scratch / 'x').write_text('x'); Path(sys.argv[1], 'at').write_text(str(context.scratch))",
    )
    assert run.end()[0] == 0
    assert not Path((tmp_path / "at").read_text()).exists()


@pytest.mark.parametrize("path", ["//etc/x", "/../x", "/a/./x"])
def test_a_run_spec_of_an_older_operator_whose_address_leaves_its_claim_is_refused(
    tmp_path: Path, path: str
) -> None:
    output = {"output": {"uri": f"pvc://data{path}"}}
    run = Run(tmp_path, "raise AssertionError", {**SPEC, "spec": {**SPEC["spec"], **output}})
    code, message, error = run.end()
    assert (code, message["failure"]["reason"]) == (2, "InvalidSpec")
    assert "runSpec.output.uri: expected an address without empty" in message["failure"]["message"]
    assert f"got 'pvc://data{path}'" in message["failure"]["message"]
    assert "Traceback" not in error
