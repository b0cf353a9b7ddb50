"""TensorBoard's logs: ``tensorboard --logdir <output>/logs`` shows the training.

Each run has a folder ``logs/<name>-<first 8 characters of the uid>`` with event files that never change:
one for every minute, or every hundredth part of the elapsed time where that is longer. TensorBoard drops
the points of steps that another attempt takes again (see :class:`EventFile`), so that curves have no
doubled points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tlt_api.runspec import RunSpec
from tlt_api.status import Metrics
from tlt_runner.training.callbacks.aggregate import Aggregate, Interval
from tlt_runner.training.callbacks.base import Callback, Step
from tlt_runner.training.callbacks.images import ValidationImages
from tlt_runner.training.callbacks.uploader import Uploader

FOLDER = "logs"
STEPS_PER_POINT = 10
"""Steps averaged for a point of a curve; the last point of an epoch may have fewer."""
FILE_VERSION = "brain.Event:2"
_NOT_A_LOSS = "gradient_norm"


def folder_of(run: RunSpec) -> str:
    """Folder of a run's logs below its output address."""
    return f"{FOLDER}/{run.owner.name}-{run.owner.uid[:8]}"


class TensorBoard(Callback):
    """Writes event files and uploads them.

    Args:
        uploader: Publishes below the run's folder of logs.
        aggregate: Sums of the steps, up to date when this callback is called.
        scratch: A folder for files that are not uploaded yet.
        attempt: Number of the attempt.
        steps: Steps of an epoch.
        images: Draws validation images; None draws none.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        uploader: Uploader,
        aggregate: Aggregate,
        *,
        scratch: Path,
        attempt: int,
        steps: int,
        images: ValidationImages | None,
        now: Callable[[], float],
    ) -> None:
        self._uploader, self._scratch = uploader, scratch
        self._interval = Interval(aggregate)
        self._steps, self._images, self._now = steps, images, now
        # Names sort by attempt, time and number: the order in which TensorBoard reads them. It takes only
        # files with "tfevents" in their names.
        self._prefix = f"events.out.tfevents.{attempt:04d}.{int(now()):010d}"
        self._files = 0
        self._start: int | None = None
        self._open: EventFile | None = None
        self._waiting: list[Path] = []
        self._last_step: Step | None = None

    def on_epoch_begin(self, finished: int, step: int) -> None:
        """Note at which step the attempt starts."""
        self._set_start(finished * self._steps + step)

    def on_step_end(self, step: Step) -> None:
        """Add a point after every tenth step and after an epoch's last one."""
        self._last_step = step
        if (step.number + 1) % STEPS_PER_POINT == 0 or step.in_epoch == self._steps:
            self._add_point(step)
            if self._uploader.due():
                self._upload()

    def on_evaluation_end(self, metrics: Metrics, number: int) -> None:
        """Add scores and images."""
        # An attempt may begin with the evaluation that the one before did not finish.
        self._set_start(number)
        # A class without an object in the validation images has no AP: no point.
        scores = {"mAP": metrics.m_ap}
        scores |= {f"AP/{item.name}": item.average_precision for item in metrics.per_class or ()}
        defined = {tag: value for tag, value in scores.items() if value is not None}
        self._file().scalars(defined, number, self._now())
        for image in self._images.draw(metrics) if self._images else ():
            self._file().image(f"validation/{image.id}", image.jpeg, image.size, number, self._now())
        if self._uploader.due():
            self._upload()

    def close(self, failure: BaseException | None) -> None:
        """Upload what is left, with a point of the steps since the last one."""
        if self._last_step is not None and self._interval.steps:
            self._add_point(self._last_step)
        self._upload()

    def _set_start(self, number: int) -> None:
        if self._start is None:
            self._start = number

    def _add_point(self, step: Step) -> None:
        """Add the means of the steps since the last point to the curves."""
        # Tags with a common prefix share a section in TensorBoard.
        means = self._interval.end()
        values = {
            name if name == _NOT_A_LOSS else f"loss/{name}": value for name, value in means.figures.items()
        }
        values["learning_rate"] = step.learning_rate
        if means.images_per_second is not None:
            values["images_per_second"] = means.images_per_second
        # At the number of finished steps, as the points of evaluations.
        self._file().scalars(values, step.number + 1, self._now())

    def _file(self) -> EventFile:
        if self._open is None:
            # The first file of an attempt tells TensorBoard from which step on earlier points are void.
            first_step = (self._start or 0) + 1 if self._files == 0 else None
            path = self._scratch / f"{self._prefix}.{self._files:06d}"
            self._open = EventFile(path, self._now(), first_step)
            self._files += 1
        return self._open

    def _upload(self) -> None:
        """Publish finished files in order; what could not be published waits for the next time."""
        if self._open is not None:
            # A published file is complete and never changes: the next point opens another one.
            self._open.close()
            self._waiting.append(self._open.path)
            self._open = None
        # In order: TensorBoard does not go back to a file whose successor it has begun.
        while self._waiting and self._uploader.publish(self._waiting[0], self._waiting[0].name):
            self._waiting.pop(0).unlink()


class EventFile:
    """One file of TensorBoard events, written directly: TFRecords of Event messages.

    TensorFlow's own writer keeps one file open and growing, which a published file cannot be, nor one in an
    object store. Here each file is complete: TensorBoard reads a folder's files in the order of their names,
    each to its end, and goes on with the next one.

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
        # Colorspace 3 is RGB.
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
