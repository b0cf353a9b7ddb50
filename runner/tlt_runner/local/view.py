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


class News:
    """Tells what a resource has reported since it was last asked: data set, warnings, better models."""

    def __init__(self) -> None:
        # Kind/name and section -> the line that was told last.
        self._told: dict[tuple[str, str], str] = {}

    def of(self, resource: Resource) -> list[str]:
        """Return one line for each new or changed section, without the resource's name."""
        result: list[str] = []
        for name, section_lines in table.sections(resource).items():
            # A section is reported as a whole: what stands in its first line says whether it is another one.
            first = section_lines[0]
            if self._told.get((resource.key, name)) != first:
                self._told[resource.key, name] = first
                result += section_lines
        return result


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
    """Prints a line when a phase changes, what is reported, and progress every ten seconds."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda text: print(text, flush=True))
        # Kind/name -> the phase that was printed last, and the pacing of its lines of progress.
        self._phases: dict[str, Phase | None] = {}
        self._lines: dict[str, ProgressLines] = {}
        self._news = News()
        # Kind/name -> the resource's main figure so far, which every line of progress repeats.
        self._results: dict[str, str] = {}

    def show(self, resources: Sequence[Resource], now: datetime) -> None:
        """Print a line for each change."""
        for item in resources:
            self._show(item, now)

    def _show(self, resource: Resource, now: datetime) -> None:
        phase = resource.status.phase
        # Results of an earlier run, of a resource that does not run again, are no news.
        if phase in (Phase.RUNNING, Phase.FAILED):
            for text in self._news.of(resource):
                self._say(f"{resource.key}: {text}")
        self._results[resource.key] = table.result(resource)
        if phase != self._phases.get(resource.key):
            self._phases[resource.key] = phase
            detail = table.activity(resource)
            self._say(f"{resource.key}: {phase}{f': {detail}' if detail else ''}")
        elif phase == Phase.RUNNING and resource.status.progress:
            lines = self._lines.setdefault(
                resource.key,
                ProgressLines(lambda text, key=resource.key: self._say_progress(key, text)),  # type: ignore[misc]
            )
            lines.progress(resource.status.progress, now)

    def _say_progress(self, key: str, text: str) -> None:
        best = self._results[key]
        self._say(f"{key}: {text}{f'; so far {best}' if best else ''}")

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
        self._news = News()

    def show(self, resources: Sequence[Resource], now: datetime) -> None:
        """Draw the table."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        for resource in resources:
            # The table has the figures; what has to be read, and stays, is above it.
            if resource.status.phase in (Phase.RUNNING, Phase.FAILED):
                for line in self._news.of(resource):
                    self.say(f"{resource.key}: {line}")
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
