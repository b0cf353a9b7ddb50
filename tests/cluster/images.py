"""Builds the project's images from its own Dockerfile, and brings them into a node's containerd.

Called by the e2e ring's fixtures and by the demo. The base is a debootstrap system, so no registry is needed.
Images are kept as one OCI layout, a folder of blobs. The dependency layer is a blob that stays while only our
sources change: then a new image is a small layer, a configuration and a manifest, and an import sends
containerd nothing else.
"""

import hashlib
import io
import json
import os
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import abilities, paths, steps
from .errors import ClusterError, UnavailableError

if TYPE_CHECKING:
    from .node import Node

TARGETS = ("operator", "runner")
PAUSE = "localhost/tlt-pause:1"
BASE = "localhost/tlt-base:bookworm-1"
_LAYOUT = paths.CACHE / "images"
_NAME = "org.opencontainers.image.ref.name"
_KEPT = 3
_SHIPPED = (
    "Dockerfile",
    ".dockerignore",
    "LICENSE",
    "NOTICE",
    "README.md",
    "constraints.txt",
    *(f"constraints-{target}.txt" for target in TARGETS),
    "crds",
    "operator",
    "pyproject.toml",
    "runner",
)


@dataclass(frozen=True)
class Images:
    """References that a pod can name."""

    operator: str
    runner: str


def build_images(targets: tuple[str, ...] = TARGETS) -> Images:
    """Builds what the cache does not hold. Returns both references, also where one target is asked for.

    Raises:
        UnavailableError: this machine lacks an ability (root, buildah).
        ClusterError: the build failed.
    """
    with tempfile.TemporaryDirectory(prefix="tlt-images-") as folder:
        # A copy, so that what is built is what was digested, also while somebody edits the sources.
        context = Path(folder, "context")
        _copy_sources(context)
        references = {target: f"localhost/tlt-{target}:{_digest(context, target)}" for target in TARGETS}
        wanted = {references[target]: target for target in targets}
        if not _held() >= set(wanted):
            abilities.require_node()
            with paths.exclusive(_LAYOUT / ".lock"):
                for reference in sorted(set(wanted) - _held()):
                    _build(context, wanted[reference], reference)
    return Images(**references)


def load_images(node: "Node", images: Images | None = None) -> Images:
    """Imports images into a node, those it does not hold. Builds them first where none are given.

    Raises:
        ClusterError: containerd refused them.
    """
    images = images or build_images()
    load(node, [images.operator, images.runner])
    return images


def load_pause(node: "Node") -> None:
    """Builds and imports the pods' first container, which the kubelet needs before any pod."""
    if PAUSE not in _held():
        with paths.exclusive(_LAYOUT / ".lock"), tempfile.TemporaryDirectory() as folder:
            steps.run("gcc", "-static", "-Os", "-s", "-o", f"{folder}/pause", paths.SOURCES / "pause.c")
            Path(folder, "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
            _buildah(f"building {PAUSE}", "bud", "--isolation", "chroot", "--tag", PAUSE, folder)
            _push(PAUSE)
    load(node, [PAUSE])


def load(node: "Node", references: list[str]) -> None:
    """Imports images of the layout by name."""
    imported = set(node.ctr("images", "ls", "-q").split())
    missing = [reference for reference in references if reference not in imported]
    if not missing:
        return
    entries = [entry for entry in _index() if _name(entry) in missing]
    if len(entries) != len(missing):
        raise ClusterError(f"expected the images {missing} in {_LAYOUT}, but it holds {sorted(_held())}")
    held = set(node.ctr("content", "ls", "-q").split())
    with tempfile.NamedTemporaryFile(dir=_LAYOUT, suffix=".tar") as archive:
        sent = _write_archive(Path(archive.name), entries, held)
        title = f"importing {', '.join(missing)} ({sent / 1e6:.0f} MB that the node does not hold)"
        steps.long(title, node.ctr_command("images", "import", "--snapshotter", "overlayfs", archive.name))


def _copy_sources(context: Path) -> None:
    context.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
    for name in _SHIPPED:
        source = paths.REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=unwanted)
        else:
            shutil.copy(source, context / name)


def _digest(context: Path, target: str) -> str:
    """Return the digest of everything that goes into an image, so without the other target's constraints."""
    others = {f"constraints-{other}.txt" for other in TARGETS if other != target}
    total = hashlib.sha256(BASE.encode())
    for file in sorted(file for file in context.rglob("*") if file.is_file() and file.name not in others):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(context)} {content}\n".encode())
    return total.hexdigest()[:16]


def _build(context: Path, target: str, reference: str) -> None:
    _ensure_base()
    _bud(context, target, reference)
    if not _add_with_known_layers(context, reference):
        _push(reference)
    _prune(target)


def _bud(context: Path, target: str, reference: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _buildah(
            f"building {reference}",
            *("bud", "--isolation", "chroot", "--layers", "--format", "oci", "--pull-never"),
            *("--build-arg", f"BASE_IMAGE={BASE}", "--target", target, "--tag", reference),
            *_build_settings(Path(folder)),
            context,
        )


def _add_with_known_layers(context: Path, reference: str) -> bool:
    """Adds an image of which the layout lacks the last layer only: the Dockerfile's stage `sources`.

    buildah would read and compress all gigabytes below it again to find that nothing is new. Returns whether
    it could: the first time, and when dependencies change, it cannot.
    """
    config = json.loads(_buildah_output("inspect", "--type", "image", reference))["OCIv1"]
    *lower, _ = config["rootfs"]["diff_ids"]
    known_layers = _known_layers()
    if not all(identity in known_layers for identity in lower):
        return False
    sources = reference.replace("localhost/tlt-", "localhost/tlt-sources-")
    _bud(context, "sources", sources)
    _push(sources)
    (entry,) = (entry for entry in _index() if _name(entry) == sources)
    _write_index([other for other in _index() if other != entry])
    manifest = _json(entry)
    config["rootfs"]["diff_ids"] = [*lower, *_json(manifest["config"])["rootfs"]["diff_ids"]]
    manifest["layers"] = [*(known_layers[identity] for identity in lower), *manifest["layers"]]
    manifest["config"] = {**manifest["config"], **_add_blob(config)}
    added = {**entry, **_add_blob(manifest), "annotations": {_NAME: reference}}
    _write_index([*_index(), added])
    return True


def _known_layers() -> dict[str, dict]:
    """Digest of a layer's content -> the blob of it in the layout."""
    blobs: dict[str, dict] = {}
    for entry in _index():
        manifest = _json(entry)
        blobs |= zip(_json(manifest["config"])["rootfs"]["diff_ids"], manifest["layers"], strict=True)
    return blobs


def _prune(target: str) -> None:
    """Keeps the newest images of a target, and the blobs that any image has."""
    old = [entry for entry in _index() if _name(entry).startswith(f"localhost/tlt-{target}:")][:-_KEPT]
    kept = [entry for entry in _index() if entry not in old]
    _write_index(kept)
    used = set()
    for entry in kept:
        manifest = _json(entry)
        used |= {
            entry["digest"],
            manifest["config"]["digest"],
            *(layer["digest"] for layer in manifest["layers"]),
        }
    for file in (_LAYOUT / "blobs" / "sha256").iterdir():
        if f"sha256:{file.name}" not in used:
            file.unlink()


def _build_settings(folder: Path) -> Iterator[str | Path]:
    """The host's proxy, index and CA settings, as secrets and volumes that leave nothing in the image."""
    exports = {}
    for name, value in os.environ.items():
        if name.startswith(("PIP_", "UV_")) or name.lower() in {"http_proxy", "https_proxy", "no_proxy"}:
            exports[name] = value
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "UV_CACHE_DIR"):
        exports.pop(name, None)
    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    if bundle.is_file():
        yield from ("--secret", f"id=ca-certificates,src={bundle}")
        for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            exports[name] = "/run/secrets/ca-certificates"
    configurations = [
        os.environ.get("PIP_CONFIG_FILE"),
        Path.home() / ".config/pip/pip.conf",
        "/etc/pip.conf",
    ]
    configuration = next((Path(file) for file in configurations if file and Path(file).is_file()), None)
    if configuration is not None:
        yield from ("--secret", f"id=pip.conf,src={configuration}")
        exports["PIP_CONFIG_FILE"] = "/run/secrets/pip.conf"
    for name, value in list(exports.items()):
        # A folder of wheels on this host is mounted where it has any, and forgotten where it does not.
        if value.startswith("/") and not value.startswith("/run/secrets/"):
            if Path(value).is_dir() and any(Path(value).iterdir()):
                yield from ("--volume", f"{value}:{value}:ro")
            else:
                del exports[name]
    file = folder / "build-env"
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items()))
    yield from ("--secret", f"id=build-env,src={file}")


def _ensure_base() -> None:
    """A Debian with Python 3.11, made by debootstrap once."""
    archive = paths.CACHE / "base" / "bookworm-python3.11.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            root = Path(folder, "root")
            packages = "python3,python3-venv,ca-certificates"
            command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root]
            steps.long("debootstrap of the base system (once)", [*command, *_debian_mirror()])
            for unused in (
                "var/cache/apt",
                "var/lib/apt/lists",
                "usr/share/doc",
                "usr/share/man",
                "usr/share/locale",
                "var/log",
            ):
                shutil.rmtree(root / unused)
                (root / unused).mkdir()
            part = archive.with_suffix(".part")
            steps.run("tar", "-C", root, "--numeric-owner", "-cf", part, ".")
            part.rename(archive)
    if not _buildah_output("images", "--quiet", "--filter", f"reference={BASE}").strip():
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            os.link(archive, Path(folder, "base.tar"))
            Path(folder, "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
            _buildah(f"importing {BASE}", "bud", "--isolation", "chroot", "--tag", BASE, folder)


def _debian_mirror() -> list[str]:
    """The mirror this machine's apt uses, where it is a Debian; debootstrap's own default otherwise."""
    if shutil.which("apt-get") is None or "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        return []
    arguments = ("--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm", "Component: main")
    sites = steps.run("apt-get", "indextargets", *arguments, check=False).splitlines()
    return [site for site in sites if "security" not in site][:1]


def _buildah_command(*arguments: str | Path) -> list[str | Path]:
    if shutil.which("buildah") is None:
        raise UnavailableError("building images needs buildah, and it is not installed")
    storage = paths.CACHE / "buildah"
    return [
        "buildah",
        "--root",
        storage / "root",
        "--runroot",
        storage / "run",
        "--storage-driver",
        "overlay",
        *arguments,
    ]


def _buildah(title: str, *arguments: str | Path) -> None:
    policy = paths.CACHE / "buildah" / "policy.json"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    command, *rest = arguments
    steps.long(title, _buildah_command(command, "--signature-policy", policy, *rest))


def _buildah_output(*arguments: str | Path) -> str:
    return steps.run(*_buildah_command(*arguments))


def _push(reference: str) -> None:
    """Adds an image of buildah's storage to the layout. Light zstd is faster to write and read than gzip."""
    light = ("--compression-format", "zstd", "--compression-level", "1")
    _buildah(f"writing {reference} to {_LAYOUT}", "push", *light, reference, f"oci:{_LAYOUT}:{reference}")


def _index() -> list[dict]:
    file = _LAYOUT / "index.json"
    return json.loads(file.read_text())["manifests"] if file.exists() else []


def _write_index(entries: list[dict]) -> None:
    part = _LAYOUT / "index.json.part"
    part.write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    part.replace(_LAYOUT / "index.json")


def _name(entry: dict) -> str:
    return entry.get("annotations", {}).get(_NAME, "")


def _json(descriptor: dict) -> dict:
    return json.loads(_blob(descriptor["digest"]).read_text())


def _add_blob(content: dict) -> dict:
    """Writes JSON as a blob and returns its digest and size."""
    data = json.dumps(content).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _blob(digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def _held() -> set[str]:
    return {_name(entry) for entry in _index()}


def _write_archive(archive: Path, entries: list[dict], held: set[str]) -> int:
    """Writes an OCI archive of images without layers that the reader holds; returns its bytes of blobs."""
    blobs: dict[str, Path] = {}
    for entry in entries:
        manifest = _json(entry)
        for digest in (entry["digest"], manifest["config"]["digest"]):
            blobs[digest] = _blob(digest)
        for layer in manifest["layers"]:
            if layer["digest"] not in held:
                blobs[layer["digest"]] = _blob(layer["digest"])
    named = [{**entry, "annotations": {"io.containerd.image.name": _name(entry)}} for entry in entries]
    index = json.dumps({"schemaVersion": 2, "manifests": named}).encode()
    with tarfile.open(archive, "w") as tar:
        for name, content in (("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", index)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for digest, file in blobs.items():
            tar.add(file, "blobs/" + digest.replace(":", "/"))
    return sum(file.stat().st_size for file in blobs.values())


def _blob(digest: str) -> Path:
    return _LAYOUT / "blobs" / digest.replace(":", "/")
