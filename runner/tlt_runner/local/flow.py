"""``tlt run`` and ``tlt <command> -f``: a flow, one resource after the other, each in a child process.

References are resolved by the operator's own rules. A local run does not retry, because retries and their
remedies are the operator's; a second ``tlt run`` resumes where the first one ended.
"""

from __future__ import annotations

import sys
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
from tlt_runner.local import checks, child, table, transitions, view
from tlt_runner.local.state import Folders, ResourceStore


def run_all(path: Path, folders: Folders, *, again: bool) -> int:
    """Run every resource of a folder or file, in the order of their references; return the exit code.

    Raises:
        RunnerError: Nothing was started: a manifest is wrong, a reference leads to nothing, data are missing.
    """
    # All files are read before anything starts: a mistake in the last one should not show after hours.
    checked = manifests.read(path)
    resources = checked.require_valid()
    for text in checked.ignored:
        print(f"ignored: {text}", flush=True)
    for text in checked.warnings():
        print(f"warning: {text}", flush=True)
    return _run(resources, folders, again=again)


def run_one(command: Command, file: Path, folders: Folders) -> int:
    """Run one command for the one fitting resource of a file; return the exit code.

    Raises:
        RunnerError: Nothing was started.
    """
    # Named explicitly, a command runs even if the resource has succeeded.
    return _run([only(command, file)], folders, again=True, part=None if command.whole else command)


def only(command: Command, file: Path) -> Resource:
    """Return the one resource of a file that fits a command.

    Raises:
        RunnerError: InvalidSpec; the file is wrong, or holds none or several.
    """
    checked = manifests.read(file)
    fitting = [item for item in checked.require_valid() if item.kind.name == command.kind]
    if len(fitting) != 1:
        names = ", ".join(item.key for item in fitting) or "none"
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected exactly one {command.kind} in {file}, got {names}",
            "Keep it in a file of its own, or run all with tlt run.",
        )
    # On the standard error output: that of `tlt convert --to` is a block for a manifest.
    for text in checked.warnings():
        print(f"warning: {text}", file=sys.stderr, flush=True)
    return fitting[0]


def _run(resources: Sequence[Resource], folders: Folders, *, again: bool, part: Command | None = None) -> int:
    """Check everything that can be checked before, then run; ``part`` is a command that does a part only."""
    # The lock is held until the end: two flows would overwrite each other's statuses.
    state = ResourceStore(folders.state)
    with state.locked() as lock:
        ordered = list(resources) if part else checks.in_order(resources, state.load)
        flow = Flow(ordered, folders, state, lock, again=again)
        # A part of a training does not train: one node gives the same figures as several.
        if part is None:
            checks.require_one_node(flow.unfinished())
        checks.require_data(flow.unfinished(), folders)
        for resource in ordered:
            if names := checks.not_applied(resource):
                print(f"{resource.key}: not applied without a cluster: {', '.join(names)}", flush=True)
        return flow.run_part(part) if part else flow.run()


class Flow:
    """The resources of one call and their status.

    Args:
        ordered: The manifests' resources, each after the one that it refers to.
        folders: Folders of the local run.
        state: Resources of earlier calls.
        lock: File descriptor of the state's lock, for children.
        again: Run resources that have succeeded again.
    """

    def __init__(
        self, ordered: Sequence[Resource], folders: Folders, state: ResourceStore, lock: int, *, again: bool
    ) -> None:
        self._folders = folders
        self._state = state
        self._lock = lock
        self._again = again
        # What earlier calls have left, and what this call shows and saves.
        self._stored = {item.key: state.load(item.kind.name, item.name) for item in ordered}
        self._current = {item.key: replace(item, status=item.kind.status()) for item in ordered}
        self._logs: dict[str, Path] = {}
        self._interrupts = child.Interrupts()
        # Replaced by the live table in run(); a part of the work prints lines.
        self._view: view.View = view.PlainView()

    def unfinished(self) -> list[Resource]:
        """Return the resources that are going to run, as far as this is known before they start."""
        # Without parents: whether one of them runs again, and this one after it, is not known yet.
        return [
            item
            for key, item in self._current.items()
            if self._again or not checks.finished(item, self._stored[key], None, self._folders)[0]
        ]

    def run(self) -> int:
        """Run all resources; return the exit code of the first failure."""
        self._interrupts.install()
        with view.for_output() as self._view:
            for key in list(self._current):
                self._advance(key)
        # After the view has closed: a live table would draw over these lines.
        for line in table.of_flow(list(self._current.values()), self._folders, self._logs, utc_now()):
            print(line, flush=True)
        return self._exit_code()

    def _advance(self, key: str) -> None:
        """Run one resource, or record why it does not run."""
        resource = self._identify(self._current[key])
        # Nothing is left to do.
        if resource.status.phase == Phase.SUCCEEDED:
            self._current[key] = resource
            self._view.say(f"{key}: succeeded before with the same spec, not run again (--again does)")
            return
        self._put(resource)
        # The user does not want it to run now, or interrupted the flow before its turn.
        if resource.spec.suspend:
            self._put(transitions.suspended(resource, utc_now()))
            return
        if self._interrupts.requested():
            self._put(transitions.not_started(resource, "not started: the flow was interrupted", utc_now()))
            return
        # Its parent failed or does not exist: it can never run. Its parent has not succeeded yet: it waits.
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
        """Return the stored object if the manifest asks for the same work, else a new one."""
        stored = self._stored[resource.key]
        key = references.parent_key(references.model_source(resource))
        parent = self._lookup(*key) if key else None
        finished, why_not = checks.finished(resource, stored, parent, self._folders)
        if finished and not self._again and stored is not None:
            return transitions.kept(resource, stored)
        if why_not:
            self._view.say(f"{resource.key}: runs again: {why_not}")
        # An attempt that did not succeed is resumed from its checkpoint, unless spec or parent changed.
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
        ended = self._in_child(resource.kind.command, begun, folder, show=self._put)
        # Results first, then the phase: Succeeded must not be seen without its artifacts.
        after = transitions.reported(begun, ended.report)
        self._logs[resource.key] = ended.log
        if ended.failure is None:
            self._put(transitions.succeeded(after, utc_now()))
        else:
            self._put(transitions.failed(after, ended.failure, utc_now()))

    def run_part(self, command: Command) -> int:
        """Run a command that does a part of the resource's work, whose status stays as it is."""
        (resource,) = self._current.values()
        stored = self._stored[resource.key]
        # With the uid of the stored object, evaluate recognises the model of this resource's own training.
        same = stored is not None and transitions.same_work(resource, stored)
        resource = (
            transitions.kept(resource, stored) if same and stored else transitions.new(resource, utc_now())
        )
        resolved = references.resolve(resource, self._lookup)
        # convert and anchors need no model, and evaluate itself names the one that it misses.
        if not isinstance(resolved, references.Resolved):
            print(f"{resource.key}: without the model it starts from: {resolved.message}", flush=True)
            resolved = references.Resolved(Inputs())
        self._interrupts.install()
        begun = transitions.begun(resource, resolved, utc_now())
        folder = self._folders.run_folder(resource.kind.name, resource.name, command.name)
        ended = self._in_child(
            command.name, begun, folder, show=lambda running: self._view.show([running], utc_now())
        )
        for line in table.of_part(transitions.reported(begun, ended.report), ended):
            print(line, flush=True)
        return exits.exit_code(ended.failure, exits.INTERNAL_EXIT) if ended.failure else 0

    def _in_child(
        self, command: str, resource: Resource, folder: Path, show: Callable[[Resource], None]
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
            on_report=lambda report: show(transitions.reported(resource, report)),
            lock=self._lock,
        )

    def _lookup(self, kind: str, name: str) -> Resource | None:
        # This flow's resources come before stored ones: their status is newer.
        return self._current.get(f"{kind}/{name}") or self._state.load(kind, name)

    def _put(self, resource: Resource) -> None:
        self._current[resource.key] = resource
        # Saved at every change: after a kill, the next `tlt run` resumes from here.
        self._state.save(resource)
        self._view.show(list(self._current.values()), utc_now())

    def _exit_code(self) -> int:
        # A resource that failed only because its parent did has no exit code: the parent's decides.
        failures = [item.status.failure for item in self._current.values() if item.status.failure]
        ended_by_failure = next((item for item in failures if item.exit_code is not None), None)
        if ended_by_failure is not None:
            return exits.exit_code(ended_by_failure, exits.INTERNAL_EXIT)
        if failures:
            return CLASSES[Reason.INVALID_SPEC].exit_code or 1
        succeeded = all(item.status.phase == Phase.SUCCEEDED for item in self._current.values())
        interrupted = self._interrupts.requested() and not succeeded
        return CLASSES[Reason.INTERRUPTED].exit_code or 1 if interrupted else 0


def _same_parent(stored: Resource, parent: Resource | None) -> bool:
    # Without a dependency the model was named by address, and no parent can have run again.
    dependency = stored.status.dependency
    return dependency is None or (parent is not None and parent.uid == dependency.uid)
