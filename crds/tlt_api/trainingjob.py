"""TrainingJob: train a detector on a data set, from nothing, from weights, or from a pruned model."""

from __future__ import annotations

from tlt_api.common import JobSpec, TrainingResources
from tlt_api.dataset import Dataset
from tlt_api.model import Model
from tlt_api.training import Evaluation, Training, Visualization


class TrainingJobSpec(JobSpec):
    """What to train, on what, and how."""

    resources: TrainingResources = TrainingResources()
    """What the pods get."""
    dataset: Dataset
    """Images and labels."""
    model: Model = Model()
    """The detector."""
    training: Training = Training()
    """The optimisation."""
    evaluation: Evaluation = Evaluation()
    """How the model is judged."""
    visualization: Visualization = Visualization()
    """What TensorBoard shows of validation images."""
