"""The commands that run a task of a resource: plain data for the command line, pods and local runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command that runs one task.

    Attributes:
        name: As typed; the task is ``tlt_runner.tasks.<name>``.
        kind: The kind of resource that it takes.
        summary: One line of help.
        examples: Command lines for its help.
        whole: True if the resource has succeeded when the command has; False for a part of its work.
    """

    name: str
    kind: str
    summary: str
    examples: tuple[str, ...]
    whole: bool = True


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "train",
            "TrainingJob",
            "Convert the data set, train a detector on it, evaluate it.",
            ("tlt train -f traffic.yaml", "tlt train -f traffic.yaml --volumes /data"),
        ),
        Command(
            "prune",
            "PruneJob",
            "Remove filters from a trained detector.",
            ("tlt prune -f traffic-pruned.yaml",),
        ),
        Command(
            "export",
            "ExportJob",
            "Write a detector as ONNX, build engines, verify them.",
            ("tlt export -f traffic-export.yaml",),
        ),
        Command(
            "convert",
            "TrainingJob",
            "Convert and check the data set only.",
            (
                "tlt convert -f traffic.yaml",
                "tlt convert -f traffic.yaml --to coco --out traffic-coco",
                "tlt convert -f traffic.yaml --to yolo --out traffic-yolo --resize",
            ),
            whole=False,
        ),
        Command(
            "anchors",
            "TrainingJob",
            "Propose anchors that fit the objects of a data set.",
            ("tlt anchors -f traffic.yaml",),
            whole=False,
        ),
        Command(
            "evaluate",
            "TrainingJob",
            "Evaluate a trained detector only.",
            ("tlt evaluate -f traffic.yaml",),
            whole=False,
        ),
    )
}

VOLUMES_VARIABLE = "TLT_VOLUMES_ROOT"
TERMINATION_LOG_VARIABLE = "TLT_TERMINATION_LOG"
