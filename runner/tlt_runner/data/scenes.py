"""How many sample scenes, and of what size: the defaults of ``tlt sample-data``, which the samples need.

Apart from :mod:`tlt_runner.data.sample_digits`, so that ``tlt --help`` can tell them without importing
OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenes:
    """Sample scenes: ``images`` of them, ``width`` x ``height`` pixels."""

    images: int = 400
    width: int = 192
    height: int = 192
    seed: int = 7
