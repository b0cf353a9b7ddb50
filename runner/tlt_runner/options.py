"""Options and option types that commands of ``tlt`` share. Nothing heavy is imported for ``tlt --help``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from tlt_runner.commands import VOLUMES_VARIABLE

Function = TypeVar("Function", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
"""A file or folder. Existence is checked by the command, whose error says what exists instead."""


def examples(*lines: str) -> str:
    """Return command lines as the last part of a command's help."""
    # \b keeps click from filling the lines into one paragraph.
    return "\n  ".join(("\b\nExamples:", *lines))


def manifests(function: Function) -> Function:
    """Add the argument that names a file or folder of manifests."""
    return click.argument("manifests", type=PATH, metavar="FOLDER|FILE")(function)


def source(function: Function) -> Function:
    """Add the options that name what a task works on: a manifest, or the RunSpec of a pod."""
    manifest = click.option(
        "-f", "--file", type=PATH, metavar="MANIFEST", help="A manifest with one fitting resource."
    )
    spec = click.option("--spec", type=PATH, metavar="RUN.JSON", help="A RunSpec, as a pod gets it.")
    return manifest(spec(function))


def state(function: Function) -> Function:
    """Add the option that names the state folder of local runs."""
    option = click.option("--state", type=PATH, metavar="DIR", help="State of local runs.  [default: .tlt]")
    return option(function)


def volumes(default: str) -> Callable[[Function], Function]:
    """Return a decorator that adds the option for the folder of claims.

    Args:
        default: What applies without the option and its environment variable; for the help.
    """
    return click.option(
        "--volumes",
        type=PATH,
        metavar="DIR",
        envvar=VOLUMES_VARIABLE,
        help=f"pvc://claim/path is DIR/claim/path.  [default: ${VOLUMES_VARIABLE}, {default}]",
    )


def positive(value: str | int) -> int:
    """Read a whole number from 1."""
    # click passes the default, which is a number already, through the type too.
    text = str(value)
    if not text.isdigit() or int(text) == 0:
        raise click.BadParameter(f"expected a whole number from 1, got {text!r}")
    return int(text)


def score(value: str | float) -> float:
    """Read a number from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise click.BadParameter(f"expected a number from 0 to 1, got {str(value)!r}")
    return number


def digits(text: str) -> list[int]:
    """Read different digits with commas between."""
    parts = text.split(",")
    if not all(len(part) == 1 and part.isdigit() for part in parts) or len(set(parts)) != len(parts):
        raise click.BadParameter(f"expected different digits 0 to 9 with commas between, got {text!r}")
    return [int(part) for part in parts]


class LabelFormat(click.ParamType[str]):
    """A label format of the API, which is imported when a command needs its names and not before."""

    name = "format"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return the names of the formats, for the help."""
        return self._choice().get_metavar(param, ctx)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or refuse a text that names no format."""
        return self._choice().convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin with what was typed."""
        return self._choice().shell_complete(ctx, param, incomplete)

    @staticmethod
    def _choice() -> click.Choice[str]:
        from tlt_api import dataset

        return click.Choice(get_args(dataset.LabelFormat))
