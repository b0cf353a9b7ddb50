"""Hides from Keras and TensorFlow what they import only because it is installed.

Imported by conftest, and by sitecustomize in the processes that tests start.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# They take 6.7 of the 16.7 s of CPU time of `import tensorflow` here; the runner's image holds none of them.
OPTIONAL = {"jax", "matplotlib", "sklearn"}


class Hidden:
    """An import finder for which optional packages do not exist while Keras or TensorFlow are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for an optional package, and leave all else to the other finders."""
        if name in OPTIONAL and any(map(_is_importing, ("keras", "tensorflow"))):
            raise ModuleNotFoundError(f"{name} is hidden by {__file__}", name=name)
        return None


def _is_importing(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
    sys.meta_path.insert(0, Hidden())
