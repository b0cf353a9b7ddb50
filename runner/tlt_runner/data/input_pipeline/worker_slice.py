"""Which images of a batch are one worker's: contiguous and equal parts, in the order of the workers.

By place in the batch and not by file, so that several workers see in a step what one would see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Share:
    """A worker's part of every batch.

    Attributes:
        index: The worker's number.
        count: Workers.
    """

    index: int = 0
    count: int = 1

    def size(self, batch_size: int) -> int:
        """Images of a batch that are this worker's."""
        return batch_size // self.count

    def places(self, batch_size: int, batches: int = 1) -> npt.NDArray[np.int64]:
        """Their places among the images of so many batches, one after the other."""
        size = self.size(batch_size)
        first = np.arange(batches)[:, None] * batch_size + self.index * size
        return (first + np.arange(size)).reshape(-1)


WHOLE = Share()
"""Of a single worker."""
