"""Folders of the test clusters: `.cache/` in the repository, or the folder that TLT_CACHE names."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
REPOSITORY = SOURCES.parent.parent
CACHE = Path(os.environ.get("TLT_CACHE") or REPOSITORY / ".cache").resolve()


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Holds a file lock: two test runs share one cache, and one of them builds while the other waits."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"cluster: waiting for another process that holds {lock}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
