"""What a training shows of itself to people (``spec.visualization``). It changes nothing that is learnt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tlt_api.base import ApiModel
from tlt_api.common import Fraction


class Visualization(ApiModel):
    """Validation images with boxes drawn, in the TensorBoard logs below spec.output.uri."""

    images: Annotated[int, Field(ge=0, le=64)] = 16
    """Validation images that are drawn at every evaluation, always the same; 0 draws none."""
    score_threshold: Fraction = 0.6
    """Lowest score of the detections that are drawn."""
