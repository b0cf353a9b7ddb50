"""Real folders: images are distinguished from other entries, and each image gets its label."""

import json
import os
from pathlib import Path

import pytest

from tlt_runner.data.formats import folder_reader, folders
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.sample import Finding, Listing, Problem


def _make(folder: Path, names: str) -> Path:
    """Make a folder with empty files; their names are separated by spaces."""
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _pair(root: Path, images: str, labels: str) -> Listing:
    _make(root / "i", images)
    _make(root / "l", labels)
    return folder_reader.pair(SourceFolder(root / "i", "i"), SourceFolder(root / "l", "l"), ".txt")


def _labels(listing: Listing) -> dict[str, str]:
    return {sample.stem: sample.label_file for sample in listing.samples}


def _files_and_problems(findings: object) -> list[tuple[str, Problem]]:
    assert isinstance(findings, list)
    return [(finding.file, finding.problem) for finding in findings]


def test_images_of_sub_folders_are_found_in_order(tmp_path: Path) -> None:
    _make(tmp_path, "b/2.jpg b/1.JPEG a/deep/er/1.png 3.jpg")
    assert folders.find_images(SourceFolder(tmp_path, "x")) == folders.Images(
        ["3.jpg", "a/deep/er/1.png", "b/1.JPEG", "b/2.jpg"], [], 0
    )


def test_hidden_entries_are_not_opened_and_count_as_other_files(tmp_path: Path) -> None:
    _make(tmp_path, "1.jpg ._1.jpg .thumbnails/1.jpg .thumbnails/2.jpg notes.txt")
    images = folders.find_images(SourceFolder(tmp_path, ""))
    assert (images.names, images.skipped, images.other_files) == (["1.jpg"], [], 3)


@pytest.mark.parametrize("name", ["a.bmp", "a.GIF", "a.webp", "a.tif", "a.tiff", "a.heic"])
def test_an_image_of_an_unsupported_format_is_reported(tmp_path: Path, name: str) -> None:
    _make(tmp_path, name)
    images = folders.find_images(SourceFolder(tmp_path, "i"))
    message = f"expected .jpg, .jpeg or .png, got {Path(name).suffix.lower()}: convert it"
    assert images == folders.Images([], [Finding(f"i/{name}", Problem.UNSUPPORTED_IMAGE, message)], 0)


def test_links_to_files_count_as_files(tmp_path: Path) -> None:
    _make(tmp_path, "store/1.bin i/x.txt")
    (tmp_path / "i/1.jpg").symlink_to(tmp_path / "store/1.bin")
    assert folders.find_images(SourceFolder(tmp_path / "i", "i")).names == ["1.jpg"]


def test_links_to_folders_are_not_followed_and_links_out_are_reported(tmp_path: Path) -> None:
    _make(tmp_path, "elsewhere/1.jpg i/a/2.jpg")
    (tmp_path / "i/far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "i/near").symlink_to("a")
    (tmp_path / "i/a/up").symlink_to("..")
    images = folders.find_images(SourceFolder(tmp_path / "i", "i"))
    assert (images.names, images.other_files) == (["a/2.jpg"], 2)
    assert _files_and_problems(images.skipped) == [("i/far", Problem.UNREADABLE_IMAGE)]


def test_dead_links_loops_and_special_files_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "dead.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    images = folders.find_images(SourceFolder(tmp_path, ""))
    assert _files_and_problems(images.skipped) == [
        (name, Problem.UNREADABLE_IMAGE) for name in ("dead.jpg", "loop.jpg", "pipe.jpg")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_may_not_be_opened_is_reported(tmp_path: Path) -> None:
    _make(tmp_path, "1.jpg closed/2.jpg")
    (tmp_path / "closed").chmod(0)
    images = folders.find_images(SourceFolder(tmp_path, "i"))
    (tmp_path / "closed").chmod(0o700)
    assert (images.names, _files_and_problems(images.skipped)) == (
        ["1.jpg"],
        [("i/closed", Problem.UNREADABLE_IMAGE)],
    )


def test_folders_too_deep_for_a_path_are_reported(tmp_path: Path) -> None:
    _make(tmp_path, "1.jpg")
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(24):
        os.mkdir("d" * 200, dir_fd=handle)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    images = folders.find_images(SourceFolder(tmp_path, "i"))
    ((file, problem),) = _files_and_problems(images.skipped)
    assert (images.names, problem) == (["1.jpg"], Problem.UNREADABLE_IMAGE)
    assert 0 < file.count("d" * 200) < 24


UNSAFE = [
    (b"a\xff.jpg", "i/a\\udcff.jpg"),
    (b"a\nb.jpg", "i/a\\nb.jpg"),
    (b"\x1b[2J.jpg", "i/\\x1b[2J.jpg"),
    ("a\u2028b.jpg".encode(), "i/a\\u2028b.jpg"),
]


@pytest.mark.parametrize(("name", "shown"), UNSAFE)
def test_an_image_with_an_unprintable_name_is_skipped_and_reported_with_escapes(
    tmp_path: Path, name: bytes, shown: str
) -> None:
    _make(tmp_path, "i/ok.jpg l/ok.txt")
    for folder, suffix in ((b"/i/", b".jpg"), (b"/l/", b".txt")):
        os.close(os.open(os.fsencode(tmp_path) + folder + name.replace(b".jpg", suffix), os.O_CREAT))
    listing = folder_reader.pair(SourceFolder(tmp_path / "i", "i"), SourceFolder(tmp_path / "l", "l"), ".txt")
    assert _files_and_problems(listing.skipped) == [(shown, Problem.UNSAFE_NAME)]
    assert (list(_labels(listing)), listing.images, listing.orphans) == (["ok"], 2, [])
    written = json.dumps(
        [str(listing.skipped), [name for name, _ in listing.label_files]], ensure_ascii=False
    )
    assert json.loads(written.encode())


def test_a_label_with_an_unprintable_name_and_no_image_is_an_orphan(tmp_path: Path) -> None:
    _make(tmp_path, "i/ok.jpg l/ok.txt")
    os.close(os.open(os.fsencode(tmp_path) + b"/l/\xe9.txt", os.O_CREAT))
    listing = folder_reader.pair(SourceFolder(tmp_path / "i", "i"), SourceFolder(tmp_path / "l", "l"), ".txt")
    assert _files_and_problems(listing.orphans) == [("l/\\udce9.txt", Problem.LABEL_WITHOUT_IMAGE)]


def test_names_may_have_spaces_dots_and_letters_of_any_language(tmp_path: Path) -> None:
    names = ["Straße 1", "写真\u3000二", "v1.2", " led by a space", "%s {}"]
    for folder, suffix in (("i", ".jpg"), ("l", ".txt")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}{suffix}").touch()
    listing = folder_reader.pair(SourceFolder(tmp_path / "i", "i"), SourceFolder(tmp_path / "l", "l"), ".txt")
    assert _labels(listing) == {name: f"l/{name}.txt" for name in names}
    assert not listing.skipped


def test_a_label_matches_in_composed_and_decomposed_unicode(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    listing = _pair(tmp_path, f"{composed}.jpg", f"{decomposed}.txt")
    assert _labels(listing) == {composed: f"l/{decomposed}.txt"}


def test_labels_are_found_in_the_same_sub_folders_as_images(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "a/1.jpg b/1.jpg 1.jpg", "a/1.txt b/1.TXT 1.txt")
    assert _labels(listing) == {"1": "l/1.txt", "a/1": "l/a/1.txt", "b/1": "l/b/1.TXT"}
    assert [sample.name for sample in listing.samples] == ["i/1", "i/a/1", "i/b/1"]
    assert [str(sample.key) for sample in listing.samples] == [
        str(tmp_path / label) for label in ("l/1.txt", "l/a/1.txt", "l/b/1.TXT")
    ]


def test_labels_in_one_folder_belong_to_images_of_sub_folders(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "a/1.jpg b/c/2.png", "1.txt 2.txt 3.txt")
    assert _labels(listing) == {"a/1": "l/1.txt", "b/c/2": "l/2.txt"}
    assert _files_and_problems(listing.orphans) == [("l/3.txt", Problem.LABEL_WITHOUT_IMAGE)]


def test_a_label_that_could_belong_to_several_images_belongs_to_none(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "a/1.jpg b/1.jpg b/2.jpg", "1.txt 2.txt")
    message = "l/1.txt could belong to a/1.jpg or b/1.jpg: put labels into the same sub-folders"
    assert listing.skipped == [
        Finding("i/a/1.jpg", Problem.DUPLICATE_NAME, message),
        Finding("i/b/1.jpg", Problem.DUPLICATE_NAME, message),
    ]
    assert (_labels(listing), listing.orphans) == ({"b/2": "l/2.txt"}, [])


def test_a_message_names_three_images_and_counts_the_others(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "a/1.jpg b/1.jpg c/1.jpg d/1.jpg e/1.bmp", "1.txt")
    assert listing.skipped[0].message.startswith("l/1.txt could belong to a/1.jpg, b/1.jpg or 3 others: ")


def test_a_label_with_its_own_image_is_not_given_to_another(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "1.jpg a/1.jpg", "1.txt")
    assert _labels(listing) == {"1": "l/1.txt"}
    assert listing.skipped == [
        Finding("i/a/1.jpg", Problem.NO_LABEL, "expected l/a/1.txt, which does not exist")
    ]


def test_the_first_of_two_images_with_one_stem_is_used(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "a/1.jpg a/1.png", "a/1.txt")
    assert [sample.image_file for sample in listing.samples] == ["i/a/1.jpg"]
    assert listing.skipped == [
        Finding("i/a/1.png", Problem.DUPLICATE_NAME, "1.jpg has the same stem and is used")
    ]


def test_the_first_of_two_labels_with_one_stem_is_used(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "1.jpg", "1.TXT 1.txt")
    assert _labels(listing) == {"1": "l/1.TXT"}
    assert listing.findings == [
        Finding("l/1.txt", Problem.DUPLICATE_NAME, "1.TXT has the same stem and is used")
    ]


def test_labels_that_cannot_be_opened_are_reported(tmp_path: Path) -> None:
    _make(tmp_path, "elsewhere/2.txt")
    _make(tmp_path / "l", "keep.me")
    (tmp_path / "l/1.txt").symlink_to("nowhere")
    (tmp_path / "l/far").symlink_to(tmp_path / "elsewhere")
    listing = _pair(tmp_path, "1.jpg", "")
    assert _files_and_problems(listing.findings) == [
        ("l/1.txt", Problem.UNREADABLE_LABEL),
        ("l/far", Problem.UNREADABLE_LABEL),
    ]
    assert _files_and_problems(listing.skipped) == [("i/1.jpg", Problem.NO_LABEL)]


def test_the_label_of_an_image_that_cannot_be_used_is_no_orphan(tmp_path: Path) -> None:
    assert _pair(tmp_path, "1.bmp", "1.txt").orphans == []


def test_places_at_the_root_have_no_folder_in_their_names(tmp_path: Path) -> None:
    _make(tmp_path, "1.jpg 1.txt 2.jpg 3.txt")
    listing = folder_reader.pair(SourceFolder(tmp_path, ""), SourceFolder(tmp_path, ""), ".txt")
    (sample,) = listing.samples
    assert (sample.name, sample.image_file, sample.label_file) == ("1", "1.jpg", "1.txt")
    assert _files_and_problems(listing.skipped) == [("2.jpg", Problem.NO_LABEL)]
    assert _files_and_problems(listing.orphans) == [("3.txt", Problem.LABEL_WITHOUT_IMAGE)]


def test_every_image_is_a_sample_or_skipped(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "1.jpg 2.jpg 3.bmp a/4.jpg b/4.jpg 5.jpg 5.png x.csv", "1.txt 4.txt 5.txt")
    assert listing.images == 7
    assert len(listing.samples) + len(listing.skipped) == listing.images
    assert listing.other_files == 1


def test_a_summary_counts_files_by_suffix(tmp_path: Path) -> None:
    _make(tmp_path, "a.xml b/c.xml d.XML e.json README .hidden")
    assert folders.content_summary(tmp_path) == "3 .xml files, 1 .json file, 1 hidden file, 1 more"


def test_an_empty_folder_holds_no_file(tmp_path: Path) -> None:
    assert folders.content_summary(tmp_path) == "no file"


def test_side_files_of_tools_are_not_labels(tmp_path: Path) -> None:
    listing = _pair(tmp_path, "1.jpg train.jpg", "1.txt classes.txt README.txt train.txt stray.txt")
    assert _labels(listing) == {"1": "l/1.txt", "train": "l/train.txt"}
    assert sorted(listing.side_files) == ["l/README.txt", "l/classes.txt"]
    assert [finding.file for finding in listing.orphans] == ["l/stray.txt"]
    assert sorted(file for file, _ in listing.label_files) == ["l/1.txt", "l/stray.txt", "l/train.txt"]


def test_labels_beside_the_images_are_no_other_files(tmp_path: Path) -> None:
    _make(tmp_path, "d/1.jpg d/1.txt d/notes.md")
    listing = folder_reader.pair(SourceFolder(tmp_path / "d", "d"), SourceFolder(tmp_path / "d", "d"), ".txt")
    assert (len(listing.samples), listing.other_files) == (1, 1)
