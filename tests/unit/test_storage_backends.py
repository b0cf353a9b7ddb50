"""Storage is a facade over backends: any of them can be replaced, here by one in memory."""

from pathlib import Path

import pytest

from fakes import MemoryBackend
from tlt_api.failures import Reason
from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(scratch=tmp_path, backends={"s3": MemoryBackend(tmp_path / "copies")})


def test_a_file_is_published_described_fetched_and_removed_at_its_address(
    storage: Storage, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"content")
    stored = storage.publish(local, "s3://bucket/runs/a.txt")
    assert (stored.uri, stored.size_bytes) == ("s3://bucket/runs/a.txt", 7)
    assert storage.stored("s3://bucket/runs/a.txt") == stored
    assert storage.fetch("s3://bucket/runs/a.txt", stored.sha256).read_bytes() == b"content"
    assert storage.list_files("s3://bucket/runs") == ["a.txt"]
    assert (storage.folder("s3://bucket/runs") / "a.txt").read_bytes() == b"content"
    storage.remove("s3://bucket/runs", ["a.txt", "never.txt"])
    assert not storage.exists("s3://bucket/runs/a.txt")
    assert storage.stored("s3://bucket/runs/a.txt") is None


def test_the_digest_is_verified_whichever_backend_fetched_the_file(storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"content")
    storage.publish(local, "s3://bucket/a.txt")
    with pytest.raises(RunnerError) as caught:
        storage.fetch("s3://bucket/a.txt", "0" * 64)
    assert caught.value.reason == Reason.CHECKSUM_MISMATCH


def test_an_address_is_parsed_before_a_backend_gets_it(storage: Storage) -> None:
    with pytest.raises(RunnerError, match=r"without empty \('//'\)") as caught:
        storage.fetch("s3://bucket//etc/passwd")
    assert caught.value.reason == Reason.INVALID_SPEC


def test_missing_reports_a_file_that_does_not_exist(storage: Storage) -> None:
    assert storage.missing("s3://bucket/a.txt") == "which does not exist"
    with pytest.raises(NotFoundError):
        storage.fetch("s3://bucket/a.txt")


def test_the_files_below_a_folder_are_listed_with_hidden_ones_and_without_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/.a.partial", "sub/empty/"):
        path = tmp_path / "claim" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    storage = Storage(scratch=tmp_path, volumes_root=tmp_path)
    assert storage.list_files("pvc://claim") == ["b.txt", "sub/.a.partial"]
    assert storage.list_files("pvc://claim/none") == []
    assert storage.missing("pvc://claim/none") == (
        f"which does not exist; {tmp_path}/claim holds: b.txt, sub/"
    )
