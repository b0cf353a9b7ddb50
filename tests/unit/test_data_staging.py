"""Hidden folders of conversions: whose they are, and when they are cleared away."""

import fcntl
import os
from pathlib import Path

import pytest

from tlt_runner.data import staging
from tlt_runner.storage import Storage

URI = "pvc://claim/out/tfrecords/abc"


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    (tmp_path / "volumes" / "claim").mkdir(parents=True)
    return Storage(scratch=tmp_path / "scratch", volumes_root=tmp_path / "volumes")


def _abandoned(parent: Path) -> Path:
    folder = parent / ".abc.1234.partial"
    folder.mkdir(parents=True)
    (folder / staging.LOCK).touch()
    (folder / "training-00000-of-00001.tfrecord").write_bytes(b"half")
    return folder


def test_a_staging_folder_is_gone_after_a_failure(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), staging.staging_folder(store, URI) as folder:
        (folder / "x").write_text("x")
        raise ValueError("stop")
    assert list((tmp_path / "volumes/claim/out/tfrecords").iterdir()) == []


def test_the_folder_of_a_killed_run_is_removed_by_the_next(store: Storage, tmp_path: Path) -> None:
    old = _abandoned(tmp_path / "volumes/claim/out/tfrecords")
    with staging.staging_folder(store, URI, quiet_seconds=0) as folder:
        assert not old.exists()
        assert folder.exists()


def test_the_folder_of_a_running_conversion_is_left_alone(store: Storage, tmp_path: Path) -> None:
    with (
        staging.staging_folder(store, URI) as first,
        staging.staging_folder(store, URI, quiet_seconds=0) as second,
    ):
        assert first.exists()
        assert second.exists()
        assert first != second


def test_a_folder_written_to_just_now_is_left_alone_even_without_a_lock(tmp_path: Path) -> None:
    folder = _abandoned(tmp_path)
    assert staging.remove_abandoned(tmp_path, quiet_seconds=60) == []
    for path in (folder, *folder.iterdir()):
        os.utime(path, (1, 1))
    with (folder / staging.LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert staging.remove_abandoned(tmp_path, quiet_seconds=60) == []
    assert staging.remove_abandoned(tmp_path, quiet_seconds=60) == [folder]
