"""Slices of a batch, one for each worker: contiguous and equal parts, in the order of the workers.

The slices are by position in the batch and not by file, so that several workers see in a step what one would
see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class WorkerSlice:
    """One worker's part of every batch.

    Attributes:
        index: The worker's number.
        count: Number of workers.
    """

    index: int = 0
    count: int = 1

    def size(self, batch_size: int) -> int:
        """Return the number of images of a batch for this worker."""
        # Batches are divisible by the number of workers: spec.training gives the images of one GPU.
        return batch_size // self.count

    def positions(self, batch_size: int, batches: int = 1) -> npt.NDArray[np.int64]:
        """Return the positions of this worker's images in ``batches`` consecutive batches."""
        size = self.size(batch_size)
        # Positions where the slice begins in each of the batches.
        first = np.arange(batches)[:, None] * batch_size + self.index * size
        # [batches, size] as one row: the slices of the batches, one after the other.
        return (first + np.arange(size)).reshape(-1)


WHOLE = WorkerSlice()
"""Slice of a single worker: the whole batch."""
