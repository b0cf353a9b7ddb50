"""TrainingJob: train a detector on a dataset from scratch, from pretrained weights or from a pruned model."""

from __future__ import annotations

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
