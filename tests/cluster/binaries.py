"""The Kubernetes binaries, etcd, CoreDNS, kwok and versitygw, built from Go modules and cached by version.

Each set has a Go module of its own because their dependencies disagree. The version is the one that the
module's go.mod requires: there is no second place to change. Called by whatever starts one of them.
"""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import paths, steps
from .errors import UnavailableError


@dataclass(frozen=True)
class _Set:
    folder: str
    module: str
    packages: dict[str, str]
    """Binary name -> Go package."""

    def version(self) -> str:
        text = (paths.SOURCES / self.folder / "go.mod").read_text()
        match = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", text, re.MULTILINE)
        if match is None:
            raise UnavailableError(
                f"{self.folder}/go.mod requires no version of {self.module}; run `go get -tool` there"
            )
        return match[1]


_KUBERNETES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
_SETS = (
    _Set(".", "k8s.io/kubernetes", {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES}),
    _Set("modules/etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"}),
    _Set("modules/coredns", "github.com/coredns/coredns", {"coredns": "github.com/coredns/coredns"}),
    _Set("modules/kwok", "sigs.k8s.io/kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    _Set(
        "modules/versitygw",
        "github.com/versity/versitygw",
        {"versitygw": "github.com/versity/versitygw/cmd/versitygw"},
    ),
)
_SET_OF = {name: group for group in _SETS for name in group.packages}
NAMES = tuple(_SET_OF)


def path(name: str) -> Path:
    """Return the path at which a binary is or will be."""
    return paths.CACHE / "bin" / f"{name}-{_SET_OF[name].version()}"


def binary(name: str) -> Path:
    """The binary of that name, built first when the cache does not hold it.

    Raises:
        UnavailableError: it must be built and there is no Go.
        ClusterError: the build failed.
    """
    if not path(name).exists():
        with paths.exclusive(paths.CACHE / "bin" / ".lock"):
            if not path(name).exists():
                _build(_SET_OF[name])
    return path(name)


def _build(group: _Set) -> None:
    go = shutil.which("go")
    if go is None:
        raise UnavailableError(
            f"building {', '.join(group.packages)} needs Go (1.26 or newer) on PATH, and there is none"
        )
    version = group.version()
    ldflags = "-s -w"
    if group.module == "k8s.io/kubernetes":
        major, minor = version.lstrip("v").split(".")[:2]
        values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        ldflags += "".join(
            f" -X k8s.io/component-base/version.{key}={value}" for key, value in values.items()
        )
    with tempfile.TemporaryDirectory(dir=paths.CACHE / "bin", prefix=".build-") as folder:
        # One `go build` for all of a set: they share most of their packages.
        command = [
            go,
            "build",
            "-trimpath",
            "-ldflags",
            ldflags,
            "-o",
            f"{folder}{os.sep}",
            *group.packages.values(),
        ]
        if len(group.packages) == 1:
            command[command.index("-o") + 1] = os.path.join(folder, next(iter(group.packages)))
        title = f"building {', '.join(group.packages)} {version} (once; cached in {paths.CACHE / 'bin'})"
        steps.long(title, command, cwd=paths.SOURCES / group.folder, env={"CGO_ENABLED": "0"})
        for name in group.packages:
            Path(folder, name).rename(path(name))
