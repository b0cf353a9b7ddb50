"""The workers of a training: the GPUs of one pod, or those of several pods that train one model.

Called by the train task. A pod is a worker, a GPU (or the CPU) a replica. Worker 0 is the chief: it alone
prepares the data, reports and publishes. The others wait for it in the collectives of :class:`Workers`,
which all workers must enter in the same order. When a worker dies, the collective of the others fails
(TensorFlow's coordination service misses its heartbeats for 10 seconds) and :meth:`Workers.guarded` names
the worker.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlt_api.failures import Reason
from tlt_runner.cancel import Stop
from tlt_runner.data.input_pipeline.worker_slice import WorkerSlice
from tlt_runner.errors import RunnerError
from tlt_runner.training.distributed import rendezvous

log = logging.getLogger(__name__)

_LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_LOST_WORKER_WORDS = ("collective", "nccl", "peer", "connection", "heartbeat", "coordination")
"""Words in an InternalError that tell a failed collective from an error in this worker's arithmetic."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """All workers of a training, as seen by one of them.

    Attributes:
        strategy: A tf.distribute strategy over all replicas.
        index: Index of this worker.
        addresses: ``host:port`` by index; empty for a single worker.
    """

    strategy: Any
    index: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """True if there is more than one worker."""
        return len(self.addresses) > 1

    @property
    def chief(self) -> bool:
        """True if this worker prepares the data, reports and publishes."""
        return self.index == 0

    @property
    def worker_slice(self) -> WorkerSlice:
        """This worker's slice of a batch of all replicas."""
        return WorkerSlice(self.index, max(1, len(self.addresses)))

    @property
    def replicas(self) -> int:
        """Replicas of all workers."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> int:
        """Replicas of this worker."""
        return self.replicas // self.worker_slice.count

    def total(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Sum the arrays of all workers, of one shape, as float32: whole numbers are exact below 2^24."""
        array = np.asarray(values, np.float32)
        # Alone, or nothing to add: TensorFlow's ring divides by the size of the array.
        if not self.several or not array.size:
            return array
        summed: npt.NDArray[np.float32] = self.strategy.reduce(
            tf.distribute.ReduceOp.SUM, tf.identity(array), axis=None
        ).numpy()
        return summed

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any worker."""
        return bool(self.total([flag])[0]) if self.several else flag

    def broadcast_text(self, text: str) -> str:
        """Broadcast the chief's string to every worker. The argument of the other workers is ignored."""
        if not self.several:
            return text
        data = np.frombuffer(text.encode(), np.uint8) if self.chief else np.zeros(0, np.uint8)
        # A collective needs one shape on all workers: the length first. The others add zeros.
        length = int(self.total([len(data)])[0])
        received = self.total(np.pad(data, (0, length - len(data))))
        return received.astype(np.uint8).tobytes().decode()

    def wait_for_broadcast(self, stop: Stop) -> str:
        """Wait for the chief's :meth:`broadcast_text`, which may take hours, or for a stop request.

        Raises:
            RunnerError: Interrupted.
        """
        answers: list[str | BaseException] = []

        def wait() -> None:
            # An exception of a thread would be printed and lost: it is raised again below.
            try:
                answers.append(self.broadcast_text(""))
            except BaseException as error:
                answers.append(error)

        # The collective cannot be cancelled: it is left to a thread that ends with the process.
        thread = threading.Thread(target=wait, name="waiting-for-the-chief", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            stop.raise_if("while worker 0 was preparing")
        (answer,) = answers
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def split(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Split this worker's batch (arrays or tensors [B, ...]) equally among its replicas."""
        # A single device takes plain tensors.
        if self.replicas == 1:
            return dict(arrays)
        # Ids of replicas count over all workers.
        first, count = self.index * self.local_replicas, self.local_replicas
        parts = {name: tf.split(value, count) for name, value in arrays.items()}
        return {
            name: self.strategy.experimental_distribute_values_from_function(
                lambda context, part=part: part[context.replica_id_in_sync_group - first]
            )
            for name, part in parts.items()
        }

    def joined(self, values: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Join the outputs of this worker's replicas: the inverse of :meth:`split`."""
        return {
            name: np.concatenate([part.numpy() for part in self.strategy.experimental_local_results(value)])
            for name, value in values.items()
        }

    def detector(self, detect: Callable[..., Any]) -> Callable[[Any], dict[str, npt.NDArray[Any]]]:
        """Return a detector as a function of this worker's images [B, H, W, C], shared by its replicas.

        Args:
            detect: float32 images to a mapping of tensors, as :class:`tlt_runner.detector.model.FasterRCNN`.
        """

        @tf.function
        def compiled(batch: dict[str, Any]) -> Any:
            return self.strategy.run(
                lambda images: detect(tf.cast(images, tf.float32), training=False), args=(batch["image"],)
            )

        # Bytes travel to the devices, and are cast there.
        return lambda images: self.joined(compiled(self.split({"image": images})))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the errors of collectives with a lost worker into a failure that names it.

        Raises:
            RunnerError: WorkerLost.
        """
        try:
            yield
        except tf.errors.OpError as error:
            # An error of this worker's own, such as exhausted memory: it is classified elsewhere.
            if not self.several or not _is_lost_worker(error):
                raise
            raise RunnerError(Reason.WORKER_LOST, self._describe_loss(error)) from error

    def _describe_loss(self, error: tf.errors.OpError) -> str:
        """Say which worker is lost, and why, as far as TensorFlow's message tells."""
        text = str(error)
        # TensorFlow names tasks in the text only, this worker's own included.
        lost_indices = {int(number) for number in re.findall(r"/task:(\d+)", text)} - {self.index}
        lost_workers = (
            " and ".join(f"worker {number} at {self.addresses[number]}" for number in sorted(lost_indices))
            or "a worker"
        )
        # Some errors name their cause after "aborted by:"; of the others the first line tells most.
        match = re.search(r"aborted by: ([^\n]+)", text)
        cause = (match.group(1) if match else text.strip().splitlines()[0]).rstrip(":")[:200]
        return f"worker {self.index} cannot go on: {lost_workers} is gone or cannot be reached ({cause})"


def _is_lost_worker(error: tf.errors.OpError) -> bool:
    # Failing kernels raise InternalError, too: only its text tells them from a failed collective.
    if isinstance(error, tf.errors.InternalError):
        return any(word in str(error).lower() for word in _LOST_WORKER_WORDS)
    return isinstance(error, _LOST_WORKER_ERRORS)


def claim(
    gpus: int,
    addresses: Sequence[str] = (),
    index: int = 0,
    stop: Stop | None = None,
) -> Workers:
    """Reserve this pod's GPUs, meet the other workers and create the strategy over all of them.

    Called before anything is loaded: TensorFlow must know of other workers before it computes. GPUs beyond
    ``gpus`` are left alone; 0 trains on the CPU.

    Args:
        gpus: GPUs of each worker.
        addresses: ``host:port`` of the workers by index; one or none is a training in this process alone.
        index: Index of this worker.
        stop: Ends the wait for the other workers.

    Raises:
        RunnerError: NotEnoughGPUs; WorkerLost when another does not come; Interrupted.
    """
    # Training on fewer GPUs than asked for would change the batch, and with it the result.
    visible = tf.config.list_physical_devices("GPU")
    if gpus > len(visible):
        raise RunnerError(
            Reason.NOT_ENOUGH_GPUS,
            f"spec.resources.gpus: expected {gpus} GPUs, TensorFlow sees {len(visible)}",
            "Lower spec.resources.gpus (0 trains on the CPU), or choose nodes and an image with GPU support.",
        )
    tf.config.set_visible_devices(visible[:gpus], "GPU")
    for device in visible[:gpus]:
        # By default TensorFlow takes all memory of a GPU at its start.
        tf.config.experimental.set_memory_growth(device, True)
    devices = f"{gpus} GPU(s)" if gpus else "the CPU"
    # Several pods: all must be there before TensorFlow starts, which else blocks without naming the missing.
    if len(addresses) > 1:
        log.info("training on %s of each of %d workers", devices, len(addresses))
        rendezvous.meet(addresses, index, stop or Stop())
        # A worker that was met may be gone again before TensorFlow starts.
        with Workers(None, index, tuple(addresses)).guarded():
            return Workers(_multi_worker(addresses, index, gpus), index, tuple(addresses))
    log.info("training on %s", devices)
    # The default strategy for one device, which adds nothing to a step.
    return Workers(tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy())


def _multi_worker(addresses: Sequence[str], index: int, gpus: int) -> Any:
    """Create the MultiWorkerMirroredStrategy, with arguments in place of TF_CONFIG."""
    cluster = tf.train.ClusterSpec({"worker": list(addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type="worker", task_id=index, num_accelerators={"GPU": gpus}, rpc_layer="grpc"
    )
    # AUTO may choose NCCL, which needs GPUs.
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.AUTO if gpus else kinds.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
