"""Python imports this at the start of every process whose PYTHONPATH names this folder."""

import quick_imports  # noqa: F401
