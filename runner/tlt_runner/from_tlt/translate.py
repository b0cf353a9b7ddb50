"""Translation of one training spec to the ``spec`` of a TrainingJob.

Fields that stand for themselves go by their row of :mod:`fields`; the others by the rooms :mod:`network`,
:mod:`learning` and :mod:`data`, which look at several fields at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tlt_runner.from_tlt import data, learning, network, ours
from tlt_runner.from_tlt.fields import MESSAGES, ROWS, Row
from tlt_runner.from_tlt.paths import Maps
from tlt_runner.from_tlt.spec import Given, Spec
from tlt_runner.from_tlt.translation import LACKING, Translation, shown


def translate(
    spec: Spec, converts: Sequence[Spec], maps: Maps, parent: Translation | None = None
) -> Translation:
    """Translate a training spec, with the specs of dataset_convert that belong to it.

    Args:
        spec: Training spec.
        converts: Specs of dataset_convert.
        maps: Addresses of paths.
        parent: Of a retraining: the translation of the training whose model is pruned.
    """
    translation = Translation(spec, converts, maps, parent)
    for one in (spec, *converts):
        for item in one.given:
            _as_its_row_says(translation, item)
    for room in (network, learning, data):
        room.translate(translation)
    _require(translation)
    return translation


def _as_its_row_says(t: Translation, item: Given) -> None:
    """Account for a field that stands for itself."""
    if item.row is None:
        if item.path in MESSAGES or item.path in ROWS:
            t.without(item, "empty: sets nothing")
        else:
            near = f": {item.near} is meant?" if item.near else ""
            t.unknown(item, f"no field of this name in TLT{near}")
    elif item.overridden is not None:
        t.without(item, f"line {item.overridden} replaces it, in TLT too")
    elif not item.row.special:
        _simple(t, item, item.row)


def _simple(t: Translation, item: Given, row: Row) -> None:
    if row.to is None:
        t.without(item, row.words, kept=not row.neutral or item.value in row.neutral)
    elif isinstance(item.value, bool):
        t.put(row.to, item.value)
        t.taken(item, row.to)
    elif isinstance(item.value, int | float):
        t.number(item, row.to, item.value)
    else:
        raise AssertionError(f"{row.path}: a text is translated by a room")


_REQUIRED = ("dataset.uri", "dataset.targetClassMapping", "dataset.imageSize")
_WITH_TLTS_DEFAULT: tuple[tuple[str, str, Any], ...] = (
    ("random_seed", "training.seed", 0),
    ("training_config.gt_as_roi", "model.roi.groundTruthAsRoi", False),
    ("training_config.regularizer.type", "training.regularizer.type", "none"),
)
"""Fields whose absence means something else in TLT than here: path, field below ``spec``, TLT's value."""


def _require(t: Translation) -> None:
    """Write TLT's values of absent fields, and note those that TLT would not do without."""
    for path, to, value in _WITH_TLTS_DEFAULT:
        if t.got(to) is None:
            t.put(to, value)
            t.assume(f"{to} {shown(value)}", f"TLT's value without {path}")
    for row in ROWS.values():
        message = row.path.rpartition(".")[0]
        optional = message.startswith(("kitti_config", "coco_config", "training_config.learning_rate"))
        if row.required and row.to and not optional and not t.of(row.path) and t.got(row.to) is None:
            default = ours.field(row.to).get("default")
            text = "" if default is None else f" {shown(default)}"
            t.assume(f"{row.to}{text}", LACKING)
    for to in _REQUIRED:
        if t.got(to) is None and not t.problems:
            rows = [row.path for row in ROWS.values() if row.to and row.to.startswith(to) and row.required]
            t.problem(None, f"expected {' or '.join(rows)}: a TrainingJob needs {to}")
