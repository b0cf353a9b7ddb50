"""Files of records, each with a sidecar that describes its content: the unit that a killed run does not lose.

Both are in their final folder, ``<output>/tfrecords/<digest>/``, under their own names only when they are
whole (the shard first). Their content follows from the digest: a run takes over the shards that another has
finished, and two runs that write the same file at once write the same bytes. The manifest, which
:mod:`tlt_runner.data.preparation.prepare` adds last, marks the records as complete.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tlt_api.failures import Reason
from tlt_runner.data import tfrecords
from tlt_runner.data.parallel import StageProgress, in_order, workers
from tlt_runner.data.preparation.planning import PlannedSample, PlannedShard
from tlt_runner.data.records import Shard, verify
from tlt_runner.data.report.statistics import DatasetStatistics
from tlt_runner.data.sample import SampleOutcome
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.files import PARTIAL_SUFFIX, atomically, partial_name, settle, sha256_of
from tlt_runner.storage import Storage, join

log = logging.getLogger(__name__)
FINISHING_AT_ONCE = 4
"""Shards that are synced, hashed and uploaded beside the conversion of the next ones."""
ABANDONED_SECONDS = 15 * 60.0
"""Age from which a half-written file is a killed run's: a live one writes to it every few seconds."""


class Sidecar(BaseModel):
    """Description of a shard, in a file beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    """Digest of the records to which it belongs."""
    shard: Shard
    """Name, size and digest of the shard."""
    tally: DatasetStatistics
    """Statistics of the images that were planned for it. Sidecars of earlier releases have this name."""


class ShardFolder:
    """Folder of the records of one digest.

    Args:
        storage: Writes there.
        uri: Address of the folder.
        digest: The digest.

    Attributes:
        path: The folder in the file system; of s3:// a copy of it.
    """

    def __init__(self, storage: Storage, uri: str, digest: str) -> None:
        self._storage = storage
        self._uri = uri
        self._digest = digest
        self.path = storage.mirror(uri)

    def whole(self, planned: PlannedShard) -> bool:
        """Return True if a shard exists as it was written, with its sidecar."""
        # The sidecar is published after its shard: without it the shard may still be on its way.
        if not self._file(planned.sidecar).is_file():
            return False
        try:
            # Size and digest of the file itself are compared: a shard that was cut off is not taken over.
            sidecar = self.sidecar(planned)
            verify(self._file(planned.name), sidecar.shard, self._uri)
        # Damaged files of an earlier run are made again; they do not fail the job.
        except RunnerError as error:
            log.warning("shard %s is made again: %s", planned.name, error.message)
            return False
        return True

    def sidecar(self, planned: PlannedShard) -> Sidecar:
        """Read the sidecar of a shard.

        Raises:
            RunnerError: ``StorageUnavailable`` when it was removed meanwhile; ``ChecksumMismatch`` when it is
                damaged or of other records.
        """
        uri = join(self._uri, planned.sidecar)
        try:
            sidecar = Sidecar.model_validate_json(self._file(planned.sidecar).read_bytes())
        except FileNotFoundError as error:
            raise RunnerError(
                Reason.STORAGE_UNAVAILABLE, f"{uri} was removed by somebody while the records were being made"
            ) from error
        except ValidationError as error:
            raise RunnerError(Reason.CHECKSUM_MISMATCH, f"{uri} is damaged: {error}") from error
        # Somebody may have copied files between folders of records.
        if (sidecar.digest, sidecar.shard.name) != (self._digest, planned.name):
            raise RunnerError(Reason.CHECKSUM_MISMATCH, f"{uri} is of other records: {sidecar.digest}")
        return sidecar

    def add(self, name: str, content: str) -> None:
        """Write a text file into the folder, whole or not at all."""
        with storage_errors(join(self._uri, name)), atomically(self.path / name) as partial:
            partial.write_text(content + "\n", encoding="utf-8")
        self._publish(name)

    def finish(self, shard: OpenShard) -> None:
        """Give a shard and its sidecar their names: the shard first, whose sidecar says that it is whole."""
        # A kill between the two leaves a shard without a sidecar, which the next run makes again.
        sidecar = Sidecar(digest=self._digest, shard=shard.finish(), tally=shard.statistics)
        self._publish(sidecar.shard.name)
        self.add(shard.planned.sidecar, sidecar.model_dump_json())

    def remove(self, names: Sequence[str]) -> None:
        """Remove files of refused records; an error is logged only, so that the refusal stays the failure."""
        try:
            self._storage.remove(self._uri, names)
        except RunnerError as error:
            log.warning("the refused records stay at %s: %s", self._uri, error.message)

    def remove_abandoned(self) -> None:
        """Remove half-written files of killed runs."""
        with storage_errors(self._uri):
            for path in self.path.glob(f".*{PARTIAL_SUFFIX}"):
                # Another run may be writing to the same folder now: only its age tells an abandoned file.
                try:
                    if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                        log.warning("removing the half-written file of a killed run: %s", path)
                        path.unlink()
                except FileNotFoundError:
                    continue  # its run is alive and has finished it, or removed it itself

    def _file(self, name: str) -> Path:
        """Return the path of a file in the folder; a link that leads out of the claim is refused."""
        return self._storage.local_path(join(self._uri, name)) or self.path / name

    def _publish(self, name: str) -> None:
        # In a mounted claim the file has its place already; in a bucket it is still to be uploaded.
        if self._storage.local_path(self._uri) is None:
            self._storage.publish(self.path / name, join(self._uri, name))


class OpenShard:
    """Shard in the course of being written.

    Args:
        folder: Its folder.
        planned: Its name and its samples.

    Attributes:
        planned: Its name and its samples.
        statistics: Statistics of the images so far.
    """

    def __init__(self, folder: Path, planned: PlannedShard) -> None:
        self.planned = planned
        self.statistics = DatasetStatistics()
        self._target = folder / planned.name
        self._partial = partial_name(self._target)
        self._writer = tfrecords.ShardWriter(self._partial)
        self._images = 0
        self._offered = 0

    @property
    def is_full(self) -> bool:
        """True if every planned image was added."""
        return self._offered == len(self.planned.items)

    def add(self, item: PlannedSample, outcome: SampleOutcome) -> None:
        """Add the outcome of the next planned image; one that was left out counts, but has no record."""
        # Counted apart from the records: left out images fill their place in the shard, too.
        self._offered += 1
        self.statistics.add(item.sample, outcome, item.subset)
        if outcome.example is not None:
            self._writer.write(outcome.example)
            self._images += 1

    def finish(self) -> Shard:
        """Close the file, hash it and give it its name."""
        try:
            self._writer.close()
            with storage_errors(str(self._target)):
                # Hashed under its hidden name: under its final one only a whole file may ever be seen.
                size, digest = self._partial.stat().st_size, sha256_of(self._partial)
                settle(self._partial, self._target)
        finally:
            self._partial.unlink(missing_ok=True)
        return Shard(
            name=self.planned.name,
            subset=self.planned.subset,
            images=self._images,
            size_bytes=size,
            sha256=digest,
        )

    def abandon(self) -> None:
        """Close and remove the partial file."""
        try:
            self._writer.close()
        finally:
            self._partial.unlink(missing_ok=True)


def make(
    folder: ShardFolder,
    planned: Sequence[PlannedShard],
    convert: Callable[[PlannedSample], SampleOutcome],
    check: Callable[[PlannedShard], None],
    progress: StageProgress,
) -> None:
    """Make the shards that do not exist yet.

    Args:
        folder: The folder of the records.
        planned: All shards, also those that exist.
        convert: Makes a record; threads call it side by side.
        check: Called when a shard is converted, before it gets its name; raises to refuse it.
        progress: Advances by an image at a time, and ends the work on request.
    """
    # Verifying a shard reads all of it, so that is done by all threads before the conversion begins.
    with ThreadPoolExecutor(workers()) as threads:
        are_whole = list(threads.map(folder.whole, planned))
    whole = {shard.name for shard, is_whole in zip(planned, are_whole, strict=True) if is_whole}

    def items() -> Iterator[tuple[PlannedShard, PlannedSample]]:
        for shard in planned:
            # Another run may have finished it in the meantime.
            if shard.name in whole or folder.whole(shard):
                progress.skip(len(shard.items))
                continue
            yield from ((shard, item) for item in shard.items)

    def finish(shard: OpenShard) -> None:
        # Labels may have changed since they were hashed: the shard would not be what its digest promises.
        try:
            check(shard.planned)
        except RunnerError:
            shard.abandon()
            raise
        folder.finish(shard)

    shard: OpenShard | None = None
    finishing: deque[Future[None]] = deque()
    with (
        ThreadPoolExecutor(workers()) as threads,
        ThreadPoolExecutor(FINISHING_AT_ONCE, thread_name_prefix="finish") as finishers,
    ):
        try:
            # items() is pulled as threads become free: no more than a window of images is in memory.
            outcomes = in_order(threads, lambda item: convert(item[1]), items(), progress)
            for (planned_shard, item), outcome in outcomes:
                if shard is None:
                    with storage_errors(str(folder.path)):
                        folder.path.mkdir(parents=True, exist_ok=True)
                    shard = OpenShard(folder.path, planned_shard)
                shard.add(item, outcome)
                progress.advance()
                # Results come in the order of the shards, so one at a time is open. Other threads finish it
                # while the next one is converted; waiting for them here bounds their number.
                if shard.is_full:
                    finishing.append(finishers.submit(finish, shard))
                    shard = None
                    if len(finishing) >= 2 * FINISHING_AT_ONCE:
                        finishing.popleft().result()
            while finishing:
                finishing.popleft().result()
        finally:
            # After a stop or an error: its images are converted again by the next run.
            if shard is not None:
                shard.abandon()
