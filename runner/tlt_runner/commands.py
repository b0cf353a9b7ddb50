"""The commands that run a task, and the kind whose spec each takes. Plain data: ``tlt --help`` reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command that runs one task.

    Attributes:
        name: As typed; the task is ``tlt_runner.tasks.<name>``.
        kind: The kind of resource it takes.
        summary: One line of help.
        whole: Whether success of the command is success of the resource.
    """

    name: str
    kind: str
    summary: str
    whole: bool = True


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("train", "TrainingJob", "convert the data set, train a detector on it, evaluate it"),
        Command("prune", "PruneJob", "take filters out of a trained detector"),
        Command("export", "ExportJob", "write a detector as ONNX, build engines, verify them"),
        Command("convert", "TrainingJob", "only convert and check the data set", whole=False),
        Command("anchors", "TrainingJob", "propose anchors that fit the objects of a data set", whole=False),
        Command("evaluate", "TrainingJob", "only evaluate a trained detector", whole=False),
    )
}

VOLUMES_VARIABLE = "TLT_VOLUMES_ROOT"
TERMINATION_LOG_VARIABLE = "TLT_TERMINATION_LOG"
