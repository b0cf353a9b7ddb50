"""TensorBoard's file format, written directly: TFRecords of Event messages.

TensorFlow's own writer keeps one file open and growing, which neither a published file nor an object store
can be. Here a file is a whole piece: TensorBoard reads a folder's files in the order of their names, each to
its end, and goes on with the next one when there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

FILE_VERSION = "brain.Event:2"


class EventFile:
    """One file of events.

    Args:
        path: To write to.
        time: When it was begun, in seconds since 1970.
        start_step: For the first file of an attempt: what earlier files tell of this step and later ones was
            done anew, and TensorBoard forgets it.
    """

    def __init__(self, path: Path, time: float, start_step: int | None = None) -> None:
        self.path = path
        self._writer = tf.io.TFRecordWriter(str(path))
        self._write(tf.compat.v1.Event(wall_time=time, file_version=FILE_VERSION))
        if start_step is not None:
            start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
            self._write(tf.compat.v1.Event(wall_time=time, step=start_step, session_log=start))

    def scalars(self, values: Mapping[str, float], step: int, time: float) -> None:
        """Add values by tag."""
        self._values(
            [tf.compat.v1.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()],
            step,
            time,
        )

    def image(self, tag: str, encoded: bytes, size: tuple[int, int], step: int, time: float) -> None:
        """Add a picture: a JPEG or PNG file, and its height and width."""
        image = tf.compat.v1.Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=encoded
        )
        self._values([tf.compat.v1.Summary.Value(tag=tag, image=image)], step, time)

    def close(self) -> None:
        """End the file: it is whole from here on."""
        self._writer.close()

    def _values(self, values: list[Any], step: int, time: float) -> None:
        summary = tf.compat.v1.Summary(value=values)
        self._write(tf.compat.v1.Event(wall_time=time, step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
