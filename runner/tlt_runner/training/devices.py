"""What a training runs on: the GPUs that the spec asks for, or the CPU."""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError

log = logging.getLogger(__name__)


def claim(gpus: int) -> Any:
    """Check that there are as many GPUs as asked for, and say how to use them.

    Called before anything is loaded. GPUs beyond ``gpus`` are left alone; 0 trains on the CPU.

    Returns:
        A tf.distribute strategy: the default one for a single device, MirroredStrategy for several GPUs.

    Raises:
        RunnerError: NotEnoughGPUs.
    """
    visible = tf.config.list_physical_devices("GPU")
    if gpus > len(visible):
        raise RunnerError(
            Reason.NOT_ENOUGH_GPUS,
            f"spec.resources.gpus: expected {gpus} GPUs, TensorFlow sees {len(visible)}",
            "Lower spec.resources.gpus (0 trains on the CPU), or choose nodes and an image with GPU support.",
        )
    tf.config.set_visible_devices(visible[:gpus], "GPU")
    for device in visible[:gpus]:
        tf.config.experimental.set_memory_growth(device, True)
    log.info("training on %s", f"{gpus} GPU(s)" if gpus else "the CPU")
    return tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy()
