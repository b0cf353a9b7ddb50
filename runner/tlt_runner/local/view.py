"""The display of a local run: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

from tlt_api.resources import Resource
from tlt_api.status import Phase
from tlt_runner.local import table
from tlt_runner.status.lines import ProgressLines

BAR_WIDTH = 20


class View(Protocol):
    """Displays a flow."""

    def show(self, resources: Sequence[Resource], now: datetime) -> None:
        """Display the resources as they are now."""

    def say(self, text: str) -> None:
        """Print a line that stays on the screen."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def for_output() -> View:
    """Return the view that suits standard output."""
    # In a file or a pipe, a table that is redrawn would be thousands of tables.
    return LiveView() if sys.stdout.isatty() else PlainView()


class PlainView:
    """Prints a line when a phase changes, and progress every ten seconds."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda text: print(text, flush=True))
        # Kind/name -> the phase that was printed last, and the pacing of its lines of progress.
        self._phases: dict[str, Phase | None] = {}
        self._lines: dict[str, ProgressLines] = {}

    def show(self, resources: Sequence[Resource], now: datetime) -> None:
        """Print a line for each change."""
        for item in resources:
            self._show(item, now)

    def _show(self, resource: Resource, now: datetime) -> None:
        phase = resource.status.phase
        if phase != self._phases.get(resource.key):
            self._phases[resource.key] = phase
            detail = table.activity(resource)
            self._say(f"{resource.key}: {phase}{f': {detail}' if detail else ''}")
        elif phase == Phase.RUNNING and resource.status.progress:
            lines = self._lines.setdefault(
                resource.key,
                ProgressLines(lambda text, key=resource.key: self._say(f"{key}: {text}")),  # type: ignore[misc]
            )
            lines.progress(resource.status.progress, now)

    def say(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class LiveView:
    """Redraws a table in its place, with a bar for a training.

    Args:
        console: A rich console; standard output's by default.
    """

    def __init__(self, console: Any = None) -> None:
        # rich is imported for a terminal only.
        from rich.live import Live

        # Drawn at each report and not by a thread of rich: nothing changes in between.
        self._live: Any = Live(console=console, auto_refresh=False)

    def show(self, resources: Sequence[Resource], now: datetime) -> None:
        """Draw the table."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        header, *rows = table.live(resources)
        drawn = Table(*header, "", box=None, pad_edge=False)
        for row, resource in zip(rows, resources, strict=True):
            share = table.share_done(resource)
            bar = "" if share is None else ProgressBar(total=1.0, completed=share, width=BAR_WIDTH)
            drawn.add_row(*map(Text, row), bar)
        self._live.update(drawn, refresh=True)

    def say(self, text: str) -> None:
        """Print above the table."""
        # rich would take text in square brackets for markup.
        self._live.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
