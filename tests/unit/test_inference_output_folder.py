"""The folder of an inference: what is its own may be replaced, what is not is left alone."""

import json
from pathlib import Path

import pytest

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.files import sha256_of
from tlt_runner.inference.output_folder import JOURNAL, WRITING, OutputFolder
from tlt_runner.inference.report import REPORT, InferenceReport, summary

BLANK = InferenceReport(model="m.keras", model_sha256="0" * 64, images_folder="images", score=0.6)
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of "abc" (FIPS 180-2, example B.1)."""


class Killed(BaseException):
    """Stands for a SIGKILL of the process."""


def fill(folder: Path, *, killed: bool = False, **files: str) -> tuple[list[str], InferenceReport | None]:
    """One inference that writes files ("a__b" is a/b); what it left alone, and its report."""
    with OutputFolder.opened(folder) as output:
        for name, text in files.items():
            output.write(name.replace("__", "/"), text.encode())
        if killed:
            raise Killed
        return output.left_alone, output.finish(BLANK)


def test_files_are_listed_with_their_digests_and_nothing_else_stays(tmp_path: Path) -> None:
    fill(tmp_path / "new" / "out", images__a="abc")
    folder = tmp_path / "new" / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["images", REPORT]
    assert json.loads((folder / REPORT).read_text())["files"] == {"images/a": ABC}
    assert sha256_of(folder / "images" / "a") == ABC


def test_files_of_an_earlier_inference_are_replaced(tmp_path: Path) -> None:
    fill(tmp_path, a="abc")
    left_alone, report = fill(tmp_path, a="def")
    assert (tmp_path / "a").read_text() == "def"
    assert report is not None
    assert (left_alone, list(report.files)) == ([], ["a"])


def test_a_file_changed_by_the_user_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, a="abc", b="abc")
    (tmp_path / "a").write_text("corrected")
    left_alone, report = fill(tmp_path, a="def", b="def")
    assert report is not None
    assert (left_alone, list(report.files)) == (["a"], ["b"])
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("corrected", "def")


def test_a_file_added_by_the_user_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, a="abc")
    (tmp_path / "b").write_text("mine")
    assert fill(tmp_path, a="abc", b="def")[0] == ["b"]
    assert (tmp_path / "b").read_text() == "mine"


def test_links_and_folders_in_the_place_of_a_file_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, a="abc")
    (tmp_path / "elsewhere").write_text("abc")
    (out / "a").unlink()
    (out / "a").symlink_to(tmp_path / "elsewhere")  # even with the very content that was listed
    (out / "b").symlink_to(tmp_path / "nothing")
    (out / "c").mkdir()
    (out / "d").write_text("a file where a folder is wanted")
    assert fill(out, a="new", b="new", c="new", d__e="new")[0] == ["a", "b", "c", "d/e"]
    assert (tmp_path / "elsewhere").read_text() == "abc"
    assert not (tmp_path / "nothing").exists()


def test_an_inference_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    fill(tmp_path, a="first", b="first")
    with pytest.raises(Killed):
        fill(tmp_path, killed=True, a="second")
    (tmp_path / WRITING).write_text("half of a fi")
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('\n["c", "12')
    left_alone, report = fill(tmp_path, a="third", b="third", c="third")
    assert left_alone == []
    assert report is not None
    assert list(report.files) == ["a", "b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", REPORT]


def test_a_file_listed_before_a_kill_but_not_replaced_is_still_ours(tmp_path: Path) -> None:
    fill(tmp_path, a="abc")
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write(f'\n["a", "{"0" * 64}"]')
    assert fill(tmp_path, a="def")[0] == []


def test_files_that_are_not_made_again_stay_and_remain_ours(tmp_path: Path) -> None:
    fill(tmp_path, a="abc", b="abc")
    report = fill(tmp_path, a="abc")[1]
    assert report is not None
    assert (report.leftover, list(report.files)) == (["b"], ["a", "b"])
    assert fill(tmp_path, b="def")[0] == []


def test_two_inferences_do_not_share_a_folder(tmp_path: Path) -> None:
    with OutputFolder.opened(tmp_path) as output:
        output.write("a", b"abc")
        with pytest.raises(RunnerError, match="another inference is writing"):
            fill(tmp_path, a="def")
        output.finish(BLANK)
    assert (tmp_path / "a").read_text() == "abc"


def test_an_inference_that_writes_nothing_leaves_an_empty_folder_empty(tmp_path: Path) -> None:
    with pytest.raises(Killed), OutputFolder.opened(tmp_path):
        raise Killed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_a_folder_of_the_user_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(RunnerError, match="expected a new or empty folder") as caught:
        fill(tmp_path, a="abc")
    assert caught.value.reason == Reason.INVALID_SPEC
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", ["", "{}", '{"files": 1}', "no json"])
def test_a_report_file_of_another_program_is_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / REPORT).write_text(content)
    with pytest.raises(RunnerError, match="expected the report of an earlier inference"):
        fill(tmp_path, a="abc")
    assert [path.name for path in tmp_path.iterdir()] == [REPORT]
    assert (tmp_path / REPORT).read_text() == content


def test_a_link_as_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "theirs.json").write_text(BLANK.model_dump_json())
    (tmp_path / "out" / REPORT).symlink_to(tmp_path / "theirs.json")
    with pytest.raises(RunnerError, match="expected a file of an earlier inference"):
        fill(tmp_path / "out", a="abc")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(RunnerError, match="expected a folder to write to"):
        fill(tmp_path / "out", a="abc")


def test_the_summary_counts_unread_unwritten_and_leftover_files() -> None:
    report = BLANK.model_copy(
        update={
            "images": 3,
            "inferred_images": 2,
            "detections": {"bus": 4, "car": 1},
            "other_files": ["notes.txt"],
            "left_alone": ["labels/a.txt"],
            "leftover": ["labels/z.txt"],
        }
    )
    assert summary(report, Path("out")) == [
        "2 of 3 images, 5 detections with score >= 0.6 (bus 4, car 1)",
        "entries that are no images, and were not read: 1",
        "results not written, because files that no inference has made are in their place: 1 (labels/a.txt)",
        "files of an earlier inference that are still there: 1",
        "report: out/inference-report.json",
    ]
