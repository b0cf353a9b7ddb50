"""``tlt import``: what the specs of every version become, worked out by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from forked import tlt
from tlt_api import resources
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner import manifests
from tlt_runner.errors import RunnerError
from tlt_runner.from_tlt import command, flow, parsing
from tlt_runner.from_tlt.fields import MESSAGES, OLD_NAMES, ROWS
from tlt_runner.from_tlt.paths import Maps
from tlt_runner.from_tlt.report import Outcome

SPECS = Path(__file__).parents[1] / "fixtures" / "tlt"
VOLUME = Maps.parse(["/workspace/tlt-experiments=pvc://tlt-data", "/data=s3://bucket/data"])
SMALL = """
model_config {
  arch: "resnet:18"
  input_image_config { size_height_width { height: 384 width: 1248 } }
}
dataset_config {
  data_sources { image_directory_path: "/data/cars" }
  target_class_mapping { key: "car" value: "car" }
  validation_fold: 0
}
"""


def imported(*names: str, maps: Maps = VOLUME, **options: Any) -> flow.Flow:
    return flow.build([(name, (SPECS / name).read_text()) for name in names], maps, **options)


def small(more: str = "", *others: str, **options: Any) -> flow.Flow:
    contents = [("small.txt", SMALL + more), *((f"other{i}.txt", text) for i, text in enumerate(others))]
    return flow.build(contents, VOLUME, **options)


def job(result: flow.Flow, index: int = 0) -> dict[str, Any]:
    body: dict[str, Any] = result.manifests[index].body["spec"]
    return body


def at(body: Any, path: str) -> Any:
    for name in path.split("."):
        body = body[name]
    return body


def said(result: flow.Flow, field: str) -> list[tuple[Outcome, bool]]:
    entries = [entry for report in result.reports for entry in report.entries if entry.field.endswith(field)]
    assert entries, field
    return [(entry.outcome, entry.kept) for entry in entries]


def test_a_spec_of_tlt_1_becomes_a_training_and_an_export() -> None:
    result = imported("tlt1-train.txt", "convert-kitti.txt", name="cones")
    assert result.lost == []
    assert [manifest.body["kind"] for manifest in result.manifests] == ["TrainingJob", "ExportJob"]
    assert job(result) == {
        "dataset": {
            "uri": "pvc://tlt-data/cones/training",
            "images": "pictures",
            "labels": "boxes",
            "targetClassMapping": {"cone": "cone", "barrel": "cone", "barrier": "barrier"},
            "imageSize": {"width": 848, "height": 480},
            "validation": {"fraction": 0.15},
            "colorMode": "rgb",
        },
        "model": {
            "backbone": "resnet18",
            "pretrainedWeights": {
                "uri": "pvc://tlt-data/weights/resnet_18.hdf5",
                # Of red, green and blue, in this order, whatever the order of the spec.
                "pixels": {"order": "bgr", "mean": [123.75, 116.25, 103.5], "scale": [1, 1, 1]},
            },
            "freezeBlocks": [0, 1],
            "freezeBatchNorm": True,
            "anchors": {"scales": [32, 96], "ratios": [1, 0.4, 2.5]},
            "proposals": {
                "minOverlap": 0.3,
                "maxOverlap": 0.65,
                "miniBatch": 200,
                "nmsOverlap": 0.7,
                "deltaScale": 1,
                "training": {"preNms": 12000, "postNms": 2000},
                "inference": {"preNms": 6000, "postNms": 250, "nmsOverlap": 0.75},
            },
            "roi": {
                "headStride": 1,
                "poolSize": 7,
                "deltaScales": {"x": 10, "y": 10, "w": 5, "h": 4},
                "miniBatch": 128,
                "minOverlap": 0,
                "maxOverlap": 0.55,
                "groundTruthAsRoi": False,
            },
            "detections": {"nmsOverlap": 0.35, "maxDetections": 80},
            "maxObjects": 60,
        },
        "training": {
            "epochs": 24,
            "batchSizePerGPU": 8,
            "seed": 7,
            # 40 percent of the training.
            "learningRate": {"schedule": "exponential", "max": 2e-5, "gamma": 0.5, "stepSize": 0.4},
            "optimizer": {"type": "adam", "momentum": 0.9, "beta2": 0.99},
            "lossWeights": {"rpnObjectness": 2, "rpnDeltas": 1, "headClasses": 0.5, "headDeltas": 1.5},
            "regularizer": {"type": "l2", "weight": 5e-4},
            "augmentation": {
                "horizontalFlip": 0.25,
                "verticalFlip": 0,
                "zoomMin": 0.9,
                "zoomMax": 1.2,
                "translateMaxX": 8,
                "translateMaxY": 4,
                "hueRotationMax": 5,
                "saturationShiftMax": 0.125,
                "contrastScaleMax": 0.1,
                "contrastCenter": 0.5,
                "minWidth": 2,
                "minHeight": 3,
            },
        },
        "evaluation": {
            "averagePrecision": "voc07",
            "proposals": {"preNms": 5000, "postNms": 200, "nmsOverlap": 0.7},
            "detections": {"scoreThreshold": 0.0002, "nmsOverlap": 0.3, "maxDetections": 100},
        },
        "visualization": {"scoreThreshold": 0.5},
        # output_model without its suffix: a folder.
        "output": {"uri": "pvc://tlt-data/results/cones_resnet18"},
        "resources": {"gpus": 1},
    }
    assert job(result, 1) == {
        "model": {"trainingJobRef": {"name": "cones"}},
        "precisions": ["fp32"],
        "output": {"uri": "pvc://tlt-data/results/cones-export"},
    }


def test_a_training_and_its_retraining_become_one_flow() -> None:
    result = imported("tlt2-train.txt", "retrain.txt", name="birds")
    assert result.lost == []
    assert [(one.body["kind"], one.body["metadata"]["name"]) for one in result.manifests] == [
        ("TrainingJob", "birds"),
        ("PruneJob", "birds-pruned"),
        ("TrainingJob", "birds-retrained"),
        ("ExportJob", "birds-export"),
    ]
    first, prune, second, export = (one.body["spec"] for one in result.manifests)
    # One root above the two folders of images.
    assert first["dataset"]["uri"] == "pvc://tlt-data"
    assert first["dataset"]["images"] == "birds/image_2"
    assert first["dataset"]["validation"] == {"images": "test/image_2", "labels": "test/label_2"}
    # pool_size 7 doubled, and a stride of 2.
    assert (first["model"]["roi"]["poolSize"], first["model"]["roi"]["headStride"]) == (14, 2)
    assert first["training"]["learningRate"] == {
        "schedule": "multiStep",
        "max": 0.02,
        "min": 0.002,
        "softStart": 0.1,
        "milestones": [0.8, 0.9],
        "gamma": 0.1,
    }
    assert first["training"]["optimizer"] == {"type": "sgd", "momentum": 0.9, "nesterov": True}
    assert prune == {
        "model": {"trainingJobRef": {"name": "birds"}},
        "threshold": 0.1,
        "output": {"uri": "pvc://tlt-data/results/birds-pruned"},
    }
    # What the pruned model brings is not written.
    assert second["model"] == {
        "from": {"pruneJobRef": {"name": "birds-pruned"}},
        "roi": {"miniBatch": 256, "groundTruthAsRoi": False},
        "maxObjects": 100,
    }
    assert second["training"]["augmentation"] == {"horizontalFlip": 0}
    assert export["model"] == {"trainingJobRef": {"name": "birds-retrained"}}
    outputs = [one.body["spec"]["output"]["uri"] for one in result.manifests]
    assert len(set(outputs)) == 4


def test_a_spec_of_tlt_3_with_a_sequence_map_keeps_sequences_together() -> None:
    result = imported("tlt3-train.txt", "convert-sequence.txt")
    body = job(result)
    # One fold of five; the map lies in the root.
    assert body["dataset"]["validation"] == {"fraction": 0.2, "groupBy": {"file": "sequences.json"}}
    assert body["dataset"]["imageSize"] == {"width": 1248, "height": 384}
    assert body["dataset"]["colorMode"] == "grayscale"
    assert (body["model"]["backbone"], body["model"]["activation"]) == ("efficientnet_b0", "relu")
    assert body["model"]["roi"]["dropout"] == 0.2
    # Without a warm-up there is no min; divided by 4 at half of the training.
    assert body["training"]["learningRate"] == {
        "schedule": "multiStep",
        "max": 1e-4,
        "softStart": 0,
        "milestones": [0.5],
        "gamma": 0.25,
    }
    assert body["training"]["optimizer"] == {"type": "rmsprop"}
    assert body["training"]["regularizer"]["type"] == "none"
    assert body["training"]["earlyStopping"] == {"monitor": "loss", "patience": 8, "minDelta": 0.001}
    # A grey has no hue; contrast_center absent is 0 in TLT.
    assert "hueRotationMax" not in body["training"]["augmentation"]
    assert body["training"]["augmentation"]["contrastCenter"] == 0
    # It trains from scratch, and would freeze what is random.
    assert [text.split()[1] for text in result.lost] == [
        "model_config.freeze_bn",
        "model_config.freeze_blocks",
    ]


def test_a_coco_conversion_gives_training_and_validation_folders() -> None:
    convert = (SPECS / "convert-coco.txt").read_text().partition("sample_modifier_config")[0]
    body = job(small("", convert.replace("/data/coco", "/data/cars")))
    assert body["dataset"]["format"] == "coco"
    assert body["dataset"]["uri"] == "s3://bucket/data/cars"
    assert (body["dataset"]["images"], body["dataset"]["labels"]) == (
        "train2017",
        "annotations/instances_train2017.json",
    )
    assert body["dataset"]["validation"] == {
        "images": "val2017",
        "labels": "annotations/instances_val2017.json",
    }


COCO = """coco_config {
  root_directory_path: "/data/cars" img_dir_names: "images" annotation_files: "labels.json"
}"""


def test_class_names_of_coco_get_back_their_spaces() -> None:
    more = """dataset_config {
      target_class_mapping { key: "trafficlight" value: "light" }
      target_class_mapping { key: "stopsign" value: "stopsign" }
    }"""
    result = small(more, COCO)
    mapping = {"car": "car", "traffic light": "light", "stop sign": "stopsign"}
    assert job(result)["dataset"]["targetClassMapping"] == mapping
    assert said(result, "target_class_mapping") == [
        (Outcome.TAKEN, True),
        (Outcome.CHANGED, True),
        (Outcome.CHANGED, True),
    ]
    assert result.lost == []
    # Of KITTI the names are those of the files.
    kitti = job(small(more, 'kitti_config { root_directory_path: "/data/cars" }'))
    assert set(kitti["dataset"]["targetClassMapping"]) == {"car", "trafficlight", "stopsign"}


def test_a_class_that_coco_does_not_have_is_said() -> None:
    result = small('dataset_config { target_class_mapping { key: "forklift" value: "lift" } }', COCO)
    assert job(result)["dataset"]["targetClassMapping"] == {"car": "car", "forklift": "lift"}
    assert len(result.lost) == 1 and "forklift" in result.lost[0]


def test_the_specs_of_this_folder_have_every_field_and_every_old_name() -> None:
    read = [parsing.parse(path.name, path.read_text()) for path in sorted(SPECS.glob("*.txt"))]
    given = {item.path for one in read for item in one.given}
    assert set(ROWS) <= given
    names = {part for one in read for item in one.given for part in item.name.split(".")}
    assert {name.rpartition(".")[2] for name in OLD_NAMES} <= names
    assert not [
        item.name for one in read for item in one.given if item.row is None and item.path not in MESSAGES
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("tlt1-train.txt",),
        ("tlt1-train.txt", "convert-kitti.txt"),
        ("tlt2-train.txt",),
        ("tlt2-train.txt", "retrain.txt"),
        ("retrain.txt",),
        ("tlt3-train.txt", "convert-sequence.txt"),
        ("tao-changes.txt",),
        ("tao-changes.txt", "convert-coco.txt"),
    ],
    ids=" ".join,
)
def test_manifests_are_valid_and_every_field_is_accounted_for(names: tuple[str, ...], tmp_path: Path) -> None:
    result = imported(*names)
    file = tmp_path / "out.yaml"
    file.write_text(result.text(", ".join(names)))
    checked = manifests.read(file)
    assert checked.problems == () and len(checked.documents) == len(result.manifests)
    assert [report.file for report in result.reports] == list(names)
    for name, report in zip(names, result.reports, strict=True):
        given = parsing.parse(name, (SPECS / name).read_text()).given
        assert sum(report.counts().values()) == len(given)
        assert [entry.line for entry in report.entries] == [item.line for item in given]
        assert all(entry.words for entry in report.entries if entry.outcome is not Outcome.TAKEN)
        assert all(entry.to for entry in report.entries if entry.outcome is Outcome.TAKEN)
        assert "secret" not in json.dumps([vars(entry) for entry in report.entries])


LOSING = [
    "drop_connect_rate", "rpn_stride", "activation_type", "source_weight", "sampling_mode", "crop_left",
    "crop_top", "crop_right", "crop_bottom", "scale_width", "scale_height", "enable_qat",
    "pretrained_weights", "resume_from_model", "model_parallelism", "rpn_pre_nms_top_N", "decay",
    "amsgrad", "range.start", "range.end", "range.step", "size_min.min", "max_objects_num_per_image",
]  # fmt: skip


def test_every_change_of_meaning_is_named() -> None:
    result = imported("tao-changes.txt")
    # 600 pixels in height and, for images of 4:3, 800 in width; the limits of our fields.
    assert job(result)["dataset"]["imageSize"] == {"width": 800, "height": 600, "mode": "letterbox"}
    assert job(result)["model"]["proposals"]["training"] == {"preNms": 12000, "postNms": 2000}
    assert job(result)["model"]["maxObjects"] == 1000
    lost = [entry.field for entry in result.reports[0].entries if not entry.kept]
    for name in LOSING:
        assert any(field.endswith(name) for field in lost), name
    # The second source; model_parallelism and source_weight are given twice.
    assert "dataset_config.data_sources.image_directory_path" in lost
    assert len(lost) == len(LOSING) + 3
    assert len(result.lost) == len(lost)


@pytest.mark.parametrize(
    ("more", "field", "kept"),
    [
        ("training_config { enable_qat: False }", "enable_qat", True),
        ("model_config { dropout_rate: 0.5 }", "dropout_rate", True),  # TLT ignores it in a resnet
        ("model_config { drop_connect_rate: 0.5 }", "drop_connect_rate", True),
        ("model_config { freeze_blocks: 4 }", "freeze_blocks", False),
        ("model_config { arch: 'alexnet' }", "arch", False),
        ("model_config { arch: 'vgg:16' freeze_bn: True }", "arch", True),
        ("model_config { arch: 'vgg:16' freeze_bn: False }", "arch", False),
        ("model_config { arch: 'vgg16' roi_pooling_config { pool_size_2x: True } }", "pool_size_2x", False),
        (
            "model_config { all_projections: True }",
            "all_projections",
            False,
        ),  # from scratch: the published one
        ("model_config { use_pooling: True }", "use_pooling", True),
        ("training_config { lambda_rpn_regr: 0 }", "lambda_rpn_regr", False),
        ("training_config { num_epochs: 0 }", "num_epochs", False),
        ("training_config { pretrained_weights: '/x/resnet.tlt' }", "pretrained_weights", False),
        ("training_config { pretrained_weights: '/x/resnet.pth' }", "pretrained_weights", False),
        ("training_config { learning_rate { step { gamma: 0 } } }", "gamma", False),
        ("training_config { early_stopping { monitor: 'acc' patience: 3 } }", "monitor", False),
        (
            "training_config { learning_rate { soft_start { base_lr: 1e-3 soft_start: 0.5 "
            "annealing_points: 0.4 annealing_divider: 10 } } }",
            "annealing_points",
            False,
        ),
        (
            "training_config { learning_rate { soft_start "
            "{ base_lr: 1e-3 start_lr: 1e-2 soft_start: 0.5 } } }",
            "start_lr",
            False,
        ),
        ("augmentation_config { preprocessing { output_image_width: 640 } }", "output_image_width", False),
        ("augmentation_config { preprocessing { output_image_width: 1248 } }", "output_image_width", True),
        ("training_config { rpn_strid: 1 }", "rpn_strid", False),
    ],
)
def test_a_field_says_whether_its_meaning_is_kept(more: str, field: str, kept: bool) -> None:
    assert [one for _, one in said(small(more), field)][-1] is kept


@pytest.mark.parametrize(
    ("more", "path", "value"),
    [
        ("", "training.seed", 0),
        ("", "training.augmentation.horizontalFlip", 0),
        ("", "training.regularizer.type", "none"),
        ("", "model.roi.groundTruthAsRoi", False),
        ("", "model.roi.headStride", 1),
        ("", "output.uri", "pvc://tlt-data/runs/small"),
        ("training_config { optimizer { sgd { } } }", "training.optimizer", {"type": "sgd", "momentum": 0}),
        ("training_config { optimizer { adam { beta_1: 0.5 } } }", "training.optimizer.beta2", 0),
        ("training_config { checkpoint_interval: 0 }", "training.checkpointInterval", 1),
        (
            "training_config { enable_augmentation: True } "
            "augmentation_config { spatial_augmentation { rotate_rad_max: 0.5 } }",
            "training.augmentation.rotateProbability",
            1,
        ),
        (
            "training_config { enable_augmentation: True } "
            "augmentation_config { color_augmentation { contrast_scale_max: 0.5 } }",
            "training.augmentation.contrastCenter",
            0,
        ),
    ],
)
def test_an_absent_field_has_tlts_value(more: str, path: str, value: object) -> None:
    result = small(more)
    assert at(job(result), path) == value
    assert any(path in item.to or item.to in path for item in result.reports[0].assumptions) or more


@pytest.mark.parametrize(
    ("given", "probability"), [("", 1), ("rotate_probability: 0", 1), ("rotate_probability: 0.25", 0.25)]
)
def test_a_rotation_of_probability_0_is_one_of_every_image_as_in_tlt(given: str, probability: float) -> None:
    result = small(
        "training_config { enable_augmentation: True } "
        f"augmentation_config {{ spatial_augmentation {{ rotate_rad_max: 0.5 {given} }} }}"
    )
    assert job(result)["training"]["augmentation"]["rotateProbability"] == probability
    assert result.lost == []


@pytest.mark.parametrize(
    ("percent", "fold", "fraction"), [("14", 0, 0.14), ("20", 1, 0.8), ("12.5", 0, 0.125)]
)
def test_a_fold_of_a_random_partition_is_a_fraction(percent: str, fold: int, fraction: float) -> None:
    convert = f'kitti_config {{ root_directory_path: "/data/cars" val_split: {percent} num_partitions: 2 }}'
    result = small(f"dataset_config {{ validation_fold: {fold} }}", convert)
    assert job(result)["dataset"]["validation"] == {"fraction": fraction}
    assert result.lost == []


SAME_FOLDER = """
dataset_config {
  data_sources { tfrecords_path: "/data/cars-fold-001-of-002*" image_directory_path: "/data/cars" }
  validation_data_source { tfrecords_path: "/data/cars-fold-000*" image_directory_path: "/data/cars/" }
}
"""


def same_folder(*others: str, records: str = "fold-001") -> flow.Flow:
    content = SMALL.replace('data_sources { image_directory_path: "/data/cars" }', "")
    content = content.replace("validation_fold: 0", "")
    content += SAME_FOLDER.replace("fold-001-of-002", records)
    contents = [("a.txt", content), *((f"other{i}.txt", text) for i, text in enumerate(others))]
    return flow.build(contents, VOLUME)


def test_the_folder_of_the_training_images_is_never_that_of_validation() -> None:
    convert = 'kitti_config { root_directory_path: "/data/cars" val_split: 14 }'
    result = same_folder(convert)
    assert job(result)["dataset"]["validation"] == {"fraction": 0.14}
    assert result.lost == []
    # How much the other records hold is said by the conversion only.
    alone = same_folder()
    assert job(alone)["dataset"]["validation"] == {"fraction": 0.2}
    assert len(alone.lost) == 1 and "validation_data_source.image_directory_path" in alone.lost[0]


def test_two_folders_below_one_root_are_kept_apart() -> None:
    training = 'kitti_config { root_directory_path: "/data/cars" image_dir_name: "a" label_dir_name: "la" }'
    validation = training.replace('"a"', '"b"').replace('"la"', '"lb"')
    dataset = job(same_folder(training, validation, records="all"))["dataset"]
    assert (dataset["images"], dataset["validation"]) == ("a", {"images": "b", "labels": "lb"})


@pytest.mark.parametrize(
    ("records", "convert", "kept"),
    [
        ("cars*", "", True),
        ("cars-fold-000-of-001*", "", True),
        ("cars-fold-001*", "", False),
        # Without a share held out, fold 1 has all images.
        ("cars-fold-001*", "val_split: 0", True),
        ("cars-fold-001*", "val_split: 14", False),
        ("cars-fold-000*", "val_split: 0", False),
    ],
)
def test_records_of_one_fold_are_a_part_of_the_images(records: str, convert: str, kept: bool) -> None:
    more = f"""dataset_config {{
      data_sources {{ tfrecords_path: "/data/{records}" image_directory_path: "/data/cars" }}
      validation_data_source {{ image_directory_path: "/data/test" }}
    }}"""
    others = [f'kitti_config {{ root_directory_path: "/data/cars" {convert} }}'] if convert else []
    assert said(small(more, *others), "data_sources.tfrecords_path") == [(Outcome.WITHOUT, kept)]


def test_the_fold_that_is_trained_on_is_not_the_one_held_out() -> None:
    convert = 'kitti_config { root_directory_path: "/data/cars" val_split: 14 }'
    result = same_folder(convert, records="fold-000")
    assert [text for text in result.lost if "tfrecords_path" in text]


def test_without_validation_in_tlt_the_held_out_fraction_is_a_change() -> None:
    content = SMALL.replace("validation_fold: 0", "")
    result = flow.build([("a.txt", content)], VOLUME)
    assert len(result.lost) == 1 and "without validation" in result.lost[0]


def test_labels_may_lie_elsewhere_than_images() -> None:
    convert = """kitti_config {
      root_directory_path: "/data/labels/v2" image_dir_name: "im" label_dir_name: "la" val_split: 10
    }"""
    result = small("", convert)
    dataset = job(result)["dataset"]
    # Whether the two belong together, only people know.
    assert len(result.lost) == 1 and "kitti_config.root_directory_path" in result.lost[0]
    # Records name images below the training spec's folder; labels are below the conversion's.
    assert (dataset["uri"], dataset["images"], dataset["labels"]) == (
        "s3://bucket/data",
        "cars/im",
        "labels/v2/la",
    )


def test_two_conversions_go_to_the_folders_of_their_roots() -> None:
    validation = 'dataset_config { validation_data_source { image_directory_path: "/data/test/" } }'
    first = 'kitti_config { root_directory_path: "/data/test" image_dir_name: "a" label_dir_name: "b" }'
    second = 'kitti_config { root_directory_path: "/data/cars" image_dir_name: "c" label_dir_name: "d" }'
    for converts in ((first, second), (second, first)):
        dataset = job(small(validation, *converts))["dataset"]
        assert (dataset["images"], dataset["labels"]) == ("cars/c", "cars/d")
        assert dataset["validation"] == {"images": "test/a", "labels": "test/b"}


def test_the_conversion_of_the_training_is_the_one_with_its_root() -> None:
    # No folder is validated on: the other conversion is of no use here.
    first = 'kitti_config { root_directory_path: "/data/test" image_dir_name: "a" label_dir_name: "b" }'
    second = 'kitti_config { root_directory_path: "/data/cars/" image_dir_name: "c" label_dir_name: "d" }'
    for converts in ((first, second), (second, first)):
        dataset = job(small("", *converts))["dataset"]
        assert (dataset["uri"], dataset["images"], dataset["labels"]) == ("s3://bucket/data/cars", "c", "d")


def test_a_retraining_alone_is_preceded_by_a_training_and_says_so() -> None:
    result = imported("retrain.txt")
    assert [one.body["kind"] for one in result.manifests] == [
        "TrainingJob",
        "PruneJob",
        "TrainingJob",
        "ExportJob",
    ]
    assert [text for text in result.lost if "retrain_pruned_model" in text]


def test_what_the_training_before_a_retraining_alone_loses_is_said() -> None:
    more = """training_config { retrain_pruned_model: '/x/a.tlt' pretrained_weights: '/x/b.tlt' }
      model_config { use_pooling: False drop_connect_rate: 0 }"""
    result = flow.build([("a.txt", SMALL + more)], VOLUME)
    # The retraining needs neither of them; the training before it, which this spec describes, does.
    lost = [entry.field for entry in result.reports[0].entries if not entry.kept]
    assert sorted(lost) == [
        "model_config.use_pooling",
        "training_config.pretrained_weights",
        "training_config.retrain_pruned_model",
    ]
    assert len(result.lost) == 3
    # Beside its training spec only what it says itself counts.
    beside = small("", SMALL + more)
    assert beside.lost == []


FROZEN = "model_config { freeze_blocks: 0 freeze_blocks: 1 freeze_bn: True }"


@pytest.mark.parametrize(
    "weights", ["", "pretrained_weights: '/x/b.tlt'", "retrain_pruned_model: '/x/a.tlt'"]
)
def test_random_weights_are_not_frozen(weights: str) -> None:
    more = f"{FROZEN} training_config {{ {weights} }}"
    result = flow.build([("a.txt", SMALL + more)], VOLUME)
    assert not {"freezeBlocks", "freezeBatchNorm"} & set(job(result)["model"])
    lost = [entry.field for entry in result.reports[0].entries if not entry.kept]
    assert sorted(field for field in lost if "freeze" in field) == [
        "model_config.freeze_blocks",
        "model_config.freeze_blocks",
        "model_config.freeze_bn",
    ]


def test_weights_stay_frozen() -> None:
    weights = "training_config { pretrained_weights: '/data/b.hdf5' }"
    retrain = "training_config { retrain_pruned_model: '/x/a.tlt' }"
    result = small(FROZEN + weights, SMALL + FROZEN + retrain)
    for index in (0, 2):
        assert job(result, index)["model"]["freezeBlocks"] == [0, 1]
        assert job(result, index)["model"]["freezeBatchNorm"] is True
    assert result.lost == []


def test_outputs_differ_where_two_specs_name_one_file() -> None:
    output = 'output_model: "/data/out/a.tlt"'
    retrain = SMALL + f"training_config {{ retrain_pruned_model: '/x/a.tlt' {output} }}"
    result = small(f"training_config {{ {output} }}", retrain, name="cars")
    assert [one.body["spec"]["output"]["uri"].rpartition("/")[2] for one in result.manifests] == [
        "a",
        "cars-pruned",
        "cars-retrained",
        "cars-export",
    ]


@pytest.mark.parametrize("file", ["cars-export", "cars-pruned", "cars-retrained"])
def test_outputs_differ_where_a_spec_names_that_of_another_resource(file: str) -> None:
    retrain = SMALL + "training_config { retrain_pruned_model: '/x/a.tlt' }"
    result = small(f"training_config {{ output_model: '/data/out/{file}.tlt' }}", retrain, name="cars")
    outputs = [one.body["spec"]["output"]["uri"] for one in result.manifests]
    assert outputs[0] == f"s3://bucket/data/out/{file}"
    assert len(set(outputs)) == 4
    assert manifests.check([("out.yaml", result.text("a"))]).problems == ()


def test_what_tlt_validate_refuses_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec_file, out = tmp_path / "a.txt", tmp_path / "out.yaml"
    spec_file.write_text(SMALL)
    text = small().text("a.txt").replace("runs/small-export", "runs/small")
    monkeypatch.setattr(flow.Flow, "text", lambda *_: text)
    with pytest.raises(RunnerError, match="is the output of TrainingJob/small"):
        command.run(command.Request((spec_file,), ("/data=s3://bucket",), out))
    assert not out.exists()


def test_outputs_go_where_the_option_says() -> None:
    result = imported("tlt1-train.txt", output="s3://models/cones", name="c")
    assert [one.body["spec"]["output"]["uri"] for one in result.manifests] == [
        "s3://models/cones/c",
        "s3://models/cones/c-export",
    ]
    assert said(result, "output_model") == [(Outcome.WITHOUT, True)]


def test_a_model_of_this_product_is_trained_further() -> None:
    weights = "pretrained_weights: '/data/a.hdf5'"
    result = small(f"training_config {{ retrain_pruned_model: '/data/pruned.keras' {weights} }}")
    assert "pretrainedWeights" not in job(result)["model"]
    assert [one.body["kind"] for one in result.manifests] == ["TrainingJob", "ExportJob"]
    assert job(result)["model"]["from"] == {"uri": "s3://bucket/data/pruned.keras"}
    assert result.lost == []


def test_a_retraining_with_another_network_is_a_change() -> None:
    retrain = (
        SMALL.replace("resnet:18", "resnet:50") + "training_config { retrain_pruned_model: '/x/a.hdf5' }"
    )
    result = small("", retrain)
    assert [text for text in result.lost if "resnet:50" in text]
    # False where it is absent: another network than that of the training.
    doubled = "model_config { roi_pooling_config { pool_size_2x: True } }"
    result = small(doubled, SMALL + "training_config { retrain_pruned_model: '/x/a.hdf5' }")
    assert [text for text in result.lost if "headStride 1" in text]


def test_the_innermost_map_decides_and_an_uncovered_path_is_named_with_the_flag() -> None:
    maps = Maps.parse(["/data=pvc://outer", "/data/cars/=s3://inner/x"])
    assert maps.address("/data//cars/./a.png") == "s3://inner/x/a.png"
    assert maps.address("/data/carsick") == "pvc://outer/carsick"
    assert maps.address("/data") == "pvc://outer"
    with pytest.raises(RunnerError) as refused:
        flow.build([("a.txt", SMALL)], Maps.parse(["/elsewhere=pvc://a"]))
    assert refused.value.message == (
        "a.txt:7: dataset_config.data_sources.image_directory_path: no --map covers the path '/data/cars'; "
        "give the folder's address, for example --map /data=pvc://CLAIM/PATH"
    )


def test_the_root_of_this_machine_is_an_address() -> None:
    maps = Maps.parse(["/x=file:///"])
    assert (maps.first, maps.address("/x"), maps.address("/x/a/b")) == ("file:///", "file:///", "file:///a/b")


def test_a_training_below_the_root_of_this_machine() -> None:
    elsewhere = """dataset_config { validation_data_source { image_directory_path: "/test" } }"""
    output = "training_config { output_model: '/a.tlt' }"
    result = flow.build([("a.txt", SMALL + elsewhere + output)], Maps.parse(["/=file:///"]))
    dataset = job(result)["dataset"]
    assert (dataset["uri"], dataset["images"]) == ("file:///", "data/cars/image_2")
    assert dataset["validation"]["images"] == "test/image_2"
    outputs = [one.body["spec"]["output"]["uri"] for one in result.manifests]
    assert outputs == ["file:///a", "file:///a-export"]
    assert manifests.check([("out.yaml", result.text("a"))]).problems == ()
    result = flow.build([("b.txt", SMALL)], Maps.parse(["/=file:///"]), output="file:///")
    assert job(result)["output"]["uri"] == "file:///b"


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("pvc://My_Data", "a claim named by small letters"),
        ("s3://My_Data/x", "a bucket named by small letters"),
        ("pvc://data/../x", "no empty name, . or .. in the path ../x"),
        ("data", "begins with pvc://, s3:// or file:///"),
    ],
)
def test_the_mistake_in_an_address_is_named(address: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(RunnerError) as refused:
        Maps.parse([f"/data={address}"])
    assert part in refused.value.message
    with pytest.raises(RunnerError) as refused:
        command.run(command.Request((tmp_path / "a.txt",), (), tmp_path / "out.yaml", output=address))
    assert part in refused.value.message


@pytest.mark.parametrize("report", ["out.yaml", "sub/../out.yaml", "a.txt"])
def test_the_report_replaces_neither_manifests_nor_spec(report: str, tmp_path: Path) -> None:
    spec_file = tmp_path / "a.txt"
    spec_file.write_text(SMALL)
    (tmp_path / "sub").mkdir()
    request = command.Request(
        (spec_file,), ("/data=s3://bucket",), tmp_path / "out.yaml", report=tmp_path / report
    )
    with pytest.raises(RunnerError, match="--report: expected a file of its own"):
        command.run(request)
    assert spec_file.read_text() == SMALL


def test_a_number_that_is_too_large_is_told_the_limit() -> None:
    with pytest.raises(RunnerError, match="from 0 to 4294967295, got 4294967296"):
        small("random_seed: 4294967296")


def test_a_path_that_goes_nowhere_needs_no_map() -> None:
    assert small('inference_config { images_dir: "/not/mapped" model: "/nor/this.tlt" }').lost == []


def test_folders_in_two_claims_are_refused() -> None:
    elsewhere = "/workspace/tlt-experiments/test"
    validation = f'dataset_config {{ validation_data_source {{ image_directory_path: "{elsewhere}" }} }}'
    with pytest.raises(RunnerError, match="one claim or bucket"):
        small(validation)


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        (["kitti_config { val_split: 10 }"], "expected a training spec besides 0.txt"),
        ([SMALL, SMALL], "expected at most 1 training spec, got 0.txt, 1.txt"),
        ([SMALL.partition("dataset_config")[0]], "a TrainingJob needs dataset.uri"),
        ([SMALL.replace("height: 384", "")], "imageSize.height: Field required"),
        (
            [SMALL + "training_config { rpn_min_overlap: 0.8 rpn_max_overlap: 0.7 }"],
            "0.txt:11: training_config.rpn_min_overlap 0.8; 0.txt:11: training_config.rpn_max_overlap 0.7",
        ),
        (
            [SMALL.replace('value: "car"', 'value: "background"')],
            "0.txt:8: dataset_config.target_class_mapping",
        ),
    ],
)
def test_specs_that_make_no_flow_are_refused(contents: list[str], part: str) -> None:
    with pytest.raises(RunnerError) as refused:
        flow.build([(f"{i}.txt", content) for i, content in enumerate(contents)], VOLUME)
    assert part in refused.value.message


def test_names_fit_kubernetes() -> None:
    for file in ("Default_Spec.ResNet18 (1).txt", "x" * 80 + ".txt", "___.txt", "2020.txt"):
        result = flow.build([(file, SMALL + "training_config { retrain_pruned_model: '/x.tlt' }")], VOLUME)
        for manifest in result.manifests:
            resources.parse(manifest.body)
            assert manifest.body["metadata"]["name"][0].isalpha()
    with pytest.raises(RunnerError, match="--name: expected"):
        small(name="My_Job")


def test_the_command_writes_manifests_and_report(tmp_path: Path) -> None:
    out, report = tmp_path / "out.yaml", tmp_path / "report.json"
    names = ("tlt1-train.txt", "convert-kitti.txt")
    arguments = [str(SPECS / name) for name in names]
    arguments += ["--map", "/workspace/tlt-experiments=pvc://tlt-data", "--out", str(out)]
    done = tlt("import", *arguments, "--report", str(report), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(yaml.safe_load_all(out.read_text()))) == 2
    specs = json.loads(report.read_text())["specs"]
    assert [one["counts"] for one in specs] == [
        {"taken": 76, "changed": 5, "without counterpart": 20, "unknown": 0},
        {"taken": 3, "changed": 1, "without counterpart": 8, "unknown": 0},
    ]
    assert "a-secret-key" not in done.stdout + report.read_text()
    again = tlt("import", *arguments, cwd=tmp_path)
    assert again.returncode != 0 and "which exists" in again.stderr


def test_a_change_of_meaning_exits_3_and_writes_nothing_unless_allowed(tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    arguments = [str(SPECS / "tao-changes.txt"), "--map", "/data=pvc://tlt-data", "--out", str(out)]
    refused = tlt("import", *arguments, cwd=tmp_path)
    assert (refused.returncode, out.exists()) == (3, False)
    assert "26 changes of meaning:" in refused.stdout and "not written" in refused.stdout
    assert tlt("import", *arguments, "--allow-changes", cwd=tmp_path).returncode == 0
    assert tlt("validate", str(out), cwd=tmp_path).returncode == 0


def test_a_broken_spec_exits_with_file_and_line(tmp_path: Path) -> None:
    spec_file = tmp_path / "broken.txt"
    spec_file.write_text("random_seed: 42\nmodel_config {\n  arch: resnet18\n}\n")
    done = tlt("import", str(spec_file), "--out", str(tmp_path / "out.yaml"), cwd=tmp_path)
    assert done.returncode not in (0, 3)
    assert f"{spec_file}:3: model_config.arch: expected a quoted text, got resnet18" in done.stderr


def test_the_import_needs_neither_tensorflow_nor_keras() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tlt_runner.from_tlt import command\n"
        "spec, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "code, _ = command.run(command.Request((spec,), ('/data=pvc://a',), out))\n"
        "assert code == 3\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'cv2', 'onnx'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    arguments = [sys.executable, "-c", code, str(SPECS / "tao-changes.txt"), "/nowhere/out.yaml"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_spec_written_is_the_one_the_api_reads() -> None:
    parsed = resources.parse(imported("tlt2-train.txt").manifests[0].body).spec
    assert isinstance(parsed, TrainingJobSpec)
    assert parsed.training.learning_rate.effective_gamma == 0.1
    assert parsed.model.proposals.inference.pre_nms == 6000
