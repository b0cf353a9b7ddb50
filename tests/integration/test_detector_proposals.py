"""Proposals of the region proposal network, by hand."""

import numpy as np
import pytest

from lazy import Lazy
from tlt_api.model import InferenceProposalCounts
from tlt_runner.detector.config import DetectorConfig

rpn = Lazy("tlt_runner.detector.rpn")


@pytest.mark.parametrize(("own_overlap", "kept"), [(None, 2), (0.3, 1), (0.34, 2)])
def test_counts_with_a_threshold_of_their_own_suppress_by_it(own_overlap: float | None, kept: int) -> None:
    config = DetectorConfig.model_validate(
        {"classNames": ["car"], "height": 64, "width": 64, "anchors": {"scales": [32], "ratios": [1.0]}}
    )
    # 4 x 4 cells; the squares of 32 pixels of two neighbours share 16 x 32 of 1,536: an IoU of 1 / 3.
    objectness = np.full((1, 16), -5.0, np.float32)
    objectness[0, [5, 6]] = 3.0, 2.0
    counts = InferenceProposalCounts(pre_nms=2, post_nms=1, nms_overlap=own_overlap)
    counts = counts.model_copy(update={"post_nms": 2})
    boxes, valid = rpn.propose(config, objectness, np.zeros((1, 16, 4), np.float32), counts)
    assert np.asarray(valid).sum() == kept
    np.testing.assert_allclose(np.asarray(boxes)[0, 0], [8, 8, 40, 40], atol=1e-4)
