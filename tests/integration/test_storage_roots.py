"""No address leaves its claim, bucket or scratch folder: by its text, by links, by a server's keys."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lazy import Lazy
from tlt_api.common import (
    CLUSTER_URI_PATTERN,
    RELATIVE_PATTERN,
    URI_PATTERN,
    RelativePath,
    Uri,
    is_below_root,
)
from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.preparation import planning, sources
from tlt_runner.data.preparation.planning import PlannedShard
from tlt_runner.data.records import MANIFEST, Manifest, Shard, load_records
from tlt_runner.data.sample import Problem
from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.local.state import Folders
from tlt_runner.storage import Storage, join, parse, relative
from tlt_runner.storage.s3 import Buckets, ObjectStore

shards = Lazy("tlt_runner.data.preparation.shards")
ROOTS = ("pvc://data", "s3://bucket", "file://")
LEAVING = (
    "//etc/x",
    "/a//b",
    "/a//",
    "//",
    "/..",
    "/../x",
    "/a/../b",
    "/a/..",
    "/.",
    "/./x",
    "/a/./b",
    "/a/.",
)
STAYING = ("/%2e%2e/x", "/%2E%2E", "/a/..b", "/a/b..", "/...", "/.hidden", "/a b/ä")
USES: dict[str, Callable[[Storage, str, Path], Any]] = {
    "local_path": lambda storage, uri, local: storage.local_path(uri),
    "fetch": lambda storage, uri, local: storage.fetch(uri),
    "folder": lambda storage, uri, local: storage.folder(uri),
    "publish": lambda storage, uri, local: storage.publish(local, uri),
    "stored": lambda storage, uri, local: storage.stored(uri),
    "mirror": lambda storage, uri, local: storage.mirror(uri),
    "remove": lambda storage, uri, local: storage.remove(uri, ["x"]),
    "exists": lambda storage, uri, local: storage.exists(uri),
    "at_hand": lambda storage, uri, local: storage.at_hand(uri),
    "load_records": lambda storage, uri, local: load_records(storage, uri),
    "shard folder": lambda storage, uri, local: shards.ShardFolder(storage, uri, "sha256:0"),
}


class Room:
    """A claim ``data`` that is mounted, and a secret beside it."""

    def __init__(self, root: Path) -> None:
        self.volumes = root / "volumes"
        self.claim = self.volumes / "data"
        self.claim.mkdir(parents=True)
        self.outside = root / "outside"
        self.outside.mkdir()
        (self.outside / "x").write_text("secret")
        self.local = root / "local"
        self.local.write_text("new")
        self.storage = Storage(scratch=root / "scratch", volumes_root=self.volumes)
        self._before = _tree(root)
        self._root = root

    def link(self, name: str, target: Path | str) -> None:
        """A link in the claim."""
        (self.claim / name).symlink_to(target)
        self._before = _tree(self._root)

    def is_untouched(self) -> bool:
        """Tell whether every file and folder is as it was."""
        return _tree(self._root) == self._before


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def _tree(root: Path) -> dict[str, str]:
    return {str(path): path.read_text() if path.is_file() else "" for path in root.rglob("*")}


def _refused(call: Callable[[], Any]) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        call()
    assert type(caught.value) is RunnerError, caught.value  # "nothing there" would be a NotFoundError
    assert caught.value.reason == Reason.INVALID_SPEC
    return caught.value


def _is_legal(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RunnerError:
        return False
    return True


# --- the text of an address


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("path", LEAVING)
def test_an_address_that_leaves_its_root_is_refused_by_parser_and_patterns(root: str, path: str) -> None:
    uri = root + path
    failure = _refused(lambda: parse(uri))
    assert repr(uri) in failure.message
    assert "expected an address without empty ('//'), '.' and '..' names" in failure.message
    assert failure.hint.startswith("Write out the path below the claim, bucket or root")
    assert not re.search(URI_PATTERN, uri)
    assert not re.search(CLUSTER_URI_PATTERN, uri)
    with pytest.raises(ValidationError, match="expected an address without empty") as caught:
        TypeAdapter(Uri).validate_python(uri)
    assert caught.value.errors()[0]["input"] == uri


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("path", STAYING)
def test_other_dots_and_encoded_ones_are_names(root: str, path: str) -> None:
    uri = root + path
    assert parse(uri).path == path[1:]
    assert TypeAdapter(Uri).validate_python(uri) == uri


@pytest.mark.parametrize(
    "uri", ["pvc://data/a", "s3://bucket/a/b", "file:///tmp", "pvc://data", "s3://bucket"]
)
def test_one_trailing_slash_is_legal_and_left_out(uri: str) -> None:
    assert parse(f"{uri}/").uri == uri
    assert TypeAdapter(Uri).validate_python(f"{uri}/") == f"{uri}/"


def test_the_root_of_the_file_system_is_an_address() -> None:
    assert parse("file:///").uri == TypeAdapter(Uri).validate_python("file:///") == "file:///"
    assert join("file:///", "a") == "file:///a"


@given(
    st.lists(st.sampled_from(["", ".", "..", "...", "a", ".a", "..a", "a..", "%2e%2e", "a b"]), max_size=5)
)
def test_patterns_and_parser_agree(names: list[str]) -> None:
    path = "/".join(names)
    below = path == "" or is_below_root(path.removesuffix("/"))
    for root in ROOTS:
        assert bool(re.search(URI_PATTERN, f"{root}/{path}")) == below, path
        assert _is_legal(lambda: parse(f"{root}/{path}")) == below, path  # noqa: B023
    if not path.startswith("/") and path:
        assert bool(re.search(RELATIVE_PATTERN, path)) == _is_legal(lambda: relative(path)), path


def test_a_line_break_ends_no_pattern() -> None:
    for uri in ("pvc://data/a\n", "pvc://data/a\n/../b", "s3://bucket/a\nb"):
        with pytest.raises(ValidationError):
            TypeAdapter(Uri).validate_python(uri)


@pytest.mark.parametrize(
    ("path", "name"), [(".", ""), ("./", ""), ("./a", "a"), ("a/", "a"), ("./a/b/", "a/b")]
)
def test_a_leading_dot_of_a_relative_path_is_the_root(path: str, name: str) -> None:
    assert TypeAdapter(RelativePath).validate_python(path) == path
    assert relative(path) == name
    assert join("pvc://data/set", path) == f"pvc://data/set/{name}".removesuffix("/")


@pytest.mark.parametrize(
    "path", ["/a", "..", "../a", "a/..", "a/../b", "a//b", "a/.", "a/./b", "././a", "a//", "//a"]
)
def test_relative_paths_of_a_spec_stay_below_the_data_sets_root(path: str) -> None:
    with pytest.raises(ValidationError, match="expected a path relative to the data set's uri"):
        TypeAdapter(RelativePath).validate_python(path)
    if path != "/a":  # to join, a leading slash means the same as none
        assert repr(path) in _refused(lambda: join("pvc://data/set", path)).message


# --- every use of an address


class NoServer:
    """An S3 server that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("path", ["//etc/x", "/../x", "/a/./x", "/a/../../x"])
def test_no_use_of_an_address_leaves_its_root(room: Room, use: Callable[..., Any], path: str) -> None:
    room.storage._store = NoServer()  # type: ignore[assignment]
    for root in ("pvc://data", "s3://bucket", f"file://{room.outside}"):
        _refused(lambda: use(room.storage, root + path, room.local))  # noqa: B023
    _refused(lambda: use(room.storage, f"pvc://data/{room.outside}/x", room.local))
    _refused(lambda: use(room.storage, f"s3://bucket/{room.outside}/x", room.local))
    assert room.is_untouched()


@pytest.mark.parametrize("name", ["/x", "../x", "../../outside/x", "./../x", "a//x"])
def test_a_name_to_remove_stays_in_its_folder(room: Room, name: str) -> None:
    room.storage._store = NoServer()  # type: ignore[assignment]
    (room.claim / "a").mkdir()
    if name != "/x":
        _refused(lambda: room.storage.remove("pvc://data/a", [name]))
        _refused(lambda: room.storage.remove("s3://bucket/a", [name]))
    else:
        room.storage.remove("pvc://data/a", [name])
    assert (room.outside / "x").read_text() == "secret"


def test_an_encoded_dot_dot_is_the_name_of_a_folder_in_the_claim(room: Room) -> None:
    uri = "pvc://data/a/%2e%2e/%2e%2e/x"
    published = room.storage.publish(room.local, uri)
    file = room.claim / "a" / "%2e%2e" / "%2e%2e" / "x"
    assert file.read_text() == "new"
    assert published.uri == uri
    assert room.storage.fetch(uri) == file
    assert [path.name for path in room.storage.folder("pvc://data/a").iterdir()] == ["%2e%2e"]
    assert sorted(path.name for path in room.claim.rglob("*")) == ["%2e%2e", "%2e%2e", "a", "x"]
    room.storage.remove("pvc://data/a/%2e%2e/%2e%2e", ["x"])
    assert not file.exists()
    assert (room.outside / "x").read_text() == "secret"


# --- symbolic links


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("target", ["../../outside", "..", "/"])
def test_a_link_out_of_the_claim_is_refused_for_every_use(
    room: Room, use: Callable[..., Any], target: str
) -> None:
    room.link("far", target)
    for uri in ("pvc://data/far", "pvc://data/far/x", "pvc://data/far/new/x"):
        failure = _refused(lambda: use(room.storage, uri, room.local))  # noqa: B023
        assert failure.message.startswith(f"{uri}: expected a path within {room.claim}")
    assert room.is_untouched()


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_link_to_a_file_out_of_the_claim_is_refused_for_every_use(
    room: Room, use: Callable[..., Any]
) -> None:
    room.link("x", room.outside / "x")
    uri = "pvc://data" if use is USES["remove"] else "pvc://data/x"
    _refused(lambda: use(room.storage, uri, room.local))
    assert room.is_untouched()


def test_a_link_into_another_claim_is_refused(room: Room) -> None:
    (room.volumes / "data-2").mkdir()
    (room.volumes / "data-2" / "x").write_text("theirs")
    room.link("x", "../data-2/x")  # a claim whose name begins with this one's
    _refused(lambda: room.storage.fetch("pvc://data/x"))


def test_links_within_the_claim_are_followed(room: Room) -> None:
    (room.claim / "real").mkdir()
    room.link("near", "real")
    room.link("absolute", room.claim / "real")
    published = room.storage.publish(room.local, "pvc://data/near/x")
    assert (room.claim / "real" / "x").read_text() == "new"
    assert room.storage.fetch("pvc://data/absolute/x", published.sha256).read_text() == "new"
    assert [path.name for path in room.storage.folder("pvc://data/near").iterdir()] == ["x"]
    assert room.storage.mirror("pvc://data/near") == room.claim / "near"
    room.storage.remove("pvc://data/near", ["x"])
    assert [path.name for path in room.claim.iterdir() if path.name == "near"] == ["near"]
    assert list((room.claim / "real").iterdir()) == []


def test_a_claim_may_be_a_link_itself(room: Room) -> None:
    (room.volumes / "linked").symlink_to(room.outside)
    assert room.storage.fetch("pvc://linked/x").read_text() == "secret"
    room.storage.publish(room.local, "pvc://linked/y")
    assert (room.outside / "y").read_text() == "new"


def test_a_loop_of_links_is_no_file(room: Room) -> None:
    room.link("loop", "loop")
    with pytest.raises(NotFoundError):
        room.storage.fetch("pvc://data/loop")
    assert not room.storage.exists("pvc://data/loop")


def test_links_of_a_local_address_are_followed(room: Room) -> None:
    room.link("far", room.outside)
    assert room.storage.fetch(f"file://{room.claim}/far/x").read_text() == "secret"


# --- data sets

KITTI = "Car 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n"


def _dataset(**fields: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": "pvc://data/set",
            "images": "images",
            "labels": "labels",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
            **fields,
        }
    )


@pytest.fixture
def folder(room: Room) -> Path:
    """A data set with two images."""
    for name in ("one", "two"):
        for file, text in ((f"images/{name}.jpg", ""), (f"labels/{name}.txt", KITTI)):
            path = room.claim / "set" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (room.outside / "x.json").write_text("{}")
    return room.claim / "set"


def _replace(file: Path, target: Path | str) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(target)


@pytest.mark.parametrize(
    ("file", "problem"),
    [("images/two.jpg", Problem.UNREADABLE_IMAGE), ("labels/two.txt", Problem.UNREADABLE_LABEL)],
)
def test_an_image_or_label_that_is_a_link_out_of_the_claim_is_left_out(
    room: Room, folder: Path, file: str, problem: Problem
) -> None:
    _replace(folder / file, room.outside / "x")
    (source,) = sources.find(_dataset(), room.storage)
    assert [sample.stem for sample in source.listing.samples] == ["one"]
    findings = [*source.listing.skipped, *source.listing.findings]
    message = "expected a file, got a link out of the claim, which is not followed: copy the file"
    assert (problem, file, message) in [(item.problem, item.file, item.message) for item in findings]
    assert file not in [name for name, _ in source.listing.label_files]


def test_an_image_that_is_a_link_within_the_claim_is_used(room: Room, folder: Path) -> None:
    (room.claim / "store.bin").write_text("")
    _replace(folder / "images/two.jpg", "../../store.bin")
    (source,) = sources.find(_dataset(), room.storage)
    assert [sample.stem for sample in source.listing.samples] == ["one", "two"]


@pytest.mark.parametrize(
    ("link", "target", "fields"),
    [
        ("far", "", {"images": "far"}),
        ("far", "", {"labels": "far"}),
        ("far", "", {"validation": {"images": "far", "labels": "labels"}}),
        ("list.txt", "x", {"imageSet": "list.txt"}),
        ("list.txt", "x", {"imageSet": "./list.txt"}),
        ("list.txt", "x", {"validation": {"imageSet": "list.txt"}}),
        ("a.json", "x.json", {"format": "coco", "labels": "a.json"}),
        ("data.yaml", "x", {"format": "yolo"}),
        ("groups.csv", "x", {"validation": {"fraction": 0.5, "groupBy": {"file": "groups.csv"}}}),
    ],
)
def test_no_file_that_a_data_set_names_may_be_a_link_out_of_the_claim(
    room: Room, folder: Path, link: str, target: str, fields: dict[str, Any]
) -> None:
    (folder / link).symlink_to(room.outside / target)
    dataset = _dataset(**fields)
    failure = _refused(lambda: planning.plan(sources.find(dataset, room.storage), dataset, room.storage))
    assert "a symbolic link that leads out of it" in failure.message


def test_a_folder_of_coco_files_may_hold_no_link_out_of_the_claim(room: Room, folder: Path) -> None:
    (folder / "annotations").mkdir()
    (folder / "annotations/a.json").symlink_to(room.outside / "x.json")
    with pytest.raises(RunnerError, match=r"expected \.json files|a link out of the claim") as caught:
        sources.find(_dataset(format="coco", labels="annotations"), room.storage)
    assert caught.value.reason == Reason.NO_LABELS


def test_names_in_a_list_of_images_lead_to_images_of_the_folder_only(room: Room, folder: Path) -> None:
    (room.claim / "secret.jpg").write_text("")
    (folder / "list.txt").write_text("one\n../../secret\n/etc/passwd\nimages//two\n%2e%2e/%2e%2e/secret\n")
    (source,) = sources.find(_dataset(imageSet="list.txt"), room.storage)
    assert [sample.stem for sample in source.listing.samples] == ["one"]
    lines = [item.line for item in source.listing.findings if item.problem == Problem.LISTED_WITHOUT_IMAGE]
    assert lines == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "name", ["../../secret.jpg", "/etc/passwd", "%2e%2e/%2e%2e/secret.jpg", "..//secret.jpg"]
)
def test_names_in_a_coco_file_lead_to_images_of_the_folder_only(room: Room, folder: Path, name: str) -> None:
    (room.claim / "secret.jpg").write_text("")
    coco = {
        "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": name}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
        "categories": [{"id": 1, "name": "car"}],
    }
    (folder / "a.json").write_text(json.dumps(coco))
    (source,) = sources.find(_dataset(format="coco", labels="a.json"), room.storage)
    assert "one" in [sample.stem for sample in source.listing.samples]
    assert {sample.image.parent for sample in source.listing.samples} == {folder / "images"}


# --- records


def _manifest(folder: Path, name: str, size: int) -> None:
    shard = Shard(name=name, subset="training", images=1, size_bytes=size, sha256="0" * 64)
    counts = {
        "training_images": 1,
        "validation_images": 0,
        "training_objects": [1],
        "validation_objects": [0],
    }
    manifest = Manifest.model_validate(
        {
            "digest": "sha256:0",
            "class_names": ["car"],
            "height": 64,
            "width": 64,
            "mode": "stretch",
            "objects_per_image": {1: 1},
            "shards": [shard],
            **counts,
        }
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())


@pytest.mark.parametrize("name", ["../../outside/x", "//etc/hostname", "a/../../../outside/x", "link"])
def test_a_manifest_of_records_names_files_of_its_folder_only(room: Room, name: str) -> None:
    (room.claim / "records").mkdir()
    room.link("records/link", room.outside / "x")
    _manifest(room.claim / "records", name, len("secret"))
    _refused(lambda: load_records(room.storage, "pvc://data/records"))


def test_a_manifest_that_is_a_link_out_of_the_claim_is_refused(room: Room) -> None:
    (room.claim / "records").mkdir()
    room.link("records/dataset.json", room.outside / "x")
    _refused(lambda: load_records(room.storage, "pvc://data/records"))


def test_a_shard_or_sidecar_that_is_a_link_out_of_the_claim_is_refused(room: Room) -> None:
    folder = shards.ShardFolder(room.storage, "pvc://data/records", "sha256:0")
    planned = PlannedShard("training-0.tfrecord", "training", ())  # type: ignore[arg-type]
    room.link(f"records/{planned.sidecar}", room.outside / "x")
    _refused(lambda: folder.whole(planned))
    _refused(lambda: folder.sidecar(planned))


# --- local runs


@pytest.mark.parametrize("path", ["//etc/x", "/../x", "/./x"])
def test_a_local_run_resolves_addresses_as_a_task_does(room: Room, path: str) -> None:
    folders = Folders(room.volumes.parent / "state", room.volumes)
    for root in ROOTS:
        _refused(lambda: folders.path_of(root + path))  # noqa: B023
    assert folders.path_of("pvc://data/%2e%2e/x") == room.claim / "%2e%2e" / "x"
    room.link("far", room.outside)
    _refused(lambda: folders.path_of("pvc://data/far/x"))
    assert room.is_untouched()


# --- S3


class Transfers:
    """Transfers that remember where objects would go."""

    def __init__(self) -> None:
        self.targets: list[Path] = []

    def download(self, bucket: str, key: str, target: str) -> "Transfers":
        self.targets.append(Path(target))
        Path(target).write_text(key)
        return self

    def result(self) -> None:
        """Done at once."""

    def cancel(self) -> None:
        """Done at once."""


def _server(monkeypatch: pytest.MonkeyPatch, storage: Storage, *keys: str) -> Transfers:
    """Give a storage a server that lists these keys, whatever is asked for."""
    store = object.__new__(ObjectStore)
    store._server = "stub"
    store._transfers = Transfers()
    monkeypatch.setattr(store, "_keys", lambda bucket, prefix: iter(keys))
    monkeypatch.setattr(store, "exists", lambda bucket, key: True)
    storage._backends["s3"] = Buckets(store, storage.scratch)
    transfers: Transfers = store._transfers
    return transfers


@pytest.mark.parametrize("use", ["folder", "mirror", "load_records"])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//x", "./x", "a/./x", "..", "."])
def test_keys_of_a_server_that_leave_the_folder_are_refused(
    room: Room, monkeypatch: pytest.MonkeyPatch, name: str, use: str
) -> None:
    transfers = _server(monkeypatch, room.storage, f"set/{name}")
    failure = _refused(lambda: USES[use](room.storage, "s3://bucket/set", room.local))
    assert f"got {name!r}" in failure.message
    assert transfers.targets == []
    assert (room.outside / "x").read_text() == "secret"


def test_an_encoded_dot_dot_in_a_key_is_a_name(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    _server(monkeypatch, room.storage, "set/%2e%2e/%2e%2e/x")
    folder = room.storage.folder("s3://bucket/set")
    assert (folder / "%2e%2e" / "%2e%2e" / "x").read_text() == "set/%2e%2e/%2e%2e/x"
    assert room.storage.fetch("s3://bucket/%2e%2e/x").read_text() == "%2e%2e/x"
    copies = [path for path in room.storage.scratch.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(room.storage.scratch).as_posix() for path in copies) == [
        "s3/bucket/%2e%2e/x",
        "s3/bucket/set/%2e%2e/%2e%2e/x",
    ]


@pytest.mark.parametrize("use", ["fetch", "folder", "mirror", "at_hand"])
def test_a_copy_does_not_go_through_a_link_out_of_the_scratch_folder(
    room: Room, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    _server(monkeypatch, room.storage, "far/x")
    (room.storage.scratch / "s3" / "bucket").mkdir(parents=True)
    (room.storage.scratch / "s3" / "bucket" / "far").symlink_to(room.outside)
    _refused(lambda: USES[use](room.storage, "s3://bucket/far/x", room.local))
    assert (room.outside / "x").read_text() == "secret"
