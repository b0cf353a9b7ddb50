"""Publishes the checkpoints of a training: files, then the manifest, then the status, then copies for people.

At the output address, ``checkpoints/<checkpoint>/`` has the immutable files of each checkpoint and
``checkpoint.json`` says which of these exist (:mod:`tlt_runner.training.checkpoint.manifest`). The status
names these files. ``best.keras``, ``last.keras`` and ``epoch-0007.keras`` beside them are copies under
names that stay; after a kill between manifest and copies, the next attempt makes the copies again.

Called by the train task before data are read, so that the status has the models of earlier attempts
meanwhile. :class:`~tlt_runner.training.checkpoint.writer.CheckpointWriter` needs the model and comes when
there is one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tlt_api.failures import Reason
from tlt_api.runspec import Owner
from tlt_api.status import Artifact, Metrics
from tlt_runner.context import Context
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.files import PARTIAL_SUFFIX, sha256_of
from tlt_runner.storage import Storage, join
from tlt_runner.training.checkpoint import manifest as manifests
from tlt_runner.training.checkpoint import state
from tlt_runner.training.checkpoint.manifest import BEST, FOLDER, LAST, MANIFEST, Checkpoint, File, Manifest
from tlt_runner.training.checkpoint.state import Position, Saved

OLD_STATE = "last.state.npz"
"""State file of outputs of before 2026-12. The first new checkpoint replaces it."""
OLD_SECONDS = 6 * 3600.0
"""Age from which a partial file is certainly not being written any more."""
_PARTIAL = re.compile(
    r"\.(best\.keras|last\.keras|last\.state\.npz|checkpoint\.json|epoch-\d+\.keras)\.[0-9a-f]{8}"
    + re.escape(PARTIAL_SUFFIX)
)

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training, in storage and in the status.

    Args:
        context: Storage and reporter.
        output_uri: The output address.
        owner: The TrainingJob.
    """

    def __init__(self, context: Context, output_uri: str, owner: Owner) -> None:
        self._storage = context.storage
        self._reporter = context.reporter
        self._output = output_uri
        self.owner = owner
        self.manifest: Manifest | None = None
        self._folder_is_clean = False

    def recall(self) -> Saved | None:
        """Find the checkpoint of an earlier attempt and report its models again. Writes nothing.

        A model whose file is gone or was replaced is left out. Without ``best`` or ``last``, the epoch that
        ended last is to be finished again, which makes another.

        Raises:
            RunnerError: The storage's reasons, where there may be a checkpoint that cannot be read now.
        """
        # 1. Read what there is.
        saved = self._read_manifest() or self._read_old_layout()
        if saved is None or self.manifest is None:
            return None
        # 2. Trust no entry without its file: the output is the user's, who may have removed or replaced some.
        expected = self.manifest.models()
        missing = self._missing(expected)
        self.manifest = self.manifest.without(missing)
        # 3. Report the others: what this attempt does not report leaves the status.
        for name, checkpoint in self.manifest.models().items():
            self._reporter.artifact(self._artifact(name, checkpoint))
        # 4. Have the lost ones made again.
        position = saved.position
        # A score without its model would keep every lesser model from becoming the best.
        if position.best is not None and BEST not in expected:
            missing.append(BEST)
        if lost := [name for name in (BEST, LAST) if name in missing]:
            position = _reopened(position, lost)
        # The metrics of the best model belong to the status beside it.
        if position.best is not None:
            self._reporter.report(position.best)
        return Saved(position, saved.path, saved.uri)

    def withdraw(self) -> None:
        """Take back what :meth:`recall` reported: the training starts over and replaces the files."""
        for name in self.manifest.models() if self.manifest else ():
            self._reporter.removed(name)
        # The files stay until new ones replace them: if this attempt fails at once, nothing is lost.
        self.manifest = None
        # Empty metrics in place of those of a model that no longer counts.
        self._reporter.report(Metrics())

    def repair(self) -> None:
        """Repair the output of a killed attempt: make missing copies, remove files without an entry."""
        if self.manifest is None:
            return
        for name, checkpoint in self.manifest.models().items():
            model, copy = checkpoint.model, self._uri(f"{name}.keras")
            assert model is not None
            stored = self._storage.stored(copy)
            # In an output of before 2026-12 the model is its own copy.
            if model.path == f"{name}.keras" or (stored and stored.sha256 == model.sha256):
                continue
            log.info("%s is not the model of epoch %d; copying it again", copy, checkpoint.epoch)
            local = self._storage.fetch(self._uri(model.path), model.sha256)
            self._storage.publish(local, copy)
            # In S3 it is a download, as large as the model; on a volume it is the checkpoint's own file.
            if self._storage.local_path(copy) is None:
                local.unlink()
        # What the killed attempt had still to remove, and what it had published before its manifest.
        self._remove(self.manifest.superseded)
        self._remove_unnamed()

    def publish(self, local: Path, path: str) -> File:
        """Publish a file below the output address."""
        published = self._storage.publish(local, self._uri(path))
        return File(path=path, sha256=published.sha256, size_bytes=published.size_bytes)

    def record(self, manifest: Manifest, scratch: Path, model: Path | None = None) -> None:
        """Replace the manifest, whose files are all published, and bring status and copies up to date.

        Args:
            manifest: The next manifest.
            scratch: A folder for the file.
            model: The local model file of the checkpoint to resume from, if it has a model.
        """
        # The order of the writes is the point (ADR 11): wherever this process is killed, the manifest names
        # files that exist, and status and manifest agree as soon as the next attempt has recalled it.
        previous = self.manifest
        previous_models, models = previous.models() if previous else {}, manifest.models()
        previous_copies, copies = ({f"{name}.keras" for name in named} for named in (previous_models, models))
        # Files of dropped checkpoints, and copies under names that are gone. In the manifest, so that the
        # next attempt removes them if this one is killed first.
        superseded = ((previous.paths() if previous else set()) - manifest.paths() | previous_copies) - copies
        self.manifest = manifest = manifest.model_copy(update={"superseded": sorted(superseded)})
        local = scratch / MANIFEST
        local.write_text(manifest.model_dump_json(indent=1, exclude_none=True))
        # 1. The manifest. From here on the new checkpoints are the ones that exist, whenever this process is
        # killed.
        self._storage.publish(local, self._uri(MANIFEST))
        local.unlink()
        # 2. The status, whose addresses are those of immutable files: no reader meets a digest of another
        # file.
        for name in previous_models.keys() - models.keys():
            self._reporter.removed(name)
        changed = [
            name
            for name, item in models.items()
            if name not in previous_models or previous_models[name].model != item.model
        ]
        for name in changed:
            self._reporter.artifact(self._artifact(name, models[name]))
        if BEST in changed and manifest.position.best is not None:
            self._reporter.report(manifest.position.best)
        # 3. The copies for people: a kill before them is repaired by the next attempt. Only a new model has
        # any to make: other names kept their file.
        for name in changed:
            if model is not None and models[name].name == manifest.resume:
                self._storage.publish(model, self._uri(f"{name}.keras"))
        # 4. What nothing names any more.
        self._remove(superseded)
        self._remove_unnamed()

    def _read_manifest(self) -> Saved | None:
        """Read manifest and state of an earlier attempt; None where the training starts over."""
        uri = self._uri(MANIFEST)
        if not self._storage.exists(uri):
            return None
        path = self._storage.fetch(uri)
        with storage_errors(uri):
            text = path.read_bytes()
        # A damaged manifest does not get better by a retry: start over, and say so.
        try:
            manifest = Manifest.model_validate_json(text)
        except ValueError as error:
            log.warning("training starts over: %s is damaged: %s", uri, error)
            return None
        position, checkpoint = manifest.position, manifest.checkpoint(manifest.resume)
        # A resource that was deleted and created again has the same output and another uid.
        if position.run != self.owner.uid:
            log.warning("training starts over: %s belongs to another run (%s)", uri, position.run)
            return None
        if checkpoint is None or checkpoint.state is None:
            log.warning("training starts over: %s names no state to resume from", uri)
            return None
        state_uri = self._uri(checkpoint.state.path)
        try:
            # With the digest, so that damage is known before a model is built for this position.
            local = self._storage.fetch(state_uri, checkpoint.state.sha256)
        except NotFoundError as error:
            log.warning("training starts over: %s names a file that is gone: %s", uri, error.message)
            return None
        except RunnerError as error:
            if error.reason != Reason.CHECKSUM_MISMATCH:
                raise
            log.warning("training starts over: its checkpoint is damaged: %s", error.message)
            return None
        self.manifest = manifest
        return Saved(position, local, state_uri)

    def _read_old_layout(self) -> Saved | None:
        """Read the state of an attempt of before 2026-12. Its files stay until newer ones replace them."""
        saved = state.find(self._storage, self._uri(OLD_STATE), self.owner.uid)
        if saved is None:
            return None
        with storage_errors(saved.uri):
            file = File(path=OLD_STATE, sha256=sha256_of(saved.path), size_bytes=saved.path.stat().st_size)
        self.manifest = manifests.of_old_layout(saved.position, file)
        return Saved(self.manifest.position, saved.path, saved.uri)

    def _missing(self, models: dict[str, Checkpoint]) -> list[str]:
        """Return the names of models whose file is gone or has another content."""
        digests: dict[str, str | None] = {}
        missing = []
        for name, checkpoint in models.items():
            assert checkpoint.model is not None
            path = checkpoint.model.path
            # Best and last are often one file.
            if path not in digests:
                # In S3 the digest is the object's metadata: no download.
                stored = self._storage.stored(self._uri(path))
                digests[path] = stored.sha256 if stored else None
            if digests[path] != checkpoint.model.sha256:
                missing.append(name)
        return missing

    def _remove_unnamed(self) -> None:
        """Remove files below the folder of checkpoints that the manifest does not name; once an attempt."""
        if self._folder_is_clean or self.manifest is None:
            return
        # Set before trying: a folder that cannot be listed is not asked again at every checkpoint.
        self._folder_is_clean = True
        try:
            files = self._storage.list_files(self._uri(FOLDER))
        except RunnerError as error:
            log.warning("files of killed attempts in %s cannot be listed: %s", FOLDER, error.message)
            return
        self._remove({f"{FOLDER}/{file}" for file in files} - self.manifest.paths())

    def _remove(self, paths: Iterable[str]) -> None:
        """Remove files below the output address. A file that stays takes room and does no other harm."""
        # By folder, because an empty one goes with its last file.
        by_folder: dict[str, list[str]] = {}
        for path in sorted(paths):
            folder, _, name = path.rpartition("/")
            by_folder.setdefault(folder, []).append(name)
        for folder, names in by_folder.items():
            try:
                self._storage.remove(join(self._output, folder), names)
            except RunnerError as error:
                log.warning("superseded checkpoint cannot be removed: %s", error.message)

    def _artifact(self, name: str, checkpoint: Checkpoint) -> Artifact:
        """Return the status entry of a checkpoint's model."""
        model = checkpoint.model
        assert model is not None
        return Artifact(
            name=name,
            uri=self._uri(model.path),
            sha256=model.sha256,
            size_bytes=model.size_bytes,
            epoch=checkpoint.epoch,
        )

    def _uri(self, path: str) -> str:
        return join(self._output, path)


def _reopened(position: Position, lost: Sequence[str]) -> Position:
    """Finish the last epoch again, which publishes its model; the next epoch does so if it has begun."""
    log.warning(
        "model %s is gone or was replaced; the last epoch's model takes its place", " and ".join(lost)
    )
    update: dict[str, object] = {"best": None} if BEST in lost else {}
    # Within an epoch the weights are those of no finished one: its end makes the next model.
    if position.epoch and not position.step:
        update["epoch_finished"] = False
    return position.model_copy(update=update)


def remove_partial_files(storage: Storage, output_uri: str, now: float) -> None:
    """Remove old partial files that killed attempts left at the output address. Failures are logged.

    A publish writes under a hidden name and renames; a process that is killed in between leaves the hidden
    file. On S3 it leaves parts of an upload, which are no objects and which the bucket must remove
    (docs/checkpoints.md).

    Args:
        storage: Where the output is.
        output_uri: The output folder; it need not exist.
        now: The time, in seconds since 1970.
    """
    folder = storage.local_path(output_uri)
    # An object store: objects appear whole, so there are no partial files.
    if folder is None:
        return
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        log.warning("partial files of killed attempts in %s cannot be listed: %s", output_uri, error)
        return
    for path in paths:
        if not _PARTIAL.fullmatch(path.name):
            continue
        try:
            status = path.stat()
            # A young one may belong to a pod that is still ending, on another node.
            if now - status.st_mtime <= OLD_SECONDS:
                continue
            path.unlink()
        except OSError as error:
            # Another attempt may have finished publishing it just now; otherwise it takes room and no more.
            log.warning("partial file %s of a killed attempt cannot be removed: %s", path.name, error)
            continue
        log.info("removed partial file %s of a killed attempt (%d bytes)", path.name, status.st_size)
