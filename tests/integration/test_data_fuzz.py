"""Mutated files of every kind lead to verdicts: no crash, no hang, no memory that grows with malice.

Each kind runs in a process of its own with a limit on its memory, which ends itself, with all stacks, when it
hangs.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import patience

SCRIPT = Path(__file__).with_name("data_fuzz_process.py")
LINES = {"UnreadableLabel", "WrongColumns", "NotANumber", "InvertedBox", "UnknownClass"}
KINDS = [
    ("kitti", 3000, LINES),
    ("yolo", 3000, LINES | {"OutsideImage"}),
    ("voc", 3000, LINES | {"MissingField"}),
    (
        "coco",
        2000,
        (LINES - {"UnreadableLabel"})
        | {"MissingField", "UnsafeName", "DuplicateName", "LabelWithoutImage", "NoLabels"},
    ),
    ("yaml", 300, {"InvalidSpec"}),
    (
        "image",
        3000,
        {"EmptyFile", "TruncatedImage", "CorruptImage", "HugeImage", "UnsupportedImage", "UnreadableImage"},
    ),
]


@pytest.mark.parametrize(("kind", "cases", "verdicts"), KINDS, ids=[kind for kind, _, _ in KINDS])
def test_mutated_files_lead_to_findings_and_never_to_a_crash(
    kind: str, cases: int, verdicts: set[str], tmp_path: Path
) -> None:
    command = [sys.executable, str(SCRIPT), kind, str(cases), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience.MINUTES, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["cases"] > cases
    assert summary["boxes"] > 0, "no mutant was sound enough to be read"
    assert verdicts <= summary["problems"].keys(), "the mutants do not reach every verdict"
