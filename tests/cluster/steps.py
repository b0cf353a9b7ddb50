"""Runs programs to their end. A long one says every 15 seconds what it is and since when it has been running.

Called by everything here that builds, installs or configures; what keeps running is the business of
`records`.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import ClusterError

REPORT_EVERY_S = 15.0
Command = Sequence[str | Path]


def say(message: str) -> None:
    """Prints one progress line at once."""
    print(f"cluster: {message}", flush=True)


def long(title: str, command: Command, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Runs a command that may take minutes, with a progress line every 15 seconds.

    Raises:
        ClusterError: it failed; the message holds the end of its output.
    """
    say(f"{title} ...")
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=REPORT_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"{title}: running for {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if code:
            output.seek(0)
            end = output.read().decode(errors="replace")[-4000:]
            raise ClusterError(f"{title} failed with exit code {code}. Its last output:\n{end}")
    say(f"{title}: done in {time.monotonic() - started:.0f} s")


def run(*command: str | Path, check: bool = True, stdin: str | None = None) -> str:
    """Runs a short command and returns what it printed.

    Raises:
        ClusterError: it failed and `check` is set; the message holds its error output.
    """
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        text = " ".join(str(part) for part in command)
        raise ClusterError(f"`{text}` failed with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def until(what: str, condition: Callable[[], bool], limit_s: float, every_s: float = 0.2) -> None:
    """Waits until a condition holds.

    Raises:
        ClusterError: it did not hold within the limit.
    """
    started = reported = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now - started > limit_s:
            raise ClusterError(f"expected {what} within {limit_s:.0f} s, but it did not happen")
        if now - reported > REPORT_EVERY_S:
            reported = now
            say(f"waiting for {what}: {now - started:.0f} s")
        time.sleep(every_s)
