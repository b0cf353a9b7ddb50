"""Modules that are imported when a test first uses them.

Without them every worker would import TensorFlow to collect the unit tests.
"""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """A module by its name, imported at the first look at one of its attributes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        # pytest asks everything that it collects for these.
        if attribute.startswith("__") or attribute == "_mock_name":
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)
