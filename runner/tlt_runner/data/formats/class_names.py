"""Read the classes of yolo labels by number: ``names`` of a data set's ``data.yaml``.

The file is not trusted. Its YAML is only taken apart, no object is made of it: aliases and merge keys, with
which a small file describes a huge one, stay references, tags are not obeyed, and a class called ``no`` or
``1`` keeps its name.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from tlt_api.dataset import LONGEST_CLASS
from tlt_api.failures import Reason
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.names import is_safe, printable
from tlt_runner.errors import RunnerError

FILE = "data.yaml"
MAX_BYTES = 256 << 10
_MAX_NUMBER = 100_000


def load(path: Path) -> dict[int, str]:
    """Read the classes of a ``data.yaml`` by number.

    Raises:
        RunnerError: ``InvalidSpec``, with the field at fault, where it does not say.
        OSError: It cannot be read.
    """
    try:
        # compose() builds nodes only: no object is made, no alias expanded, and "no" stays a text.
        root = yaml.compose(lines.text(path, MAX_BYTES), Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise _invalid("expected YAML, got lists in lists without end") from error
    except (ValueError, yaml.YAMLError) as error:
        raise _invalid(f"expected YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(root, yaml.MappingNode):
        raise _invalid("expected fields, among them names")
    fields = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    if "names" not in fields:
        got = ", ".join(printable(key[:40]) for key in list(fields)[:10])
        raise _invalid(f"expected the field names, got {got or 'none'}")
    names = _names(fields["names"])
    # nc is redundant; where it contradicts names, one of them is wrong, and class numbers would be off.
    count = fields.get("nc")
    if isinstance(count, yaml.ScalarNode) and count.value != str(len(names)):
        raise _invalid(f"expected as many names as nc says, {count.value[:20]!r}, got {len(names)}")
    return names


def _names(node: yaml.Node) -> dict[int, str]:
    if isinstance(node, yaml.SequenceNode):
        pairs = list(enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        pairs = [(_number(key), value) for key, value in node.value]
    else:
        raise _invalid("names: expected a list, or number: name", node)
    names: dict[int, str] = {}
    for number, value in pairs:
        name = value.value if isinstance(value, yaml.ScalarNode) else None
        if name is None or not 1 <= len(name) <= LONGEST_CLASS or not is_safe(name):
            expected = f"a name of 1 to {LONGEST_CLASS} characters"
            raise _invalid(f"names: expected {expected} for class {number}", value)
        if number in names:
            raise _invalid(f"names: expected every number once, got {number} twice", value)
        names[number] = name
    if not names:
        raise _invalid("names: expected at least one class", node)
    return names


def _number(node: yaml.Node) -> int:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    # isdigit() alone takes digits of other scripts; the length is checked before int() sees the text.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= _MAX_NUMBER):
        raise _invalid(f"names: expected class numbers from 0, got {text[:40]!r}", node)
    return int(text)


def _invalid(message: str, node: yaml.Node | None = None) -> RunnerError:
    line = f":{node.start_mark.line + 1}" if node is not None else ""
    return RunnerError(
        Reason.INVALID_SPEC,
        f"{FILE}{line}: {message}",
        "Correct the file, or name the classes by number in spec.dataset.classNames.",
    )
