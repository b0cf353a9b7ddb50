"""TrainingJob: train a detector on a dataset from scratch, from pretrained weights or from a pruned model."""

from __future__ import annotations

from tlt_api.base import Rule
from tlt_api.common import JobSpec, TrainingResources
from tlt_api.dataset import Dataset
from tlt_api.model import Model
from tlt_api.training import Evaluation, Training, Visualization


class TrainingJobSpec(JobSpec):
    """Training of an object detector on a labelled dataset."""

    resources: TrainingResources = TrainingResources()
    """Compute resources of each pod."""
    dataset: Dataset
    """Images and labels for training and validation."""
    model: Model = Model()
    """Object detector: C4 Faster R-CNN."""
    training: Training = Training()
    """Training options: epochs, batch size, optimizer, schedule, losses and augmentation."""
    evaluation: Evaluation = Evaluation()
    """Evaluation of the model on the validation images."""
    visualization: Visualization = Visualization()
    """Validation images with drawn boxes in the TensorBoard logs below spec.output.uri."""

    rules = (
        Rule(
            # A grey has no hue and no saturation that could change.
            cel="self.dataset.colorMode != 'grayscale' || "
            "(self.training.augmentation.hueRotationMax == 0.0 && "
            "self.training.augmentation.saturationShiftMax == 0.0)",
            check=lambda self: (
                self.dataset.color_mode != "grayscale"
                or not (
                    self.training.augmentation.hue_rotation_max
                    or self.training.augmentation.saturation_shift_max
                )
            ),
            message="expected training.augmentation without hueRotationMax and saturationShiftMax for "
            "dataset.colorMode grayscale: a grey has neither",
            given="'hueRotationMax %s and saturationShiftMax %s'.format(["
            "self.training.augmentation.hueRotationMax, self.training.augmentation.saturationShiftMax])",
        ),
    )
