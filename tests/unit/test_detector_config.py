"""A detector's description: made from a spec, read from a model file, changed by a retraining."""

from tlt_api.dataset import Dataset
from tlt_api.model import Anchors, Model
from tlt_runner.detector.config import DetectorConfig

LETTERBOX = {"width": 96, "height": 64, "mode": "letterbox"}
STORED = {"classNames": ["car"], "height": 64, "width": 96}
"""As a model file of an older version says."""


def dataset(**changes: object) -> Dataset:
    wanted = {"uri": "pvc://data/x", "targetClassMapping": {"Van": "car", "Bus": "bus"}}
    return Dataset.model_validate({**wanted, "imageSize": LETTERBOX, **changes})


def test_classes_are_those_to_learn_whatever_names_the_labels_use() -> None:
    named = dataset(format="yolo", classNames=["Van", "Bus", "Tree"])
    assert DetectorConfig.from_spec(Model(), named).class_names == ["bus", "car"]


def test_a_model_knows_how_its_images_were_brought_to_size() -> None:
    config = DetectorConfig.from_spec(Model(), dataset())
    assert config.mode == "letterbox"
    assert DetectorConfig.model_validate(config.to_wire()) == config


def test_an_older_description_without_it_means_stretch() -> None:
    assert DetectorConfig.model_validate(STORED).mode == "stretch"


def test_a_retraining_keeps_anchors_and_takes_the_mode_of_its_data() -> None:
    config = DetectorConfig.model_validate({**STORED, "anchors": {"scales": [11], "ratios": [3]}})
    again = config.retrained_by(Model(anchors=Anchors(scales=[64])), dataset())
    assert again.anchors == Anchors(scales=[11], ratios=[3])
    assert again.mode == "letterbox"
