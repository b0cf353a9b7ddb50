"""Version of this program, and the User-Agent with which its parts ask an API server."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata

_DISTRIBUTION = "tlt-operator"
"""Distribution that operator, runner and API package are installed with."""


@cache
def version() -> str:
    """Return the installed version, or ``unknown`` where the code runs without being installed."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


@cache
def user_agent(program: str) -> str:
    """Return the User-Agent of a program: ``tlt-operator/0.1.0 (release)``.

    Audit logs and metrics of the API server name it. An installation whose files may be edited (``pip install
    --editable``) is a ``development`` one: its version says little about its code.
    """
    return f"{program}/{version()} ({'development' if _is_editable() else 'release'})"


def _is_editable() -> bool:
    try:
        # PEP 610; absent if the distribution comes from an index.
        origin = metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return True
    return bool(origin and json.loads(origin).get("dir_info", {}).get("editable"))
