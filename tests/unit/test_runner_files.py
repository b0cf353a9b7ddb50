"""Files appear whole or not at all; a lock keeps a second process out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tlt_runner import files


def test_a_written_file_replaces_the_old_one_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    files.write(target, "old")
    files.write(target, "größer")
    assert target.read_text(encoding="utf-8") == "größer"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_bytes_and_views_of_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    files.write(tmp_path / "a", b"\0\xff")
    files.write(tmp_path / "b", memoryview(b"\0\xff"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"\0\xff"


def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_partial_one(tmp_path: Path) -> None:
    target = tmp_path / "x"
    files.write(target, "old")
    with pytest.raises(RuntimeError), files.atomically(target) as partial:
        partial.write_text("half of the ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_that_need_not_be_durable_is_whole_or_absent_too(tmp_path: Path) -> None:
    files.write(tmp_path / "x", "old", durable=False)
    with pytest.raises(RuntimeError), files.atomically(tmp_path / "x", durable=False) as partial:
        partial.write_text("half of the ne")
        raise RuntimeError
    files.write(tmp_path / "y", "new", durable=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old", "y": "new"}


def test_a_reader_never_sees_a_file_that_is_being_written(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with files.atomically(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
        assert partial.parent == target.parent
        assert partial.name.startswith(".")
        assert partial.suffix == files.PARTIAL_SUFFIX
    assert target.read_text() == "whole"


def test_a_writer_may_choose_the_name_of_the_partial_file(tmp_path: Path) -> None:
    with files.atomically(tmp_path / "x", tmp_path / ".writing") as partial:
        assert partial == tmp_path / ".writing"
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_lock_is_held_against_another_process_until_the_file_is_closed(tmp_path: Path) -> None:
    other = (
        "import pathlib, sys; from tlt_runner import files; "
        "print(files.try_lock(pathlib.Path(sys.argv[1]).open('a')))"
    )

    def locked_by_another_process() -> str:
        command = [sys.executable, "-c", other, str(tmp_path / "lock")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with (tmp_path / "lock").open("a") as file:
        assert files.try_lock(file)
        assert locked_by_another_process() == "False"
    assert locked_by_another_process() == "True"
