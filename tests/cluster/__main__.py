"""`python -m cluster`: a cluster that stays until it is taken down, for the demo and for work by hand.

    eval "$(python -m cluster up --level node)"    starts it, or finds it; prints its kubeconfig and kubectl
    python -m cluster status
    python -m cluster down

Progress goes to standard error, so that `eval` sees these two lines alone. `python -m cluster build` fills
the cache (binaries, and images where this machine can) and starts nothing.
"""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable

from . import abilities, binaries, records, steps
from .control_plane import ControlPlane
from .control_plane import start as start_control_plane
from .errors import ClusterError, UnavailableError
from .images import build_images, load_images
from .node import Node
from .node import start as start_node

LEVELS = ("control-plane", "node")


def main() -> int:
    """Runs one command; an expected failure is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster", description="A real Kubernetes for tests and demo."
    )
    commands = parser.add_subparsers(required=True)
    for function, text in (
        (up, "start a cluster that stays, or find it running"),
        (down, "end it, and everything that dead processes left behind"),
        (status, "say what is running"),
        (build, "fill the cache: binaries and images"),
    ):
        command = commands.add_parser(function.__name__, help=text)
        command.set_defaults(function=function)
        if function in (up, down):
            command.add_argument("--name", default="dev", help="of the cluster (default: dev)")
        if function is up:
            command.add_argument(
                "--level", choices=LEVELS, help="default: node for root, control-plane otherwise"
            )
            command.add_argument(
                "--no-images", action="store_true", help="do not build and import the images"
            )
    arguments = vars(parser.parse_args())
    function: Callable[..., None] = arguments.pop("function")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            function(**arguments)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def attach(name: str) -> tuple[ControlPlane | None, Node | None]:
    """The running parts of a cluster that stays."""
    record, node_record = records.find(name), records.find(f"{name}.node")
    plane = ControlPlane(record) if record is not None and "server" in record.facts else None
    machine = Node(plane, node_record) if plane is not None and node_record is not None else None
    return plane, machine


def up(name: str, level: str | None, no_images: bool) -> None:
    """Starts what is not running of it and prints the line that names its kubeconfig."""
    if level is None:
        level = "node" if os.geteuid() == 0 else "control-plane"
        if level == "control-plane":
            steps.say("starting the control plane only: a node needs root")
    with_node = level == "node"
    plane, machine = attach(name)
    usable = plane is not None and plane.is_healthy() and (plane.with_node or not with_node)
    if plane is not None and plane.record.is_owned():
        raise ClusterError(
            f"another process is starting or using the cluster {name!r}; wait for it or choose another --name"
        )
    if not usable:
        if _end(name):
            steps.say(f"{name} was not healthy, or had no network for a node: it is started anew, and empty")
        plane, machine = start_control_plane(name, with_node=with_node), None
    assert plane is not None
    images = None
    try:
        if with_node:
            if machine is not None and not machine.is_healthy():
                records.undo(machine.record)
                machine = None
            machine = machine or start_node(plane)
            images = None if no_images else load_images(machine)
    except BaseException:
        _end(name)
        raise
    for record in (plane.record, machine.record if machine else None):
        if record is not None:
            record.keep()
    steps.say(f"{name} is running at {plane.server}")
    if images is not None:
        steps.say(f"it holds {images.operator} and {images.runner}")
    print(f"export KUBECONFIG={shlex.quote(str(plane.kubeconfig))}", file=sys.__stdout__)
    print(f"alias kubectl={shlex.quote(str(binaries.binary('kubectl')))}", file=sys.__stdout__, flush=True)


def down(name: str) -> None:
    """Ends the cluster of that name, and abandoned ones."""
    ended = _end(name)
    records.end_abandoned()
    steps.say(f"{name} is down" if ended else f"there is no cluster named {name!r}")


def status() -> None:
    """Print a line for each cluster."""
    lines = []
    for record in records.every():
        owner = (
            "abandoned" if record.is_abandoned() else "of a running process" if record.is_owned() else "kept"
        )
        parts = ", ".join(f"{part} {pid}" for part, pid in record.processes().items()) or "nothing running"
        lines.append(f"{record.name:<24} {record.kind:<14} {owner:<20} {parts}")
    print("\n".join(lines) or "no clusters", file=sys.__stdout__)


def build() -> None:
    """Builds all binaries, and the images where this machine can."""
    for name in binaries.NAMES:
        binaries.binary(name)
    try:
        abilities.require_node()
    except UnavailableError as error:
        steps.say(f"no images: {error}")
        return
    build_images()


def _end(name: str) -> bool:
    mine = [record for record in records.every() if record.name == name or record.name.startswith(f"{name}.")]
    for record in mine:
        records.undo(record)
    return bool(mine)


if __name__ == "__main__":
    sys.exit(main())
