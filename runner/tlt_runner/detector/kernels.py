"""Choice between TensorFlow's own kernels and operators that every compiler takes.

RoI pooling and non-maximum suppression exist in two forms with equal results. TensorFlow's kernels are
several times as fast on CPUs; XLA, JAX and ONNX have none of them. Used by :mod:`tlt_runner.detector.roi` and
:mod:`tlt_runner.detector.nms`; the exporter and a trainer with XLA ask for the portable form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras

_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Context in which graphs are traced from ``keras.ops`` only: for XLA and for export.

    It counts where Python runs, while a function is traced, and has no effect on functions traced before. A
    new thread starts outside of it.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def native() -> bool:
    """Return whether TensorFlow's own kernels are to be used here."""
    return keras.backend.backend() == "tensorflow" and not _portable.get()
