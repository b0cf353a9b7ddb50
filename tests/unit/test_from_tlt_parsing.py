"""Specs of TLT as typed fields: old names, unknown names, repetitions, values at fault."""

import pytest

from tlt_runner.errors import RunnerError
from tlt_runner.from_tlt import flow, parsing, report, spec
from tlt_runner.from_tlt.fields import ROWS
from tlt_runner.from_tlt.paths import Maps


def of(content: str) -> spec.Spec:
    return parsing.parse("a.txt", content)


def test_names_of_tlt_1_are_those_of_today() -> None:
    old = of(
        """network_config { feature_extractor: "resnet:18" }
        training_config {
          kitti_data_config { image_extension: "png" }
          data_augmentation { preprocessing { min_bbox_width: 2 } }
          reg_config { reg_type: 'L1' weight_decay: 1e-3 }
          lr_scheduler { step { gamma: 0.5 } }
          inference_config { rpn_nms_max_boxes: 300 }
          evaluation_config { batch_size: 2 }
        }"""
    )
    assert old.old and old.kind == "training"
    assert {item.path: item.value for item in old.given} == {
        "model_config.arch": "resnet:18",
        "dataset_config.image_extension": "png",
        "augmentation_config.preprocessing.min_bbox_width": 2.0,
        "training_config.regularizer.type": "L1",
        "training_config.regularizer.weight": 0.001,
        "training_config.learning_rate.step.gamma": 0.5,
        "inference_config.rpn_nms_max_boxes": 300,
        "evaluation_config.batch_size": 2,
    }
    # The report names what the user wrote.
    assert old.given[-1].name == "training_config.evaluation_config.batch_size"
    assert not of("model_config { rpn_stride: 16 }").old


def test_values_have_the_types_of_protobufs_text_format() -> None:
    given = of(
        """verbose: t
        model_config { freeze_bn: 1 use_bias: False freeze_blocks: [0, 1] freeze_blocks: 2
          input_image_config { image_type: 1 size_height_width { height: 0x10 width: 010 } } }
        training_config { std_scaling: 1.5f regularizer { type: NO_REG } num_epochs: 3 }"""
    ).given
    assert [item.value for item in given] == [
        True,
        True,
        False,
        0,
        1,
        2,
        "GRAY_SCALE",
        16,
        8,
        1.5,
        "NO_REG",
        3,
    ]
    assert [type(item.value) for item in given][:3] == [bool, bool, bool]


def test_unknown_fields_keep_their_line_and_the_nearest_name() -> None:
    given = of(
        """training_config {
          num_epoch: 3
          rpn_stride: 16
          nothing_like_it { a: 1 b { c: 2 } }
          classifier_regr_std { key: 'x' value: 10 extra: 1 }
        }"""
    ).given
    unknown = {item.name.rpartition(".")[2]: (item.line, item.near) for item in given if item.row is None}
    assert unknown == {
        "num_epoch": (2, "num_epochs"),
        "rpn_stride": (3, "model_config.rpn_stride"),
        "nothing_like_it": (4, ""),
        "extra": (5, "key or value"),
    }
    assert given[-1].value == ("x", 10.0)


def test_the_last_of_several_counts_as_in_tlt() -> None:
    given = of(
        """random_seed: 1
        random_seed: 2
        dataset_config {
          target_class_mapping { key: "a" value: "b" }
          target_class_mapping { key: "b" value: "b" }
          target_class_mapping { key: "a" value: "c" }
          data_sources { image_directory_path: "/1" }
          data_sources { image_directory_path: "/2" image_directory_path: "/3" }
        }
        training_config {
          optimizer { adam { beta_1: 0.9 } }
          optimizer { sgd { momentum: 0.9 } }
          learning_rate { step { gamma: 1 } soft_start { base_lr: 1 } step { base_lr: 2 } }
        }"""
    ).given
    replaced = {
        (item.path.rpartition(".")[2], item.value): item.overridden for item in given if item.overridden
    }
    assert replaced == {
        ("random_seed", 1): 2,
        ("target_class_mapping", ("a", "b")): 6,
        ("image_directory_path", "/2"): 8,
        ("beta_1", 0.9): 12,
        ("gamma", 1.0): 13,
        ("base_lr", 1.0): 13,
    }


def test_values_at_fault_are_all_named_with_file_and_line() -> None:
    with pytest.raises(RunnerError) as refused:
        of(
            """random_seed: -1
            model_config { arch: resnet18 freeze_bn: TRUE rpn_stride: 16.5
              input_image_config: 3 anchor_box_config { scale: 'x' scale: nan } }
            training_config { num_epochs: [1, 2] enable_qat { } regularizer { type: L3 } random: 5
              classifier_regr_std: 5 }"""
        )
    assert refused.value.message.split("\n  ") == [
        "a.txt:1: random_seed: expected a whole number from 0 to 4294967295, got -1",
        "a.txt:2: model_config.arch: expected a quoted text, got resnet18",
        "a.txt:2: model_config.freeze_bn: expected True or False, got TRUE",
        "a.txt:2: model_config.rpn_stride: expected a whole number from 0 to 4294967295, got 16.5",
        "a.txt:3: model_config.input_image_config: expected a message in braces, got 3",
        "a.txt:3: model_config.anchor_box_config.scale: expected a number, got 'x'",
        "a.txt:3: model_config.anchor_box_config.scale: expected a number, got nan",
        "a.txt:4: training_config.num_epochs: expected a whole number from 0 to 4294967295, not a list, "
        "got [1, 2]",
        "a.txt:4: training_config.enable_qat: expected True or False, got {}",
        "a.txt:4: training_config.regularizer.type: expected one of NO_REG, L1, L2, got L3",
        "a.txt:5: training_config.classifier_regr_std: expected an entry with key, a quoted text, and value, "
        "a number, got 5",
    ]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("model_config {\n  rpn_stride: 16\n", "a.txt:3: expected '}' of model_config"),
        ("random_seed: 1\nbbox_rasterizer_config { x: 1 }", "a.txt:2: expected a spec of Faster R-CNN"),
        ("apiVersion: v1\nkind: Pod", "got 2 fields, none of them known"),
        ("foo: 1 bar { x: 2 }", "got 2 fields, none of them known"),
        ("", "got 0 fields, none of them known"),
    ],
)
def test_other_files_are_refused(content: str, part: str) -> None:
    with pytest.raises(RunnerError) as refused:
        of(content)
    assert part in refused.value.message


@pytest.mark.parametrize(
    "line",
    [
        "enc_key: hushhush",
        "enc_key: [hushhush]",
        "enc_key hushhush",
        "enc_key: 'hushhush",
        "enc_key: hush hushhush",
        "enc_key:\nhushhush",
        "enc_kye: 'hushhush'",
        "enckey: hushhush",
        "encryption_key: 'hushhush'",
        "model_config { enc_key: hushhush }",
        "key: 'hushhush'",
    ],
)
def test_a_key_is_printed_nowhere(line: str) -> None:
    content = f"""{line}
    model_config {{ input_image_config {{ size_height_width {{ height: 384 width: 1248 }} }} }}
    dataset_config {{
      data_sources {{ image_directory_path: "/data/cars" }}
      target_class_mapping {{ key: "car" value: "car" }}
      validation_fold: 0
    }}"""
    try:
        result = flow.build([("a.txt", content)], Maps.parse(["/data=pvc://a"]))
    except RunnerError as refused:
        printed = f"{refused.message} {refused}"
    else:
        printed = f"{report.to_json(result.reports)} {list(report.lines(result.reports))} {result.lost}"
        assert "(not shown)" in printed
    assert "hushhush" not in printed


def test_the_names_of_other_fields_are_not_those_of_a_key() -> None:
    names = {*ROWS, "dataset_config.target_class_mapping.key"}
    assert {name for name in names if spec.is_secret(name)} == {"enc_key"}
