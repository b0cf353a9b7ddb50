"""Generate the parts of the manifests that list kinds or status fields: ``python -m tlt_api.manifestgen .``.

The manifests are written by hand. Only the generated parts are replaced:

    resources: [...]  # generated: kinds           a list, named by the comment behind it
    # generated: operator's fields of the status   the lines up to the next comment `# end of generated part`

so that a new kind, or a new field of a status, is written once, in the models.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tlt_api.resources import KINDS, crd_name
from tlt_api.status import OperatorStatus, RunnerStatus, wire_names

FILES = (
    "crds/kustomization.yaml",
    "manifests/base/operator-rbac.yaml",
    "manifests/base/runner-clusterrole.yaml",
    "manifests/base/runner-policy.yaml",
)
Part = TypeVar("Part")
# The marks are comments, so that the manifests stay valid YAML and can be applied as they are.
_LIST = re.compile(r"\[[^]\n]*\](?=  # generated: (?P<name>.+)$)", re.MULTILINE)
_BLOCK = re.compile(
    r"(?P<head>^ *# generated: (?P<name>.+)\n)(?:.*\n)*?(?=^ *# end of generated part$)", re.MULTILINE
)


def _plurals() -> list[str]:
    return [kind.plural for kind in KINDS.values()]


def _plurals_status() -> list[str]:
    return [f"{plural}/status" for plural in _plurals()]


def _crd_files() -> list[str]:
    return [f"{crd_name(kind)}.yaml" for kind in KINDS.values()]


def _unchanged_operator_fields() -> str:
    """Return the validation, in CEL, that a request changes no field of the operator, with its message."""
    # `.?` compares optional values: a field that is absent before and after counts as unchanged.
    fields = [f"object.?status.?{name} == oldObject.?status.?{name}" for name in wire_names(OperatorStatus)]
    runner_fields = ", ".join(wire_names(RunnerStatus))
    message = f"a runner may change its own fields of the status ({runner_fields}) and none of the operator's"
    # Folded scalars: YAML joins the lines by spaces, and neither ": " nor "#" in the text needs quotes.
    lines = [
        "  - expression: >-",
        *textwrap.indent(" &&\n".join(fields), " " * 6).splitlines(),
        "    message: >-",
        *textwrap.wrap(message, 110, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]
    return "\n".join(lines) + "\n"


LISTS: Mapping[str, Callable[[], list[str]]] = {
    "kinds": _plurals,
    "status of kinds": _plurals_status,
    "CRD files": _crd_files,
}
BLOCKS: Mapping[str, Callable[[], str]] = {
    "operator's fields of the status": _unchanged_operator_fields,
}


def generated(text: str) -> str:
    """Return a manifest with its generated parts rewritten from the models.

    Raises:
        ValueError: The manifest names a part that has no generator.
    """

    def new_list(match: re.Match[str]) -> str:
        return f"[{', '.join(_generator(LISTS, match['name'])())}]"

    def new_block(match: re.Match[str]) -> str:
        return match["head"] + _generator(BLOCKS, match["name"])()

    return _BLOCK.sub(new_block, _LIST.sub(new_list, text))


def _generator(parts: Mapping[str, Part], name: str) -> Part:
    if name not in parts:
        # A mark that is misspelt must not leave an old list in place.
        raise ValueError(f"expected a generated part ({', '.join(parts)}), got {name!r}")
    return parts[name]


def main(root: Path) -> None:
    """Rewrite the generated parts of all manifests below ``root``."""
    for name in FILES:
        file = root / name
        file.write_text(generated(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
