"""Checkpoints of a training: what an attempt finds after a kill at any point, what is kept and removed."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lazy import Lazy
from tlt_api.failures import CLASSES, Reason
from tlt_api.model import Anchors
from tlt_api.runspec import Owner
from tlt_api.status import Artifact, Metrics
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.errors import RunnerError
from tlt_runner.files import sha256_of
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage, StoredFile

if TYPE_CHECKING:
    from tlt_runner.training.checkpoint.manifest import Manifest
    from tlt_runner.training.checkpoint.state import Position

artifacts = Lazy("tlt_runner.training.checkpoint.artifacts")
manifests = Lazy("tlt_runner.training.checkpoint.manifest")
writing = Lazy("tlt_runner.training.checkpoint.writer")
state = Lazy("tlt_runner.training.checkpoint.state")
OWNER = Owner(kind="TrainingJob", namespace="default", name="tiny", uid="one")
BEFORE, NOW = Metrics(m_ap=0.25, epoch=1), Metrics(m_ap=0.5, epoch=2)
OLD_OUTPUT = Path(__file__).parents[1] / "fixtures/output-2026-11"


class Killed(BaseException):
    """The end of an attempt without warning."""


class Fetching(Storage):
    """A storage that remembers which files were read, and that a test can kill at a write."""

    def __init__(self, *, scratch: Path) -> None:
        super().__init__(scratch=scratch)
        self.fetched: list[str] = []
        self.writes = 0
        self.killed_at, self.write_is_done = -1, False

    def fetch(self, uri: str, sha256: str | None = None) -> Path:
        self.fetched.append(uri.rpartition("/")[2])
        return super().fetch(uri, sha256)

    def publish(self, local: Path, uri: str) -> StoredFile:
        done: list[StoredFile] = []
        self._write(lambda: done.append(super(Fetching, self).publish(local, uri)))
        return done[0]

    def remove(self, uri: str, names: Any) -> None:
        self._write(lambda: super(Fetching, self).remove(uri, names))

    def _write(self, write: Callable[[], None]) -> None:
        killed = self.writes == self.killed_at
        self.writes += 1
        if not killed or self.write_is_done:
            write()
        if killed:
            raise Killed


class Variable:
    """Part of a Keras variable that checkpoints use."""

    shape: tuple[int, ...] = (2, 2)

    def __init__(self) -> None:
        self.value = np.zeros((2, 2), np.float32)

    def assign(self, value: np.ndarray) -> None:
        self.value = value

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self.value


class Room:
    """An output folder, and one attempt's checkpoints and status."""

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self.folder, self.output, self.scratch = folder, folder / "out", folder / "scratch"
        self.output.mkdir(exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        self.reporter = LocalReporter(None)
        self.storage = Fetching(scratch=self.scratch)
        self.context = Context(self.storage, self.reporter, self.scratch, Stop())
        self.checkpoints = artifacts.Checkpoints(self.context, f"file://{self.output}", OWNER)
        self.variable = Variable()
        model: Any = SimpleNamespace(variable=self.variable)
        self.writer = writing.CheckpointWriter(self.context, self.checkpoints, model, [self.variable], keep)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """Artifacts of the status by name."""
        return {item.name: item for item in self.reporter.snapshot().artifacts or ()}

    @property
    def listed(self) -> dict[str, int | None]:
        """Artifacts of the status, with their epochs."""
        return {name: item.epoch for name, item in self.artifacts.items()}

    @property
    def manifest(self) -> Manifest:
        """The manifest in the output folder."""
        return manifests.Manifest.model_validate_json((self.output / "checkpoint.json").read_text())

    @property
    def files(self) -> set[str]:
        """All files of the output folder."""
        return {str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file()}

    def model(self, name: str, epoch: int, evaluation: Metrics | None = None, run: str = "one") -> Artifact:
        """A model file of the layout of before 2026-12."""
        path = self.output / f"{name}.keras"
        with zipfile.ZipFile(path, "w") as file:
            origin = writing.Origin(run=run, job="default/tiny", epoch=epoch, evaluation=evaluation)
            file.writestr(writing.ENTRY, origin.model_dump_json(by_alias=True))
        return Artifact(
            name=name,
            uri=f"file://{path}",
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
            epoch=epoch,
        )

    def state(self, **position: object) -> None:
        """A state file of the layout of before 2026-12."""
        at = state.Position.model_validate({"run": "one", "batch_size": 4, **position})
        state.write(self.output / "last.state.npz", at, [np.ones((2, 2), np.float32)])

    def recalled(self) -> Position:
        """The position that an attempt resumes from."""
        saved = self.checkpoints.recall()
        assert saved is not None
        return saved.position

    def resume(self, **start: Any) -> Position:
        """Begin an attempt as the train task does."""
        saved = self.checkpoints.recall()
        position = self.writer.resume(
            saved, state.Position.model_validate({"run": "one", "batch_size": 4, **start})
        )
        self.checkpoints.repair()
        return position

    def finish(self, position: Position, m_ap: float | None = None, *, is_last: bool = True) -> Position:
        """Take the steps of an epoch, evaluate it where a score is given, and record its end."""
        epoch = position.epoch + 1 if position.epoch_finished else position.epoch
        position = position.model_copy(update={"epoch": epoch, "step": 0, "epoch_finished": False})
        self.variable.assign(np.full((2, 2), epoch, np.float32))
        metrics, is_best = None, False
        if m_ap is not None:
            self.writer.save_state(position)
            self.writer.finish()
            metrics = Metrics(m_ap=m_ap, epoch=epoch)
            is_best = position.best is None or m_ap > (position.best.m_ap or 0)
            position = position.model_copy(update={"best": metrics} if is_best else {})
        position = position.model_copy(update={"epoch_finished": True})
        self.writer.save_epoch(position, metrics, is_best=is_best, is_last=is_last)
        self.writer.finish()
        return position


def _save(model: Any, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo("weights", (1980, 1, 1, 0, 0, 0)), model.variable.value.tobytes())


@pytest.fixture(autouse=True)
def models_without_tensorflow_and_files_without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.detector, "save", _save)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


SCORES = {1: 0.25, 2: 0.5, 3: 0.4}
STOPPED = (3, 2)
"""The attempt is stopped after epoch 3 and step 2 of the next."""


def _train(room: Room) -> None:
    """An attempt that trains three epochs, keeps one checkpoint, and is stopped in the fourth epoch."""
    position = room.resume()
    while (position.epoch, position.epoch_finished) < (3, True):
        epoch = position.epoch + 1 if position.epoch_finished else position.epoch
        position = room.finish(position, SCORES[epoch])
    room.variable.assign(np.full((2, 2), 3.5, np.float32))
    room.writer.save_state(position.model_copy(update={"step": STOPPED[1]}))
    room.writer.finish()


def _assert_consistent(room: Room, position: Position) -> None:
    """Position, variables, status and files tell of the same checkpoints."""
    if position.epoch:
        assert room.variable.value[0, 0] == position.epoch + (0.5 if position.step else 0)
    assert (position.best is not None) == ("best" in room.artifacts)
    assert room.reporter.snapshot().metrics == position.best
    for name, artifact in room.artifacts.items():
        path = Path(artifact.uri.removeprefix("file://"))
        assert sha256_of(path) == sha256_of(room.output / f"{name}.keras") == artifact.sha256
        origin = writing.origin_of(path)
        assert origin is not None
        assert origin.epoch == artifact.epoch
        if name == "best":
            assert origin.evaluation == position.best


def _count_writes(folder: Path, before: Path | None) -> int:
    folder.mkdir()
    if before is not None:
        shutil.copytree(before, folder / "out")
    room = Room(folder, keep=1)
    _train(room)
    return room.storage.writes


def _old_output_of_one_epoch(folder: Path) -> Path:
    """An output of before 2026-12 with one finished epoch."""
    room = Room(folder)
    made = [room.model("best", 1, BEFORE), room.model("last", 1), room.model("epoch-0001", 1)]
    room.state(epoch=1, best=BEFORE, artifacts=made)
    return room.output


@pytest.mark.parametrize("old", [False, True], ids=["new", "of before 2026-12"])
@pytest.mark.parametrize("write_is_done", [False, True], ids=["before a write", "after a write"])
def test_an_attempt_that_is_killed_at_any_write_leaves_consistent_checkpoints(
    tmp_path: Path, write_is_done: bool, old: bool
) -> None:
    (tmp_path / "old").mkdir()
    before = _old_output_of_one_epoch(tmp_path / "old") if old else None
    count = _count_writes(tmp_path / "counted", before)
    assert count > 15
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        if before is not None:
            shutil.copytree(before, folder / "out")
        killed = Room(folder, keep=1)
        killed.storage.killed_at, killed.storage.write_is_done = number, write_is_done
        with pytest.raises(Killed):
            _train(killed)
        resumed = Room(folder, keep=1)
        _assert_consistent(resumed, resumed.resume())
        finishing = Room(folder, keep=1)
        _train(finishing)
        end = Room(folder, keep=1)
        position = end.resume()
        _assert_consistent(end, position)
        assert (position.epoch, position.step, position.best) == (*STOPPED, NOW)
        assert end.listed == {"best": 2, "last": 3, "epoch-0003": 3}
        # Nothing else is left of either attempt.
        names = {"checkpoint.json", "best.keras", "last.keras", "epoch-0003.keras"}
        assert end.files == names | end.manifest.paths()


def test_an_evaluation_that_was_recorded_is_not_repeated_after_a_kill(tmp_path: Path) -> None:
    killed = Room(tmp_path)
    position = killed.finish(killed.resume(), 0.25)
    # Before the evaluation: state, manifest, removal of the earlier state. After it: model, manifest, copies.
    killed.storage.killed_at = killed.storage.writes + 5
    with pytest.raises(Killed):
        killed.finish(position, 0.5)
    position = Room(tmp_path).resume()
    assert (position.epoch, position.epoch_finished, position.best) == (2, True, NOW)


def test_an_epoch_that_is_still_to_be_evaluated_has_an_entry_without_metrics(room: Room) -> None:
    position = room.finish(room.resume(), 0.25)
    room.writer.save_state(position.model_copy(update={"epoch": 2, "epoch_finished": False}))
    room.writer.finish()
    entries = {item.epoch: item for item in room.manifest.checkpoints}
    assert entries[1].metrics == BEFORE
    assert (entries[2].metrics, entries[2].model) == (None, None)
    assert room.manifest.resume == entries[2].name
    assert room.manifest.best == room.manifest.last == entries[1].name


def test_the_files_of_a_checkpoint_are_never_changed(room: Room) -> None:
    position, content = room.resume(), dict[str, bytes]()
    for m_ap in (0.1, 0.2, 0.3):
        position = room.finish(position, m_ap)
        for name in room.files - {"checkpoint.json", "best.keras", "last.keras"}:
            assert (
                content.setdefault(name, (room.output / name).read_bytes())
                == (room.output / name).read_bytes()
            )
    assert len(content) == 6  # three states and three models


def test_only_models_with_a_name_are_kept_after_a_checkpoint_without_a_better_model(room: Room) -> None:
    position = room.finish(room.resume(), 0.5)
    room.finish(position, 0.25, is_last=False)
    epochs = {item.epoch: item for item in room.manifest.checkpoints}
    assert (epochs[1].state, epochs[2].model) == (None, None)
    assert room.listed == {"best": 1, "last": 1}
    assert room.manifest.paths() <= room.files


def test_copies_under_the_names_of_models_are_made_again(room: Room, tmp_path: Path) -> None:
    position = room.finish(room.resume(), 0.5)
    room.finish(position, 0.25)
    before = {name: (room.output / f"{name}.keras").read_bytes() for name in ("best", "last")}
    (room.output / "best.keras").unlink()
    room.model("last", 9, run="two")
    again = Room(tmp_path)
    assert again.resume().epoch_finished
    assert again.reporter.snapshot().metrics == Metrics(m_ap=0.5, epoch=1)
    assert {name: (room.output / f"{name}.keras").read_bytes() for name in before} == before


@pytest.mark.parametrize("lost", ["best", "last"])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_model_whose_file_is_lost_is_replaced_by_that_of_the_last_epoch(
    room: Room, tmp_path: Path, lost: str, foreign: bool
) -> None:
    room.finish(room.finish(room.resume(), 0.5), 0.25)
    path = Path(room.artifacts[lost].uri.removeprefix("file://"))
    path.write_bytes(b"another") if foreign else path.unlink()
    again = Room(tmp_path)
    position = again.resume()
    assert not position.epoch_finished
    assert position.best == (None if lost == "best" else Metrics(m_ap=0.5, epoch=1))
    assert set(again.listed) == {"best", "last"} - {lost}
    again.finish(position, 0.25)
    assert again.listed == {"best": 2 if lost == "best" else 1, "last": 2}


def test_a_manifest_of_another_run_is_not_resumed_and_its_checkpoints_are_replaced(
    room: Room, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room.finish(room.resume(), 0.5)
    theirs = room.manifest.paths()
    wire = json.loads((room.output / "checkpoint.json").read_text())
    wire["position"]["run"] = "two"
    (room.output / "checkpoint.json").write_text(json.dumps(wire))
    again = Room(tmp_path)
    assert again.checkpoints.recall() is None
    assert theirs <= again.files
    again.finish(state.Position(run="one", batch_size=4, data="sha256:b"), 0.25)
    assert again.files & (theirs - again.manifest.paths()) == set()
    assert any(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("damage", ["manifest", "state", "no state", "no entry"])
def test_a_damaged_manifest_or_a_lost_state_starts_the_training_over(
    room: Room, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    room.finish(room.resume(), 0.5)
    file = room.output / "checkpoint.json"
    if damage == "manifest":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "no entry":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"resume": "epoch-0009"}))
    else:
        (state_file,) = room.output.glob("checkpoints/*/state.npz")
        _cut(state_file) if damage == "state" else state_file.unlink()
    again = Room(tmp_path)
    # None already here, before a model is built for the saved position.
    assert again.checkpoints.recall() is None
    start = again.resume()
    assert (start.epoch, again.listed, again.variable.value.sum()) == (0, {}, 0)
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_a_storage_that_cannot_be_read_now_does_not_start_the_training_over(
    room: Room, tmp_path: Path
) -> None:
    room.finish(room.resume(), 0.5)
    again = Room(tmp_path)

    def away(uri: str, sha256: str | None = None) -> Path:
        raise RunnerError(Reason.STORAGE_UNAVAILABLE, "no route to it")

    again.storage.fetch = away  # type: ignore[method-assign]
    with pytest.raises(RunnerError) as caught:
        again.checkpoints.recall()
    assert caught.value.reason == Reason.STORAGE_UNAVAILABLE


def test_a_worker_that_does_not_publish_resumes_and_writes_nothing(room: Room, tmp_path: Path) -> None:
    room.finish(room.resume(), 0.5)
    before = {name: (room.output / name).read_bytes() for name in room.files}
    other = Room(tmp_path)
    model: Any = SimpleNamespace(variable=other.variable)
    other.writer = writing.CheckpointWriter(
        other.context, other.checkpoints, model, [other.variable], 0, publishes=False
    )
    position = other.writer.resume(other.checkpoints.recall(), state.Position(run="one", batch_size=4))
    other.finish(position, 0.75)
    assert {name: (room.output / name).read_bytes() for name in room.files} == before


def test_an_output_of_before_2026_12_is_resumed_and_reported(tmp_path: Path) -> None:
    shutil.copytree(OLD_OUTPUT, tmp_path / "out")
    room = Room(tmp_path)
    position = room.resume(data="sha256:a", anchors={"scales": [16]}, class_names=["cat"])
    assert (position.epoch, position.step, position.loss_sum, position.epoch_finished) == (2, 3, 4.5, True)
    assert (position.best, position.reached, position.stale) == (BEFORE, 0.25, 1)
    np.testing.assert_array_equal(room.variable.value, [[0, 1], [2, 3]])
    assert room.listed == {"best": 1, "last": 2, "epoch-0001": 1, "epoch-0002": 2}
    for name, artifact in room.artifacts.items():
        assert artifact.uri == f"file://{room.output}/{name}.keras"
        assert artifact.sha256 == sha256_of(room.output / f"{name}.keras")
    assert room.reporter.snapshot().metrics == BEFORE


def test_checkpoints_after_an_output_of_before_2026_12_replace_its_files_one_by_one(tmp_path: Path) -> None:
    shutil.copytree(OLD_OUTPUT, tmp_path / "out")
    room = Room(tmp_path, keep=2)
    position = room.resume(data="sha256:a", anchors={"scales": [16]}, class_names=["cat"])
    best = (room.output / "best.keras").read_bytes()
    position = room.finish(position, 0.125)
    assert room.listed == {"best": 1, "last": 3, "epoch-0002": 2, "epoch-0003": 3}
    assert (room.output / "best.keras").read_bytes() == best
    names = {"checkpoint.json", "best.keras", "last.keras", "epoch-0002.keras", "epoch-0003.keras"}
    assert room.files == names | room.manifest.paths()
    room.finish(position, 0.75)
    again = Room(tmp_path, keep=2)
    again.resume(data="sha256:a", anchors={"scales": [16]}, class_names=["cat"])
    assert again.listed == room.listed == {"best": 4, "last": 4, "epoch-0003": 3, "epoch-0004": 4}
    assert (room.output / "best.keras").read_bytes() != best


def test_models_of_an_earlier_attempt_are_reported_again(room: Room) -> None:
    made = [room.model("best", 1, BEFORE), room.model("last", 2), room.model("epoch-0002", 2)]
    room.state(epoch=2, best=BEFORE, artifacts=made)
    assert room.recalled().best == BEFORE
    assert room.reporter.snapshot().artifacts == made
    assert room.reporter.snapshot().metrics == BEFORE


def test_an_old_best_model_published_just_before_a_kill_is_made_again_by_an_evaluation(room: Room) -> None:
    old = room.model("best", 1, BEFORE)
    room.state(epoch=2, epoch_finished=False, best=BEFORE, artifacts=[old])
    room.model("best", 2, NOW)
    position = room.resume()
    assert (position.best, position.epoch_finished) == (None, False)
    assert room.finish(position, 0.5).best == NOW
    assert room.reporter.snapshot().metrics == NOW
    assert room.listed == {"best": 2, "last": 2}


@pytest.mark.parametrize(
    ("finished", "change"),
    [
        (False, {"run": "two", "epoch": 2}),
        (False, {"epoch": 3}),
        (False, {"epoch": 1}),
        (True, {"epoch": 2}),
    ],
    ids=["of another run", "of a later epoch", "of an earlier epoch", "of an epoch that was finished"],
)
def test_another_best_model_than_the_recorded_one_is_not_trusted(
    room: Room, finished: bool, change: dict[str, object]
) -> None:
    old = room.model("best", 1, BEFORE)
    room.state(epoch=2, epoch_finished=finished, best=BEFORE, artifacts=[old])
    room.model("best", evaluation=NOW, **change)  # type: ignore[arg-type]
    assert room.recalled().best is None
    assert room.listed == {}
    assert room.reporter.snapshot().metrics is None


def test_a_file_that_is_gone_is_not_reported(room: Room) -> None:
    made = [room.model("best", 1, BEFORE), room.model("epoch-0001", 1)]
    room.state(epoch=2, best=BEFORE, artifacts=made)
    (room.output / "epoch-0001.keras").unlink()
    assert room.recalled().best == BEFORE
    assert room.listed == {"best": 1}


@pytest.mark.parametrize("lost", ["best", "last"])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_finished_training_without_best_or_last_finishes_its_last_epoch_again(
    room: Room, lost: str, foreign: bool
) -> None:
    made = [room.model("best", 1, BEFORE), room.model("last", 2)]
    room.state(epoch=2, best=BEFORE, artifacts=made)
    if foreign:
        room.model(lost, 2, NOW, run="two")
    else:
        (room.output / f"{lost}.keras").unlink()
    position = room.recalled()
    assert not position.epoch_finished
    assert position.best == (None if lost == "best" else BEFORE)
    assert set(room.listed) == {"best", "last"} - {lost}


def test_a_lost_best_model_does_not_finish_an_epoch_again_once_the_next_has_begun(room: Room) -> None:
    room.state(epoch=2, step=3, best=BEFORE, artifacts=[room.model("best", 1, BEFORE)])
    (room.output / "best.keras").unlink()
    position = room.recalled()
    assert (position.best, position.epoch_finished, position.step) == (None, True, 3)


def test_resuming_fetches_no_model_to_compare_it(room: Room, tmp_path: Path) -> None:
    room.finish(room.finish(room.resume(), 0.5), 0.25)
    again = Room(tmp_path)
    again.resume()
    assert again.storage.fetched == ["checkpoint.json", "state.npz"]


def test_a_training_that_starts_over_takes_back_what_it_reported(room: Room) -> None:
    room.state(epoch=2, best=BEFORE, anchors={"scales": [8]}, artifacts=[room.model("best", 1, BEFORE)])
    saved = room.checkpoints.recall()
    assert room.listed == {"best": 1}
    start = state.Position(run="one", batch_size=4, anchors=Anchors(scales=[16]))
    assert room.writer.resume(saved, start) == start
    assert room.listed == {}
    assert room.reporter.snapshot().metrics == Metrics()
    assert room.checkpoints.manifest is None
    assert (room.output / "best.keras").exists()


def test_the_newest_checkpoints_stay_and_those_of_others_too(tmp_path: Path) -> None:
    room = Room(tmp_path, keep=2)
    room.model("epoch-0001", 1, run="two")
    position = room.resume()
    for epoch in range(1, 9):
        position = room.finish(position, is_last=epoch % 2 == 0)
    assert room.listed == {"last": 8, "epoch-0006": 6, "epoch-0008": 8}
    models = {path.stem for path in room.output.glob("*.keras")}
    assert models == {"last", "epoch-0001", "epoch-0006", "epoch-0008"}
    assert {item.epoch for item in room.manifest.checkpoints} == {6, 8}


def test_checkpoints_of_an_earlier_attempt_count(tmp_path: Path) -> None:
    first = Room(tmp_path, keep=2)
    first.finish(first.finish(first.resume()))
    second = Room(tmp_path, keep=2)
    second.finish(second.resume())
    assert second.listed == {"last": 3, "epoch-0002": 2, "epoch-0003": 3}
    assert not (second.output / "epoch-0001.keras").exists()


def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room(tmp_path, keep=1)
    position = room.finish(room.resume())
    (room.output / "epoch-0001.keras").unlink()
    (room.output / "epoch-0001.keras" / "in the way").mkdir(parents=True)
    room.finish(position)
    assert room.listed == {"last": 2, "epoch-0002": 2}
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(np.ones(1, np.float32).tobytes())] ^= 1
    path.write_bytes(data)


def _other_compression(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 10] ^= 64
    path.write_bytes(data)


def _impossible_offset(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x05\x06") + 19] ^= 1  # 16 MiB more before the directory than there are
    path.write_bytes(data)


def _another_value(path: Path) -> None:
    """A valid zip with other content: only the digest shows the damage."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["00000"][0, 0] += 1
    np.savez(path, **arrays)


@pytest.mark.parametrize("damage", [_cut, _flip, _other_compression, _impossible_offset, _another_value])
def test_a_damaged_state_is_detected_before_a_model_is_built_for_it(
    room: Room, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    room.state(epoch=2)
    damage(room.output / "last.state.npz")
    assert state.find(room.storage, f"file://{room.output}/last.state.npz", "one") is None
    assert any(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    ("at", "after"),
    [
        ({"epoch": 2, "step": 3, "loss_sum": 4.5}, {"epoch": 2, "epoch_finished": True}),
        ({"epoch": 2}, {"epoch": 2, "epoch_finished": False}),
        ({"epoch": 2, "epoch_finished": False}, {"epoch": 2, "epoch_finished": False}),
        ({}, {"epoch": 0, "epoch_finished": True}),
    ],
    ids=["within an epoch", "after an epoch", "before its evaluation", "at the start"],
)
def test_steps_and_scores_are_discarded_when_the_dataset_changed(
    room: Room, at: dict[str, object], after: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    room.state(**at, data="sha256:a", best=BEFORE, reached=0.25, stale=1)
    saved = state.find(room.storage, f"file://{room.output}/last.state.npz", "one")
    assert saved is not None
    variable, start = Variable(), state.Position(run="one", batch_size=4, data="sha256:b")
    position = state.resume(saved, start, [variable])
    assert position == start.model_copy(update=after)
    assert variable.value.sum() == 4
    assert any("dataset changed" in record.getMessage() for record in caplog.records)


def test_steps_and_scores_are_kept_for_the_same_dataset(room: Room) -> None:
    room.state(epoch=2, step=3, loss_sum=4.5, data="sha256:a", reached=0.25, stale=1)
    saved = room.checkpoints.recall()
    assert saved is not None
    start = state.Position(run="one", batch_size=4, data="sha256:a")
    assert state.resume(saved, start, [Variable()]) == saved.position


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_storage_error_is_not_taken_for_a_damaged_state(
    room: Room, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.state(epoch=90)
    state_file = room.output / "last.state.npz"
    saved = room.checkpoints.recall()
    assert saved is not None

    def stale(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(state_file))

    monkeypatch.setattr(np, "load", stale)
    calls: list[Callable[[], object]] = [
        lambda: state.find(room.storage, f"file://{state_file}", "one"),
        lambda: state.resume(saved, state.Position(run="one", batch_size=4), [Variable()]),
    ]
    for call in calls:
        with pytest.raises(RunnerError) as caught:
            call()
        assert caught.value.reason == Reason.STORAGE_UNAVAILABLE
        assert CLASSES[caught.value.reason].retryable


@pytest.mark.parametrize(
    ("now", "change"),
    [
        (["cat", "dog", "fox"], "new: fox"),
        (["cat"], "gone: dog"),
        (["dog", "cat"], "in another order"),
    ],
)
def test_other_classes_than_those_of_the_state_are_an_error_that_names_them(
    room: Room, now: list[str], change: str
) -> None:
    room.state(epoch=1, class_names=["cat", "dog"])
    saved, variable = room.checkpoints.recall(), Variable()
    assert saved is not None
    with pytest.raises(RunnerError, match=f"{', '.join(now)}, got one for cat, dog .{change}") as caught:
        state.resume(saved, state.Position(run="one", batch_size=4, class_names=now), [variable])
    assert caught.value.reason == Reason.MODEL_MISMATCH
    assert variable.value.sum() == 0


def test_another_model_or_optimizer_is_an_error_and_the_state_stays(room: Room) -> None:
    room.state(epoch=1)
    before = (room.output / "last.state.npz").read_bytes()
    saved, variable = room.checkpoints.recall(), Variable()
    assert saved is not None
    wider = Variable()
    wider.shape = (2, 3)
    for variables, text in [
        ([wider], r"\[2, 3\], got \[2, 2\]"),
        ([variable, wider], "2 variables .* got 1"),
    ]:
        with pytest.raises(RunnerError, match=text) as caught:
            state.resume(saved, state.Position(run="one", batch_size=4), variables)
        assert caught.value.reason == Reason.MODEL_MISMATCH
    assert variable.value.sum() == 0
    assert (room.output / "last.state.npz").read_bytes() == before


def test_a_state_that_names_no_classes_is_resumed_and_names_them_from_then_on(room: Room) -> None:
    room.state(epoch=1)
    saved = room.checkpoints.recall()
    assert saved is not None
    start = state.Position(run="one", batch_size=4, class_names=["cat"])
    assert state.resume(saved, start, [Variable()]).class_names == ["cat"]


def test_an_epoch_starts_over_when_the_batch_size_changed(room: Room) -> None:
    room.state(epoch=1, step=3, loss_sum=9.0)
    saved = state.find(room.storage, f"file://{room.output}/last.state.npz", "one")
    assert isinstance(saved, state.Saved)
    position = state.resume(saved, state.Position(run="one", batch_size=8), [Variable()])
    assert (position.epoch, position.step, position.loss_sum, position.batch_size) == (1, 0, 0.0, 8)


def test_a_state_of_another_run_is_not_found(room: Room) -> None:
    room.state(run="two", epoch=1)
    assert room.checkpoints.recall() is None


def test_a_file_without_an_origin_has_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other", "w") as file:
        file.writestr(writing.ENTRY, '{"run": 1}')
    with zipfile.ZipFile(tmp_path / "plain", "w") as file:
        file.writestr("config.json", "{}")
    assert [writing.origin_of(tmp_path / name) for name in ("text", "other", "plain")] == [None] * 3


def test_old_partial_files_of_checkpoints_are_removed(room: Room) -> None:
    now = 1e9
    old = [
        ".best.keras.0123abcd.partial",
        ".last.state.npz.00000000.partial",
        ".epoch-0012.keras.ffffffff.partial",
        ".checkpoint.json.01234567.partial",
    ]
    stay = [
        ".best.keras.partial",
        ".notes.txt.0123abcd.partial",
        "best.keras",
        ".last.keras.0123abcg.partial",
    ]
    for name in [*old, *stay]:
        (room.output / name).write_bytes(b"half")
        os.utime(room.output / name, (now - artifacts.OLD_SECONDS - 1,) * 2)
    young = ".last.keras.0123abcd.partial"
    (room.output / young).write_bytes(b"being written")
    os.utime(room.output / young, (now - artifacts.OLD_SECONDS + 1,) * 2)
    artifacts.remove_partial_files(room.storage, f"file://{room.output}", now)
    assert {path.name for path in room.output.iterdir()} == {*stay, young}


def test_a_partial_file_that_vanishes_or_stays_does_not_end_the_training(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1e9
    (room.output / ".best.keras.0123abcd.partial").symlink_to(room.output / "vanished")
    (room.output / ".last.keras.0123abcd.partial").mkdir()
    last = room.output / ".last.state.npz.0123abcd.partial"
    last.write_bytes(b"half")
    for path in (room.output / ".last.keras.0123abcd.partial", last):
        os.utime(path, (now - artifacts.OLD_SECONDS - 1,) * 2)
    artifacts.remove_partial_files(room.storage, f"file://{room.output}", now)
    assert not last.exists()
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 2


def test_an_output_folder_need_not_exist(room: Room) -> None:
    artifacts.remove_partial_files(room.storage, f"file://{room.output}/not-yet", 1e9)
