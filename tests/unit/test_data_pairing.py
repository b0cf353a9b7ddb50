"""Pairing of images and labels in any tree: no file is lost, and no label is used twice."""

import tempfile
from pathlib import Path
from posixpath import basename, splitext

from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_runner.data.formats import folder_reader
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.sample import Problem

FOLDERS = st.sampled_from(["", "a/", "b/", "a/c/"])
NAMES = st.sampled_from(["1", "2", "3.x"])
IMAGES = st.builds(
    str.__add__, st.builds(str.__add__, FOLDERS, NAMES), st.sampled_from([".jpg", ".png", ".bmp"])
)
LABELS = st.builds(str.__add__, st.builds(str.__add__, FOLDERS, NAMES), st.sampled_from([".txt", ".TXT"]))


@settings(max_examples=30, deadline=None)
@given(images=st.sets(IMAGES), labels=st.sets(LABELS))
def test_every_file_is_accounted_for_once(images: set[str], labels: set[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for folder, names in {"i": images, "l": labels}.items():
            (Path(root) / folder).mkdir()
            for name in names:
                (Path(root) / folder / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(root) / folder / name).touch()
        listing = folder_reader.pair(
            SourceFolder(Path(root) / "i", "i"), SourceFolder(Path(root) / "l", "l"), ".txt"
        )
    used = [sample.image_file for sample in listing.samples]
    skipped = [finding.file for finding in listing.skipped]
    assert sorted(used + skipped) == sorted(f"i/{name}" for name in images)
    given_out = [sample.label_file for sample in listing.samples]
    assert len(set(given_out)) == len(given_out)
    for sample in listing.samples:
        label_files = {f"l/{sample.stem}.txt", f"l/{sample.stem}.TXT"}
        flat = {f"l/{basename(sample.stem)}.txt", f"l/{basename(sample.stem)}.TXT"}
        assert sample.label_file in (label_files if label_files & {f"l/{name}" for name in labels} else flat)
    orphans = {finding.file for finding in listing.orphans}
    twins = {finding.file for finding in listing.findings}
    stems = {basename(splitext(name)[0]) for name in images}
    assert not orphans & {*given_out, *twins}
    for name in labels - {file[2:] for file in {*given_out, *orphans, *twins}}:
        # It belongs to an image that cannot be used, or to no one image in particular.
        assert basename(splitext(name)[0]) in stems
    assert {finding.problem for finding in listing.skipped} <= {
        Problem.NO_LABEL,
        Problem.DUPLICATE_NAME,
        Problem.UNSUPPORTED_IMAGE,
    }
