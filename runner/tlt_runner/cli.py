"""The console script ``tlt``: arguments in, exit code out.

Nothing heavy is imported before a command runs, so that ``tlt --help`` answers at once; and no command
imports TensorFlow before it has checked that its inputs are there. Exit codes are those of
:mod:`tlt_api.failures`; a mistake of the user is one paragraph, never a stack trace.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tlt_runner import options
from tlt_runner.commands import COMMANDS, Command
from tlt_runner.data.sample_digits import Scenes

if TYPE_CHECKING:
    from tlt_api import dataset
    from tlt_runner.local.state import Folders

INVALID_EXIT = 2
SIGINT_EXIT = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended, as shells count it."""
SCENES = Scenes()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``tlt`` and exit."""
    tlt.main(arguments, prog_name="tlt")
    raise AssertionError("click exits by itself")


class Program(click.Group):
    """The commands in the order of their definition. An error becomes one paragraph and an exit code."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

    def invoke(self, context: click.Context) -> NoReturn:
        """Run the chosen command, which returns its exit code, and exit."""
        try:
            # A command returns its exit code instead of calling sys.exit, so that tests can call it as a
            # function.
            code = super().invoke(context)
        except (click.ClickException, click.exceptions.Exit):  # misuse, --help: click answers
            raise
        except BrokenPipeError:  # the reader of our output has gone, for example `tlt validate | head`
            # Or the interpreter's last flush of standard output would print a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            from tlt_runner.exits import INTERNAL_EXIT

            code = INTERNAL_EXIT
        except KeyboardInterrupt:  # click would say "Aborted!" and exit with 1, which is no exit code of ours
            code = SIGINT_EXIT
        except Exception as error:
            from tlt_runner import exits

            hint = "This is a bug: please report it with the text above."
            failure = exits.explain(f"tlt {context.invoked_subcommand}", error, hint)
            code = exits.exit_code(failure, otherwise=INVALID_EXIT)
        context.exit(code)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Shell completion: eval "$(_TLT_COMPLETE=bash_source tlt)", or zsh_source.',
)
def tlt() -> None:
    """Transfer learning for object detection: train, prune, retrain, export."""


def task_command(command: Command) -> Callable[[Callable[..., int]], click.Command]:
    """Return a decorator that makes a function the command line of a task."""

    def decorate(function: Callable[..., int]) -> click.Command:
        function = click.option(
            "--report", type=options.PATH, metavar="FILE", help="With --spec: write the report as JSON here."
        )(function)
        function = options.source(options.state(options.volumes("or volumes in --state")(function)))
        epilog = options.examples(*command.examples)
        return tlt.command(command.name, help=command.summary, epilog=epilog)(function)

    return decorate


def run_task(
    command: Command,
    file: Path | None,
    spec: Path | None,
    state: Path | None,
    volumes: Path | None,
    report: Path | None,
) -> int:
    """Run a task for a manifest here, or for a RunSpec as a pod does."""
    # Two ways in: --spec is what the operator's pod and a local run's child get, -f is for people.
    if spec is not None:
        if file is not None:
            raise click.UsageError("argument -f/--file: not allowed with argument --spec")
        # A RunSpec comes from the operator or from a local run, which have looked up the parents.
        if state is not None:
            raise click.UsageError("--state goes with -f; a RunSpec has its references resolved already")
        _run_spec(command, spec, volumes, report)
    if file is None:
        raise click.UsageError("one of the arguments --spec -f/--file is required")
    if report is not None:
        raise click.UsageError("--report goes with --spec; the report of a local run is in the state folder")
    from tlt_runner.local import flow

    return flow.run_one(command, file, _folders(state, volumes))


def _run_spec(command: Command, spec: Path, volumes: Path | None, report: Path | None) -> NoReturn:
    """Run a task in a pod, or as a child of a local run. Does not return: the process exits here."""
    import faulthandler
    import logging

    # A crash of native code leaves the Python stack in the pod's log.
    faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    from tlt_api.runspec import VOLUMES_ROOT
    from tlt_runner import process

    around = process.Surroundings(volumes or Path(VOLUMES_ROOT), report, process.termination_log(os.environ))
    code = process.execute(command.name, spec, around)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: native libraries are known to crash while the interpreter is torn down, which would turn a
    # finished run into a failed one.
    os._exit(code)


def _folders(state: Path | None, volumes: Path | None) -> Folders:
    from tlt_runner.local.state import Folders

    return Folders.of(state, volumes)


# One function for all commands of tasks; they differ in name, help and kind only.
for _command in COMMANDS.values():
    if _command.name != "convert":  # it has more options, see below
        task_command(_command)(partial(run_task, _command))


@task_command(COMMANDS["convert"])
@click.option(
    "--to",
    type=options.LabelFormat(),
    help="With -f: write a folder of this format instead of TFRecords, and print its dataset block.",
)
@click.option("--out", type=options.PATH, metavar="DIR", help="With --to: a new or empty folder.")
@click.option("--resize", is_flag=True, help="With --to: resize images and boxes to spec.dataset.imageSize.")
def convert(to: dataset.LabelFormat | None, out: Path | None, resize: bool, **source: Any) -> int:
    """Convert to TFRecords, as the task does, or to a folder of another format."""
    command = COMMANDS["convert"]
    # Without --to it is a task like the others, which may also run in a pod.
    if to is None:
        if out is not None or resize:
            raise click.UsageError("--out and --resize go with --to; TFRecords go to spec.output.uri")
        return run_task(command, **source)
    if source["file"] is None or out is None or source["report"] is not None:
        raise click.UsageError("--to goes with -f and --out, and without --report")
    from tlt_runner.local import convert_to

    folders = _folders(source["state"], source["volumes"])
    return convert_to.run(command, source["file"], folders, to, out, resize=resize)


@tlt.command(
    epilog=options.examples(
        "tlt run manifests/samples/digits",
        "tlt run traffic.yaml --state /data/state --volumes /data/volumes",
        "tlt run traffic.yaml --again",
    )
)
@options.manifests
@options.state
@options.volumes("or volumes in --state")
@click.option("--again", is_flag=True, help="Run also what already succeeded.")
def run(manifests: Path, state: Path | None, volumes: Path | None, again: bool) -> int:
    """Run a whole flow of manifests here, without a cluster."""
    from tlt_runner.local import flow

    return flow.run_all(manifests, _folders(state, volumes), again=again)


@tlt.command(epilog=options.examples("tlt validate traffic.yaml", "tlt validate manifests/samples/digits"))
@options.manifests
def validate(manifests: Path) -> int:
    """Check manifests as a cluster would, without running anything."""
    from tlt_runner import manifests as reader

    checked = reader.read(manifests)
    for line in checked.lines():
        click.echo(line)
    return INVALID_EXIT if checked.refused else 0


@tlt.command(
    "import",
    short_help="Turn spec files of TLT or TAO into manifests.",
    epilog=options.examples(
        "tlt import train.txt convert.txt --map /workspace/tlt-experiments=pvc://tlt-data --out traffic.yaml",
        "tlt import train.txt retrain.txt --map /data=pvc://tlt-data/kitti --name kitti --out kitti.yaml",
    ),
)
@click.argument("specs", type=options.PATH, nargs=-1, required=True, metavar="SPEC...")
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="FOLDER=ADDRESS",
    help="Address of a folder of the specs, for example /workspace=pvc://tlt-data. Can be repeated.",
)
@click.option("--out", type=options.PATH, required=True, metavar="FILE", help="New file for the manifests.")
@click.option("--name", metavar="NAME", help="Name of the TrainingJob.  [default: that of the first spec]")
@click.option(
    "--output",
    metavar="ADDRESS",
    help="Folder of all outputs.  [default: that of the spec, or runs at the first --map]",
)
@click.option("--report", type=options.PATH, metavar="FILE", help="Write the report as JSON, too.")
@click.option("--allow-changes", is_flag=True, help="Write manifests also where a meaning is not kept.")
def import_specs(
    specs: tuple[Path, ...],
    maps: tuple[str, ...],
    out: Path,
    name: str | None,
    output: str | None,
    report: Path | None,
    allow_changes: bool,
) -> int:
    """Turn spec files of TLT or TAO (Faster R-CNN) into a TrainingJob and an ExportJob; with a spec that
    retrains a pruned model, also into a PruneJob and a second TrainingJob. Give the specs that belong
    together at once: training, retraining, dataset_convert.

    Prints what became of every field: taken, changed, without counterpart, unknown. If a meaning is not kept,
    nothing is written without --allow-changes, and the exit code is 3.
    """  # noqa: D205
    from tlt_runner.from_tlt import command

    request = command.Request(specs, maps, out, name, output, report, allow_changes)
    code, lines = command.run(request)
    for line in lines:
        click.echo(line)
    return code


@tlt.command(
    short_help="Say what a folder of images and labels is, and how to read it.",
    epilog=options.examples("tlt data photos", "tlt data .tlt/volumes/tlt-data/traffic"),
)
@click.argument("folder", type=options.PATH, metavar="DIR")
@options.volumes("or .tlt/volumes")
def data(folder: Path, volumes: Path | None) -> int:
    """Look at a folder of images and labels: format, images, objects by class, split, peculiarities.

    Prints the dataset block that reads it, ready to paste into a manifest; what it says is in comments.
    """
    from tlt_runner.local import data_folder

    click.echo(str(data_folder.describe(folder, _folders(None, volumes).volumes)), nl=False)
    return 0


@tlt.command(
    short_help="Detect objects in a folder of images.",
    epilog=options.examples(
        "tlt infer --model best.keras --images photos --output detected",
        "tlt infer --model s3://models/traffic/best.keras --images photos --output detected --score 0.3",
    ),
)
@click.option(
    "--model", required=True, metavar="MODEL.keras|URI", help="A trained model: a file or an address."
)
@click.option(
    "--images",
    type=options.PATH,
    required=True,
    metavar="FOLDER",
    help="Images (.jpg, .jpeg, .png), sub-folders too.",
)
@click.option(
    "--output",
    type=options.PATH,
    required=True,
    metavar="OUT",
    help="A new or empty folder, or one of an earlier inference; nothing else in it is touched.",
)
@click.option(
    "--score",
    type=options.score,
    default=None,
    metavar="S",
    help="Lowest score of what is drawn and listed. Default: of each class the one at which F1 was best in "
    "the model's evaluation; 0.6 for a model that has none.",
)
@options.volumes("or /mnt/tlt")
def infer(model: str, images: Path, output: Path, score: float | None, volumes: Path | None) -> int:
    """Draw what a model detects into copies of images (OUT/images), list it in KITTI files of 16 columns
    (OUT/labels), and report what was left out (OUT/inference-report.json).

    Runs here: no resource and no cluster belongs to it.
    """  # noqa: D205
    import logging
    from tempfile import TemporaryDirectory

    # Both are read when TensorFlow is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # other programs may use the same GPU
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    from tlt_runner.cancel import Stop
    from tlt_runner.process import StopSignals

    stop = Stop()
    StopSignals(stop).listen()  # before what follows starts threads

    from tlt_runner.inference import report as inference_report
    from tlt_runner.inference import request as requests
    from tlt_runner.status.file import LocalReporter
    from tlt_runner.storage import Storage

    request = requests.Request(model, images, output, score)
    with TemporaryDirectory(prefix="tlt-", ignore_cleanup_errors=True) as scratch:
        checked = requests.check(request, Storage(scratch=Path(scratch), volumes_root=volumes))
        from tlt_runner.inference import run as inference  # TensorFlow, now that there is work for it

        report = inference.run(request, checked, LocalReporter(None), stop)
    for line in inference_report.summary(report, output):
        click.echo(line)
    return 0


@tlt.command(
    short_help="Make a data set to try things with.",
    epilog=options.examples(
        "tlt sample-data digits .tlt/volumes/tlt-data/digits",
        "tlt sample-data digits few --images 40 --classes 0,1",
    ),
)
@click.argument("kind", type=click.Choice(["digits"]))
@click.argument("folder", type=options.PATH, metavar="OUT")
@click.option(
    "--images", type=options.positive, default=SCENES.images, show_default=True, metavar="N", help="Images."
)
@click.option(
    "--width", type=options.positive, default=SCENES.width, show_default=True, metavar="W", help="Pixels."
)
@click.option(
    "--height", type=options.positive, default=SCENES.height, show_default=True, metavar="H", help="Pixels."
)
@click.option(
    "--seed",
    type=int,
    default=SCENES.seed,
    show_default=True,
    metavar="S",
    help="The same seed gives the same data.",
)
@click.option("--classes", type=options.digits, metavar="0,1,..", help="Digits.  [default: all]")
def sample_data(
    kind: str, folder: Path, images: int, width: int, height: int, seed: int, classes: list[int] | None
) -> int:
    """Make a data set to try things with, in a new or empty folder OUT.

    digits: handwritten digits on a canvas, with KITTI labels.
    """
    from tlt_runner.data import sample_digits

    sample_digits.generate(folder, images=images, width=width, height=height, seed=seed, classes=classes)
    click.echo(f"{images} images of {width} x {height} pixels in {folder}")
    return 0


@tlt.command(epilog=options.examples("tlt version"))
def version() -> int:
    """Print the version."""
    from importlib import metadata

    click.echo(metadata.version("tlt-operator"))
    return 0


if __name__ == "__main__":
    main()
