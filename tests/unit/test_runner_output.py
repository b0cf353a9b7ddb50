"""An output belongs to one run: its attempts go on, another run is refused before it does any work."""

from __future__ import annotations

import io
import json
import threading
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlt_api.failures import CLASSES, Reason
from tlt_api.runspec import RunSpec
from tlt_runner import files, process
from tlt_runner.errors import InterruptedRunError, RunnerError
from tlt_runner.storage import Storage
from tlt_runner.tasks.output import MARKER, claimed

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPECS: dict[str, dict[str, Any]] = {
    "TrainingJob": {
        "dataset": {
            "uri": "pvc://data/scenes",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
        }
    },
    "PruneJob": {"model": {"uri": "pvc://data/model.keras"}, "threshold": 0.5},
    "ExportJob": {"model": {"uri": "pvc://data/model.keras"}},
}
KINDS = sorted(SPECS)


def run_of(
    uid: str, *, kind: str = "TrainingJob", name: str = "cars", attempt: int = 1, overwrite: bool = False
) -> RunSpec:
    output = {"uri": "pvc://out/here", **({"overwrite": True} if overwrite else {})}
    return RunSpec.model_validate(
        {
            "owner": {"kind": kind, "namespace": "team", "name": name, "uid": uid},
            "attempt": attempt,
            "spec": {**SPECS[kind], "output": output},
        }
    )


class Room:
    """Claims with an output and a model in them."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "volumes" / "out" / "here"
        self.output.mkdir(parents=True)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.storage = Storage(scratch=self.scratch, volumes_root=folder / "volumes")

    def run(
        self,
        run: RunSpec,
        published: str | None = None,
        *,
        local: bool = False,
        chief: bool = True,
        existing: list[str] | None = None,
        cluster: str = "blue",
    ) -> None:
        """Claim the output; publish a file, if one is named."""
        with claimed(
            run,
            self.storage,
            self.scratch,
            local=local,
            chief=chief,
            existing=existing,
            cluster=cluster,
            now=NOON,
        ):
            if published:
                (self.output / published).write_bytes(f"of {run.owner.uid}".encode())

    def refusal(self, run: RunSpec, **options: Any) -> str:
        with pytest.raises(RunnerError) as refused:
            self.run(run, **options)
        assert refused.value.reason == Reason.OUTPUT_TAKEN
        return refused.value.message

    @property
    def marker(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads((self.output / MARKER).read_text())
        return body


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_of_another_run_is_refused_with_whose_it_is(room: Room, kind: str) -> None:
    room.run(run_of("first", attempt=2), "best.keras")
    assert room.refusal(run_of("second", kind=kind, name="other")) == (
        f"spec.output.uri: expected an output of {kind} team/other (uid second), got pvc://out/here with the "
        "files of TrainingJob team/cars (uid first, attempt 2, since 2026-01-01T12:00:00Z)"
    )
    assert (room.output / "best.keras").read_bytes() == b"of first"
    assert room.marker["uid"] == "first"


def test_a_resource_that_was_created_again_is_another_run(room: Room) -> None:
    room.run(run_of("first"), "best.keras")
    assert "uid first" in room.refusal(run_of("second"))


@pytest.mark.parametrize("kind", KINDS)
def test_later_attempts_of_the_same_run_go_on(room: Room, kind: str) -> None:
    room.run(run_of("first", kind=kind), "model.keras")
    for attempt in (2, 3):
        room.run(run_of("first", kind=kind, attempt=attempt))
        assert (room.marker["attempt"], room.marker["since"]) == (attempt, "2026-01-01T12:00:00Z")


def test_overwrite_takes_the_output_over_and_the_former_owner_is_refused(room: Room) -> None:
    room.run(run_of("first"), "best.keras")
    room.run(run_of("second", name="other", overwrite=True))
    assert room.marker["uid"] == "second"
    assert "TrainingJob team/other" in room.refusal(run_of("first", attempt=2))


def test_a_worker_that_publishes_nothing_looks_and_claims_nothing(room: Room) -> None:
    room.run(run_of("first"), chief=False)
    assert not (room.output / MARKER).exists()
    room.run(run_of("first"), "best.keras")
    assert "uid first" in room.refusal(run_of("second"), chief=False)


def test_of_pods_that_start_together_one_gets_the_output(room: Room) -> None:
    gate = threading.Barrier(8)
    winners: list[str] = []

    def start(uid: str) -> None:
        scratch = room.scratch / uid
        scratch.mkdir()
        gate.wait()
        with suppress(RunnerError), claimed(run_of(uid), room.storage, scratch, local=False):
            winners.append(uid)

    pods = [threading.Thread(target=start, args=(f"run-{number}",)) for number in range(8)]
    for pod in pods:
        pod.start()
    for pod in pods:
        pod.join()
    assert len(winners) == 1
    assert room.marker["uid"] == winners[0]


def test_a_file_system_without_links_has_one_winner_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert files.create(tmp_path / "file", b"one")
    assert not files.create(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def fail(room: Room, run: RunSpec, error: RunnerError, published: str | None = None) -> None:
    with suppress(RunnerError), claimed(run, room.storage, room.scratch, local=False):
        if published:
            (room.output / published).write_bytes(b"")
        raise error


def test_a_run_that_fails_for_good_with_nothing_published_gives_the_output_back(room: Room) -> None:
    fail(room, run_of("first"), RunnerError(Reason.NO_LABELS, "none"))
    room.run(run_of("second"), "best.keras")
    assert room.marker["uid"] == "second"


@pytest.mark.parametrize(
    ("error", "published"),
    [
        (RunnerError(Reason.NO_LABELS, "none"), "best.keras"),
        (RunnerError(Reason.OUT_OF_MEMORY, "all"), None),  # another attempt follows
        (InterruptedRunError("stopped"), None),
    ],
)
def test_a_run_that_may_go_on_or_has_published_keeps_the_output(
    room: Room, error: RunnerError, published: str | None
) -> None:
    fail(room, run_of("first"), error, published)
    assert "uid first" in room.refusal(run_of("second"))


@pytest.mark.parametrize("name", ["cars", "trucks"])
def test_the_claim_of_a_resource_that_no_longer_exists_and_left_nothing_is_taken_over(
    room: Room, name: str
) -> None:
    room.run(run_of("first"))  # killed before it published anything
    assert "uid first" in room.refusal(run_of("second", name=name), existing=["first", "third"])
    room.run(run_of("second", name=name), existing=["third"])
    assert (room.marker["uid"], room.marker["name"]) == ("second", name)
    # The former owner is refused in its turn, should it exist after all.
    assert "uid second" in room.refusal(run_of("first"))


@pytest.mark.parametrize(("owners", "mine"), [("blue", "green"), ("", "green"), ("blue", ""), ("", "")])
def test_the_claim_of_a_resource_that_may_exist_in_another_cluster_is_kept(
    room: Room, owners: str, mine: str
) -> None:
    room.run(run_of("first"), cluster=owners)
    assert "uid first" in room.refusal(run_of("second"), existing=[], cluster=mine)


@pytest.mark.parametrize("published", ["checkpoint.json", "best.keras", "model.keras"])
def test_the_files_of_a_resource_that_no_longer_exists_are_kept(room: Room, published: str) -> None:
    room.run(run_of("first"), published)
    message = room.refusal(run_of("second"), existing=[])
    assert message.endswith("since 2026-01-01T12:00:00Z), a former resource of this name")
    assert (room.output / published).read_bytes() == b"of first"
    assert room.marker["uid"] == "first"


def test_the_claims_of_other_namespaces_and_of_local_runs_are_kept(room: Room) -> None:
    room.run(run_of("first"), local=True)
    assert "uid first" in room.refusal(run_of("second"), existing=[])
    (room.output / MARKER).unlink()
    room.run(run_of("first"))
    text = (room.output / MARKER).read_text().replace('"team"', '"others"')
    (room.output / MARKER).write_text(text)
    assert "others/cars" in room.refusal(run_of("second"), existing=[])


def test_a_local_run_replaces_the_files_of_its_own_manifest_and_of_no_other(room: Room) -> None:
    room.run(run_of("first"), "best.keras", local=True)
    room.run(run_of("second"), local=True)
    assert room.marker["uid"] == "second"
    assert "uid second" in room.refusal(run_of("third", name="other"), local=True)


def test_a_local_run_does_not_replace_the_files_of_a_cluster(room: Room) -> None:
    room.run(run_of("first"), "best.keras")
    assert "uid first" in room.refusal(run_of("second"), local=True)


def test_an_output_of_an_earlier_release_belongs_to_the_run_of_its_checkpoints(room: Room) -> None:
    (room.output / "checkpoint.json").write_text(json.dumps({"position": {"run": "first"}}))
    start = {"event": "start", "run": "first", "kind": "TrainingJob", "namespace": "team", "name": "old"}
    (room.output / "log.jsonl").write_text(
        json.dumps({**start, "attempt": 3, "time": "2025-12-31T00:00:00Z"})
    )
    message = room.refusal(run_of("second"))
    assert "TrainingJob team/old (uid first, attempt 3, since 2025-12-31T00:00:00Z)" in message
    room.run(run_of("first", attempt=4))
    assert room.marker["uid"] == "first"


def test_the_state_file_of_a_still_earlier_release_says_whose_it_is(room: Room) -> None:
    stream = io.BytesIO()
    np.savez(stream, position=np.frombuffer(json.dumps({"run": "first"}).encode(), np.uint8))
    (room.output / "last.state.npz").write_bytes(stream.getvalue())
    assert "got pvc://out/here with the files of a run (uid first)" in room.refusal(run_of("second"))
    room.run(run_of("first", attempt=2))


@pytest.mark.parametrize("name", ["model.keras", "model-fp16.onnx", "best.keras"])
def test_files_of_nobody_are_those_of_an_earlier_attempt_or_of_another_run(room: Room, name: str) -> None:
    (room.output / name).write_bytes(b"")
    assert "earlier release that did not leave its name" in room.refusal(run_of("first", kind="PruneJob"))
    # Attempt 1 had an earlier release of the runner.
    room.run(run_of("first", kind="PruneJob", attempt=2))


def test_logs_and_reports_alone_are_no_files_of_another_run(room: Room) -> None:
    (room.output / "log.jsonl").write_text("{}\n")
    (room.output / "dataset-report.html").write_text("")
    room.run(run_of("first"))


def test_a_damaged_marker_is_neither_ours_nor_free(room: Room) -> None:
    (room.output / MARKER).write_text("{")
    with pytest.raises(RunnerError, match=r"tlt-owner.json: expected the JSON") as refused:
        room.run(run_of("first"))
    assert CLASSES[refused.value.reason].retryable


def test_a_refused_run_ends_with_the_exit_code_of_output_taken(room: Room, tmp_path: Path) -> None:
    room.run(run_of("first"), "best.keras")
    (tmp_path / "volumes" / "data").mkdir()
    (tmp_path / "volumes" / "data" / "model.keras").write_bytes(b"")
    run = run_of("second", kind="PruneJob", name="small")
    model = {"uri": "pvc://data/model.keras"}
    spec = tmp_path / "run.json"
    spec.write_text(json.dumps({**run.to_wire(), "inputs": {"model": model}}))
    termination = tmp_path / "termination.json"
    around = process.Surroundings(tmp_path / "volumes", None, termination)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(process.StopSignals, "listen", lambda self: None)
        patch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} is imported"))
        assert process.execute("prune", spec, around) == 43
    failure = json.loads(termination.read_text())["failure"]
    assert failure["reason"] == "OutputTaken"
    assert "TrainingJob team/cars (uid first" in failure["message"]
    assert "spec.output.overwrite" in failure["hint"]
