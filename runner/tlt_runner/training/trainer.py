"""One optimisation step, compiled: everything that changes the weights, and nothing else.

Runs on one device and, by tf.distribute, on several: each replica takes its share of the batch, and
gradients are averaged. So are the moving statistics of batch normalisation, which Keras leaves different on
each replica: the model that all replicas evaluate and the first one saves is then one model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from tlt_api.training import Training
from tlt_runner.data.input_pipeline.samples import NAMES_SEPARATOR
from tlt_runner.detector import kernels, losses
from tlt_runner.detector.backbones.layers import statistics_moved_together
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.detector.seeds import StepSeeds
from tlt_runner.training import mixed_precision, schedule
from tlt_runner.training.optimizer import Averages, Updates, clipped
from tlt_runner.training.weight_groups import WeightGroups

log = logging.getLogger(__name__)

INPUTS = ("image", "boxes", "classes")
"""Arrays of a batch that go to the replicas."""
LOSSES = ("total", "penalty", *losses.LOSSES)
FIGURES = (*LOSSES, "gradient_norm", "loss_scale")
"""Figures of a step, in this order: the loss and its parts, weighted; the norm of the whole gradient before
clipping; the loss scale (1, except with float16)."""


class Trainer:
    """A detector with its optimizer.

    Args:
        model: The detector, created in the strategy's scope.
        spec: Optimizer, regularizer and seed.
        strategy: A tf.distribute strategy over all replicas.
        low_dtype: Type in which mixed precision computes, the same on every worker: float16 adds variables.
    """

    def __init__(
        self, model: FasterRCNN, spec: Training, strategy: Any, low_dtype: str = mixed_precision.BFLOAT16
    ) -> None:
        self.model = model
        self.strategy = strategy
        self._spec = spec
        self._dtype = low_dtype if spec.mixed_precision else "float32"
        # In the scope of a strategy of several replicas each of them gets a copy of the variables.
        with strategy.scope():
            self._updates = Updates(spec.optimizer, model.trainable_variables)
            self._averages = Averages(spec.ema, model.trainable_variables) if spec.ema else None
            self._scale = mixed_precision.LossScale() if self._dtype == mixed_precision.FLOAT16 else None
        low_weights = mixed_precision.low_weights(model, self._dtype)
        self._groups = WeightGroups(model.trainable_variables, low_weights, self._dtype)
        self._statistics = _moving_statistics(model)
        self._differentiate: Any = self._gradients
        # XLA compiles forward and backward pass only: collectives and the update stay with tf.distribute.
        if spec.xla:
            self._differentiate = tf.function(self._portable_gradients, jit_compile=True, autograph=False)
        # Without autograph: the code has no Python branch on a tensor that would need translating.
        self._compiled = tf.function(self._on_all_replicas, autograph=False)
        # Decoupled decay and the penalty in the loss both pull kernels to 0. Some may want both: no refusal.
        if (
            spec.optimizer.effective_weight_decay
            and spec.regularizer.type != "none"
            and spec.regularizer.weight
        ):
            log.warning(
                "kernels are penalised twice: by optimizer.weightDecay %g and by regularizer %s %g; set "
                "training.regularizer.type to none to keep weight decay only",
                spec.optimizer.effective_weight_decay,
                spec.regularizer.type,
                spec.regularizer.weight,
            )
        factor = schedule.scale(spec.learning_rate, self.replicas)
        if factor != 1:
            log.info(
                "learning rate multiplied by %d, the number of replicas (learningRate.scaling linear)", factor
            )

    @property
    def replicas(self) -> int:
        """Number of devices that take a share of each batch."""
        return int(self.strategy.num_replicas_in_sync)

    def step(self, batch: dict[str, Any], number: int, learning_rate: float) -> tf.Tensor:
        """Take one step.

        Args:
            batch: image (bytes or floats), boxes and classes of
                :func:`tlt_runner.detector.losses.losses`.
            number: Steps since the start of training; random draws depend on it.
            learning_rate: Learning rate of this step.

        Returns:
            The FIGURES [8] of the step, which the device may still be computing.
        """
        return self._compiled(*_as_tensors(batch, number, learning_rate))

    def graph(self, batch: dict[str, Any]) -> tf.Graph:
        """Return the traced step of a batch's shapes, for tests and benchmarks that count its ops."""
        return self._compiled.get_concrete_function(*_as_tensors(batch, 0, 0.0)).graph

    def _on_all_replicas(self, batch: dict[str, Any], number: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        """Take one step, in cross-replica context: gradients on each replica, one update. Returns FIGURES."""
        scale = self._scale.value.read_value() if self._scale else tf.constant(1.0)
        # This code runs when the step is traced: the policies count then, and are restored at once.
        with mixed_precision.computing(self.model, self._dtype):
            gradients, figures, norms = self.strategy.run(self._on_one_replica, args=(batch, number, scale))
        # Of the summed gradient: the same on all replicas, so that all of them skip the same updates.
        norm = self.strategy.experimental_local_results(norms)[0]
        if self._scale is None:
            self._update(gradients, rate)
        # A gradient that overflowed float16 is skipped, and lowers the scale for the next step.
        else:
            finite = tf.math.is_finite(norm)
            self._scale.adapt(finite)
            tf.cond(finite, lambda: self._update(gradients, rate), lambda: None)
        # Each replica knows the losses of its own images only; their mean is that of the whole batch.
        mean = self.strategy.reduce(tf.distribute.ReduceOp.MEAN, figures, axis=None)
        return tf.concat([mean, [norm, scale]], 0)

    def _on_one_replica(
        self, batch: dict[str, Any], number: tf.Tensor, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Compute the whole batch's clipped gradients, LOSSES [6] of this share, the norm before clipping."""
        replica = tf.distribute.get_replica_context()
        # Once a step: weights in 16 bits, and kernels for their penalty.
        weights = self._groups.current()
        lowered = self._groups.lowered(weights)
        gradients, image_losses = self._accumulated(
            batch, number, replica.replica_id_in_sync_group, scale, lowered
        )
        # One replica alone has the whole batch: nothing to exchange.
        if self.replicas > 1:
            # The sum is the gradient of the mean loss: each share is divided by the number of shares already.
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            self._share_statistics(replica)
        if self._scale:
            gradients = [gradient / scale for gradient in gradients]
        # The penalty depends on no image, and is the same on all replicas: its gradient is added once, here.
        kernels, regularizer = self._groups.penalised(weights), self._spec.regularizer
        if pulls := losses.penalty_gradients(kernels, regularizer):
            gradients = self._groups.added(gradients, pulls)
        parts = tf.concat([[losses.penalty(kernels, regularizer)], image_losses], 0)
        figures = tf.concat([[tf.reduce_sum(parts)], parts], 0)
        # After sum and scale, so that the limit applies to the gradient of the whole batch. One infinite or
        # NaN value makes the norm infinite or NaN: it stands for all of them in the test for overflow.
        norm = tf.linalg.global_norm(gradients)
        limited = clipped(gradients, norm, self._spec.optimizer.clip_norm)
        return self._groups.split(limited), figures, norm

    def _accumulated(
        self,
        batch: dict[str, Any],
        number: tf.Tensor,
        replica_id: Any,
        scale: tf.Tensor,
        lowered: list[tf.Tensor],
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Compute gradients and losses.LOSSES [4] of this replica's share, over parts that fit in memory."""
        count = self._spec.gradient_accumulation_steps
        # The usual case, without a loop in the graph.
        if count == 1:
            return self._differentiate(batch, number, replica_id, scale, lowered)
        # [B, ...] -> [count, B / count, ...]; B is a multiple of count (training.images_per_replica).
        parts = {name: tf.reshape(value, (count, -1, *value.shape[1:])) for name, value in batch.items()}

        def add(index: tf.Tensor, gradients: list[tf.Tensor], figures: tf.Tensor) -> tuple[Any, ...]:
            part = {name: value[index] for name, value in parts.items()}
            # Parts are numbered over all replicas, so that images draw the same however a step is divided.
            part_gradients, part_figures = self._differentiate(
                part, number, replica_id * count + index, scale, lowered
            )
            added = [a + b for a, b in zip(gradients, part_gradients, strict=True)]
            return index + 1, added, figures + part_figures / count

        # A loop of the graph, not of Python: unrolled, the graph would be `count` times as large.
        zeros = [tf.zeros(size) for size in self._groups.sizes]
        start = (tf.constant(0), zeros, tf.zeros(len(losses.LOSSES)))
        # One part at a time: by default ten overlap, and so does the memory that accumulation is to save.
        _, gradients, figures = tf.while_loop(
            lambda index, *_: index < count, add, start, parallel_iterations=1
        )
        return gradients, figures

    def _gradients(
        self,
        batch: dict[str, Any],
        number: tf.Tensor,
        part: Any,
        scale: tf.Tensor,
        lowered: list[tf.Tensor],
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Compute a part's share in the gradient of the mean loss, times loss scale, by group of weights.

        Args:
            batch: Images and objects of the part.
            number: Number of the step.
            part: Number of the part within the step.
            scale: Loss scale.
            lowered: Weights in 16 bits, by group.

        Returns:
            The gradients, and the part's losses.LOSSES [4], weighted.
        """
        shares = self.replicas * self._spec.gradient_accumulation_steps
        draws, weights = StepSeeds(self._spec.seed, number, part, shares), self._spec.loss_weights
        sources = self._groups.sources(lowered)
        scope = self._groups.substituted(sources)
        with tf.GradientTape() as tape, statistics_moved_together():
            tape.watch([source for source in sources if isinstance(source, tf.Tensor)])
            images = tf.cast(batch["image"], tf.float32)  # cast here, so that bytes travel to the device
            with scope:
                parts = losses.losses(self.model, images, batch["boxes"], batch["classes"], draws)
            weighted = parts * [getattr(weights, name) for name in losses.LOSSES]
            total = tf.reduce_sum(weighted)
            # The scale is in the loss, not in the gradient: small gradients must not vanish on their way.
            share = total * (scale / shares)
        self._assign_updates(scope)
        # ZERO, not None, for a weight that the loss does not reach: sums and optimizer take a tensor for
        # each.
        gradients = tape.gradient(share, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return self._groups.gathered(gradients), weighted

    def _assign_updates(self, scope: keras.StatelessScope) -> None:
        """Assign what layers assigned within the scope, which only keeps it."""
        for variable in self.model.non_trainable_variables:
            value = scope.get_current_value(variable)
            if value is not None:
                variable.assign(value)

    def _portable_gradients(self, *args: Any) -> tuple[list[tf.Tensor], tf.Tensor]:
        # Here and not where the step is traced: tf.distribute traces each replica in a thread of its own.
        with kernels.portable():
            return self._gradients(*args)

    def _share_statistics(self, replica: Any) -> None:
        """Set the moving statistics on every replica to their mean, in one all-reduce."""
        # All batch normalisations are frozen: their statistics do not move.
        if not self._statistics:
            return
        # One collective for all layers: each has a fixed cost.
        local = tf.concat([tf.convert_to_tensor(statistic) for statistic in self._statistics], 0)
        means = replica.all_reduce(tf.distribute.ReduceOp.MEAN, local)
        sizes = [statistic.shape[0] for statistic in self._statistics]
        for statistic, mean in zip(self._statistics, tf.split(means, sizes), strict=True):
            statistic.assign(mean)

    def _update(self, gradients: list[Any], rate: tf.Tensor) -> None:
        # The averages follow the new weights, so the update comes first.
        self._updates.apply(self.strategy, gradients, rate)
        if self._averages:
            self._averages.follow(self.strategy, self._updates.count.read_value())

    def in_step_types(self, model: FasterRCNN) -> Callable[..., dict[str, tf.Tensor]]:
        """Return a detector as a function that computes in the types in which a step computes.

        Args:
            model: The trained model, or one with its graphs and other thresholds.

        Returns:
            A function of images [B, H, W, C] float32, 0 to 255, called as a model is.
        """

        def detect(images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
            with mixed_precision.computing(model, self._dtype):
                detections: dict[str, tf.Tensor] = model(images, training=training)
            return detections

        return detect

    def images_named(self, batch: dict[str, Any]) -> str:
        """Name the images of a batch for a message; one of several workers knows those of its share only."""
        # A mosaic is made of several images and has all their names in one id.
        names = (name.decode() for item in batch["id"].numpy() for name in item.split(NAMES_SEPARATOR))
        ids = ", ".join(dict.fromkeys(names))
        cluster = self.strategy.cluster_resolver
        return f"images {ids}" if cluster is None else f"images of worker {cluster.task_id}'s share: {ids}"

    @property
    def state(self) -> list[Any]:
        """Every variable that training changes: weights, statistics, optimizer, averages, loss scale."""
        # A checkpoint holds them by position (state.write): the order is part of the file format.
        parts = (self._updates, self._averages, self._scale)
        return [
            *self.model.variables,
            *(variable for part in parts if part is not None for variable in part.variables),
        ]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model has averaged weights, where the spec asks for averages.

        :attr:`state` must not be saved there: weights and averages have changed places.
        """
        with self._averages.in_place() if self._averages else nullcontext():
            yield


def _moving_statistics(model: FasterRCNN) -> list[Any]:
    """Moving means and variances [C] of the batch normalisations that are not frozen."""
    norms = [
        layer
        for layer in [*model.trunk.layers, *model.head.layers]
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    return [statistic for layer in norms for statistic in (layer.moving_mean, layer.moving_variance)]


def _as_tensors(batch: dict[str, Any], number: int, learning_rate: float) -> tuple[Any, ...]:
    # Tensors, because the function would be traced again for each new Python number.
    inputs = {name: batch[name] for name in INPUTS}
    return inputs, tf.constant(number, tf.int64), tf.constant(learning_rate, tf.float32)
