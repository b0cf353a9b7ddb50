"""Registry of the backbones by name; model and head know no family."""

from __future__ import annotations

from tlt_runner.detector.backbones import (
    darknet,
    efficientnet,
    googlenet,
    mobilenet_v1,
    mobilenet_v2,
    resnet,
    vgg,
)
from tlt_runner.detector.backbones.family import Family

_FAMILIES = (
    resnet.FAMILY,
    vgg.FAMILY,
    mobilenet_v1.FAMILY,
    mobilenet_v2.FAMILY,
    darknet.FAMILY,
    googlenet.FAMILY,
    efficientnet.FAMILY,
)
FAMILIES: dict[str, Family] = {name: family for family in _FAMILIES for name in family.names}
"""Backbone -> its family."""
