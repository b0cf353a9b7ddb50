"""The command ``tlt import``: reads the spec files, writes manifests and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tlt_api.failures import Reason
from tlt_runner import files, manifests
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.from_tlt import flow
from tlt_runner.from_tlt import report as reports
from tlt_runner.from_tlt.paths import Maps, mistake_in

CHANGED_EXIT = 3
"""Exit code of an import that would change a meaning, and was not allowed to."""


@dataclass(frozen=True)
class Request:
    """The arguments of the command, as its help describes them."""

    specs: tuple[Path, ...]
    maps: tuple[str, ...]
    out: Path
    name: str | None = None
    output: str | None = None
    report: Path | None = None
    allow_changes: bool = False


def run(request: Request) -> tuple[int, list[str]]:
    """Import specs; return exit code and what to print.

    Raises:
        RunnerError: InvalidSpec; a spec or an argument is wrong, or the file for the manifests exists.
    """
    if request.output is not None and (mistake := mistake_in(request.output)):
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"--output: expected {mistake}, got {request.output!r}",
            "For example: --output pvc://tlt-data/runs",
        )
    if request.report is not None and request.report.resolve() in {
        path.resolve() for path in (request.out, *request.specs)
    }:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"--report: expected a file of its own, got {request.report}, which is --out or a spec",
            "Name another file, for example report.json.",
        )
    if request.out.exists():
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"--out: expected a new file, got {request.out}, which exists",
            "Name another file, or remove this one: it may have been changed by hand.",
        )
    contents = [(str(path), _text(path)) for path in request.specs]
    imported = flow.build(contents, Maps.parse(request.maps), request.name, request.output)
    text = imported.text(", ".join(path.name for path in request.specs))
    # The verdict of `tlt validate` on the very text.
    if problems := manifests.check([(str(request.out), text)]).problems:
        raise RunnerError(
            Reason.INVALID_SPEC,
            "\n  ".join(problems),
            "Correct the fields of the specs that these come from, or give --name or --output.",
        )
    if request.report is not None:
        _write(request.report, reports.to_json(imported.reports))
    lines = list(reports.lines(imported.reports))
    # Once more at the end, where they are seen.
    lost = [f"  ! {text}" for text in imported.lost]
    if lost:
        lines += [f"{len(lost)} changes of meaning:", *lost]
    if lost and not request.allow_changes:
        return CHANGED_EXIT, [*lines, "not written: --allow-changes accepts these changes"]
    _write(request.out, text)
    resources = ", ".join(
        f"{manifest.body['kind']}/{manifest.body['metadata']['name']}" for manifest in imported.manifests
    )
    return 0, [*lines, f"written to {request.out}: {resources}"]


def _write(file: Path, content: str) -> None:
    with storage_errors(str(file)):
        files.write(file, content)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RunnerError(
            Reason.INVALID_SPEC, f"{path}: expected a text file, got: {error}", "Name the spec files of TLT."
        ) from None
