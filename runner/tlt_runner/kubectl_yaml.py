"""YAML as kubectl reads it, which makes JSON of it, and YAML from which it reads what was written.

PyYAML and kubectl both read YAML 1.1, but differ. Called by :mod:`tlt_runner.manifests`, and by commands that
print manifests or parts of them.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Hashable, Sequence
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """Reads YAML as kubectl does, which makes JSON of it: keys are texts, 1.0 is 1, a date is a text.

    Attributes:
        warnings: Keys of the document so far that are no texts in YAML, one sentence each.
    """

    warnings: list[str]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping with texts as keys; refuse one in which a key appears twice."""
        keys: set[str] = set()
        for key_node, _ in node.value:
            # A merge key (<<) is no key of the mapping: flatten_mapping replaces it below.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self._text_of(key_node)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping",
                    node.start_mark,
                    f"the key {key!r} stands twice",
                    key_node.start_mark,
                )
            keys.add(key)
        self.flatten_mapping(node)
        return {self._text_of(key): self.construct_object(value, deep=deep) for key, value in node.value}

    def _text_of(self, node: yaml.Node) -> str:
        """Return the text that kubectl makes of a key."""
        key = self.construct_object(node, deep=True)
        if isinstance(key, str):
            return key
        if not isinstance(key, bool | int | float):
            raise yaml.constructor.ConstructorError(
                None, None, f"expected a text as a key, got {key!r:.80}", node.start_mark
            )
        # Of 1e6 kubectl makes another key than of 1000000, although the values are equal.
        fraction = node.tag == "tag:yaml.org,2002:float" and isinstance(key, int)
        text = str(key).lower() if isinstance(key, bool) else _go_text(float(key) if fraction else key)
        type_name = "a boolean" if isinstance(key, bool) else "a number"
        sentence = (
            f"line {node.start_mark.line + 1}: the key {node.value} is {type_name} in YAML, of which "
            f'Kubernetes makes the text "{text}": quote the key: "{node.value}"'
        )
        # A key is read twice: for its duplicates, and for the mapping.
        if sentence not in self.warnings:
            self.warnings.append(sentence)
        return text

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.warnings = []


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    digits = str(loader.construct_scalar(node)).replace("_", "")
    # 017 is octal in YAML 1.1; Python writes 0o17.
    return int(digits, 8) if re.fullmatch(r"[-+]?0[0-7]+", digits) else int(digits, 0)


def _number(loader: Loader, node: yaml.ScalarNode) -> int | float | str:
    text = str(loader.construct_scalar(node))
    value = float(text.replace("_", ""))
    # Too large for a float: kubectl leaves it a text, and so does this.
    if math.isinf(value) and "inf" not in text.lower():
        return text
    # JSON has one type of number; an API server takes 3.0 for an integer because 3 arrives there.
    return int(value) if value.is_integer() and abs(value) < _INTEGERS_END else value


def _text(loader: Loader, node: yaml.ScalarNode) -> str:
    """An explicit ``!!timestamp``, which is a text as well."""
    return str(loader.construct_scalar(node))


_INTEGERS_END = 1e21
"""Numbers from here on are written with an exponent in JSON, and are no integers for an API server."""


def _go_text(number: float) -> str:
    """Write a number as kubectl does for a key: Go's shortest form, of floats in 32 bits."""
    if isinstance(number, int):
        return str(number)
    as_32_bits = struct.pack("f", number)
    (number,) = struct.unpack("f", as_32_bits)
    shortest = (f"{number:.{digits}e}" for digits in range(9))
    text = next(text for text in shortest if struct.pack("f", float(text)) == as_32_bits)
    mantissa, _, exponent = text.partition("e")
    # Go takes an exponent from the sixth place on, and below the fourth decimal.
    if not -4 <= int(exponent) < 6:
        return text
    places = len(mantissa.partition(".")[2]) - int(exponent)
    return f"{float(text):.{max(0, places)}f}"


# PyYAML and kubectl both read YAML 1.1, but differ: for PyYAML 5e-6 is a text, 2026-01-01 a date, 1:30 is 90,
# y and n are texts and 0o17 is one.
_RESOLVED: dict[str, tuple[str, Sequence[str]]] = {
    "bool": (
        r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yYnNtTfFoO",
    ),
    "int": (r"[-+]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|0[0-7_]*|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}
Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first_characters) in _RESOLVED.items():
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first_characters)
    )
Loader.bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}
Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_constructor("tag:yaml.org,2002:float", _number)
Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that PyYAML and kubectl read alike."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quote a text that kubectl would read as something else, such as ``y`` or ``08``."""
        loader: Any = Loader("")
        tag = loader.resolve(yaml.ScalarNode, data, (True, False))
        style = None if tag == "tag:yaml.org,2002:str" else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def dump(content: Any, *, block_style: bool = True) -> str:
    """Return content as YAML from which kubectl reads the same content.

    Args:
        content: Mappings, sequences and scalars.
        block_style: One line for each item; otherwise the innermost collections stand on one line.
    """
    return yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False if block_style else None,
        width=110,
    )
