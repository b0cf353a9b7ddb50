"""Backbones: what the API offers is what the runner builds, and which blocks can be frozen."""

from typing import get_args

import pytest

from lazy import Lazy
from tlt_api.model import Backbone, Model, freezable

backbones = Lazy("tlt_runner.detector.backbones")
layers = Lazy("tlt_runner.detector.backbones.layers")
NAMES = get_args(Backbone)


def test_the_api_offers_exactly_the_backbones_that_the_runner_builds() -> None:
    assert sorted(backbones.FAMILIES) == sorted(NAMES)


@pytest.mark.parametrize("backbone", NAMES)
def test_api_and_runner_agree_on_the_blocks_that_can_be_frozen(backbone: Backbone) -> None:
    assert freezable(backbone) == backbones.FAMILIES[backbone].blocks


@pytest.mark.parametrize("backbone", NAMES)
def test_blocks_beyond_the_last_are_refused_with_the_range(backbone: Backbone) -> None:
    blocks = freezable(backbone)
    assert Model(backbone=backbone, freeze_blocks=list(blocks)).freeze_blocks == list(blocks)
    with pytest.raises(ValueError, match=f"{blocks[0]} to {blocks[-1]}|less than or equal to 13"):
        Model(backbone=backbone, freeze_blocks=[blocks[-1] + 1])


def test_freeze_blocks_of_a_model_from_a_file_are_not_checked_against_the_default_backbone() -> None:
    body = {"from": {"uri": "s3://models/vgg16.keras"}, "freezeBlocks": [5]}
    assert Model.model_validate(body).freeze_blocks == [5]


@pytest.mark.parametrize(
    ("width", "count", "filters", "rounded"),
    [(1.0, 24, 24, 24), (0.75, 24, 16, 24), (0.35, 32, 8, 16), (0.01, 64, 8, 8), (1.4, 24, 32, 32)],
)
def test_filters_are_multiples_of_eight(width: float, count: int, filters: int, rounded: int) -> None:
    make = layers.Layers(0, width)
    assert make.filters(count) == filters
    assert make.rounded(count) == rounded
