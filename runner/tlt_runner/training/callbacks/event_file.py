"""TensorBoard's file format, written directly: TFRecords of Event messages.

TensorFlow's own writer keeps one file open and growing, which a published file cannot be, nor one in an
object store. Here each file is complete: TensorBoard reads a folder's files in the order of their names,
each to its end, and goes on with the next one.
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
        path: The file to write.
        time: Its beginning, in seconds since 1970.
        start_step: For the first file of an attempt: TensorBoard drops the points that earlier files have
            of this step and later ones, because the attempt takes these steps again.
    """

    def __init__(self, path: Path, time: float, start_step: int | None = None) -> None:
        self.path = path
        self._writer = tf.io.TFRecordWriter(str(path))
        # The version is the first event of every file.
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
        """Add an image: a JPEG or PNG file, and its height and width."""
        image = tf.compat.v1.Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=encoded
        )
        self._values([tf.compat.v1.Summary.Value(tag=tag, image=image)], step, time)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def _values(self, values: list[Any], step: int, time: float) -> None:
        summary = tf.compat.v1.Summary(value=values)
        self._write(tf.compat.v1.Event(wall_time=time, step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
