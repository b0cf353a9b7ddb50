"""Records of everything that was started, so that anyone can end it, also after a SIGKILL of the starter.

A record is a folder `.cache/clusters/<name>/` with a `record.json`: who owns it, the pids with their start
times (a recycled pid is never killed), and the slot its addresses come from. `control_plane`, `node` and
`object_store` each own one. An owner that is dead makes a record abandoned; every start ends abandoned ones
first.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from . import paths, steps
from .errors import ClusterError

FOLDER = paths.CACHE / "clusters"
MARK = "TLT_CLUSTER_RECORD"
"""Environment variable of everything started for a record; containerd's shims inherit it."""

SLOTS = range(50)
_children: dict[int, subprocess.Popen[bytes]] = {}


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a live process, None where there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Record:
    """A record: a folder with its `record.json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name

    @property
    def _file(self) -> Path:
        return self.directory / "record.json"

    @property
    def facts(self) -> dict[str, object]:
        """Facts that the starter noted: kind, slot, addresses."""
        return self._read()["facts"]

    @property
    def kind(self) -> str:
        """Kind of the record, which names the function that undoes it."""
        return str(self.facts["kind"])

    @property
    def slot(self) -> int | None:
        """Number that private addresses and names are made from."""
        slot = self.facts.get("slot")
        return slot if isinstance(slot, int) else None

    def _read(self) -> dict:
        try:
            return json.loads(self._file.read_text())
        except FileNotFoundError:
            # Another test process listed its record, and its owner has ended it since: owners take no lock.
            return {"owner": None, "processes": [], "facts": {}}

    def _write(self, content: Mapping[str, object]) -> None:
        temporary = self._file.with_suffix(".part")
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self._file)

    def note(self, **facts: object) -> None:
        """Adds facts."""
        content = self._read()
        content["facts"].update(facts)
        self._write(content)

    def keep(self) -> None:
        """Let it outlive the process that started it."""
        self._write({**self._read(), "owner": None})

    def is_abandoned(self) -> bool:
        """Return True if its owner died before it could end what it started."""
        owner = self._read()["owner"]
        return owner is not None and start_time(owner["pid"]) != owner["started"]

    def is_owned(self) -> bool:
        """Return True if it belongs to a process that is still running and will end it."""
        return self._read()["owner"] is not None and not self.is_abandoned()

    def processes(self) -> dict[str, int]:
        """Return name -> pid of the processes that are still running."""
        entries = self._read()["processes"]
        return {
            entry["name"]: entry["pid"] for entry in entries if start_time(entry["pid"]) == entry["started"]
        }

    def spawn(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Starts a process of this record; what it prints goes to `<name>.log`."""
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.directory,
                env={**os.environ, **(env or {}), MARK: str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _children[process.pid] = process
        content = self._read()
        content["processes"].append({"name": name, "pid": process.pid, "started": start_time(process.pid)})
        self._write(content)

    def check(self, name: str) -> None:
        """Raises a ClusterError with the end of its log when a process is no longer running."""
        if name not in self.processes():
            log = (self.directory / f"{name}.log").read_text(errors="replace")
            raise ClusterError(f"{name} has stopped. The end of its log:\n{log[-3000:]}")

    def stop(self, *names: str) -> None:
        """Ends processes in the order given: SIGTERM, and SIGKILL after 10 s."""
        for name in names:
            pid = self.processes().get(name)
            if pid is not None:
                _end(pid)

    def stop_all(self) -> None:
        """Ends everything recorded, last started first, then whatever else carries this record's mark."""
        self.stop(*reversed(self.processes()))
        self.kill_marked()

    def kill_marked(self, containing: bytes = b"") -> None:
        """Kills what inherited this record's mark and is not recorded itself (containerd's shims)."""
        mark = f"{MARK}={self.directory}".encode()
        recorded = set(self.processes().values())
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in recorded:
                continue
            with contextlib.suppress(OSError):
                if (
                    mark in (entry / "environ").read_bytes().split(b"\0")
                    and containing in (entry / "cmdline").read_bytes()
                ):
                    os.kill(int(entry.name), signal.SIGKILL)

    def remove(self) -> None:
        """Deletes the folder. A mount that is left below it would be emptied too, so that is an error."""
        if f" {self.directory}/" in Path("/proc/self/mountinfo").read_text():
            raise ClusterError(f"there are mounts left below {self.directory}; not deleting it")
        shutil.rmtree(self.directory)


def _end(pid: int) -> None:
    started = start_time(pid)
    child = _children.pop(pid, None)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while start_time(pid) == started:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    if child is not None:
        child.wait()


def every() -> Iterator[Record]:
    """All records, those that depend on another (`dev.node` on `dev`) first."""
    for file in sorted(FOLDER.glob("*/record.json"), key=lambda file: (-file.parent.name.count("."), file)):
        yield Record(file.parent)


def find(name: str) -> Record | None:
    """The record of that name."""
    return next((record for record in every() if record.name == name), None)


def create(name: str, kind: str, slots: Iterable[int] = ()) -> Record:
    """A new record, owned by this process, after abandoned ones were ended.

    Args:
        name: of the record.
        kind: names the function that undoes it.
        slots: those to choose from, the preferred ones first; it gets none by default.

    Raises:
        ClusterError: the name is taken by a live one, or all slots are.
    """
    with paths.exclusive(FOLDER / ".lock"):
        _end_abandoned()
        if find(name) is not None:
            raise ClusterError(
                f"a cluster named {name!r} exists; `python -m cluster down --name {name}` ends it"
            )
        record = Record(FOLDER / name)
        facts: dict[str, object] = {"kind": kind}
        if slots := list(slots):
            facts["slot"] = _free_slot(slots)
        record.directory.mkdir(parents=True, exist_ok=True)
        owner = {"pid": os.getpid(), "started": start_time(os.getpid())}
        record._write({"owner": owner, "processes": [], "facts": facts})
    return record


def _free_slot(slots: Iterable[int]) -> int:
    taken = {record.slot for record in every()}
    for slot in slots:
        # Another checkout has records elsewhere, but its link would be there.
        if slot not in taken and not Path(f"/sys/class/net/tlt{slot}").exists():
            return slot
    raise ClusterError(
        f"expected a free slot of {len(SLOTS)}, but {len(taken)} clusters are running: "
        "`python -m cluster status`"
    )


Undo = Callable[[Record], None]
_undo_of: dict[str, Undo] = {}


def undone_by(kind: str) -> Callable[[Undo], Undo]:
    """Registers the function that ends records of a kind, from what is written in them alone."""

    def register(undo: Undo) -> Undo:
        _undo_of[kind] = undo
        return undo

    return register


def undo(record: Record) -> None:
    """Ends everything a record tells of."""
    _undo_of[record.kind](record)


def end_abandoned() -> None:
    """Ends the clusters whose owners died."""
    with paths.exclusive(FOLDER / ".lock"):
        _end_abandoned()


def _end_abandoned() -> None:
    for record in list(every()):
        if record.is_abandoned():
            steps.say(f"ending {record.name}, which a process that died left behind")
            undo(record)
