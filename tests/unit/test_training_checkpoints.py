"""What a training finds of an earlier attempt, keeps of itself, and removes."""

import errno
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from tlt_api.failures import CLASSES, Reason
from tlt_api.model import Anchors
from tlt_api.runspec import Owner
from tlt_api.status import Artifact, Metrics
from tlt_runner.context import Context
from tlt_runner.errors import RunnerError
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import Storage, sha256_of
from tlt_runner.training.checkpoint import leftovers, model_file, state
from tlt_runner.training.checkpoint.keeper import Keeper
from tlt_runner.training.checkpoint.model_file import Origin
from tlt_runner.training.checkpoint.published import Published
from tlt_runner.training.checkpoint.state import Position, Saved

OWNER = Owner(kind="TrainingJob", namespace="default", name="tiny", uid="one")
BEFORE, NOW = Metrics(m_ap=0.25, epoch=1), Metrics(m_ap=0.5, epoch=2)


class Fetching(Storage):
    """A storage that remembers which files were read."""

    def __init__(self, *, scratch: Path) -> None:
        super().__init__(scratch=scratch)
        self.fetched: list[str] = []

    def fetch(self, uri: str, sha256: str | None = None) -> Path:
        self.fetched.append(uri.rpartition("/")[2])
        return super().fetch(uri, sha256)


class Room:
    """An output folder, and what the status says of it."""

    def __init__(self, folder: Path) -> None:
        self.output, self.scratch = folder / "out", folder / "scratch"
        self.output.mkdir()
        self.scratch.mkdir()
        self.reporter = LocalReporter(None)
        self.storage = Fetching(scratch=self.scratch)
        self.context = Context(self.storage, self.reporter, self.scratch, Event())
        self.published = Published(self.context, f"file://{self.output}", OWNER)

    @property
    def listed(self) -> dict[str, int | None]:
        """Artifacts of the status, with their epochs."""
        return {item.name: item.epoch for item in self.reporter.snapshot().artifacts or ()}

    def model(self, name: str, epoch: int, evaluation: Metrics | None = None, run: str = "one") -> Artifact:
        """A file with the origin of a model."""
        path = self.output / f"{name}.keras"
        with zipfile.ZipFile(path, "w") as file:
            origin = Origin(run=run, job="default/tiny", epoch=epoch, evaluation=evaluation)
            file.writestr(model_file.ENTRY, origin.model_dump_json(by_alias=True))
        return Artifact(
            name=name,
            uri=f"file://{path}",
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
            epoch=epoch,
        )

    def state(self, **position: object) -> None:
        """A state file."""
        at = Position.model_validate({"run": "one", "batch_size": 4, **position})
        state.write(self.output / "last.state.npz", at, [np.ones((2, 2), np.float32)])

    def recalled(self) -> Position:
        """The position that is found."""
        saved = self.published.recall()
        assert saved is not None
        return saved.position


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_what_an_earlier_attempt_published_is_reported_from_the_files_alone(room: Room) -> None:
    artifacts = [room.model("best", 1, BEFORE), room.model("last", 2), room.model("epoch-0002", 2)]
    room.state(epoch=2, best=BEFORE, artifacts=artifacts)
    assert room.recalled().best == BEFORE
    assert room.reporter.snapshot().artifacts == artifacts
    assert room.reporter.snapshot().metrics == BEFORE


def test_a_best_model_published_just_before_a_kill_brings_its_score_along(room: Room) -> None:
    old = room.model("best", 1, BEFORE)
    room.state(epoch=2, closed=False, best=BEFORE, artifacts=[old])
    room.model("best", 2, NOW)
    assert room.recalled().best == NOW
    assert room.reporter.snapshot().metrics == NOW
    assert room.listed == {"best": 2}


def test_the_very_first_best_model_is_known_too(room: Room) -> None:
    room.state(epoch=2, closed=False)
    room.model("best", 2, NOW)
    room.model("last", 2)
    assert room.recalled().best == NOW
    assert room.listed == {"best": 2, "last": 2}


@pytest.mark.parametrize(
    ("closed", "change"),
    [(False, {"run": "two", "epoch": 2}), (False, {"epoch": 3}), (False, {"epoch": 1}), (True, {"epoch": 2})],
    ids=["of another run", "of a later epoch", "of an earlier epoch", "of an epoch that was closed"],
)
def test_another_best_model_than_the_recorded_one_is_not_trusted(
    room: Room, closed: bool, change: dict[str, object]
) -> None:
    old = room.model("best", 1, BEFORE)
    room.state(epoch=2, closed=closed, best=BEFORE, artifacts=[old])
    room.model("best", evaluation=NOW, **change)  # type: ignore[arg-type]
    assert room.recalled().best is None
    assert room.listed == {}
    assert room.reporter.snapshot().metrics is None


def test_a_file_that_is_gone_is_not_reported(room: Room) -> None:
    artifacts = [room.model("best", 1, BEFORE), room.model("epoch-0001", 1)]
    room.state(epoch=2, best=BEFORE, artifacts=artifacts)
    (room.output / "epoch-0001.keras").unlink()
    assert room.recalled().best == BEFORE
    assert room.listed == {"best": 1}


@pytest.mark.parametrize("lost", ["best", "last"])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_finished_training_without_best_or_last_closes_its_last_epoch_again(
    room: Room, lost: str, foreign: bool
) -> None:
    artifacts = [room.model("best", 1, BEFORE), room.model("last", 2)]
    room.state(epoch=2, best=BEFORE, artifacts=artifacts)
    if foreign:
        room.model(lost, 2, NOW, run="two")
    else:
        (room.output / f"{lost}.keras").unlink()
    position = room.recalled()
    assert not position.closed
    assert position.best == (None if lost == "best" else BEFORE)
    assert set(room.listed) == {"best", "last"} - {lost}


def test_steps_that_follow_close_the_epoch_anyhow(room: Room) -> None:
    room.state(epoch=2, step=3, best=BEFORE, artifacts=[room.model("best", 1, BEFORE)])
    (room.output / "best.keras").unlink()
    position = room.recalled()
    assert (position.best, position.closed, position.step) == (None, True, 3)


def test_models_are_not_fetched_to_be_compared(room: Room) -> None:
    artifacts = [room.model("best", 1, BEFORE), room.model("last", 2), room.model("epoch-0002", 2)]
    room.state(epoch=2, closed=False, best=BEFORE, artifacts=artifacts)
    room.model("last", 3)
    room.recalled()
    assert room.storage.fetched == ["last.state.npz", "last.keras"]


def test_a_training_that_starts_anew_takes_back_what_it_reported(room: Room) -> None:
    room.state(epoch=2, best=BEFORE, anchors={"scales": [8]}, artifacts=[room.model("best", 1, BEFORE)])
    saved, unused = room.published.recall(), Any
    assert room.listed == {"best": 1}
    keeper = Keeper(room.context, room.published, unused, [Variable()], 0)  # type: ignore[arg-type]
    start = Position(run="one", batch_size=4, anchors=Anchors(scales=[16]))
    assert keeper.resume(saved, start) == start
    assert room.listed == {}
    assert room.reporter.snapshot().metrics == Metrics()
    assert room.published.artifacts == []
    assert (room.output / "best.keras").exists()


def test_the_newest_checkpoints_stay_and_those_of_others_too(room: Room) -> None:
    room.model("epoch-0001", 1, run="two")
    source = room.scratch / "model.keras"
    source.write_bytes(b"model")
    for epoch in (2, 4, 6, 8):
        room.published.publish("last", source, epoch)
        room.published.publish(f"epoch-{epoch:04d}", source, epoch)
        room.published.retain(2)
    assert room.listed == {"last": 8, "epoch-0006": 6, "epoch-0008": 8}
    assert {path.stem for path in room.output.iterdir()} == {"last", "epoch-0001", "epoch-0006", "epoch-0008"}


def test_checkpoints_of_an_earlier_attempt_count(room: Room) -> None:
    room.state(epoch=2, artifacts=[room.model("epoch-0001", 1), room.model("epoch-0002", 2)])
    room.published.recall()
    source = room.scratch / "model.keras"
    source.write_bytes(b"model")
    room.published.publish("epoch-0003", source, 3)
    room.published.retain(2)
    assert room.listed == {"epoch-0002": 2, "epoch-0003": 3}
    assert not (room.output / "epoch-0001.keras").exists()


def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_training(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    source = room.scratch / "model.keras"
    source.write_bytes(b"model")
    room.published.publish("epoch-0001", source, 1)
    (room.output / "epoch-0001.keras").unlink()
    (room.output / "epoch-0001.keras" / "in the way").mkdir(parents=True)
    room.published.retain(0)
    assert room.listed == {}
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
    """Whole as a zip: only the digest of the content tells."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["00000"][0, 0] += 1
    np.savez(path, **arrays)


@pytest.mark.parametrize("damage", [_cut, _flip, _other_compression, _impossible_offset, _another_value])
def test_a_damaged_state_is_seen_before_a_variable_changes(
    room: Room, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    room.state(epoch=2)
    damage(room.output / "last.state.npz")
    variable, start = Variable(), Position(run="one", batch_size=4)
    saved = state.find(room.storage, f"file://{room.output}/last.state.npz", "one")
    assert saved is None or state.resume(saved, start, [variable]) == start
    assert variable.value.sum() == 0
    assert any(record.levelno == logging.WARNING for record in caplog.records)


class Variable:
    """As much of a Keras variable as resuming needs."""

    shape: tuple[int, ...] = (2, 2)

    def __init__(self) -> None:
        self.value = np.zeros((2, 2), np.float32)

    def assign(self, value: np.ndarray) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("at", "after"),
    [
        ({"epoch": 2, "step": 3, "loss_sum": 4.5}, {"epoch": 2, "closed": True}),
        ({"epoch": 2}, {"epoch": 2, "closed": False}),
        ({"epoch": 2, "closed": False}, {"epoch": 2, "closed": False}),
        ({}, {"epoch": 0, "closed": True}),
    ],
    ids=["within an epoch", "after an epoch", "before its evaluation", "at the start"],
)
def test_of_other_data_neither_steps_nor_scores_count(
    room: Room, at: dict[str, object], after: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    room.state(**at, data="sha256:a", best=BEFORE, reached=0.25, stale=1)
    saved = state.find(room.storage, f"file://{room.output}/last.state.npz", "one")
    assert saved is not None
    variable, start = Variable(), Position(run="one", batch_size=4, data="sha256:b")
    position = state.resume(saved, start, [variable])
    assert position == start.model_copy(update=after)
    assert variable.value.sum() == 4
    assert any("data have changed" in record.getMessage() for record in caplog.records)


def test_of_the_same_data_all_counts(room: Room) -> None:
    room.state(epoch=2, step=3, loss_sum=4.5, data="sha256:a", reached=0.25, stale=1)
    saved = room.published.recall()
    assert saved is not None
    start = Position(run="one", batch_size=4, data="sha256:a")
    assert state.resume(saved, start, [Variable()]) == saved.position


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_state_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(
    room: Room, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.state(epoch=90)
    state_file = room.output / "last.state.npz"
    saved = room.published.recall()
    assert saved is not None

    def stale(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(state_file))

    monkeypatch.setattr(np, "load", stale)
    calls: list[Callable[[], object]] = [
        lambda: state.find(room.storage, f"file://{state_file}", "one"),
        lambda: state.resume(saved, Position(run="one", batch_size=4), [Variable()]),
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
def test_other_classes_than_the_states_are_an_error_in_their_names(
    room: Room, now: list[str], change: str
) -> None:
    room.state(epoch=1, class_names=["cat", "dog"])
    saved, variable = room.published.recall(), Variable()
    assert saved is not None
    with pytest.raises(RunnerError, match=f"{', '.join(now)}, got one for cat, dog .{change}") as caught:
        state.resume(saved, Position(run="one", batch_size=4, class_names=now), [variable])
    assert caught.value.reason == Reason.MODEL_MISMATCH
    assert variable.value.sum() == 0


def test_another_model_or_optimizer_is_an_error_and_the_state_stays(room: Room) -> None:
    room.state(epoch=1)
    before = (room.output / "last.state.npz").read_bytes()
    saved, variable = room.published.recall(), Variable()
    assert saved is not None
    wider = Variable()
    wider.shape = (2, 3)
    for variables, text in [
        ([wider], r"\[2, 3\], got \[2, 2\]"),
        ([variable, wider], "2 variables .* got 1"),
    ]:
        with pytest.raises(RunnerError, match=text) as caught:
            state.resume(saved, Position(run="one", batch_size=4), variables)
        assert caught.value.reason == Reason.MODEL_MISMATCH
    assert variable.value.sum() == 0
    assert (room.output / "last.state.npz").read_bytes() == before


def test_a_state_that_names_no_classes_is_resumed_and_names_them_from_then_on(room: Room) -> None:
    room.state(epoch=1)
    saved = room.published.recall()
    assert saved is not None
    start = Position(run="one", batch_size=4, class_names=["cat"])
    assert state.resume(saved, start, [Variable()]).class_names == ["cat"]


def test_an_epoch_begins_again_with_another_batch_size_and_without_its_losses(room: Room) -> None:
    room.state(epoch=1, step=3, loss_sum=9.0)
    saved = state.find(room.storage, f"file://{room.output}/last.state.npz", "one")
    assert isinstance(saved, Saved)
    position = state.resume(saved, Position(run="one", batch_size=8), [Variable()])
    assert (position.epoch, position.step, position.loss_sum, position.batch_size) == (1, 0, 0.0, 8)


def test_a_state_of_another_run_is_not_found(room: Room) -> None:
    room.state(run="two", epoch=1)
    assert room.published.recall() is None


def test_a_file_without_an_origin_has_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other", "w") as file:
        file.writestr(model_file.ENTRY, '{"run": 1}')
    with zipfile.ZipFile(tmp_path / "plain", "w") as file:
        file.writestr("config.json", "{}")
    assert [model_file.origin_of(tmp_path / name) for name in ("text", "other", "plain")] == [None] * 3


def test_old_partial_files_of_own_names_are_removed(room: Room) -> None:
    now = 1e9
    old = [
        ".best.keras.0123abcd.partial",
        ".last.state.npz.00000000.partial",
        ".epoch-0012.keras.ffffffff.partial",
    ]
    stay = [
        ".best.keras.partial",
        ".notes.txt.0123abcd.partial",
        "best.keras",
        ".last.keras.0123abcg.partial",
    ]
    for name in [*old, *stay]:
        (room.output / name).write_bytes(b"half")
        os.utime(room.output / name, (now - leftovers.OLD_SECONDS - 1,) * 2)
    young = ".last.keras.0123abcd.partial"
    (room.output / young).write_bytes(b"being written")
    os.utime(room.output / young, (now - leftovers.OLD_SECONDS + 1,) * 2)
    leftovers.remove(room.storage, f"file://{room.output}", now)
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
        os.utime(path, (now - leftovers.OLD_SECONDS - 1,) * 2)
    leftovers.remove(room.storage, f"file://{room.output}", now)
    assert not last.exists()
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 2


def test_an_output_folder_need_not_exist(room: Room) -> None:
    leftovers.remove(room.storage, f"file://{room.output}/not-yet", 1e9)
