"""What a training runs on: the GPUs of a pod, or those of several pods that work as one.

Called by the train task. A pod is a worker, a GPU (or the CPU) a replica. Worker 0 is the chief: it alone
prepares the data, reports and publishes; the others wait at :class:`Workers`' exchanges, which all of them
must enter in the same order. When one dies, the exchange of the others fails (TensorFlow's coordination
service misses its heartbeats for 10 seconds), and :meth:`Workers.guarded` says so.
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
from tlt_runner.data.input_pipeline.worker_slice import Share
from tlt_runner.errors import RunnerError
from tlt_runner.training.distributed import rendezvous

log = logging.getLogger(__name__)

_LOSSES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_LOSS_SIGNS = ("collective", "nccl", "peer", "connection", "heartbeat", "coordination")
"""What an InternalError says where a collective failed, and not the arithmetic of this worker."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """The pods of a training, and this one's place among them.

    Attributes:
        strategy: A tf.distribute strategy over all replicas.
        index: This worker's number.
        addresses: ``host:port`` by index; empty for a single worker.
    """

    strategy: Any
    index: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return len(self.addresses) > 1

    @property
    def chief(self) -> bool:
        """Whether this is the one that reports and publishes."""
        return self.index == 0

    @property
    def share(self) -> Share:
        """What of a batch of all replicas is this worker's."""
        return Share(self.index, max(1, len(self.addresses)))

    @property
    def replicas(self) -> int:
        """Of all workers."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> int:
        """Of this worker."""
        return self.replicas // self.share.count

    def total(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The sum of all workers' arrays of one shape, as float32: whole numbers are exact below 2^24."""
        own = np.asarray(values, np.float32)
        if not self.several or not own.size:  # TensorFlow's ring divides by the size
            return own
        summed: npt.NDArray[np.float32] = self.strategy.reduce(
            tf.distribute.ReduceOp.SUM, tf.identity(own), axis=None
        ).numpy()
        return summed

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any worker."""
        return bool(self.total([flag])[0]) if self.several else flag

    def told(self, text: str) -> str:
        """The chief's text, on every worker; what the others give is not looked at."""
        if not self.several:
            return text
        own = np.frombuffer(text.encode(), np.uint8) if self.chief else np.zeros(0, np.uint8)
        length = int(self.total([len(own)])[0])
        data = self.total(np.pad(own, (0, length - len(own))))
        return data.astype(np.uint8).tobytes().decode()

    def told_later(self, stop: threading.Event) -> str:
        """The same for the others, where the chief may take hours: the wait ends when the run must.

        Raises:
            RunnerError: Interrupted.
        """
        answers: list[str | BaseException] = []

        def wait() -> None:
            try:
                answers.append(self.told(""))
            except BaseException as error:
                answers.append(error)

        thread = threading.Thread(target=wait, name="waiting-for-the-chief", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            if stop.is_set():
                raise RunnerError(Reason.INTERRUPTED, "stopped while worker 0 was preparing")
        (answer,) = answers
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def split(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """This worker's batch (arrays or tensors [B, ...]) in equal parts, one for each of its replicas."""
        if self.replicas == 1:
            return dict(arrays)
        first, count = self.index * self.local_replicas, self.local_replicas
        parts = {name: tf.split(value, count) for name, value in arrays.items()}
        return {
            name: self.strategy.experimental_distribute_values_from_function(
                lambda context, part=part: part[context.replica_id_in_sync_group - first]
            )
            for name, part in parts.items()
        }

    def joined(self, values: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """The inverse of :meth:`split` for what the replicas made of it."""
        return {
            name: np.concatenate([part.numpy() for part in self.strategy.experimental_local_results(value)])
            for name, value in values.items()
        }

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the errors of exchanges with a worker that is gone into what happened.

        Raises:
            RunnerError: WorkerLost.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if not self.several or not _is_loss(error):
                raise
            raise RunnerError(Reason.WORKER_LOST, self._lost(error)) from error

    def _lost(self, error: tf.errors.OpError) -> str:
        text = str(error)
        named = {int(number) for number in re.findall(r"/task:(\d+)", text)} - {self.index}
        who = " and ".join(f"worker {one} at {self.addresses[one]}" for one in sorted(named)) or "a worker"
        cause = re.search(r"aborted by: ([^\n]+)", text)
        what = (cause.group(1) if cause else text.strip().splitlines()[0]).rstrip(":")[:200]
        return f"worker {self.index} cannot go on: {who} is gone or cannot be reached ({what})"


def _is_loss(error: tf.errors.OpError) -> bool:
    if isinstance(error, tf.errors.InternalError):
        return any(sign in str(error).lower() for sign in _LOSS_SIGNS)
    return isinstance(error, _LOSSES)


def claim(
    gpus: int,
    addresses: Sequence[str] = (),
    index: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Workers:
    """Check that there are as many GPUs as asked for, meet the other workers, and say how to use them all.

    Called before anything is loaded, for TensorFlow must be told of other workers before it computes. GPUs
    beyond ``gpus`` are left alone; 0 trains on the CPU.

    Args:
        gpus: Of each worker.
        addresses: ``host:port`` of the workers by index; one or none is a training in this process alone.
        index: This worker's.
        stopped: Whether to give up waiting because the run must end.

    Raises:
        RunnerError: NotEnoughGPUs; WorkerLost when another does not come; Interrupted.
    """
    visible = tf.config.list_physical_devices("GPU")
    if gpus > len(visible):
        raise RunnerError(
            Reason.NOT_ENOUGH_GPUS,
            f"spec.resources.gpus: expected {gpus} GPUs, TensorFlow sees {len(visible)}",
            "Lower spec.resources.gpus (0 trains on the CPU), or choose nodes and an image with GPU support.",
        )
    tf.config.set_visible_devices(visible[:gpus], "GPU")
    for device in visible[:gpus]:
        tf.config.experimental.set_memory_growth(device, True)
    own = f"{gpus} GPU(s)" if gpus else "the CPU"
    if len(addresses) > 1:
        log.info("training on %s of each of %d workers", own, len(addresses))
        rendezvous.meet(addresses, index, stopped)
        with Workers(None, index, tuple(addresses)).guarded():  # one may go again before TensorFlow starts
            return Workers(_multi_worker(addresses, index, gpus), index, tuple(addresses))
    log.info("training on %s", own)
    return Workers(tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy())


def _multi_worker(addresses: Sequence[str], index: int, gpus: int) -> Any:
    """MultiWorkerMirroredStrategy; what TF_CONFIG would say is given to it directly."""
    cluster = tf.train.ClusterSpec({"worker": list(addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type="worker", task_id=index, num_accelerators={"GPU": gpus}, rpc_layer="grpc"
    )
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.AUTO if gpus else kinds.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
