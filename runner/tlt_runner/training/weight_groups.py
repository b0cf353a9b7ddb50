"""Weights in groups whose gradients are one tensor: few kernels for a step's arithmetic on all weights.

A network has some hundred weights, and a GPU finishes most of them sooner than the next kernel is launched.
Penalty, norm, clipping and the exchange between replicas therefore work on groups:

- Weights that compute in 16 bits are one group. They are concatenated, cast and split once, which takes two
  casts a step in place of two for each layer.
- Vectors (biases, batch normalisation) are one group.
- Every other kernel is a group of its own: concatenating whole kernels costs a CPU more than the penalty and
  the update together (benchmarks/step_update.py).

Kernels and other weights are never in one group: only kernels are penalised. Called by the trainer, in
replica context; the weights themselves stay separate variables.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class _Group:
    """Weights of one group.

    Attributes:
        members: Indices of its weights among all weights.
        is_kernels: They are kernels.
        is_low: They compute in 16 bits.
    """

    members: tuple[int, ...]
    is_kernels: bool
    is_low: bool


class WeightGroups:
    """The trainable weights of a model, in groups.

    Args:
        weights: Keras variables, all float32.
        low: Ids (``id(variable)``) of those that compute in 16 bits.
        low_dtype: The type of these.
    """

    def __init__(self, weights: Sequence[Any], low: Collection[int], low_dtype: str) -> None:
        self._weights = list(weights)
        self._shapes = [tuple(weight.shape) for weight in weights]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self._low_dtype = low_dtype
        members: dict[tuple[Any, ...], list[int]] = {}
        for index, weight in enumerate(self._weights):
            is_kernel, is_low = weight.name == "kernel", id(weight) in low
            # A kernel in float32 shares its group with nothing.
            alone = index if len(weight.shape) > 1 and not is_low else None
            members.setdefault((is_kernel, is_low, alone), []).append(index)
        self._groups = [
            _Group(tuple(indices), is_kernel, is_low) for (is_kernel, is_low, _), indices in members.items()
        ]

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each group."""
        return [sum(self._sizes[index] for index in group.members) for group in self._groups]

    def penalised(self, groups: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the groups that consist of kernels, of one tensor for each group."""
        return [tensor for group, tensor in zip(self._groups, groups, strict=True) if group.is_kernels]

    def added(self, groups: Sequence[tf.Tensor], terms: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Add a term to each group that consists of kernels."""
        waiting = iter(terms)
        return [
            tensor + next(waiting) if group.is_kernels else tensor
            for group, tensor in zip(self._groups, groups, strict=True)
        ]

    def current(self) -> list[tf.Tensor]:
        """Return the weights as they are now, a vector for each group."""
        return [
            self._joined([tf.convert_to_tensor(self._weights[index]) for index in group.members])
            for group in self._groups
        ]

    def lowered(self, groups: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Cast the groups that compute in 16 bits; the others are left out."""
        return [
            tf.cast(tensor, self._low_dtype)
            for group, tensor in zip(self._groups, groups, strict=True)
            if group.is_low
        ]

    def sources(self, lowered: Sequence[tf.Tensor]) -> list[Any]:
        """Return what each weight's gradient is taken with respect to, in the order of the weights.

        Args:
            lowered: Groups of :meth:`lowered`; their parts stand in for the weights in 16 bits.
        """
        sources: list[Any] = list(self._weights)
        waiting = iter(lowered)
        for group in self._groups:
            if group.is_low:
                for index, part in zip(group.members, self._parts(group, next(waiting)), strict=True):
                    sources[index] = part
        return sources

    def substituted(self, sources: Sequence[Any]) -> keras.StatelessScope:
        """Return a scope in which layers use the sources that stand in for weights."""
        scope = keras.StatelessScope()
        for weight, source in zip(self._weights, sources, strict=True):
            # Not as the scope's argument, which would be cast back to the weight's float32.
            if source is not weight:
                scope.add_update((weight, source))
        return scope

    def gathered(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the gradients of the sources as a float32 vector for each group."""
        # The cast comes last: it is one for the whole group, and half the bytes are concatenated.
        return [
            tf.cast(self._joined([gradients[index] for index in group.members]), tf.float32)
            for group in self._groups
        ]

    def split(self, groups: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Split a vector for each group into a tensor for each weight."""
        tensors: dict[int, tf.Tensor] = {}
        for group, tensor in zip(self._groups, groups, strict=True):
            tensors.update(zip(group.members, self._parts(group, tensor), strict=True))
        return [tensors[index] for index in range(len(self._weights))]

    def _joined(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        vectors = [tf.reshape(tensor, [-1]) for tensor in tensors]
        # A group of one is only reshaped, which copies nothing.
        return tf.concat(vectors, 0) if len(vectors) > 1 else vectors[0]

    def _parts(self, group: _Group, tensor: tf.Tensor) -> list[tf.Tensor]:
        sizes = [self._sizes[index] for index in group.members]
        vectors = tf.split(tensor, sizes) if len(sizes) > 1 else [tensor]
        return [
            tf.reshape(part, self._shapes[index]) for index, part in zip(group.members, vectors, strict=True)
        ]
