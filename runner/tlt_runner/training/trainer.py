"""One optimisation step, compiled: what changes the weights, and nothing else.

The same on one device and, by tf.distribute, on several: each replica takes its share of the batch, gradients
are averaged.
"""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf

from tlt_api.training import Training
from tlt_runner.detector import losses
from tlt_runner.detector.draws import StepDraws
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.training import schedule
from tlt_runner.training.optimizer import Updates, clipped

log = logging.getLogger(__name__)

FIGURES = ("total", "gradient_norm", "penalty", "rpn_objectness", "rpn_deltas", "head_classes", "head_deltas")
"""What a step returns, in this order."""


class Trainer:
    """A detector with its optimizer.

    Args:
        model: The detector; made in the strategy's scope.
        spec: Optimizer, regularizer and seed.
        strategy: Where the replicas are.
    """

    def __init__(self, model: FasterRCNN, spec: Training, strategy: Any) -> None:
        self.model = model
        self.strategy = strategy
        self._spec = spec
        with strategy.scope():
            self._updates = Updates(spec.optimizer, model.trainable_variables)
        self._compiled = tf.function(self._on_all_replicas)
        factor = schedule.scale(spec.learning_rate, self.replicas)
        if factor != 1:
            log.info("the learning rate is %d times the spec's, as the batch is (scaling linear)", factor)

    @property
    def replicas(self) -> int:
        """Devices that take a share of each batch."""
        return int(self.strategy.num_replicas_in_sync)

    def step(self, batch: dict[str, Any], number: int, learning_rate: float) -> tf.Tensor:
        """Take one step.

        Args:
            batch: image (bytes or floats), boxes and classes of
                :func:`tlt_runner.detector.losses.losses`.
            number: Steps since the start of training; draws depend on it.
            learning_rate: For this step.

        Returns:
            The FIGURES [7] of the step; not waited for.
        """
        wanted = {name: batch[name] for name in ("image", "boxes", "classes")}
        return self._compiled(wanted, tf.constant(number, tf.int64), tf.constant(learning_rate, tf.float32))

    def distribute(self, batches: tf.data.Dataset) -> Any:
        """Batches of all replicas' images, for :meth:`step`."""
        if self.strategy.num_replicas_in_sync == 1:
            return batches
        return self.strategy.experimental_distribute_dataset(batches)

    def image_ids(self, batch: dict[str, Any]) -> list[str]:
        """The ids in a batch that :meth:`distribute` gave."""
        parts = self.strategy.experimental_local_results(batch["id"])
        return [item.decode() for part in parts for item in part.numpy().tolist()]

    def left_out(self, batch: dict[str, Any]) -> Any:
        """``left_out`` [2] of a batch that :meth:`distribute` gave, added up over its images."""
        parts = self.strategy.experimental_local_results(batch["left_out"])
        return sum(part.numpy().sum(axis=0) for part in parts)

    @property
    def state(self) -> list[Any]:
        """Every variable that training changes: weights, statistics, optimizer."""
        return [*self.model.variables, *self._updates.variables]

    def _on_all_replicas(self, batch: dict[str, Any], number: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        gradients, figures = self.strategy.run(self._on_one_replica, args=(batch, number))
        self._updates.apply(self.strategy, gradients, rate)
        return self.strategy.reduce(tf.distribute.ReduceOp.MEAN, figures, axis=None)

    def _on_one_replica(self, batch: dict[str, Any], number: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The whole batch's gradients, clipped, and the FIGURES of this replica's share of it."""
        replica = tf.distribute.get_replica_context()
        own = tf.cast(replica.replica_id_in_sync_group, tf.int64)
        gradients, figures = self._differentiate(batch, number * self.replicas + own)
        if self.replicas > 1:
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(gradients)
        gradients = clipped(gradients, norm, self._spec.optimizer.clip_norm)
        return gradients, tf.concat([figures[:1], norm[None], figures[1:]], 0)

    def _differentiate(self, batch: dict[str, Any], draw: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients of the loss' share in all replicas' mean; the loss and its parts."""
        variables = self.model.trainable_variables
        draws = StepDraws(self._spec.seed, draw)
        with tf.GradientTape() as tape:
            images = tf.cast(batch["image"], tf.float32)  # here, so that bytes travel to the device
            parts = losses.losses(self.model, images, batch["boxes"], batch["classes"], draws)
            parts["penalty"] = losses.penalty(self.model, self._spec.regularizer)
            total = tf.add_n(list(parts.values()))
            share = total / self.replicas
        gradients = tape.gradient(share, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return gradients, tf.stack([total, *(parts[name] for name in FIGURES[2:])])
