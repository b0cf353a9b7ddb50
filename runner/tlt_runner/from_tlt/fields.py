"""The fields of TLT's specs: type, counterpart, and what becomes of each.

One table for Faster R-CNN's training spec and for dataset_convert's, whose names do not collide. Names are
those of TLT 2.0 and later; :data:`OLD_NAMES` leads there from TLT 1.0's. ``docs/from-tlt.md`` has the same
rows, with TLT's values and our defaults, and ``tests/unit/test_docs_from_tlt.py`` compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Neutral = bool | int | float | str


class Type(Enum):
    """Type of a field in TLT's protobuf messages."""

    TEXT = "a quoted text"
    COUNT = "a whole number from 0 to 4294967295"
    NUMBER = "a number"
    FLAG = "True or False"
    NAME = "a name"
    TEXT_MAP = "an entry with key and value, both quoted texts"
    NUMBER_MAP = "an entry with key, a quoted text, and value, a number"
    ANY = "anything"
    """A message that is not looked into: a field of it is one field of the spec."""


@dataclass(frozen=True)
class Row:
    """A field of TLT.

    Attributes:
        path: Name from the top of the spec, with dots.
        type: Its type.
        to: Field below ``spec`` of a TrainingJob, or None where there is none.
        words: Without ``to``: why it needs none.
        neutral: Without ``to``: the values that change nothing. With any other value the meaning is lost.
            Empty: no value changes what is computed.
        special: Translated together with others (:mod:`tlt_runner.from_tlt.translation`).
        repeated: True if the field may be given several times.
        names: Of type NAME: the names, in the order of their numbers.
        required: True if TLT refuses a spec without this field.
    """

    path: str
    type: Type
    to: str | None = None
    words: str = ""
    neutral: tuple[Neutral, ...] = ()
    special: bool = False
    repeated: bool = False
    names: tuple[str, ...] = ()
    required: bool = False


OLD_NAMES: dict[str, str] = {
    "network_config": "model_config",
    "model_config.feature_extractor": "model_config.arch",
    "training_config.kitti_data_config": "dataset_config",
    "training_config.data_augmentation": "augmentation_config",
    "training_config.reg_config": "training_config.regularizer",
    "training_config.regularizer.reg_type": "training_config.regularizer.type",
    "training_config.regularizer.weight_decay": "training_config.regularizer.weight",
    "training_config.lr_scheduler": "training_config.learning_rate",
    "training_config.inference_config": "inference_config",
    "training_config.evaluation_config": "evaluation_config",
}
"""Names of TLT 1.0 -> names since TLT 2.0. The beginnings are those of TLT 2.0 already."""

ONE_OF: tuple[tuple[str, ...], ...] = (
    ("model_config.input_image_config.size_min", "model_config.input_image_config.size_height_width"),
    ("dataset_config.validation_fold", "dataset_config.validation_data_source"),
    (
        "training_config.optimizer.adam",
        "training_config.optimizer.sgd",
        "training_config.optimizer.rmsprop",
    ),
    ("training_config.learning_rate.soft_start", "training_config.learning_rate.step"),
    (
        "evaluation_config.gt_matching_iou_threshold",
        "evaluation_config.gt_matching_iou_threshold_range",
    ),
    ("kitti_config", "coco_config"),
)
"""Fields of which a message keeps one: the last."""

FOREIGN: dict[str, str] = {
    "bbox_rasterizer_config": "DetectNet_v2",
    "cost_function_config": "DetectNet_v2",
    "postprocessing_config": "DetectNet_v2",
    "ssd_config": "SSD",
    "dssd_config": "DSSD",
    "retinanet_config": "RetinaNet",
    "yolo_config": "YOLOv3",
    "yolov3_config": "YOLOv3",
    "yolov4_config": "YOLOv4",
    "maskrcnn_config": "Mask R-CNN",
    "efficientdet_config": "EfficientDet",
    "lpr_config": "LPRNet",
    "train_config": "a classification",
    "eval_config": "another network",
    "nms_config": "another network",
}
"""Messages at the top of specs of other networks -> whose they are."""

_TEXT, _COUNT, _NUMBER, _FLAG = Type.TEXT, Type.COUNT, Type.NUMBER, Type.FLAG


def _at(prefix: str, *rows: Row) -> tuple[Row, ...]:
    """Return rows whose paths are given below a message."""
    return tuple(Row(**{**vars(row), "path": f"{prefix}.{row.path}"}) for row in rows)


def _here(path: str, kind: Type, to: str, *, required: bool = False) -> Row:
    """Return the row of a field that is taken as it is."""
    return Row(path, kind, to, required=required)


def _with(path: str, kind: Type, to: str | None, *, required: bool = False, repeated: bool = False) -> Row:
    """Return the row of a field that is translated together with others."""
    return Row(path, kind, to, special=True, required=required, repeated=repeated)


def _gone(path: str, kind: Type, words: str, *neutral: Neutral, repeated: bool = False) -> Row:
    """Return the row of a field without a counterpart."""
    return Row(path, kind, None, words, neutral, repeated=repeated)


_ALWAYS_EMPTY = ("",)
"""Neutral values of a field that has none: it loses its meaning whenever it is given."""

_TOP = (
    _here("random_seed", _COUNT, "training.seed"),
    _gone("enc_key", _TEXT, "models are not encrypted"),
    _gone("verbose", _FLAG, "the log is always the same"),
)
_INPUT = _at(
    "model_config.input_image_config",
    Row("image_type", Type.NAME, "dataset.colorMode", special=True, names=("RGB", "GRAY_SCALE")),
    _with("size_min.min", _COUNT, "dataset.imageSize.mode"),
    _with("size_height_width.height", _COUNT, "dataset.imageSize.height", required=True),
    _with("size_height_width.width", _COUNT, "dataset.imageSize.width", required=True),
    _with("image_channel_order", _TEXT, "model.pretrainedWeights.pixels.order"),
    _with("image_channel_mean", Type.NUMBER_MAP, "model.pretrainedWeights.pixels.mean", repeated=True),
    _with("image_scaling_factor", _NUMBER, "model.pretrainedWeights.pixels.scale"),
    _here("max_objects_num_per_image", _COUNT, "model.maxObjects", required=True),
)
_MODEL = _at(
    "model_config",
    _with("arch", _TEXT, "model.backbone", required=True),
    _with("anchor_box_config.scale", _NUMBER, "model.anchors.scales", required=True, repeated=True),
    _with("anchor_box_config.ratio", _NUMBER, "model.anchors.ratios", required=True, repeated=True),
    _here("roi_mini_batch", _COUNT, "model.roi.miniBatch", required=True),
    _gone("rpn_stride", _COUNT, "always 16", 16),
    _here("freeze_bn", _FLAG, "model.freezeBatchNorm"),
    _with("freeze_blocks", _NUMBER, "model.freezeBlocks", repeated=True),
    _with("dropout_rate", _NUMBER, "model.roi.dropout"),
    _with("drop_connect_rate", _NUMBER, None),
    _gone("rpn_cls_activation_type", _TEXT, "sigmoid; TLT does not read it"),
    _gone("use_bias", _FLAG, "a bias before batch normalisation goes into its mean"),
    _gone("conv_bn_share_bias", _FLAG, "a bias before batch normalisation goes into its mean"),
    _with("roi_pooling_config.pool_size", _COUNT, "model.roi.poolSize", required=True),
    _with("roi_pooling_config.pool_size_2x", _FLAG, "model.roi.headStride"),
    _gone("rfcn_mode", _FLAG, "TLT does not read it"),
    _gone("tf_proposal_layer", _FLAG, "TLT does not read it"),
    _with("all_projections", _FLAG, None),
    _with("use_pooling", _FLAG, None),
    _with("activation.activation_type", _TEXT, "model.activation"),
    _gone("activation.activation_parameters", Type.NUMBER_MAP, "relu and swish have none", repeated=True),
)
_DATASET = _at(
    "dataset_config",
    _with("data_sources.tfrecords_path", _TEXT, None, repeated=True),
    _with("data_sources.image_directory_path", _TEXT, "dataset.uri", required=True, repeated=True),
    _with("data_sources.source_weight", _NUMBER, None, repeated=True),
    _gone("image_extension", _TEXT, "JPEG and PNG are recognised by content"),
    _with("target_class_mapping", Type.TEXT_MAP, "dataset.targetClassMapping", required=True, repeated=True),
    _with("validation_fold", _COUNT, "dataset.validation.fraction"),
    _with("validation_data_source.image_directory_path", _TEXT, "dataset.validation.images"),
    _with("validation_data_source.tfrecords_path", _TEXT, None),
    _gone("validation_data_source.source_weight", _NUMBER, "an evaluation weighs all images equally"),
    Row(
        "dataloader_mode",
        Type.NAME,
        words="there is one loader",
        names=("MULTISOURCE", "LEGACY", "DEFAULT"),
    ),
    Row(
        "sampling_mode",
        Type.NAME,
        words="all images are drawn equally often",
        neutral=("USER_DEFINED",),
        names=("USER_DEFINED", "PROPORTIONAL", "UNIFORM"),
    ),
)
_PREPROCESSING = _at(
    "augmentation_config.preprocessing",
    _with("output_image_width", _COUNT, None),
    _with("output_image_height", _COUNT, None),
    _gone("output_image_min", _COUNT, "the input size is fixed; see size_min"),
    _gone("output_image_max", _COUNT, "the input size is fixed; see size_min"),
    _gone("enable_auto_resize", _FLAG, "images are always resized, here to dataset.imageSize"),
    _gone("output_image_channel", _COUNT, "set once, by dataset.colorMode"),
    _gone("crop_left", _COUNT, "images are not cropped", 0),
    _gone("crop_top", _COUNT, "images are not cropped", 0),
    _gone("crop_right", _COUNT, "images are not cropped", 0),
    _gone("crop_bottom", _COUNT, "images are not cropped", 0),
    _here("min_bbox_width", _NUMBER, "training.augmentation.minWidth"),
    _here("min_bbox_height", _NUMBER, "training.augmentation.minHeight"),
    _gone("scale_width", _NUMBER, "images are resized to dataset.imageSize", 0, 1),
    _gone("scale_height", _NUMBER, "images are resized to dataset.imageSize", 0, 1),
)
_AUGMENTATION = _at(
    "augmentation_config",
    _with("spatial_augmentation.hflip_probability", _NUMBER, "training.augmentation.horizontalFlip"),
    _with("spatial_augmentation.vflip_probability", _NUMBER, "training.augmentation.verticalFlip"),
    _with("spatial_augmentation.zoom_min", _NUMBER, "training.augmentation.zoomMin"),
    _with("spatial_augmentation.zoom_max", _NUMBER, "training.augmentation.zoomMax"),
    _with("spatial_augmentation.translate_max_x", _NUMBER, "training.augmentation.translateMaxX"),
    _with("spatial_augmentation.translate_max_y", _NUMBER, "training.augmentation.translateMaxY"),
    _with("spatial_augmentation.rotate_rad_max", _NUMBER, "training.augmentation.rotateRadMax"),
    _with("spatial_augmentation.rotate_probability", _NUMBER, "training.augmentation.rotateProbability"),
    _with("color_augmentation.color_shift_stddev", _NUMBER, "training.augmentation.colorShiftStddev"),
    _with("color_augmentation.hue_rotation_max", _NUMBER, "training.augmentation.hueRotationMax"),
    _with("color_augmentation.saturation_shift_max", _NUMBER, "training.augmentation.saturationShiftMax"),
    _with("color_augmentation.contrast_scale_max", _NUMBER, "training.augmentation.contrastScaleMax"),
    _with("color_augmentation.contrast_center", _NUMBER, "training.augmentation.contrastCenter"),
)
_TRAINING = _at(
    "training_config",
    _with("enable_augmentation", _FLAG, None),
    _gone("enable_qat", _FLAG, "no quantisation-aware training: exports are FP32 or FP16", False),
    _here("batch_size_per_gpu", _COUNT, "training.batchSizePerGPU", required=True),
    _here("num_epochs", _COUNT, "training.epochs", required=True),
    _with("pretrained_weights", _TEXT, "model.pretrainedWeights"),
    _with("retrain_pruned_model", _TEXT, "model.from"),
    _gone(
        "resume_from_model",
        _TEXT,
        "a checkpoint of TLT cannot be resumed; a TrainingJob resumes its own by itself",
        *_ALWAYS_EMPTY,
    ),
    _with("output_model", _TEXT, None),
    _with("checkpoint_interval", _COUNT, "training.checkpointInterval"),
    _here("rpn_min_overlap", _NUMBER, "model.proposals.minOverlap", required=True),
    _here("rpn_max_overlap", _NUMBER, "model.proposals.maxOverlap", required=True),
    _here("classifier_min_overlap", _NUMBER, "model.roi.minOverlap"),
    _here("classifier_max_overlap", _NUMBER, "model.roi.maxOverlap", required=True),
    _here("gt_as_roi", _FLAG, "model.roi.groundTruthAsRoi"),
    _here("std_scaling", _NUMBER, "model.proposals.deltaScale", required=True),
    _with("classifier_regr_std", Type.NUMBER_MAP, "model.roi.deltaScales", required=True, repeated=True),
    _here("rpn_mini_batch", _COUNT, "model.proposals.miniBatch", required=True),
    _here("rpn_pre_nms_top_N", _COUNT, "model.proposals.training.preNms", required=True),
    _here("rpn_nms_max_boxes", _COUNT, "model.proposals.training.postNms", required=True),
    _here("rpn_nms_overlap_threshold", _NUMBER, "model.proposals.nmsOverlap", required=True),
    Row(
        "regularizer.type",
        Type.NAME,
        "training.regularizer.type",
        special=True,
        names=("NO_REG", "L1", "L2"),
    ),
    _here("regularizer.weight", _NUMBER, "training.regularizer.weight"),
    _gone("optimizer.adam.lr", _NUMBER, "the schedule sets the rate, in TLT too"),
    _gone("optimizer.sgd.lr", _NUMBER, "the schedule sets the rate, in TLT too"),
    _gone("optimizer.rmsprop.lr", _NUMBER, "the schedule sets the rate, in TLT too"),
    _here("optimizer.adam.beta_1", _NUMBER, "training.optimizer.momentum"),
    _here("optimizer.adam.beta_2", _NUMBER, "training.optimizer.beta2"),
    _gone("optimizer.adam.epsilon", _NUMBER, "TLT does not read it: 1e-7, as here"),
    _gone("optimizer.adam.decay", _NUMBER, "only the schedule changes the rate", 0),
    _gone("optimizer.sgd.decay", _NUMBER, "only the schedule changes the rate", 0),
    _gone("optimizer.adam.amsgrad", _FLAG, "Adam has no AMSGrad", False),
    _here("optimizer.sgd.momentum", _NUMBER, "training.optimizer.momentum"),
    _with("optimizer.sgd.nesterov", _FLAG, "training.optimizer.nesterov"),
    _with("learning_rate.soft_start.base_lr", _NUMBER, "training.learningRate.max", required=True),
    _with("learning_rate.soft_start.start_lr", _NUMBER, "training.learningRate.min", required=True),
    _with("learning_rate.soft_start.soft_start", _NUMBER, "training.learningRate.softStart"),
    _with(
        "learning_rate.soft_start.annealing_points",
        _NUMBER,
        "training.learningRate.milestones",
        repeated=True,
    ),
    _with("learning_rate.soft_start.annealing_divider", _NUMBER, "training.learningRate.gamma"),
    _with("learning_rate.step.base_lr", _NUMBER, "training.learningRate.max", required=True),
    _with("learning_rate.step.gamma", _NUMBER, "training.learningRate.gamma", required=True),
    _with("learning_rate.step.step_size", _NUMBER, "training.learningRate.stepSize", required=True),
    _here("lambda_rpn_regr", _NUMBER, "training.lossWeights.rpnDeltas", required=True),
    _here("lambda_rpn_class", _NUMBER, "training.lossWeights.rpnObjectness", required=True),
    _here("lambda_cls_regr", _NUMBER, "training.lossWeights.headDeltas", required=True),
    _here("lambda_cls_class", _NUMBER, "training.lossWeights.headClasses", required=True),
    _gone(
        "model_parallelism",
        _NUMBER,
        "a model is not divided between GPUs; each has all of it",
        *_ALWAYS_EMPTY,
        repeated=True,
    ),
    _with("early_stopping.monitor", _TEXT, "training.earlyStopping.monitor"),
    _here("early_stopping.min_delta", _NUMBER, "training.earlyStopping.minDelta"),
    _here("early_stopping.patience", _COUNT, "training.earlyStopping.patience"),
    _gone("visualizer.enabled", _FLAG, "TensorBoard files are always written"),
    _here("visualizer.num_images", _COUNT, "visualization.images"),
    _gone("visualizer.weight_histograms", _FLAG, "TLT's Faster R-CNN has it off"),
    _gone("visualizer.wandb_config", Type.ANY, "log.jsonl is there for other programs", repeated=True),
    _gone("visualizer.clearml_config", Type.ANY, "log.jsonl is there for other programs", repeated=True),
)
_INFERENCE = _at(
    "inference_config",
    _gone("images_dir", _TEXT, "given to tlt infer --images"),
    _gone("model", _TEXT, "given to tlt infer --model"),
    _gone("batch_size", _COUNT, "fixed in tlt infer"),
    _here("rpn_pre_nms_top_N", _COUNT, "model.proposals.inference.preNms", required=True),
    _here("rpn_nms_max_boxes", _COUNT, "model.proposals.inference.postNms", required=True),
    _here("rpn_nms_overlap_threshold", _NUMBER, "model.proposals.inference.nmsOverlap", required=True),
    _here("object_confidence_thres", _NUMBER, "model.detections.scoreThreshold", required=True),
    _here("bbox_visualize_threshold", _NUMBER, "visualization.scoreThreshold", required=True),
    _here("classifier_nms_max_boxes", _COUNT, "model.detections.maxDetections", required=True),
    _here("classifier_nms_overlap_threshold", _NUMBER, "model.detections.nmsOverlap", required=True),
    _gone("detection_image_output_dir", _TEXT, "tlt infer --output: images below it"),
    _gone("labels_dump_dir", _TEXT, "tlt infer --output: labels below it"),
    _gone("bbox_caption_on", _FLAG, "class and score are always drawn"),
    _gone("trt_inference", Type.ANY, "tlt infer runs Keras models", repeated=True),
    _gone("nms_score_bits", _COUNT, "no plugin is used"),
)
_EVALUATION = _at(
    "evaluation_config",
    _gone("model", _TEXT, "the job evaluates its own; tlt evaluate repeats it"),
    _gone("batch_size", _COUNT, "training.batchSizePerGPU"),
    _gone("labels_dump_dir", _TEXT, "tlt infer writes labels"),
    _here("rpn_pre_nms_top_N", _COUNT, "evaluation.proposals.preNms", required=True),
    _here("rpn_nms_max_boxes", _COUNT, "evaluation.proposals.postNms", required=True),
    _here("rpn_nms_overlap_threshold", _NUMBER, "evaluation.proposals.nmsOverlap", required=True),
    _here("object_confidence_thres", _NUMBER, "evaluation.detections.scoreThreshold", required=True),
    _here("classifier_nms_max_boxes", _COUNT, "evaluation.detections.maxDetections", required=True),
    _here("classifier_nms_overlap_threshold", _NUMBER, "evaluation.detections.nmsOverlap", required=True),
    _with("use_voc07_11point_metric", _FLAG, "evaluation.averagePrecision"),
    _with("validation_period_during_training", _COUNT, "evaluation.intervalEpochs"),
    _gone("trt_evaluation", Type.ANY, "an ExportJob evaluates the exported model", repeated=True),
    _here("gt_matching_iou_threshold", _NUMBER, "evaluation.iouThreshold"),
    _gone("gt_matching_iou_threshold_range.start", _NUMBER, "one threshold only", *_ALWAYS_EMPTY),
    _gone("gt_matching_iou_threshold_range.end", _NUMBER, "one threshold only", *_ALWAYS_EMPTY),
    _gone("gt_matching_iou_threshold_range.step", _NUMBER, "one threshold only", *_ALWAYS_EMPTY),
    _gone("visualize_pr_curve", _FLAG, "AP per class is in status.metrics"),
)
_MODIFIER = "images are neither left out nor repeated by class"
_CONVERT = (
    _with("kitti_config.root_directory_path", _TEXT, "dataset.uri", required=True),
    _with("kitti_config.image_dir_name", _TEXT, "dataset.images", required=True),
    _with("kitti_config.label_dir_name", _TEXT, "dataset.labels", required=True),
    _with("kitti_config.val_split", _NUMBER, "dataset.validation.fraction"),
    _with("kitti_config.kitti_sequence_to_frames_file", _TEXT, "dataset.validation.groupBy"),
    _with("kitti_config.partition_mode", _TEXT, None),
    _with("kitti_config.num_partitions", _COUNT, None),
    _gone("kitti_config.image_extension", _TEXT, "JPEG and PNG are recognised by content"),
    _gone("kitti_config.num_shards", _COUNT, "follows from the number of images"),
    _gone("kitti_config.point_clouds_dir", _TEXT, "an image detector has no use for it"),
    _gone("kitti_config.calibrations_dir", _TEXT, "an image detector has no use for it"),
    _with("coco_config.root_directory_path", _TEXT, "dataset.uri", required=True),
    _with("coco_config.img_dir_names", _TEXT, "dataset.images", required=True, repeated=True),
    _with("coco_config.annotation_files", _TEXT, "dataset.labels", required=True, repeated=True),
    _with("coco_config.num_partitions", _COUNT, None),
    _gone("coco_config.num_shards", _COUNT, "follows from the number of images", repeated=True),
    _gone("sample_modifier_config.filter_samples_containing_only", _TEXT, _MODIFIER, *_ALWAYS_EMPTY,
          repeated=True),
    _gone("sample_modifier_config.dominant_target_classes", _TEXT, _MODIFIER, *_ALWAYS_EMPTY, repeated=True),
    _gone("sample_modifier_config.minimum_target_class_imbalance", Type.NUMBER_MAP, _MODIFIER,
          *_ALWAYS_EMPTY, repeated=True),
    _gone("sample_modifier_config.num_duplicates", _COUNT, _MODIFIER, 0),
    _gone("sample_modifier_config.max_training_samples", _COUNT, _MODIFIER, 0),
    _gone("sample_modifier_config.source_to_target_class_mapping", Type.TEXT_MAP,
          "names classes for the other fields of sample_modifier_config only", repeated=True),
    _gone("image_directory_path", _TEXT, "TLT's converter does not read it"),
    _gone("target_class_mapping", Type.TEXT_MAP, "TLT's converter does not read it", repeated=True),
)  # fmt: skip

ROWS: dict[str, Row] = {
    row.path: row
    for row in (
        *_TOP, *_INPUT, *_MODEL, *_DATASET, *_PREPROCESSING, *_AUGMENTATION, *_TRAINING, *_INFERENCE,
        *_EVALUATION, *_CONVERT,
    )
}  # fmt: skip
"""Path -> row."""

MESSAGES: frozenset[str] = frozenset(
    path.rsplit(".", count)[0] for path in ROWS for count in range(1, path.count(".") + 1)
)
"""Paths of all messages."""
REPEATED_MESSAGES = frozenset({"dataset_config.data_sources"})
"""Messages of which each occurrence is one of its own; the others are merged."""
CONVERT_MESSAGES = ("kitti_config", "coco_config", "sample_modifier_config")
"""Names at the top of dataset_convert's spec. A training spec has none of them."""
