"""Checks of the abilities of this machine. Each raises an UnavailableError that says what is missing.

Called before anything is started, so that a laptop without root gets one clear sentence and the control-plane
level.
"""

import os
import shutil
import sys
from pathlib import Path

from . import paths, steps
from .errors import UnavailableError

_PACKAGE_OF = {
    "containerd": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "gcc": "gcc",
}
_CNI = Path("/usr/lib/cni/ptp")
_LIBC = Path("/usr/include/stdlib.h")


def require_control_plane() -> None:
    """Require Linux: running processes are recognised by /proc."""
    if sys.platform != "linux":
        raise UnavailableError(f"the test cluster runs on Linux, and this is {sys.platform}")


def require_node() -> None:
    """Require Linux, root, and the programs of a node."""
    require_control_plane()
    if os.geteuid() != 0:
        raise UnavailableError(
            "a node (containerd, kubelet) needs root, and this is user "
            f"{os.geteuid()}; the control-plane level works without"
        )
    ensure_system_packages()


def missing_packages() -> list[str]:
    """Debian names of the packages whose programs are not here."""
    # Debian keeps some of these in sbin, which is not on every PATH.
    where = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    missing = [
        package for program, package in _PACKAGE_OF.items() if shutil.which(program, path=where) is None
    ]
    if not _CNI.exists():
        missing.append("containernetworking-plugins")
    if not _LIBC.exists():
        missing.append("libc6-dev")
    return missing


def ensure_system_packages() -> None:
    """Installs the node's programs with apt-get where root may; otherwise says which are missing."""
    missing = missing_packages()
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise UnavailableError(
            f"a node needs these Debian packages, and they are missing here: {' '.join(missing)}"
        )
    with paths.exclusive(paths.CACHE / ".apt.lock"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        steps.long("apt-get update", ["apt-get", "update", "-qq"], env=quiet)
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
        steps.long(f"installing {' '.join(missing)}", install, env=quiet)
    if still := missing_packages():
        raise UnavailableError(f"apt-get installed no program for: {' '.join(still)}")
