"""Class names of YOLO labels, which have numbers only: from the file that tools write with the labels.

=================== ======================================================================================
data.yaml           Ultralytics, Roboflow, supervision, datumaro: the field ``names`` (dataset.yaml: FiftyOne)
obj.data            darknet, CVAT: a line ``names = data/obj.names``
obj.names           darknet, CVAT: one name a line
classes.txt         labelImg, Label Studio: one name a line
_darknet.labels     Roboflow: one name a line
=================== ======================================================================================

Each is looked for at the data set's root, in the folders of images and labels, and in the folders between.
With another list of names the numbers mean other classes: files that contradict each other are refused.

The files are not trusted. YAML is only taken apart, no object is made of it: aliases and merge keys, with
which a small file describes a huge one, stay references, tags are not obeyed, and a class called ``no`` or
``1`` keeps its name. A path in ``obj.data`` is looked for below the root only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import yaml

from tlt_api.dataset import LONGEST_CLASS
from tlt_api.failures import Reason
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.format import DatasetRoot
from tlt_runner.data.formats.names import is_safe, printable
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.storage import join, relative

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
DATA_FILE = "obj.data"
LIST_FILES = ("obj.names", "classes.txt", "_darknet.labels")
FILES = (*YAML_FILES, DATA_FILE, *LIST_FILES)
"""Files with class names, as tools call them."""
MAX_BYTES = 256 << 10
_MAX_CLASS_NUMBER = 100_000
_MAX_KEYPOINTS = 1_000
_BY_HAND = "Correct the file, or name the classes by number in spec.dataset.classNames."


@dataclass(frozen=True)
class ClassNames:
    """Classes by number.

    Attributes:
        names: Class by number.
        files: The files that say so, with their paths relative to the data set's root.
        keypoint_numbers: Numbers behind the box of each line, of a data set of keypoints.
        overruled: Files with other names, which do not count beside a data.yaml at the root.
    """

    names: Mapping[int, str]
    files: Sequence[tuple[str, Path]] = ()
    keypoint_numbers: int | None = None
    overruled: Sequence[str] = ()


def find(root: DatasetRoot, folders: Sequence[str]) -> ClassNames:
    """Find the class names of a data set.

    Args:
        root: The data set's root.
        folders: The folders of images and labels, relative to it.

    Raises:
        RunnerError: ``InvalidSpec``: there is no file with names, one cannot be read, or two contradict each
            other.
    """
    places = _places(folders)
    candidates = [f"{place}/{name}" if place else name for place in places for name in FILES]
    present = [file for file in candidates if root.storage.exists(join(root.dataset.uri, file))]
    if not present:
        got = root.storage.missing(join(root.dataset.uri, YAML_FILES[0]))
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected yolo's classes in dataset.classNames or in one of {', '.join(FILES)} (in "
            f"{', '.join(place or 'the root' for place in places)}): {got}",
            "Name the classes by number, from 0, in spec.dataset.classNames.",
        )
    read: dict[str, ClassNames] = {}
    for name, class_names in chain.from_iterable(_read(root, file) for file in present):
        # The list of an obj.data is there by itself, too: the first of both knows both files.
        read.setdefault(name, class_names)
    if not read:
        raise _invalid(present[0], "expected a line names = ..., with the list of classes")
    first, *others = read
    # Ultralytics reads this file alone, and so did earlier releases: lists beside it may be leftovers.
    if first in YAML_FILES:
        overruled = [file for file in others if read[file].names != read[first].names]
        return replace(read[first], overruled=overruled)
    for other in others:
        if read[other].names != read[first].names:
            raise RunnerError(
                Reason.INVALID_SPEC,
                "expected one list of classes, got two that differ: "
                + "; ".join(f"{file} has {_shown(read[file].names)}" for file in (first, other)),
                "Take away the one that does not belong to these labels, or name the classes by number in "
                "spec.dataset.classNames.",
            )
    keypoints = next((item.keypoint_numbers for item in read.values() if item.keypoint_numbers), None)
    files = list(dict(chain.from_iterable(item.files for item in read.values())).items())
    return ClassNames(read[first].names, files, keypoints)


def _places(folders: Sequence[str]) -> list[str]:
    """List the root, the folders and those between, each once, the root first."""
    places = [""]
    for folder in folders:
        parts = relative(folder).split("/") if relative(folder) else []
        places += ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
    return list(dict.fromkeys(places))


def _read(root: DatasetRoot, file: str) -> Iterator[tuple[str, ClassNames]]:
    """Read the names of one file; nothing of an obj.data that names none."""
    path = root.file(file)
    with storage_errors(root.dataset.uri):
        if not file.endswith(DATA_FILE):
            read = _read_yaml(path, file) if file.endswith(YAML_FILES) else _read_list(path, file)
            yield file, read
            return
        fields = _data_fields(path, file)
    if "names" in fields:
        list_file = _below(root, file, fields["names"])
        list_path = root.file(list_file)
        with storage_errors(root.dataset.uri):
            read = _read_list(list_path, list_file)
        # darknet's own count; where it contradicts the names, one of them is wrong.
        count = fields.get("classes", str(len(read.names)))
        if count != str(len(read.names)):
            raise _invalid(
                file,
                f"expected as many names as classes says, {count[:20]!r}, got {len(read.names)} "
                f"in {list_file}",
            )
        yield list_file, ClassNames(read.names, [(file, path), *read.files])


def read_class_names(path: Path, file: str = YAML_FILES[0]) -> ClassNames:
    """Read the classes of a ``data.yaml``.

    Args:
        path: The file.
        file: Its path relative to the data set's root, for messages.

    Raises:
        RunnerError: ``InvalidSpec``, with the field at fault, where it does not say.
        OSError: It cannot be read.
    """
    return _read_yaml(path, file)


def _read_yaml(path: Path, file: str) -> ClassNames:
    try:
        # compose() builds nodes only: no object is made, no alias expanded, and "no" stays a text.
        root = yaml.compose(lines.text(path, MAX_BYTES), Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise _invalid(file, "expected YAML, got lists in lists without end") from error
    except (ValueError, yaml.YAMLError) as error:
        raise _invalid(file, f"expected YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(root, yaml.MappingNode):
        raise _invalid(file, "expected fields, among them names")
    fields = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    if "names" not in fields:
        got = ", ".join(printable(key[:40]) for key in list(fields)[:10])
        raise _invalid(file, f"expected the field names, got {got or 'none'}")
    names = _names_by_number(fields["names"], file)
    # nc is redundant; where it contradicts names, one of them is wrong, and class numbers would be off.
    count = fields.get("nc")
    if isinstance(count, yaml.ScalarNode) and count.value != str(len(names)):
        raise _invalid(file, f"expected as many names as nc says, {count.value[:20]!r}, got {len(names)}")
    return ClassNames(names, [(file, path)], _keypoint_numbers(fields.get("kpt_shape")))


def _names_by_number(node: yaml.Node, file: str) -> dict[int, str]:
    # Both forms are Ultralytics': a list, whose positions are the numbers, or a mapping from numbers.
    if isinstance(node, yaml.SequenceNode):
        pairs = list(enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        pairs = [(_class_number(key, file), value) for key, value in node.value]
    else:
        raise _invalid(file, "names: expected a list, or number: name", node)
    names: dict[int, str] = {}
    for number, value in pairs:
        # An alias or a nested list is no name.
        name = value.value if isinstance(value, yaml.ScalarNode) else ""
        if not _is_name(name):
            expected = f"a name of 1 to {LONGEST_CLASS} characters"
            raise _invalid(file, f"names: expected {expected} for class {number}", value)
        if number in names:
            raise _invalid(file, f"names: expected every number once, got {number} twice", value)
        names[number] = name
    if not names:
        raise _invalid(file, "names: expected at least one class", node)
    return names


def _class_number(node: yaml.Node, file: str) -> int:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    # isdigit() alone takes digits of other scripts; the length is checked before int() sees the text.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= _MAX_CLASS_NUMBER):
        raise _invalid(file, f"names: expected class numbers from 0, got {text[:40]!r}", node)
    return int(text)


def _keypoint_numbers(node: yaml.Node | None) -> int | None:
    """Read ``kpt_shape: [number of keypoints, 2 or 3 numbers each]``; None where it is none."""
    values = [item.value for item in node.value] if isinstance(node, yaml.SequenceNode) else []
    digits = [value for value in values if isinstance(value, str) and value.isascii() and value.isdigit()]
    if len(values) != 2 or len(digits) != 2 or any(len(value) > 4 for value in digits):
        return None
    count, each = map(int, digits)
    return count * each if 0 < count <= _MAX_KEYPOINTS and each in (2, 3) else None


def _read_list(path: Path, file: str) -> ClassNames:
    """Read one name a line."""
    try:
        rows = lines.text(path, MAX_BYTES).split("\n")
    except ValueError as error:
        raise _invalid(file, str(error)) from error
    names = [row.strip() for row in rows]
    # Empty lines at the end are no classes; one between names would be, and moves the numbers behind it.
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names):
        if not _is_name(name):
            expected = f"expected a name of 1 to {LONGEST_CLASS} characters for class {number}"
            raise _invalid(
                f"{file}:{number + 1}", f"{expected}, got {'an empty line' if not name else 'another'}"
            )
    if not names:
        raise _invalid(file, "expected at least one class, one name a line")
    return ClassNames(dict(enumerate(names)), [(file, path)])


def _data_fields(path: Path, file: str) -> dict[str, str]:
    """Read the ``name = value`` lines of an obj.data."""
    try:
        rows = lines.text(path, MAX_BYTES).split("\n")
    except ValueError as error:
        raise _invalid(file, str(error)) from error
    pairs = (row.partition("=") for row in rows)
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def _below(root: DatasetRoot, file: str, named: str) -> str:
    """Find the list that obj.data names; its path counts from where darknet was started, often elsewhere."""
    folder = file.rpartition("/")[0]
    # Without drive and "..": only places below the root are looked at.
    parts = [part for part in named.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    for place in dict.fromkeys([folder, ""]):
        for tail in tails:
            name = f"{place}/{tail}" if place else tail
            if is_safe(name) and root.storage.exists(join(root.dataset.uri, name)):
                return name
    raise _invalid(
        file, f"expected the list of classes at names = {printable(named[:200])}, which does not exist"
    )


def _is_name(name: str) -> bool:
    return 1 <= len(name) <= LONGEST_CLASS and is_safe(name)


def _shown(names: Mapping[int, str]) -> str:
    items = [f"{number} {name}" for number, name in sorted(names.items())]
    more = f" and {len(items) - 10} more" if len(items) > 10 else ""
    return f"{len(items)} classes ({', '.join(items[:10])}{more})"


def _invalid(file: str, message: str, node: yaml.Node | None = None) -> RunnerError:
    line = f":{node.start_mark.line + 1}" if node is not None else ""
    return RunnerError(Reason.INVALID_SPEC, f"{file}{line}: {message}", _BY_HAND)
