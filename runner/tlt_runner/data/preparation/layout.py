"""Find out what a folder holds: the label format, where images and labels lie, and its split.

One function for `tlt data`, which prints what it finds, and for ``spec.dataset.layout: auto``, which reads
it. Nothing but names, and the beginning of a few label files, is looked at; whether every file can be used is
for the readers.

Images and labels are paired by name, folder by folder, and folders are joined as far as one data set can name
them: ``images/train/a`` with ``labels/train/a`` makes ``images/train`` and ``labels/train``. A folder or a
file called train, val, valid, test and the like is a part of the split.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonpath, commonprefix
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any, Literal, get_args

from pydantic import ValidationError

from tlt_api.dataset import Dataset, LabelFormat, Validation
from tlt_api.failures import Reason
from tlt_runner.data import formats
from tlt_runner.data.formats import folders, kinds, lines
from tlt_runner.data.formats.folders import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, EntryKind
from tlt_runner.data.formats.names import stem
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.storage import Storage

Split = Literal["training", "validation", "test"]
_SPLITS: dict[Split, re.Pattern[str]] = {
    "training": re.compile(r"(train|training|trn)[\d_-]*", re.IGNORECASE),
    "validation": re.compile(r"(val|valid|validation|dev)[\d_-]*", re.IGNORECASE),
    "test": re.compile(r"(test|testing|tst)[\d_-]*", re.IGNORECASE),
}
_IN_FILE_NAME: dict[Split, re.Pattern[str]] = {
    "training": re.compile(r"(?<![a-z])(train|training)(?![a-z])", re.IGNORECASE),
    "validation": re.compile(r"(?<![a-z])(val|valid|validation|minival)(?![a-z])", re.IGNORECASE),
    "test": re.compile(r"(?<![a-z])(test|testing)(?![a-z])", re.IGNORECASE),
}
_LOOKED_AT = 8
"""Files of a folder of labels whose content is looked at."""
_LARGEST_JSON = 2 << 30
_FILE_NAMES = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_SIDE = re.compile(r"(classes|labels|labelmap|label_colors|names|notes|readme.*)\.txt", re.IGNORECASE)
_IMAGE_FOLDER = re.compile(r"im(age|g)|jpe?g|photo|picture|frame|rgb|color", re.IGNORECASE)
_NAMED = 5


@dataclass(frozen=True)
class Part:
    """Images with their labels, in places that one data set can name.

    Attributes:
        format: Format of the labels.
        images: Folder of images, relative to the root; "." for the root itself.
        labels: Folder of labels, or a .json file.
        split: Part of the split; None where no name says one.
        pairs: Images that have a label.
    """

    format: LabelFormat
    images: str
    labels: str
    split: Split | None
    pairs: int

    def __str__(self) -> str:
        """Return one line."""
        use = "" if self.split is None else f" ({self.split})"
        return f"{self.format}: {self.pairs} images of {self.images} with labels in {self.labels}{use}"


@dataclass(frozen=True)
class Layout:
    """Content of a folder, and the fields that read it.

    Attributes:
        fields: Fields of ``spec.dataset`` that read it (format, images, labels, imageSet,
            validation); None where it cannot be read.
        parts: Images with labels that were found, the chosen ones first.
        notes: What is said about the choice: other formats, a test split, files of other tools.
        seen: What was seen, where it cannot be read.
        missing: What is missing to read it.
    """

    fields: Mapping[str, Any] | None
    parts: Sequence[Part] = ()
    notes: Sequence[str] = ()
    seen: Sequence[str] = ()
    missing: str = ""

    def __str__(self) -> str:
        """Return what was found, as one line of fields and notes."""
        fields = json.dumps(self.fields or {}, ensure_ascii=False).replace('"', "")
        return "; ".join([fields[1:-1], *self.notes])


@dataclass
class _Files:
    """Files of a folder, by kind; paths are relative to it."""

    images: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Folder -> its images."""
    labels: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    """Folder and suffix -> its files that may hold labels."""
    other_images: Counter[str] = field(default_factory=Counter)
    """Suffix -> images that are not read."""
    all: set[str] = field(default_factory=set)
    kinds: dict[str, str | None] = field(default_factory=dict)
    """File -> what it is, of the files that were looked at: labelme's hold a copy of the image each."""

    def kind_of(self, root: Path, name: str) -> str | None:
        """Tell what a file of labels is; each is opened once."""
        if name not in self.kinds:
            self.kinds[name] = kinds.kind_of(root / name)
        return self.kinds[name]


def resolve(dataset: Dataset, storage: Storage) -> tuple[Dataset, Layout | None]:
    """Find the places of a data set with ``layout: auto``; any other is returned as it is.

    What the folder says of the split holds unless the spec asks for another one than the default.

    Raises:
        RunnerError: ``DatasetNotFound`` or ``NoLabels``, saying what was seen and what is missing.
    """
    if dataset.layout != "auto":
        return dataset, None
    try:
        root = storage.folder(dataset.uri)
    except NotFoundError as error:
        raise RunnerError(Reason.DATASET_NOT_FOUND, error.message) from error
    # The default format cannot be told from a given one: it stands for any.
    wanted = None if dataset.format == Dataset.model_fields["format"].default else dataset.format
    with storage_errors(dataset.uri):
        layout = find(root, storage.mount(dataset.uri), wanted)
    if layout.fields is None:
        raise RunnerError(
            Reason.NO_LABELS if layout.parts or layout.seen else Reason.DATASET_NOT_FOUND,
            f"spec.dataset.layout auto cannot read {dataset.uri}: {layout.missing}; it has "
            f"{'; '.join(layout.seen) or 'no file'}",
            "Name format, images and labels in spec.dataset; `tlt data` shows what a folder holds.",
        )
    given = dataset.model_dump(by_alias=True, mode="json", exclude_none=True)
    update = {**layout.fields, "layout": "fields"}
    if dataset.validation != Validation(fraction=0.2):
        update.pop("validation", None)
    try:
        return Dataset.model_validate({**given, **update}), layout
    # Fields of one format are admitted beside layout auto, which may find another one.
    except ValidationError as error:
        messages = "; ".join(item["msg"] for item in error.errors())
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"spec.dataset.layout auto found {layout}: {messages}",
            "Remove the field that does not belong to this format, or name format, images and labels.",
        ) from error


def find(root: Path, mount: Path | None = None, wanted: LabelFormat | None = None) -> Layout:
    """Find out what a folder holds.

    Args:
        root: The folder.
        mount: Folder out of which no link may lead.
        wanted: Look for this format alone.

    Raises:
        OSError: The folder cannot be listed.
    """
    files = _list(root, mount)
    notes: list[str] = []
    parts = [*_beside_images(root, files, notes), *_coco_parts(root, files, notes)]
    if wanted is not None:
        parts = [part for part in parts if part.format == wanted]
    chosen = _choose(parts)
    if not chosen:
        return Layout(
            None, parts, seen=[*_seen(files), *notes], missing=_missing(files, parts, notes, wanted)
        )
    others = [part for part in parts if part not in chosen]
    notes += [f"also there, and not read: {part}" for part in others[:_NAMED]]
    return Layout(_fields(root, files, chosen, others), [*chosen, *others], notes)


def _list(root: Path, mount: Path | None) -> _Files:
    files = _Files()
    for name, kind in folders.scan(root, mount):
        if kind is not EntryKind.FILE:
            continue
        files.all.add(name)
        suffix = splitext(name)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            files.images[dirname(name)].append(name)
        elif suffix in OTHER_IMAGE_SUFFIXES:
            files.other_images[suffix] += 1
        elif suffix in kinds.SUFFIXES:
            files.labels[dirname(name), suffix].append(name)
    for names in (*files.images.values(), *files.labels.values()):
        names.sort()
    return files


# --- one label file an image ---


def _beside_images(root: Path, files: _Files, notes: list[str]) -> list[Part]:
    """Find the parts of formats in which a label file has the name of its image."""
    folder_of_stem: dict[str, list[str]] = defaultdict(list)
    for folder, names in files.images.items():
        for name in names:
            folder_of_stem[basename(stem(name))].append(folder)
    groups: dict[tuple[LabelFormat, Split | None, str, str], list[tuple[str, str, int]]] = defaultdict(list)
    tools: Counter[str] = Counter()
    for (folder, _), names in sorted(files.labels.items()):
        kind = _folder_kind(root, files, names)
        if kind in kinds.TOOL_FILES:
            tools[kind] += len(names)
        if kind not in _PER_IMAGE:
            continue
        images, pairs = _images_of(folder, names, folder_of_stem)
        if images is None:
            notes.append(f"{len(names)} {kind} labels in {folder or '.'} have no image of their name")
            continue
        image_root, label_root = _roots(images, folder)
        split = _split_of(images) or _split_of(folder)
        groups[kind, split, image_root, label_root].append((images, folder, pairs))
    notes += [
        f"{count} file{'s' * (count != 1)} of {kinds.TOOL_FILES[kind]}"
        for kind, count in sorted(tools.items())
    ]
    parts = []
    for (kind, split, _, _), pairs_of_folders in groups.items():
        images = _common(item[0] for item in pairs_of_folders)
        labels = _common(item[1] for item in pairs_of_folders)
        parts.append(Part(kind, images, labels, split, sum(item[2] for item in pairs_of_folders)))
    return parts


_PER_IMAGE: tuple[LabelFormat, ...] = tuple(name for name in get_args(LabelFormat) if name != "coco")
"""Formats of one label file an image."""


def _folder_kind(root: Path, files: _Files, names: Sequence[str]) -> Any:
    """Tell what the label files of one folder are, by the first few that tell."""
    found: Counter[str] = Counter()
    # Beside .txt labels lie lists of classes, the first line of which might look like one.
    candidates = [name for name in names if not _SIDE.fullmatch(basename(name))]
    for name in candidates[: 4 * _LOOKED_AT]:
        kind = files.kind_of(root, name)
        if kind is not None:
            found[kind] += 1
        if found.total() == _LOOKED_AT:
            break
    return found.most_common(1)[0][0] if found else None


def _images_of(
    folder: str, names: Sequence[str], folders_of_stem: Mapping[str, Sequence[str]]
) -> tuple[str | None, int]:
    """Find the folder of images with the most names of a folder of labels, and how many they share."""
    shared = Counter(
        images for name in names for images in set(folders_of_stem.get(basename(stem(name)), ()))
    )
    if not shared:
        return None, 0
    most = max(shared.values())
    # Of equally good ones (0001.jpg is in many folders) the one whose path is most like that of the labels.
    images = max(
        (images for images, count in shared.items() if count == most),
        key=lambda images: (_likeness(images, folder), images),
    )
    return images, most


def _likeness(images: str, labels: str) -> float:
    """Count the equal parts of two paths from both ends, the same folder most; then names decide.

    KITTI has image_3 of the right camera beside image_2, whose labels are label_2, and many data sets have
    masks or depths under the names of the images.
    """
    if images == labels:
        return 1000
    ending = len(commonprefix([images[::-1], labels[::-1]]))
    named = _IMAGE_FOLDER.search(basename(images)) is not None
    left, right = images.split("/"), labels.split("/")
    front = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), 0)
    back = next((i for i, (a, b) in enumerate(zip(left[::-1], right[::-1], strict=False)) if a != b), 0)
    alike = front + back + 2 * (_split_of(images) == _split_of(labels))
    return alike + named / 2 + min(ending, 40) / 100


def _roots(images: str, labels: str) -> tuple[str, str]:
    """Take away the sub-folders that both paths have at their ends, but for names of a split."""
    left, right = images.split("/"), labels.split("/")
    while (
        left and right and left[-1] == right[-1] and not any(p.fullmatch(left[-1]) for p in _SPLITS.values())
    ):
        left.pop()
        right.pop()
    return "/".join(left), "/".join(right)


def _split_of(folder: str) -> Split | None:
    """Return the part of the split that a folder's name, or the name of one above, says."""
    for name in reversed(folder.split("/")):
        for split, pattern in _SPLITS.items():
            if pattern.fullmatch(name):
                return split
    return None


def _common(paths: Iterable[str]) -> str:
    return commonpath([f"/{path}" for path in paths]).strip("/") or "."


# --- COCO: one file for all images ---


def _coco_parts(root: Path, files: _Files, notes: list[str]) -> list[Part]:
    by_path = {name: folder for folder, names in files.images.items() for name in names}
    candidates: dict[tuple[Split | None, str], list[tuple[str, int]]] = defaultdict(list)
    for (_, suffix), names in sorted(files.labels.items()):
        if suffix != ".json":
            continue
        # A folder with a JSON file for each image is of a tool, and told by a few of them.
        if _folder_kind(root, files, names) != "coco":
            continue
        coco = [name for name in names[: 4 * _LOOKED_AT] if files.kind_of(root, name) == "coco"]
        for name in coco:
            images, pairs, listed = _images_of_coco(root / name, dirname(name), by_path)
            if not pairs:
                notes.append(f"{name} is a COCO file of {listed} images, none of which is there")
                continue
            split = _split_in_name(basename(name)) or _split_of(dirname(name)) or _split_of(images)
            candidates[split, images].append((name, pairs))
    parts = []
    for (split, images), named in candidates.items():
        # Beside instances_*.json the standard layout has keypoints and captions of the same images.
        instances = [item for item in named if "instances" in basename(item[0])] or named
        labels = instances[0][0]
        if len(instances) > 1:
            # Several files of one part: all of their folder, if there are no others in it.
            labels = _common(dirname(name) for name, _ in instances)
            if sum(1 for name in files.all if name.endswith(".json") and dirname(name) == labels) != len(
                named
            ):
                labels = max(instances, key=lambda item: item[1])[0]
                notes.append(f"of {len(instances)} COCO files of {images} only {labels} is read")
        parts.append(Part("coco", images, labels, split, max(pairs for _, pairs in instances)))
    return parts


def _images_of_coco(path: Path, folder: str, by_path: Mapping[str, str]) -> tuple[str, int, int]:
    """Find the folder to which a COCO file's file names are relative: it, images found, images listed."""
    try:
        content = lines.content(path, _LARGEST_JSON)
    except (OSError, ValueError):
        return "", 0, 0
    # Not parsed: a file of hundreds of MiB would take gigabytes, and its reader parses it anyway.
    names = [text for name in _FILE_NAMES.findall(content) if (text := _json_text(name))]
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in by_path:
        by_name[basename(image)].append(image)
    roots: Counter[str] = Counter()
    matched: dict[str, set[str]] = defaultdict(set)
    for name in names:
        wanted = name.replace("\\", "/").lstrip("/").removeprefix("./")
        for image in by_name.get(basename(wanted), ()):
            # Relative to a folder above, or found there by its base name alone.
            if image == wanted or image.endswith(f"/{wanted}"):
                root = image[: -len(wanted)].rstrip("/")
            else:
                root = by_path[image]
            roots[root] += 1
            matched[root].add(by_path[image])
    if not roots:
        return "", 0, len(names)
    most = max(roots.values())
    split = _split_in_name(basename(path.name))
    # 0001.jpg may be in images/train and in images/val: the name of the file decides, then its folder.
    likeness = {
        images: (split is not None and _split_of(images) == split, _likeness(images, folder))
        for images, count in roots.items()
        if count == most
    }
    chosen = max(sorted(likeness), key=lambda images: likeness[images])
    # images/1.jpg is found from the folder images, too, without listing all else that the root has.
    return chosen or _common(matched[chosen]), most, len(names)


def _json_text(literal: bytes) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        return ""


def _split_in_name(name: str) -> Split | None:
    return next((split for split, pattern in _IN_FILE_NAME.items() if pattern.search(name)), None)


# --- the choice ---


def _choose(parts: Sequence[Part]) -> list[Part]:
    """Choose the parts to read, of the format with the most images: one to train on, one to validate on."""
    pairs: Counter[LabelFormat] = Counter()
    for part in parts:
        pairs[part.format] += part.pairs
    if not pairs:
        return []
    chosen_format = max(pairs, key=lambda name: (pairs[name], name == "coco"))
    of_format = [part for part in parts if part.format == chosen_format]

    def largest(*splits: Split | None) -> Part | None:
        fitting = [part for part in of_format if part.split in splits]
        return max(fitting, key=lambda part: part.pairs, default=None)

    # A folder that says nothing of a split is for training, too; one for tests alone is better than nothing.
    training = largest("training") or largest(None) or largest("validation") or largest("test")
    if training is None:
        return []
    validation = largest("validation")
    return [training] if validation in (None, training) else [training, validation]


def _fields(root: Path, files: _Files, chosen: Sequence[Part], others: Sequence[Part]) -> dict[str, Any]:
    training = chosen[0]
    fields: dict[str, Any] = {"format": training.format}
    defaults = formats.FORMATS[training.format]
    # Places are named only where the defaults would not find them.
    if (training.images, training.labels) != (defaults.images, defaults.labels):
        fields |= {"images": training.images, "labels": training.labels}
    if len(chosen) > 1:
        fields["validation"] = {"images": chosen[1].images, "labels": chosen[1].labels}
    elif training.format in _PER_IMAGE:
        lists = _lists(root, files)
        if "training" in lists and "validation" in lists:
            fields |= {"imageSet": lists["training"], "validation": {"imageSet": lists["validation"]}}
    return fields


def _lists(root: Path, files: _Files) -> dict[Split, str]:
    """Find lists of images: VOC's ImageSets/Main, or those that obj.data or the names at the root say."""
    lists: dict[Split, str] = {}
    for folder in ("ImageSets/Main", ""):
        for name in sorted(files.labels.get((folder, ".txt"), ())):
            for split, pattern in _SPLITS.items():
                if pattern.fullmatch(splitext(basename(name))[0]):
                    lists.setdefault(split, name)
    # darknet calls the images to validate on test.txt, and says so in obj.data.
    for name in sorted(name for name in files.all if name.lower().endswith(".data") and "/" not in name):
        for line in _text_lines(root / name):
            key, _, value = (part.strip() for part in line.partition("="))
            listed = next((path for path in files.all if f"/{value}".endswith(f"/{path}")), None)
            if key in ("train", "valid") and listed is not None:
                lists["training" if key == "train" else "validation"] = listed
    return lists


def _text_lines(path: Path) -> list[str]:
    try:
        return lines.text(path, kinds.WHOLE).split("\n")
    except (OSError, ValueError):
        return []


# --- what it says where nothing can be read ---


def _seen(files: _Files) -> list[str]:
    images = sum(map(len, files.images.values()))
    seen = []
    if images:
        largest = sorted(files.images, key=lambda folder: (-len(files.images[folder]), folder))
        named = ", ".join(folder or "." for folder in largest[:_NAMED])
        seen.append(f"{images} images in {named}{' ...' if len(largest) > _NAMED else ''}")
    seen += [
        f"{count} {suffix} images, which are not read" for suffix, count in files.other_images.most_common(3)
    ]
    by_suffix: Counter[str] = Counter()
    for (_, suffix), names in files.labels.items():
        by_suffix[suffix] += len(names)
    seen += [f"{count} {suffix} file{'s' * (count != 1)}" for suffix, count in by_suffix.most_common(_NAMED)]
    rest = len(files.all) - images - files.other_images.total() - by_suffix.total()
    return seen + [f"{rest} other files"] * (rest > 0)


def _missing(files: _Files, parts: Sequence[Part], notes: Sequence[str], wanted: LabelFormat | None) -> str:
    if not files.images:
        return "expected .jpg, .jpeg or .png images, found none"
    formats_known = wanted or ", ".join(get_args(LabelFormat))
    if any("is not read" in note for note in notes):
        return f"expected labels of a format that is read ({formats_known}), found those of a tool"
    if notes:
        return "expected labels with the names of the images, found labels of other images"
    return f"expected labels ({formats_known}), found none"
