"""The output folder of an inference. It may be filled again, and no file of the user is touched.

A file is ours if an earlier inference has listed its name with the digest of its content. If another file is
in the place of a result, it is left alone and the result is not written. A file is listed in a journal before
it appears, so that a killed inference can be repeated; at the end the report replaces the journal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from pydantic import ValidationError

from tlt_api.failures import Reason
from tlt_runner import files
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.inference.report import REPORT, InferenceReport

JOURNAL = ".inference-files.jsonl"
WRITING = ".inference-writing"
"""Name of every file while it is being written, so that a killed inference leaves at most one."""
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


class OutputFolder:
    """An output folder that is open for one inference.

    Attributes:
        made: Files written by this inference, with their digests.
        left_alone: Files of others that are in the place of a result.
    """

    def __init__(self, folder: Path, earlier: dict[str, set[str]], journal: IO[str]) -> None:
        self._folder = folder
        self._earlier = earlier
        self._journal = journal
        self.made: dict[str, str] = {}
        self.left_alone: list[str] = []

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Self]:
        """Open a folder that is new, empty or of an earlier inference; no other can open it meanwhile.

        Raises:
            RunnerError: ``InvalidSpec`` for any other folder; the storage's reasons.
        """
        with storage_errors(str(folder)):
            # Before anything is made: a folder of the user's is left exactly as it is.
            refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            # To append: the journal of a killed inference still lists its files.
            journal = (folder / JOURNAL).open("a", encoding="utf-8")
        with journal:
            # The journal is also the lock: two inferences would take each other's files for the user's.
            _lock(journal, folder)
            try:
                with storage_errors(str(folder)):
                    earlier = _listed(folder)
                yield cls(folder, earlier, journal)
            finally:
                # A file that was being written when an error came.
                (folder / WRITING).unlink(missing_ok=True)
                if os.fstat(journal.fileno()).st_size == 0:  # nothing was written
                    (folder / JOURNAL).unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, unless a file of someone else is in its place.

        Args:
            name: Path relative to the folder, with ``/``.
            content: Its bytes.
        """
        with storage_errors(str(self._folder / name)):
            if self._is_foreign(name):
                self.left_alone.append(name)
                return
            digest = hashlib.sha256(content).hexdigest()
            # The journal first: the next run would take a file that is not listed for one of the user's.
            # The line break in front ends a line that a kill has cut.
            self._journal.write(f"\n{json.dumps([name, digest])}")
            self._journal.flush()
            try:
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            # A file of the user where a folder is needed, or a folder where the file belongs.
            except OSError as error:
                if error.errno not in _IN_THE_WAY:
                    raise
                self.left_alone.append(name)
                return
            # Outputs can be made again: an fsync of file and folder for each would hold up the inference.
            self._replace(name, content, durable=False)
            self.made[name] = digest

    def finish(self, report: InferenceReport) -> InferenceReport:
        """Write the report with the list of files, which then needs no journal."""
        # Still ours, though not made again: an image may have been removed from the folder since.
        leftover = {
            name: digest
            for name, digests in self._earlier.items()
            if name not in self.made and (digest := self._digest(name)) in digests
        }
        full = report.model_copy(
            update={
                "left_alone": sorted(self.left_alone),
                "leftover": sorted(leftover),
                "files": dict(sorted({**leftover, **self.made}.items())),
            }
        )
        # Only when the report is on the disk may the journal go: one of them always lists every file.
        with storage_errors(str(self._folder / REPORT)):
            self._replace(
                REPORT, (full.model_dump_json(indent=1, exclude_none=True) + "\n").encode(), durable=True
            )
            (self._folder / JOURNAL).unlink()
        return full

    def _replace(self, name: str, content: bytes, *, durable: bool) -> None:
        files.write(self._folder / name, content, partial=self._folder / WRITING, durable=durable)

    def _is_foreign(self, name: str) -> bool:
        # lexists: a dangling link is something of the user, too.
        if not os.path.lexists(self._folder / name):
            return False
        return self._digest(name) not in self._earlier.get(name, ())

    def _digest(self, name: str) -> str | None:
        """Return the digest of a file of the folder; None if there is no regular file."""
        path = self._folder / name
        return None if path.is_symlink() or not path.is_file() else files.sha256_of(path)


def _lock(journal: IO[str], folder: Path) -> None:
    if not files.try_lock(journal):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"{folder}: another inference is writing to this folder",
            "Wait for its end, or name another folder.",
        )


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that is neither new nor empty nor of an earlier inference.

    Raises:
        RunnerError: ``InvalidSpec``.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise RunnerError(Reason.INVALID_SPEC, f"expected a folder to write to, got {folder}, which is none")
    names = sorted(os.listdir(folder))
    ours = [folder / name for name in (REPORT, JOURNAL, WRITING) if name in names]
    # Through a link, the report would be written outside of the folder.
    strange = [path for path in ours if path.is_symlink() or not path.is_file()]
    if strange:
        raise RunnerError(Reason.INVALID_SPEC, f"expected a file of an earlier inference, got {strange[0]}")
    if names and not ours:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a new or empty folder, or one of an earlier inference, got {folder}, which holds "
            f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''} and no {REPORT}",
            "Name another folder: nothing that is there is overwritten or deleted.",
        )


def _listed(folder: Path) -> dict[str, set[str]]:
    """Return name -> digests of earlier files: from the report, and after a kill from the journal."""
    # A name may have several digests: a killed run lists what it was about to write beside what was there.
    listed: dict[str, set[str]] = defaultdict(set)
    report, journal = folder / REPORT, folder / JOURNAL
    if report.is_file():
        try:
            listed_files = InferenceReport.model_validate_json(report.read_bytes()).files
        except ValidationError as error:
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"{report}: expected the report of an earlier inference, got: {error.errors()[0]['msg']}",
                "Name another folder, or move this file away if you want the results beside it.",
            ) from error
        for name, digest in listed_files.items():
            listed[name].add(digest)
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                name, digest = json.loads(line)
                listed[name].add(digest)
            except (ValueError, TypeError):
                continue  # empty, or the last line of one that was killed: what it would name is not there
    return dict(listed)
