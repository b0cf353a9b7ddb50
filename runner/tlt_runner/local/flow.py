"""``tlt run`` and ``tlt <command> -f``: a flow, one resource after the other, each in a child process.

References are resolved by the operator's own rules. There are no retries here: what a retry changes is
decided by the operator; a second ``tlt run`` goes on where the first one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tlt_api import references, runspec
from tlt_api.failures import CLASSES, Reason
from tlt_api.resources import Resource
from tlt_api.status import Inputs, Phase
from tlt_api.times import utc_now
from tlt_runner import exits, manifests
from tlt_runner.commands import Command
from tlt_runner.errors import RunnerError
from tlt_runner.local import checks, child, summary, transitions, view
from tlt_runner.local.state import Folders, State


def run_all(path: Path, folders: Folders, *, again: bool) -> int:
    """Run every resource of a folder or file, in the order of their references; return the exit code.

    Raises:
        RunnerError: Nothing was started: a manifest is wrong, a reference leads to nothing, data are missing.
    """
    verdict = manifests.read(path)
    wanted = verdict.require_valid()
    for text in verdict.ignored:
        print(f"ignored: {text}", flush=True)
    return _run(wanted, folders, again=again)


def run_one(command: Command, file: Path, folders: Folders) -> int:
    """Run one command for the one fitting resource of a file; return the exit code.

    Raises:
        RunnerError: Nothing was started.
    """
    return _run([only(command, file)], folders, again=True, part=None if command.whole else command)


def only(command: Command, file: Path) -> Resource:
    """The one resource of a file that fits a command.

    Raises:
        RunnerError: InvalidSpec; the file is wrong, or holds none or several.
    """
    wanted = [item for item in manifests.read(file).require_valid() if item.kind.name == command.kind]
    if len(wanted) != 1:
        names = ", ".join(item.key for item in wanted) or "none"
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected exactly one {command.kind} in {file}, got {names}",
            "Keep it in a file of its own, or run all with tlt run.",
        )
    return wanted[0]


def _run(wanted: Sequence[Resource], folders: Folders, *, again: bool, part: Command | None = None) -> int:
    state = State(folders.state)
    with state.locked() as lock:
        ordered = list(wanted) if part else checks.in_order(wanted, state.load)
        flow = Flow(ordered, folders, state, lock, again=again)
        if part is None:  # the parts of a training do not train: theirs are the same figures here
            checks.require_one_node(flow.unfinished())
        checks.require_data(flow.unfinished(), folders)
        for resource in ordered:
            if names := checks.not_applied(resource):
                print(f"{resource.key}: not applied without a cluster: {', '.join(names)}", flush=True)
        return flow.run_part(part) if part else flow.run()


class Flow:
    """The resources of one call, as they proceed.

    Args:
        ordered: The manifests' resources, each after what it refers to.
        folders: Where things are.
        state: What earlier calls left.
        lock: The state's lock, for children.
        again: Whether what succeeded runs again.
    """

    def __init__(
        self, ordered: Sequence[Resource], folders: Folders, state: State, lock: int, *, again: bool
    ) -> None:
        self._folders = folders
        self._state = state
        self._lock = lock
        self._again = again
        self._stored = {item.key: state.load(item.kind.name, item.name) for item in ordered}
        self._current = {item.key: replace(item, status=item.kind.status()) for item in ordered}
        self._logs: dict[str, Path] = {}
        self._interrupts = child.Interrupts()
        self._view: view.View = view.PlainView()

    def unfinished(self) -> list[Resource]:
        """The resources that are going to run, as far as this can be known before."""
        return [
            item
            for key, item in self._current.items()
            if self._again or not checks.finished(item, self._stored[key], None, self._folders)[0]
        ]

    def run(self) -> int:
        """Run them all; return the exit code of the first failure."""
        self._interrupts.install()
        with view.for_output() as self._view:
            for key in list(self._current):
                self._advance(key)
        for line in summary.lines(list(self._current.values()), self._folders, self._logs, utc_now()):
            print(line, flush=True)
        return self._exit_code()

    def run_part(self, command: Command) -> int:
        """Run a command that is not the whole of the resource: its status stays as it is."""
        (resource,) = self._current.values()
        stored = self._stored[resource.key]
        same = stored is not None and transitions.same_work(resource, stored)
        resource = (
            transitions.kept(resource, stored) if same and stored else transitions.new(resource, utc_now())
        )
        resolved = references.resolve(resource, self._lookup)
        if not isinstance(
            resolved, references.Resolved
        ):  # convert needs no model; evaluate says what it needs
            print(f"{resource.key}: without the model it starts from: {resolved.message}", flush=True)
            resolved = references.Resolved(Inputs())
        self._interrupts.install()
        begun = transitions.begun(resource, resolved, utc_now())
        folder = self._folders.run_folder(resource.kind.name, resource.name, command.name)
        ended = self._in_child(
            command.name, begun, folder, tell=lambda now: self._view.show([now], utc_now())
        )
        for line in summary.of_part(transitions.reported(begun, ended.report), ended):
            print(line, flush=True)
        return exits.exit_code(ended.failure, exits.INTERNAL_EXIT) if ended.failure else 0

    def _advance(self, key: str) -> None:
        """Take one resource as far as it can go."""
        resource = self._identify(self._current[key])
        if resource.status.phase == Phase.SUCCEEDED:
            self._current[key] = resource
            self._view.say(f"{key}: succeeded before with the same spec, not run again (--again does)")
            return
        self._put(resource)
        if resource.spec.suspend:
            self._put(transitions.suspended(resource, utc_now()))
            return
        if self._interrupts.count:
            self._put(transitions.not_started(resource, "not started: the flow was interrupted", utc_now()))
            return
        resolved = references.resolve(resource, self._lookup)
        if isinstance(resolved, references.Broken):
            self._put(
                transitions.failed(resource, exits.failure(resolved.reason, resolved.message), utc_now())
            )
        elif isinstance(resolved, references.Waiting):
            self._put(transitions.waiting(resource, resolved.message, utc_now()))
        else:
            self._attempt(resource, resolved)

    def _identify(self, resource: Resource) -> Resource:
        """The stored object where it is the same work, else a new one."""
        stored = self._stored[resource.key]
        key = references.parent_key(references.model_source(resource))
        parent = self._lookup(*key) if key else None
        done, why = checks.finished(resource, stored, parent, self._folders)
        if done and not self._again and stored is not None:
            return transitions.kept(resource, stored)
        if why:
            self._view.say(f"{resource.key}: runs again: {why}")
        resumable = (
            stored is not None
            and stored.status.phase != Phase.SUCCEEDED
            and transitions.same_work(resource, stored)
            and _same_parent(stored, parent)
        )
        if resumable and stored is not None:
            return transitions.resumed(resource, stored, utc_now())
        return transitions.new(resource, utc_now())

    def _attempt(self, resource: Resource, resolved: references.Resolved) -> None:
        begun = transitions.begun(resource, resolved, utc_now())
        self._put(begun)
        folder = self._folders.run_folder(resource.kind.name, resource.name)
        ended = self._in_child(resource.kind.command, begun, folder, tell=self._put)
        after = transitions.reported(begun, ended.report)
        self._logs[resource.key] = ended.log
        if ended.failure is None:
            self._put(transitions.succeeded(after, utc_now()))
        else:
            self._put(transitions.failed(after, ended.failure, utc_now()))

    def _in_child(
        self, command: str, resource: Resource, folder: Path, tell: Callable[[Resource], None]
    ) -> child.Ended:
        self._folders.make_claims(resource)
        inputs = resource.status.inputs or Inputs()
        spec = runspec.for_attempt(resource, resource.spec, inputs, resource.status.attempt or 1)
        return child.run(
            command,
            spec,
            folder,
            self._folders.volumes,
            self._interrupts,
            tell=lambda report: tell(transitions.reported(resource, report)),
            lock=self._lock,
        )

    def _lookup(self, kind: str, name: str) -> Resource | None:
        return self._current.get(f"{kind}/{name}") or self._state.load(kind, name)

    def _put(self, resource: Resource) -> None:
        self._current[resource.key] = resource
        self._state.save(resource)
        self._view.show(list(self._current.values()), utc_now())

    def _exit_code(self) -> int:
        failures = [item.status.failure for item in self._current.values() if item.status.failure]
        own = next((item for item in failures if item.exit_code is not None), None)
        if own is not None:
            return exits.exit_code(own, exits.INTERNAL_EXIT)
        if failures:
            return CLASSES[Reason.INVALID_SPEC].exit_code or 1
        succeeded = all(item.status.phase == Phase.SUCCEEDED for item in self._current.values())
        interrupted = bool(self._interrupts.count) and not succeeded
        return CLASSES[Reason.INTERRUPTED].exit_code or 1 if interrupted else 0


def _same_parent(stored: Resource, parent: Resource | None) -> bool:
    known = stored.status.dependency
    return known is None or (parent is not None and parent.uid == known.uid)
