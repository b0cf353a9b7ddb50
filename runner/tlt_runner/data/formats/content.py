"""The bytes of a label file, within a limit. All readers of labels open files here.

A file that nobody may open is bad data, and the readers say so in a verdict. A storage that fails is not: a
verdict would blame the file, and preparation would keep the records without it.
"""

from __future__ import annotations

import os
from pathlib import Path

from tlt_runner.data.images.decode import FILES_OWN_ERRORS


def read(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file.

    Raises:
        ValueError: This one file cannot be opened, or is larger than ``max_bytes``; the message says so.
        OSError: The storage fails, which says nothing about the file.
    """
    try:
        with path.open("rb") as opened:
            # Not read(max_bytes + 1): that takes the memory for as many bytes, however small the file.
            if os.fstat(opened.fileno()).st_size > max_bytes:
                raise ValueError(f"expected at most {max_bytes / (1 << 20):g} MiB")
            return opened.read()
    except OSError as error:
        if error.errno not in FILES_OWN_ERRORS:
            raise
        raise ValueError(f"expected a file that can be read: {error.strerror}") from error
