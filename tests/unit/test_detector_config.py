"""A detector's description: made from a spec, read from a model file, changed by a retraining."""

import pytest
from pydantic import ValidationError

from tlt_api.dataset import Dataset
from tlt_api.model import Anchors, Model, Roi
from tlt_runner.detector.config import DetectorConfig

LETTERBOX = {"width": 96, "height": 64, "mode": "letterbox"}
STORED = {"classNames": ["car"], "height": 64, "width": 96}
"""Config of a model file of an older version."""


def dataset(**changes: object) -> Dataset:
    fields = {"uri": "pvc://data/x", "targetClassMapping": {"Van": "car", "Bus": "bus"}}
    return Dataset.model_validate({**fields, "imageSize": LETTERBOX, **changes})


def test_classes_are_those_to_learn_whatever_names_the_labels_use() -> None:
    named = dataset(format="yolo", classNames=["Van", "Bus", "Tree"])
    assert DetectorConfig.from_spec(Model(), named).class_names == ["bus", "car"]


def test_a_model_file_records_how_images_are_resized() -> None:
    config = DetectorConfig.from_spec(Model(), dataset())
    assert config.mode == "letterbox"
    assert DetectorConfig.model_validate(config.to_wire()) == config


def test_an_older_description_without_a_mode_means_stretch() -> None:
    assert DetectorConfig.model_validate(STORED).mode == "stretch"


def test_a_retraining_keeps_anchors_and_takes_the_mode_of_its_data() -> None:
    config = DetectorConfig.model_validate({**STORED, "anchors": {"scales": [11], "ratios": [3]}})
    again = config.retrained_by(Model(anchors=Anchors(scales=[64])), dataset())
    assert again.anchors == Anchors(scales=[11], ratios=[3])
    assert again.mode == "letterbox"


def test_a_retraining_keeps_the_head_and_the_factors_its_weights_were_made_for() -> None:
    head = {"head": "light", "poolSize": 5, "deltaScales": {"x": 8, "y": 8, "w": 4, "h": 4}}
    config = DetectorConfig.model_validate({**STORED, "roi": head, "proposals": {"deltaScale": 2}})
    asked = Roi(head_stride=1, pool_size=14, mini_batch=32)
    again = config.retrained_by(Model(roi=asked), dataset())
    assert again.roi == config.roi.model_copy(update={"mini_batch": 32})
    assert again.rpn_scales == config.rpn_scales == (2, 2, 2, 2)
    assert DetectorConfig.model_validate(again.to_wire()) == again


def test_an_older_description_has_the_last_stage_at_stride_2_and_the_usual_factors() -> None:
    config = DetectorConfig.model_validate({**STORED, "headStride": 2})
    assert (config.roi.head, config.head_stride) == ("lastStage", 2)
    assert config.head_scales == (10, 10, 5, 5)
    assert config.rpn_scales == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"roi": {"head": "light", "headStride": 1}}, "expected roi.headStride with roi.head lastStage only"),
        ({"backbone": "vgg16", "roi": {"headStride": 1}}, "expected no roi.headStride for vgg"),
        ({"roi": {"headStride": 3}}, "roi.headStride"),
        ({"roi": {"deltaScales": {"w": 0}}}, "roi.deltaScales.w"),
    ],
)
def test_heads_that_do_not_exist_are_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Model.model_validate(model)


def test_head_settings_are_not_checked_against_the_backbone_of_the_spec_with_from() -> None:
    model = {"from": {"uri": "s3://models/m.keras"}, "backbone": "vgg16", "roi": {"headStride": 1}}
    assert Model.model_validate(model).roi.head_stride == 1
