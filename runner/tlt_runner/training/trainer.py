"""One optimisation step, compiled: what changes the weights, and nothing else.

The same on one device and, by tf.distribute, on several: each replica takes its share of the batch, gradients
are averaged.
"""

from __future__ import annotations

import logging
from typing import Any

import keras
import tensorflow as tf

from tlt_api.training import Optimizer, Training
from tlt_runner.detector import losses
from tlt_runner.detector.draws import StepDraws
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.training import schedule

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
            self.optimizer = _optimizer(spec.optimizer)
            self.optimizer.build(model.trainable_variables)
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
        self.optimizer.learning_rate.assign(learning_rate)
        wanted = {name: batch[name] for name in ("image", "boxes", "classes")}
        return self._compiled(wanted, tf.constant(number, tf.int64))

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
        return [*self.model.variables, *self.optimizer.variables]

    def _on_all_replicas(self, batch: dict[str, Any], number: tf.Tensor) -> tf.Tensor:
        figures = self.strategy.run(self._on_one_replica, args=(batch, number))
        return self.strategy.reduce(tf.distribute.ReduceOp.MEAN, figures, axis=None)

    def _on_one_replica(self, batch: dict[str, Any], number: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        replicas = replica.num_replicas_in_sync
        own = tf.cast(replica.replica_id_in_sync_group, tf.int64)
        draws = StepDraws(self._spec.seed, number * replicas + own)
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            images = tf.cast(batch["image"], tf.float32)  # here, so that bytes travel to the device
            parts = losses.losses(self.model, images, batch["boxes"], batch["classes"], draws)
            parts["penalty"] = losses.penalty(self.model, self._spec.regularizer)
            total = tf.add_n(list(parts.values()))
            share = total / replicas
        gradients = tape.gradient(share, variables)
        self.optimizer.apply(gradients, variables)
        norm = tf.linalg.global_norm(gradients)
        return tf.stack([total, norm, *(parts[name] for name in FIGURES[2:])])


def _optimizer(spec: Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer; the learning rate is set every step."""
    if spec.type == "adam":
        return keras.optimizers.Adam(1.0, beta_1=spec.momentum, global_clipnorm=spec.clip_norm)
    return keras.optimizers.SGD(1.0, momentum=spec.momentum, global_clipnorm=spec.clip_norm)
