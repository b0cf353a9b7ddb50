"""The backbones by name: model and head ask here and know no family."""

from __future__ import annotations

from tlt_runner.detector.backbones import resnet
from tlt_runner.detector.backbones.family import Family

FAMILIES: dict[str, Family] = {name: family for family in (resnet.FAMILY,) for name in family.names}
"""Backbone -> its family."""
