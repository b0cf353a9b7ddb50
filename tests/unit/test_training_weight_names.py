"""Translation of the layer names of other programs' files to ours."""

import pytest

from tlt_runner.training.pretrained import layer_names

KERAS_RESNET = ["conv1_conv", "conv1_bn", "conv2_block1_0_conv"]
TLT_RESNET = ["conv1", "bn_conv1", "block_1a_conv_1"]
EARLY_KERAS = ["conv1", "bn_conv1", "res2a_branch2a"]
DARKNET53 = ["conv1", "conv2", "b1_conv1_1"]
DARKNET19 = ["conv1", "b1_conv1"]
KERAS_HUB = ["conv1_conv", "conv1_bn", "stack0_block0_1_conv"]
TORCH_RESNET = ["conv1", "bn1", "layer1.0.conv1"]
TORCH_VGG = ["features.0", "features.2"]
TORCH_VGG_BN = ["features.0", "features.1"]
TORCH_MOBILENET = ["features.0.0", "features.0.1"]
GOOGLENET = ["conv1", "bn_conv1", "conv2_reduce"]


@pytest.mark.parametrize(
    ("backbone", "file", "theirs", "ours"),
    [
        ("resnet50", KERAS_RESNET, "conv1_conv", "stem_conv"),
        ("resnet50", KERAS_RESNET, "conv1_bn", "stem_bn"),
        ("resnet50", KERAS_RESNET, "conv2_block1_0_conv", "stage1_block1_shortcut"),
        ("resnet50", KERAS_RESNET, "conv2_block1_0_bn", "stage1_block1_shortcut_bn"),
        ("resnet101", KERAS_RESNET, "conv4_block23_3_conv", "stage3_block23_conv3"),
        ("resnet101", KERAS_RESNET, "conv5_block3_2_bn", "stage4_block3_bn2"),
        ("resnet50", KERAS_RESNET, "predictions", None),
        ("resnet50", [*KERAS_RESNET, "conv2_block1_preact_bn"], "conv2_block1_0_conv", None),
        ("resnet50", EARLY_KERAS, "bn_conv1", "stem_bn"),
        ("resnet50", EARLY_KERAS, "res4f_branch2c", "stage3_block6_conv3"),
        ("resnet50", EARLY_KERAS, "bn3a_branch1", "stage2_block1_shortcut_bn"),
        ("resnet18", TLT_RESNET, "conv1", "stem_conv"),
        ("resnet18", TLT_RESNET, "bn_conv1", "stem_bn"),
        ("resnet18", TLT_RESNET, "block_2a_conv_shortcut", "stage2_block1_shortcut"),
        ("resnet18", TLT_RESNET, "block_2a_bn_shortcut", "stage2_block1_shortcut_bn"),
        ("resnet101", TLT_RESNET, "block_3w_bn_2", "stage3_block23_bn2"),
        ("resnet18", TLT_RESNET, "head_fc20", None),
        ("resnet18", KERAS_HUB, "conv1_bn", "stem_bn"),
        ("resnet18", KERAS_HUB, "stack1_block0_0_conv", "stage2_block1_shortcut"),
        ("resnet101", KERAS_HUB, "stack2_block22_3_bn", "stage3_block23_bn3"),
        ("resnet18", TORCH_RESNET, "bn1", "stem_bn"),
        ("resnet18", TORCH_RESNET, "layer2.0.downsample.0", "stage2_block1_shortcut"),
        ("resnet18", TORCH_RESNET, "layer2.0.downsample.1", "stage2_block1_shortcut_bn"),
        ("resnet50", TORCH_RESNET, "layer3.5.conv3", "stage3_block6_conv3"),
        ("resnet50", TORCH_RESNET, "fc", None),
        ("resnet50", [*TORCH_RESNET, "conv1.0"], "layer3.5.conv3", None),
        ("vgg16", TORCH_VGG, "features.28", "block5_conv3"),
        ("vgg19", TORCH_VGG, "features.34", "block5_conv4"),
        ("vgg16", TORCH_VGG, "classifier.3", "fc2"),
        ("vgg16", TORCH_VGG_BN, "features.41", "block5_conv3_bn"),
        ("mobilenet_v2", TORCH_MOBILENET, "features.1.conv.1", "expanded_conv_project"),
        ("mobilenet_v2", TORCH_MOBILENET, "features.17.conv.3", "block_16_project_BN"),
        ("vgg16", ["block1_conv1"], "block5_conv3", "block5_conv3"),
        ("vgg16", ["block_1a_conv_1"], "block_5c_conv_1", "block5_conv3"),
        ("vgg19", ["block_1a_conv_1"], "block_3d_bn_1", "block3_conv4_bn"),
        ("vgg16", ["block_1a_conv_1"], "fc1", None),
        ("darknet53", DARKNET53, "conv1_bn", "group0_conv1_bn"),
        ("darknet53", DARKNET53, "conv6", "group5_conv1"),
        ("darknet53", DARKNET53, "b3_conv8_2_bn", "group3_block8_conv2_bn"),
        ("darknet19", DARKNET19, "conv1", "group0_conv1"),
        ("darknet19", DARKNET19, "b5_conv4_bn", "group5_conv4_bn"),
        ("googlenet", GOOGLENET, "bn_conv2_reduce", "stem_conv2_reduce_bn"),
        ("googlenet", GOOGLENET, "conv2", "stem_conv2"),
        ("googlenet", GOOGLENET, "inception_4e_5x5_reduce_bn", "inception_4e_5x5_reduce_bn"),
        ("googlenet", GOOGLENET, "output_fc", None),
        ("mobilenet_v2", ["Conv1", "bn_Conv1"], "block_1_expand_BN", "block_1_expand_BN"),
    ],
)
def test_a_layer_of_a_file_has_our_name(backbone: str, file: list[str], theirs: str, ours: str) -> None:
    assert layer_names.naming(backbone, file).ours(theirs) == ours


@pytest.mark.parametrize(
    ("backbone", "file", "bgr"),
    [
        ("resnet50", KERAS_RESNET, True),
        ("resnet50", EARLY_KERAS, True),
        ("resnet18", TLT_RESNET, True),
        ("resnet18", KERAS_HUB, False),
        ("resnet18", TORCH_RESNET, False),
        ("vgg16", ["block1_conv1", "fc1"], True),
        ("vgg16", ["block1_conv1", "rpn_conv"], False),
        ("mobilenet_v1", ["conv1", "conv1_bn"], False),
        ("efficientnet_b0", ["stem_conv"], False),
    ],
)
def test_files_of_other_programs_expect_bgr_pixels_and_ours_do_not(
    backbone: str, file: list[str], bgr: bool
) -> None:
    assert (layer_names.naming(backbone, file).order == "bgr") is bgr
