"""One optimisation step, compiled: what changes the weights, and nothing else.

The same on one device and, by tf.distribute, on several: each replica takes its share of the batch, gradients
are averaged, and so are the moving statistics of batch normalisation, of which Keras leaves each replica its
own: a model that is judged by the replicas and saved by the first is one model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from tlt_api.training import Training
from tlt_runner.data.input_pipeline.samples import NAMES_SEPARATOR
from tlt_runner.detector import losses
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.detector.seeds import StepSeeds
from tlt_runner.training import mixed_precision, schedule
from tlt_runner.training.averages import Averages
from tlt_runner.training.optimizer import Updates, clipped

log = logging.getLogger(__name__)

INPUTS = ("image", "boxes", "classes")
"""What of a batch goes to the replicas."""
LOSSES = ("total", "penalty", "rpn_objectness", "rpn_deltas", "head_classes", "head_deltas")
FIGURES = (*LOSSES, "gradient_norm", "loss_scale")
"""What a step returns, in this order: the loss and its parts, weighted; the norm of the whole gradient
before it is clipped; what the loss was multiplied by (1, but for float16)."""


class Trainer:
    """A detector with its optimizer.

    Args:
        model: The detector; made in the strategy's scope.
        spec: Optimizer, regularizer and seed.
        strategy: Where the replicas are.
        low_dtype: What mixed precision computes in, the same on every worker: float16 has variables more.
    """

    def __init__(
        self, model: FasterRCNN, spec: Training, strategy: Any, low_dtype: str = mixed_precision.BFLOAT16
    ) -> None:
        self.model = model
        self.strategy = strategy
        self._spec = spec
        self._dtype = low_dtype if spec.mixed_precision else "float32"
        with strategy.scope():
            self._updates = Updates(spec.optimizer, model.trainable_variables)
            self._averages = Averages(spec.ema, model.trainable_variables) if spec.ema else None
            self._scale = mixed_precision.LossScale() if self._dtype == mixed_precision.FLOAT16 else None
        self._statistics = _moving_statistics(model)
        self._differentiate: Any = self._gradients
        if spec.xla:
            self._differentiate = tf.function(self._gradients, jit_compile=True, autograph=False)
        self._compiled = tf.function(self._on_all_replicas, autograph=False)
        if (
            spec.optimizer.effective_weight_decay
            and spec.regularizer.type != "none"
            and spec.regularizer.weight
        ):
            log.warning(
                "kernels are penalised twice: by optimizer.weightDecay %g and by regularizer %s %g; set "
                "training.regularizer.type none to keep the first only",
                spec.optimizer.effective_weight_decay,
                spec.regularizer.type,
                spec.regularizer.weight,
            )
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
            The FIGURES [8] of the step; not waited for.
        """
        wanted = {name: batch[name] for name in INPUTS}
        return self._compiled(wanted, tf.constant(number, tf.int64), tf.constant(learning_rate, tf.float32))

    def images_named(self, batch: dict[str, Any]) -> str:
        """For a message, which images a batch has: a worker of several knows those of its share only."""
        names = (name.decode() for item in batch["id"].numpy() for name in item.split(NAMES_SEPARATOR))
        ids = ", ".join(dict.fromkeys(names))
        cluster = self.strategy.cluster_resolver
        return f"images {ids}" if cluster is None else f"images of worker {cluster.task_id}'s share: {ids}"

    @property
    def state(self) -> list[Any]:
        """Every variable that training changes: weights, statistics, optimizer, averages, loss scale."""
        parts = (self._updates, self._averages, self._scale)
        return [*self.model.variables, *(one for part in parts if part is not None for one in part.variables)]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model's weights are their averages, where the spec asks for averages.

        :attr:`state` must not be kept there: weights and averages have changed places.
        """
        with self._averages.in_place() if self._averages else nullcontext():
            yield

    def _on_all_replicas(self, batch: dict[str, Any], number: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        scale = self._scale.value.read_value() if self._scale else tf.constant(1.0)
        with mixed_precision.computing(self.model, self._dtype):
            gradients, figures, norms = self.strategy.run(self._on_one_replica, args=(batch, number, scale))
        norm = self.strategy.experimental_local_results(norms)[0]  # the same on all of them
        if self._scale is None:
            self._update(gradients, rate)
        else:
            finite = tf.math.is_finite(norm)
            self._scale.adapt(finite)
            tf.cond(finite, lambda: self._update(gradients, rate), lambda: None)
        mean = self.strategy.reduce(tf.distribute.ReduceOp.MEAN, figures, axis=None)
        return tf.concat([mean, [norm, scale]], 0)

    def _update(self, gradients: list[Any], rate: tf.Tensor) -> None:
        self._updates.apply(self.strategy, gradients, rate)
        if self._averages:
            self._averages.follow(self.strategy, self._updates.count.read_value())

    def _on_one_replica(
        self, batch: dict[str, Any], number: tf.Tensor, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """The whole batch's gradients, clipped; LOSSES of this replica's share; the norm before clipping."""
        replica = tf.distribute.get_replica_context()
        gradients, figures = self._accumulated(batch, number, replica.replica_id_in_sync_group, scale)
        if self.replicas > 1:
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            self._share_statistics(replica)
        if self._scale:
            gradients = [gradient / scale for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        return clipped(gradients, norm, self._spec.optimizer.clip_norm), figures, norm

    def _share_statistics(self, replica: Any) -> None:
        """Give every replica the mean of all replicas' moving statistics, in one exchange."""
        if not self._statistics:
            return
        own = tf.concat([tf.convert_to_tensor(one) for one in self._statistics], 0)
        means = replica.all_reduce(tf.distribute.ReduceOp.MEAN, own)
        sizes = [one.shape[0] for one in self._statistics]
        for statistic, mean in zip(self._statistics, tf.split(means, sizes), strict=True):
            statistic.assign(mean)

    def _accumulated(
        self, batch: dict[str, Any], number: tf.Tensor, own: Any, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients and LOSSES of this replica's share, part by part where it does not fit in memory."""
        count = self._spec.gradient_accumulation_steps
        if count == 1:
            return self._differentiate(batch, number, own, scale)
        parts = {name: tf.reshape(value, (count, -1, *value.shape[1:])) for name, value in batch.items()}

        def add(index: tf.Tensor, gradients: list[tf.Tensor], figures: tf.Tensor) -> tuple[Any, ...]:
            part = {name: value[index] for name, value in parts.items()}
            more, seen = self._differentiate(part, number, own * count + index, scale)
            return index + 1, [a + b for a, b in zip(gradients, more, strict=True)], figures + seen / count

        zeros = [tf.zeros(variable.shape) for variable in self.model.trainable_variables]
        start = (tf.constant(0), zeros, tf.zeros(len(LOSSES)))
        _, gradients, figures = tf.while_loop(lambda index, *_: index < count, add, start)
        return gradients, figures

    def _gradients(
        self, batch: dict[str, Any], number: tf.Tensor, part: Any, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients of the batch's share in the mean of all, times the scale; and its LOSSES."""
        variables = self.model.trainable_variables
        shares = self.replicas * self._spec.gradient_accumulation_steps
        draws, weights = StepSeeds(self._spec.seed, number, part, shares), self._spec.loss_weights
        with tf.GradientTape() as tape:
            images = tf.cast(batch["image"], tf.float32)  # here, so that bytes travel to the device
            parts = losses.losses(self.model, images, batch["boxes"], batch["classes"], draws)
            parts = {name: part * getattr(weights, name) for name, part in parts.items()}
            parts["penalty"] = losses.penalty(self.model, self._spec.regularizer)
            total = tf.add_n(list(parts.values()))
            share = total * (scale / shares)
        gradients = tape.gradient(share, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return gradients, tf.stack([total, *(parts[name] for name in LOSSES[1:])])


def _moving_statistics(model: FasterRCNN) -> list[Any]:
    """Means and variances [C] of the batch normalisations that are not frozen."""
    norms = [
        layer
        for layer in [*model.trunk.layers, *model.head.layers]
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    return [statistic for layer in norms for statistic in (layer.moving_mean, layer.moving_variance)]
