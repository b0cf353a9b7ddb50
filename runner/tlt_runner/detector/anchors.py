"""The reference boxes of the region proposal network: every scale and ratio at every cell."""

from __future__ import annotations

import numpy as np

from tlt_runner.data import anchor_grid
from tlt_runner.detector.config import STRIDE, DetectorConfig


def anchors(config: DetectorConfig) -> np.ndarray:
    """Return all anchors of an image [N, 4] (yxyx, pixels), ordered by row, column, scale, ratio.

    They are centred in their cell of STRIDE x STRIDE pixels and may reach over the image's border. Source:
    Ren et al., "Faster R-CNN" (2015), section 3.1.
    """
    # The order is that of the network's output: a convolution with a filter for each anchor, flattened.
    rows = (np.arange(config.feature_height) + 0.5) * STRIDE
    columns = (np.arange(config.feature_width) + 0.5) * STRIDE
    centres = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)[:, :, None, :]
    # Centres [H, W, 1, 2] and half sides [1, 1, A, 2] broadcast to boxes [H, W, A, 4].
    half = anchor_grid.shapes_of(config.anchors)[None, None] / 2
    boxes = np.concatenate([centres - half, centres + half], axis=-1)
    return boxes.reshape(-1, 4).astype(np.float32)
