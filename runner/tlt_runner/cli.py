"""The console script ``tlt``: arguments in, exit code out.

Nothing heavy is imported before a command is chosen, so that ``tlt --help`` answers at once. Exit codes are
those of :mod:`tlt_api.failures`; a mistake of the user is one paragraph, never a stack trace.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tlt_runner.commands import COMMANDS, VOLUMES_VARIABLE
from tlt_runner.data.sample_digits import Scenes
from tlt_runner.errors import RunnerError

if TYPE_CHECKING:
    from tlt_runner.local.state import Folders

INVALID_EXIT = 2
INTERNAL_EXIT = 70
FORMATS = ("kitti", "voc", "coco", "yolo")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``tlt`` and exit."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
    except RunnerError as error:
        print(f"tlt {options.command}: {error.reason}: {error.message}\n  {error.hint}", file=sys.stderr)
        code = error.failure_class.exit_code or INVALID_EXIT
    except BrokenPipeError:  # the reader of our output has gone, for example `tlt validate | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = INTERNAL_EXIT
    except Exception as error:
        traceback.print_exc()
        print(f"tlt {options.command}: Internal: {type(error).__name__}: {error}", file=sys.stderr)
        print("  This is our mistake: please report it with the text above.", file=sys.stderr)
        code = INTERNAL_EXIT
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tlt",
        description="Transfer learning for object detection: train, prune, retrain, export.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        task = commands.add_parser(command.name, help=command.summary, allow_abbrev=False)
        _add_task(task)
        if command.name == "convert":
            _add_translation(task)
    local = commands.add_parser("run", help="run a whole flow of manifests here, without a cluster")
    _add_manifests(local)
    _add_state(local)
    local.add_argument("--again", action="store_true", help="run also what already succeeded")
    local.set_defaults(run=_run_flow)
    validate = commands.add_parser("validate", help="check manifests, without running anything")
    _add_manifests(validate)
    validate.set_defaults(run=_validate)
    _add_infer(commands.add_parser("infer", help="detect in a folder of images, here, without a cluster"))
    _add_sample_data(commands.add_parser("sample-data", help="make a data set to try things with"))
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    for sub in (local, validate, version):
        sub.allow_abbrev = False
    return parser


def _add_task(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--spec", type=Path, metavar="RUN.JSON", help="a RunSpec, as a pod gets it")
    source.add_argument(
        "-f", "--file", type=Path, metavar="MANIFEST", help="a manifest with one fitting resource"
    )
    _add_state(parser)
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="with --spec: write the report as JSON here"
    )
    parser.set_defaults(run=_run_task)


def _add_translation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        choices=FORMATS,
        help="with -f: write a folder of this format instead of TFRecords; prints its dataset block",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --to: a new or empty folder")
    parser.add_argument(
        "--resize", action="store_true", help="with --to: bring images and boxes to spec.dataset.imageSize"
    )
    parser.set_defaults(run=_convert)


def _add_manifests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifests", type=Path, metavar="FOLDER|FILE", help="YAML or JSON manifests")


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, metavar="DIR", help="state of local runs (default: .tlt)")
    parser.add_argument(
        "--volumes",
        type=Path,
        metavar="DIR",
        help=f"pvc://claim/path is DIR/claim/path (default: ${VOLUMES_VARIABLE}, or volumes in --state)",
    )


def _add_infer(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False
    parser.description = (
        "Draw what a model detects into copies of images (OUT/images), list it in KITTI files of 16 columns "
        "(OUT/labels), and report what was left out (OUT/inference-report.json). Runs here: no resource and "
        "no cluster belongs to it."
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL.keras|URI", help="a trained model: a file or an address"
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="images (.jpg, .jpeg, .png), sub-folders too",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="a new or empty folder, or one of an earlier inference; nothing else in it is touched",
    )
    parser.add_argument(
        "--score",
        type=_share,
        default=0.6,
        metavar="S",
        help="lowest score of what is drawn and listed (default: %(default)s)",
    )
    parser.add_argument(
        "--volumes",
        type=Path,
        metavar="DIR",
        help=f"pvc://claim/path is DIR/claim/path (default: ${VOLUMES_VARIABLE})",
    )
    parser.set_defaults(run=_infer)


def _add_sample_data(parser: argparse.ArgumentParser) -> None:
    scenes = Scenes()
    parser.allow_abbrev = False
    parser.add_argument(
        "kind", choices=["digits"], help="digits: handwritten digits on a canvas, KITTI labels"
    )
    parser.add_argument("folder", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument(
        "--images", type=_positive, default=scenes.images, metavar="N", help="images (default: %(default)s)"
    )
    parser.add_argument(
        "--width", type=_positive, default=scenes.width, metavar="W", help="pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--height", type=_positive, default=scenes.height, metavar="H", help="pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=scenes.seed,
        metavar="S",
        help="same seed, same data (default: %(default)s)",
    )
    parser.add_argument("--classes", type=_digits, metavar="0,1,..", help="digits (default: all)")
    parser.set_defaults(run=_sample_data)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _digits(text: str) -> list[int]:
    parts = text.split(",")
    if not all(len(part) == 1 and part.isdigit() for part in parts) or len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(
            f"expected different digits 0 to 9 with commas between, got {text!r}"
        )
    return [int(part) for part in parts]


def _convert(options: argparse.Namespace) -> int:
    if options.to is None:
        if options.out is not None or options.resize:
            return _misuse("--out and --resize go with --to; TFRecords go to spec.output.uri")
        return _run_task(options)
    if options.file is None or options.out is None or options.report is not None:
        return _misuse("--to goes with -f and --out, and without --report")
    from tlt_runner.local import export_folder

    command, folders = COMMANDS[options.command], _folders(options)
    return export_folder.run(command, options.file, folders, options.to, options.out, resize=options.resize)


def _run_task(options: argparse.Namespace) -> int:
    if options.spec is not None:
        return _run_spec(options)
    if options.report is not None:
        return _misuse("--report goes with --spec; the report of a local run is in the state folder")
    from tlt_runner.local import flow

    return flow.run_one(COMMANDS[options.command], options.file, _folders(options))


def _run_spec(options: argparse.Namespace) -> NoReturn:
    """In a pod, or as a child of a local run. Does not return: the exit code is delivered here.

    Native libraries are known to crash while the interpreter is torn down; that must not turn a finished run
    into a failed one, so the process ends without it.
    """
    if options.state is not None:
        sys.exit(_misuse("--state goes with -f; a RunSpec has its references resolved already"))
    faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    from tlt_api.runspec import VOLUMES_ROOT
    from tlt_runner import process

    volumes = options.volumes or Path(os.environ.get(VOLUMES_VARIABLE) or VOLUMES_ROOT)
    around = process.Surroundings(volumes, options.report, process.termination_log(os.environ))
    code = process.execute(options.command, options.spec, around)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_flow(options: argparse.Namespace) -> int:
    from tlt_runner.local import flow

    return flow.run_all(options.manifests, _folders(options), again=options.again)


def _folders(options: argparse.Namespace) -> Folders:
    from tlt_runner.local.state import Folders

    return Folders.of(options.state, options.volumes or os.environ.get(VOLUMES_VARIABLE))


def _validate(options: argparse.Namespace) -> int:
    from tlt_runner import manifests

    verdict = manifests.read(options.manifests)
    for line in verdict.lines():
        print(line)
    return INVALID_EXIT if verdict.problems else 0


def _sample_data(options: argparse.Namespace) -> int:
    from tlt_runner.data import sample_digits

    sample_digits.generate(
        options.folder,
        images=options.images,
        width=options.width,
        height=options.height,
        seed=options.seed,
        classes=options.classes,
    )
    print(f"{options.images} images of {options.width} x {options.height} pixels in {options.folder}")
    return 0


def _infer(options: argparse.Namespace) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # other programs may use the same GPU
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    from tempfile import TemporaryDirectory

    from tlt_runner.cancel import Stop
    from tlt_runner.process import StopSignals

    stop = Stop()
    StopSignals(stop).listen()  # before what follows starts threads

    from tlt_runner.inference import report as inference_report
    from tlt_runner.inference import run as inference
    from tlt_runner.status.file import LocalReporter
    from tlt_runner.storage import Storage

    request = inference.Request(options.model, options.images, options.output, options.score)
    with TemporaryDirectory(prefix="tlt-", ignore_cleanup_errors=True) as scratch:
        storage = Storage(scratch=Path(scratch), volumes_root=options.volumes)
        report = inference.run(request, storage, LocalReporter(None), stop)
    for line in inference_report.summary(report, options.output):
        print(line)
    return 0


def _version(_options: argparse.Namespace) -> int:
    from importlib import metadata

    print(metadata.version("tlt-operator"))
    return 0


def _misuse(message: str) -> int:
    print(f"tlt: {message}", file=sys.stderr)
    return INVALID_EXIT


if __name__ == "__main__":
    main()
