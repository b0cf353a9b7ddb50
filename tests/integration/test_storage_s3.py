"""s3:// against a real S3 server: files, folders, data sets, and what its refusals are called."""

import contextlib
import hashlib
import json
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cluster.errors import UnavailableError
from cluster.object_store import ObjectStore, object_store
from tlt_api.common import S3Storage
from tlt_api.dataset import Dataset
from tlt_api.failures import CLASSES, Reason
from tlt_api.runspec import RunSpec
from tlt_runner.data import sample_digits
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.records import load_records
from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage
from tlt_runner.storage.s3 import PART_BYTES
from tlt_runner.tasks import output


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    try:
        with object_store() as store:
            store.make_bucket("bucket")
            yield store
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def credentials(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


@pytest.fixture
def storage(server: ObjectStore, tmp_path: Path) -> Storage:
    return Storage(scratch=tmp_path / "scratch", s3=S3Storage(endpoint=server.endpoint))


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "local"
    path.write_bytes(content)
    return path


def _upload(storage: Storage, folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.publish(path, f"{uri}/{path.relative_to(folder).as_posix()}")


def test_a_published_file_is_fetched_with_its_digest(storage: Storage, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(2 * PART_BYTES + 1)  # three parts
    published = storage.publish(_file(tmp_path, content), "s3://bucket/runs/1/model.keras")
    assert published.uri == "s3://bucket/runs/1/model.keras"
    assert (published.sha256, published.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert storage.fetch(published.uri, published.sha256).read_bytes() == content
    # Of an object that came in parts, S3's tag ends in their number.
    client = boto3.client("s3", endpoint_url=storage.s3.endpoint, region_name="us-east-1")
    with contextlib.closing(client):
        assert client.head_object(Bucket="bucket", Key="runs/1/model.keras")["ETag"].endswith('-3"')


def test_an_empty_object_is_an_empty_file(storage: Storage, tmp_path: Path) -> None:
    storage.publish(_file(tmp_path, b""), "s3://bucket/empty/x")
    assert storage.fetch("s3://bucket/empty/x").read_bytes() == b""
    assert [path.name for path in storage.folder("s3://bucket/empty").iterdir()] == ["x"]


def test_the_digest_of_an_object_is_known_without_its_content(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(3).randbytes(PART_BYTES + 1)  # two parts
    published = storage.publish(_file(tmp_path, content), "s3://bucket/digest/model.keras")
    client = boto3.client("s3", endpoint_url=storage.s3.endpoint, region_name="us-east-1")
    with contextlib.closing(client):
        client.put_object(Bucket="bucket", Key="digest/foreign.keras", Body=b"x")
    fetched, fetch = [], storage.fetch
    monkeypatch.setattr(storage, "fetch", lambda uri: fetched.append(uri) or fetch(uri))  # type: ignore[func-returns-value]
    assert storage.stored(published.uri) == published
    assert not fetched
    foreign = storage.stored("s3://bucket/digest/foreign.keras")
    assert foreign is not None
    assert (foreign.sha256, foreign.size_bytes) == (hashlib.sha256(b"x").hexdigest(), 1)
    assert not [path for path in storage.scratch.rglob("*") if path.is_file()]  # no copy stays
    assert storage.stored("s3://bucket/digest/none.keras") is None
    assert storage.stored("s3://bucket/digest") is None


class CuttingProxy:
    """A way to the server on which the first large answers break off."""

    def __init__(self, endpoint: str, cuts: int) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self.cuts_left = cuts
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            back = threading.Thread(target=self._pump, args=(server, client, 1 << 20), daemon=True)
            back.start()
            self._pump(client, server, None)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                passed += len(data)
                if limit is not None and passed > limit and self.cuts_left > 0:
                    self.cuts_left -= 1
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def test_a_download_that_breaks_off_is_tried_again(storage: Storage, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(PART_BYTES + 1)
    published = storage.publish(_file(tmp_path, content), "s3://bucket/broken/x")
    assert storage.s3.endpoint is not None
    proxy = CuttingProxy(storage.s3.endpoint, cuts=2)
    try:
        other = Storage(scratch=tmp_path / "other", s3=S3Storage(endpoint=proxy.endpoint))
        assert other.fetch(published.uri, published.sha256).read_bytes() == content
    finally:
        proxy.close()
    assert proxy.cuts_left == 0


def test_a_second_fetch_sees_a_replaced_object(storage: Storage, tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        published = storage.publish(_file(tmp_path, content), "s3://bucket/replaced/x")
        assert storage.fetch("s3://bucket/replaced/x", published.sha256).read_bytes() == content


def test_content_with_another_digest_is_refused(storage: Storage, tmp_path: Path) -> None:
    storage.publish(_file(tmp_path, b"x"), "s3://bucket/other/x")
    with pytest.raises(RunnerError) as caught:
        storage.fetch("s3://bucket/other/x", "0" * 64)
    assert caught.value.reason == Reason.CHECKSUM_MISMATCH


def test_only_objects_and_folders_exist(storage: Storage, tmp_path: Path) -> None:
    storage.publish(_file(tmp_path, b"x"), "s3://bucket/there/file.bin")
    existing = ["s3://bucket", "s3://bucket/there", "s3://bucket/there/file.bin"]
    missing = [
        "s3://bucket/the",
        "s3://bucket/there/file",
        "s3://bucket/there/file.bin/x",
        "s3://bucket/no",
    ]
    assert [storage.exists(uri) for uri in existing] == [True] * 3
    assert [storage.exists(uri) for uri in missing] == [False] * 4


def test_a_folder_is_downloaded_with_its_sub_folders(storage: Storage, tmp_path: Path) -> None:
    for name in [f"{number:03d}.txt" for number in range(40)] + ["deep/er/x.txt"]:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    _upload(storage, tmp_path / "tree", "s3://bucket/tree")
    folder = storage.folder("s3://bucket/tree")
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.txt")) == sorted(
        path.relative_to(tmp_path / "tree") for path in (tmp_path / "tree").rglob("*.txt")
    )
    assert (folder / "deep/er/x.txt").read_text() == "deep/er/x.txt"


def test_objects_below_a_folder_are_listed_with_their_relative_names(
    storage: Storage, tmp_path: Path
) -> None:
    for name in ("listed/a/x.npz", "listed/b.keras", "listed.txt"):
        storage.publish(_file(tmp_path, b"x"), f"s3://bucket/{name}")
    assert sorted(storage.list_files("s3://bucket/listed")) == ["a/x.npz", "b.keras"]
    assert storage.list_files("s3://bucket/nothing-listed") == []


@pytest.mark.parametrize("folder", ["s3://bucket/checkpoints", "s3://bucket"])
def test_files_are_removed_and_no_others(storage: Storage, tmp_path: Path, folder: str) -> None:
    for name in ("epoch-0001.keras", "epoch-0002.keras", "epoch-0001.keras.txt"):
        storage.publish(_file(tmp_path, b"x"), f"{folder}/{name}")
    assert storage.fetch(f"{folder}/epoch-0001.keras").is_file()
    storage.remove(folder, ["epoch-0001.keras", "never-there.keras"])
    exists = {name: storage.exists(f"{folder}/{name}") for name in ("epoch-0001.keras", "epoch-0002.keras")}
    assert exists == {"epoch-0001.keras": False, "epoch-0002.keras": True}
    assert storage.exists(f"{folder}/epoch-0001.keras.txt")
    assert storage.at_hand(f"{folder}/epoch-0001.keras") is None


def test_a_missing_object_or_folder_lists_what_exists_instead(storage: Storage, tmp_path: Path) -> None:
    storage.publish(_file(tmp_path, b"x"), "s3://bucket/shelf/book.txt")
    storage.publish(_file(tmp_path, b"x"), "s3://bucket/shelf/box/pen.txt")
    with pytest.raises(NotFoundError, match=r"holds: book\.txt, box/"):
        storage.fetch("s3://bucket/shelf/bock.txt")
    with pytest.raises(NotFoundError, match=r"holds: book\.txt, box/"):
        storage.folder("s3://bucket/shelf/bok")


def test_a_missing_bucket_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFoundError, match="NoSuchBucket"):
        storage.folder("s3://no-such-bucket/x")


def test_no_message_and_no_log_line_has_the_secret(
    storage: Storage, server: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    storage.publish(_file(tmp_path, b"x"), "s3://bucket/quiet/x")
    storage.folder("s3://bucket/quiet")
    with pytest.raises(NotFoundError) as caught:
        storage.fetch("s3://bucket/quiet/y")
    assert server.secret_key not in "".join(map(str, traceback.format_exception(caught.value)))
    assert caplog.records
    assert not [line for line in caplog.messages if server.secret_key in line]


def test_a_wrong_secret_is_denied_and_not_in_the_message(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    for attempt in (
        lambda: storage.folder("s3://bucket/x"),
        lambda: storage.fetch("s3://bucket/x"),
        lambda: storage.publish(_file(tmp_path, b"x"), "s3://bucket/x"),
        lambda: storage.exists("s3://bucket/x"),
    ):
        with pytest.raises(RunnerError) as caught:
            attempt()
        assert caught.value.reason == Reason.STORAGE_DENIED
        assert "not-the-secret" not in caught.value.message


def test_missing_credentials_are_denied_and_named(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RunnerError) as caught:
        storage.fetch("s3://bucket/x")
    assert caught.value.reason == Reason.STORAGE_DENIED
    assert "AWS_ACCESS_KEY_ID" in caught.value.message


def test_an_unreachable_server_is_unavailable_and_retryable(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = Storage(scratch=tmp_path, s3=S3Storage(endpoint=f"http://127.0.0.1:{port}"))
    with pytest.raises(RunnerError) as caught:
        storage.fetch("s3://bucket/x")
    assert caught.value.reason == Reason.STORAGE_UNAVAILABLE
    assert CLASSES[caught.value.reason].retryable


def _dataset(uri: str, width: int = 64, height: int = 64) -> Dataset:
    """Return the data set of digits at an address."""
    return Dataset.model_validate(
        {
            "uri": uri,
            "targetClassMapping": {name: name for name in sample_digits.CLASS_NAMES},
            "imageSize": {"width": width, "height": height},
        }
    )


def test_a_data_set_is_prepared_from_s3_to_s3_and_reused(storage: Storage, tmp_path: Path) -> None:
    sample_digits.generate(tmp_path / "digits", images=8, width=128, height=96, seed=1)
    _upload(storage, tmp_path / "digits", "s3://bucket/digits")
    dataset = _dataset("s3://bucket/digits", 128, 96)
    records = prepare(dataset, storage, "s3://bucket/out")
    assert records.uri == f"s3://bucket/out/tfrecords/{records.digest.removeprefix('sha256:')[:16]}"
    assert storage.exists(f"{records.uri}/dataset.json")
    assert storage.exists("s3://bucket/out/dataset-report.json")
    elsewhere = Storage(scratch=tmp_path / "elsewhere", s3=storage.s3)
    assert prepare(dataset, elsewhere, "s3://bucket/out").manifest == records.manifest
    loaded = load_records(elsewhere, records.uri, records.digest)
    assert loaded.manifest.training_images + loaded.manifest.validation_images == 8


_KILLED = """
import os, signal, sys, time
from pathlib import Path
from tlt_api.common import S3Storage
from tlt_api.dataset import Dataset
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.storage import Storage

class KilledHalfWay:
    def progress(self, progress):
        if progress.stage == "convert" and progress.step == 60:
            while not list(Path(sys.argv[4]).rglob("training-*.json")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

storage = Storage(scratch=Path(sys.argv[2]), s3=S3Storage(endpoint=sys.argv[3]))
prepare(Dataset.model_validate_json(sys.argv[1]), storage, "s3://bucket/killed", KilledHalfWay())
"""


def test_shards_that_a_killed_run_uploaded_are_not_made_again(
    storage: Storage, server: ObjectStore, tmp_path: Path
) -> None:
    sample_digits.generate(tmp_path / "many", images=90, width=64, height=64, seed=1)
    _upload(storage, tmp_path / "many", "s3://bucket/many")
    dataset = _dataset("s3://bucket/many")
    output = server.directory / "bucket" / "killed"
    arguments = (
        dataset.model_dump_json(),
        str(tmp_path / "scratch-1"),
        storage.s3.endpoint or "",
        str(output),
    )
    killed = subprocess.run([sys.executable, "-c", _KILLED, *arguments], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not list(output.rglob("dataset.json"))
    uploaded = {path: path.stat().st_mtime_ns for path in output.rglob("training-*.json")}
    uploaded |= {path: path.stat().st_mtime_ns for path in (p.with_suffix(".tfrecord") for p in uploaded)}
    records = prepare(dataset, storage, "s3://bucket/killed")
    assert uploaded
    assert {path: path.stat().st_mtime_ns for path in uploaded} == uploaded
    local = dataset.model_copy(update={"uri": f"file://{tmp_path}/many"})
    undisturbed = prepare(local, Storage(scratch=tmp_path / "scratch-2"), f"file://{tmp_path}/undisturbed")
    assert undisturbed.manifest == records.manifest
    uploaded_files = {path.name: path.read_bytes() for path in (output / "tfrecords").rglob("*.*")}
    assert uploaded_files == {path.name: path.read_bytes() for path in undisturbed.folder.iterdir()}
    # What was uploaded is at hand for training.
    assert all(path.is_file() for path in records.files("training"))


def test_refused_records_are_removed_and_the_report_stays(storage: Storage, tmp_path: Path) -> None:
    sample_digits.generate(tmp_path / "bad", images=8, width=64, height=64, seed=1)
    (tmp_path / "bad/training/image_2/000003.jpg").write_bytes(b"")
    _upload(storage, tmp_path / "bad", "s3://bucket/bad")
    dataset = _dataset("s3://bucket/bad")
    with pytest.raises(RunnerError) as caught:
        prepare(dataset, storage, "s3://bucket/refused")
    assert caught.value.reason == Reason.BAD_SAMPLES
    assert storage.exists("s3://bucket/refused/dataset-report.html")
    assert not storage.exists("s3://bucket/refused/tfrecords")


def test_a_data_set_that_is_not_in_the_bucket_is_not_found(storage: Storage) -> None:
    with pytest.raises(RunnerError) as caught:
        prepare(_dataset("s3://bucket/no-such-set"), storage, "s3://bucket/out")
    assert caught.value.reason == Reason.DATASET_NOT_FOUND
    assert "s3://bucket/no-such-set/training/image_2" in caught.value.message


def test_an_encoded_dot_dot_is_a_name_on_the_server_too(
    storage: Storage, server: ObjectStore, tmp_path: Path
) -> None:
    uri = "s3://bucket/dots/%2e%2e/%2e%2e/x"
    published = storage.publish(_file(tmp_path, b"x"), uri)
    assert (server.directory / "bucket" / "dots" / "%2e%2e" / "%2e%2e" / "x").read_bytes() == b"x"
    assert storage.fetch(uri, published.sha256) == storage.scratch / "s3" / uri.removeprefix("s3://")
    folder = storage.folder("s3://bucket/dots")
    assert (folder / "%2e%2e" / "%2e%2e" / "x").read_bytes() == b"x"
    storage.remove("s3://bucket/dots/%2e%2e/%2e%2e", ["x"])
    assert not storage.exists(uri)


@pytest.mark.parametrize("path", ["//abs/x", "/../x", "/a/./x"])
def test_an_address_that_leaves_its_bucket_reaches_no_server_and_no_file(
    storage: Storage, server: ObjectStore, tmp_path: Path, path: str
) -> None:
    before = sorted(server.directory.rglob("*"))
    local = _file(tmp_path, b"x")
    for use in (storage.fetch, storage.folder, storage.mirror, lambda uri: storage.publish(local, uri)):
        with pytest.raises(RunnerError) as caught:
            use(f"s3://bucket{path}")
        assert caught.value.reason == Reason.INVALID_SPEC
    assert sorted(server.directory.rglob("*")) == before
    assert not storage.scratch.exists()


def test_of_pods_that_create_one_object_at_the_same_time_one_does(
    server: ObjectStore, tmp_path: Path
) -> None:
    gate = threading.Barrier(8)
    winners = []

    def create(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file").write_bytes(f"of {number}".encode())
        storage = Storage(scratch=folder, s3=S3Storage(endpoint=server.endpoint))
        gate.wait()
        if storage.create(folder / "file", "s3://bucket/claims/owner.json"):
            winners.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    storage = Storage(scratch=tmp_path, s3=S3Storage(endpoint=server.endpoint))
    assert storage.fetch("s3://bucket/claims/owner.json").read_bytes() == f"of {winner}".encode()


def test_an_output_in_a_bucket_belongs_to_one_run(storage: Storage, tmp_path: Path) -> None:
    def run_of(uid: str, attempt: int = 1) -> RunSpec:
        spec = {
            "model": {"uri": "s3://bucket/model.keras"},
            "output": {"uri": "s3://bucket/runs/claimed"},
            "threshold": 0.5,
        }
        owner = {"kind": "PruneJob", "namespace": "team", "name": "small", "uid": uid}
        return RunSpec.model_validate({"owner": owner, "attempt": attempt, "spec": spec})

    with output.claimed(run_of("first"), storage, tmp_path, local=False, cluster="blue"):
        storage.publish(_file(tmp_path, b"model"), "s3://bucket/runs/claimed/model.keras")
    with output.claimed(run_of("first", attempt=2), storage, tmp_path, local=False, cluster="blue"):
        pass
    with (
        pytest.raises(
            RunnerError, match=r"files of PruneJob team/small \(uid first, attempt 2, since"
        ) as refused,
        output.claimed(run_of("second"), storage, tmp_path, local=False),
    ):
        pass
    assert refused.value.reason == Reason.OUTPUT_TAKEN
    # Its owner no longer exists: it is free without the model, and is not with it.
    with (
        pytest.raises(RunnerError, match="a former resource of this name"),
        output.claimed(run_of("second"), storage, tmp_path, local=False, existing=[], cluster="blue"),
    ):
        pass
    storage.remove("s3://bucket/runs/claimed", ["model.keras"])
    with output.claimed(run_of("second"), storage, tmp_path, local=False, existing=[], cluster="blue"):
        pass
    claim = storage.fetch("s3://bucket/runs/claimed/tlt-owner.json").read_text()
    assert json.loads(claim)["uid"] == "second"
