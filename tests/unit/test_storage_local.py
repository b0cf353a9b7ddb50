"""Addresses, volumes, atomic publishing and the taxonomy of the file system's errors."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from tlt_api.failures import Reason
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.storage import Storage, join, parse


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    (tmp_path / "volumes" / "data").mkdir(parents=True)
    return tmp_path / "volumes"


@pytest.fixture
def store(tmp_path: Path, volumes: Path) -> Storage:
    return Storage(scratch=tmp_path / "scratch", volumes_root=volumes)


def _reason(error: pytest.ExceptionInfo[RunnerError]) -> Reason:
    return error.value.reason


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("pvc://data", ("a",), "pvc://data/a"),
        ("pvc://data/", ("a/b", "c"), "pvc://data/a/b/c"),
        ("s3://bucket/runs/", ("/x/",), "s3://bucket/runs/x"),
        ("file:///tmp/x", ("y.txt",), "file:///tmp/x/y.txt"),
        ("s3://bucket", (), "s3://bucket"),
    ],
)
def test_join_appends_relative_paths_to_an_address(uri: str, parts: tuple[str, ...], joined: str) -> None:
    assert join(uri, *parts) == joined


@pytest.mark.parametrize(
    "uri",
    [
        "pvc://data/../other",
        "pvc://data/a/../../b",
        "s3://bucket/../x",
        "file:///a/../etc/passwd",
        "pvc://../x",
        "/plain/path",
        "http://host/x",
        "pvc:///x",
        "file://host/x",
    ],
)
def test_addresses_that_climb_out_or_mean_nothing_are_refused(uri: str) -> None:
    with pytest.raises(RunnerError) as caught:
        parse(uri)
    assert _reason(caught) == Reason.INVALID_SPEC


def test_a_relative_part_cannot_climb_out() -> None:
    with pytest.raises(RunnerError):
        join("pvc://data/set", "../../other")


def test_a_claim_that_is_not_mounted_is_storage_unavailable(store: Storage) -> None:
    with pytest.raises(RunnerError) as caught:
        store.folder("pvc://missing/x")
    assert _reason(caught) == Reason.STORAGE_UNAVAILABLE
    assert "claim missing is not mounted" in caught.value.message


def test_the_environment_names_the_root_of_volumes(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLT_VOLUMES_ROOT", str(volumes))
    assert Storage(scratch=tmp_path).local_path("pvc://data/x") == volumes / "data" / "x"


def test_a_missing_folder_lists_what_exists_instead(store: Storage, volumes: Path) -> None:
    (volumes / "data" / "trafic").mkdir()
    (volumes / "data" / "readme.md").touch()
    with pytest.raises(NotFoundError) as caught:
        store.folder("pvc://data/traffic/training")
    assert "pvc://data/traffic/training" in caught.value.message
    assert "holds: readme.md, trafic/" in caught.value.message


def test_a_file_where_a_folder_is_expected_is_called_a_file(store: Storage, volumes: Path) -> None:
    (volumes / "data" / "x").touch()
    with pytest.raises(NotFoundError, match="which is a file"):
        store.folder("pvc://data/x")
    with pytest.raises(NotFoundError, match="which is a folder"):
        store.fetch("pvc://data")


def test_a_published_file_is_fetched_with_its_digest(store: Storage, tmp_path: Path) -> None:
    local = tmp_path / "model.keras"
    local.write_bytes(b"weights")
    published = store.publish(local, "pvc://data/runs/1/model.keras")
    assert published.uri == "pvc://data/runs/1/model.keras"
    assert (published.sha256, published.size_bytes) == (hashlib.sha256(b"weights").hexdigest(), 7)
    assert store.fetch(published.uri, published.sha256).read_bytes() == b"weights"
    assert store.exists(published.uri)
    assert not store.exists("pvc://data/runs/2")


def test_files_of_a_folder_are_listed_with_their_relative_paths(store: Storage, volumes: Path) -> None:
    for name in ("models/a/x.npz", "models/a/.x.npz.01234567.partial", "models/b.keras"):
        (volumes / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (volumes / "data" / name).write_bytes(b"x")
    listed = store.list_files("pvc://data/models")
    assert sorted(listed) == ["a/.x.npz.01234567.partial", "a/x.npz", "b.keras"]
    assert store.list_files("pvc://data/nothing") == []


def test_publishing_replaces_and_leaves_no_partial_file(
    store: Storage, tmp_path: Path, volumes: Path
) -> None:
    local = tmp_path / "x"
    for content in (b"1", b"22"):
        local.write_bytes(content)
        store.publish(local, "pvc://data/x")
    assert [path.name for path in (volumes / "data").iterdir()] == ["x"]
    assert (volumes / "data" / "x").read_bytes() == b"22"


def test_a_failed_publish_leaves_the_old_file_and_no_partial_one(
    store: Storage, tmp_path: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "x"
    local.write_bytes(b"old")
    store.publish(local, "pvc://data/x")
    local.write_bytes(b"new")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunnerError) as caught:
        store.publish(local, "pvc://data/x")
    assert _reason(caught) == Reason.STORAGE_FULL
    assert [path.name for path in (volumes / "data").iterdir()] == ["x"]
    assert (volumes / "data" / "x").read_bytes() == b"old"


def test_a_full_disk_is_storage_full() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(RunnerError) as caught, storage_errors("file:///dev/full"):
        Path("/dev/full").write_bytes(b"x")
    assert _reason(caught) == Reason.STORAGE_FULL


def test_content_with_another_digest_is_refused(store: Storage, volumes: Path) -> None:
    (volumes / "data" / "x").write_bytes(b"other")
    with pytest.raises(RunnerError) as caught:
        store.fetch("pvc://data/x", "0" * 64)
    assert _reason(caught) == Reason.CHECKSUM_MISMATCH
    assert "0" * 64 in caught.value.message
    assert hashlib.sha256(b"other").hexdigest() in caught.value.message


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.STORAGE_FULL),
        (errno.EDQUOT, Reason.STORAGE_FULL),
        (errno.EACCES, Reason.STORAGE_DENIED),
        (errno.EROFS, Reason.STORAGE_DENIED),
        (errno.EIO, Reason.STORAGE_UNAVAILABLE),
        (errno.ESTALE, Reason.STORAGE_UNAVAILABLE),
    ],
)
def test_errors_of_the_file_system_have_a_reason(number: int, reason: Reason) -> None:
    with pytest.raises(RunnerError) as caught, storage_errors("pvc://data/x"):
        raise OSError(number, os.strerror(number), "/mnt/x")
    assert _reason(caught) == reason
    assert "pvc://data/x" in caught.value.message


def test_a_folder_that_cannot_be_removed_is_a_failure(
    store: Storage, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = volumes / "data" / "records"
    folder.mkdir(parents=True)

    def broken(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "rmdir", broken)
    with pytest.raises(RunnerError) as caught:
        store.remove("pvc://data/records", [])
    assert caught.value.reason == Reason.STORAGE_UNAVAILABLE
