"""Our optimizers move weights as Keras' do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlt_api.training import Optimizer
from tlt_runner.training.optimizer import Updates, clipped

RATE = 0.05
PEERS = [
    ({"type": "sgd"}, keras.optimizers.SGD(RATE, momentum=0.9)),
    ({"type": "sgd", "momentum": 0}, keras.optimizers.SGD(RATE)),
    ({"type": "sgd", "momentum": 0.8, "nesterov": True}, keras.optimizers.SGD(RATE, 0.8, nesterov=True)),
    ({"type": "adam", "momentum": 0.8, "beta2": 0.99}, keras.optimizers.Adam(RATE, 0.8, 0.99)),
    ({"type": "adam", "epsilon": 1e-2}, keras.optimizers.Adam(RATE, epsilon=1e-2)),
    ({"type": "adamw", "weightDecay": 0.3}, keras.optimizers.AdamW(RATE, weight_decay=0.3)),
    ({"type": "rmsprop"}, keras.optimizers.RMSprop(RATE)),
    ({"type": "rmsprop", "rho": 0.8, "momentum": 0.7}, keras.optimizers.RMSprop(RATE, 0.8, 0.7)),
    ({"type": "adam", "clipNorm": 0.5}, keras.optimizers.Adam(RATE, global_clipnorm=0.5)),
]


def weights() -> list[keras.Variable]:
    values = np.random.default_rng(1)
    return [
        keras.Variable(values.normal(size=(3, 2)).astype(np.float32), name="kernel"),
        keras.Variable(values.normal(size=2).astype(np.float32), name="bias"),
    ]


@pytest.mark.parametrize(("fields", "peer"), PEERS, ids=[str(fields) for fields, _ in PEERS])
def test_weights_move_as_with_keras(fields: dict, peer: keras.optimizers.Optimizer) -> None:
    spec, ours, theirs = Optimizer.model_validate(fields), weights(), weights()
    peer.build(theirs)
    if spec.effective_weight_decay:
        peer.exclude_from_weight_decay(var_list=theirs[1:])
    updates = Updates(spec, ours)
    for step in range(4):
        values = np.random.default_rng(step)
        gradients = [tf.constant(values.normal(size=weight.shape), tf.float32) for weight in ours]
        norm = tf.linalg.global_norm(gradients)
        ready = clipped(gradients, norm, spec.clip_norm)
        updates.apply(tf.distribute.get_strategy(), ready, tf.constant(RATE))
        peer.apply(gradients)
    for variable, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(variable), np.asarray(other), rtol=1e-5, atol=1e-6)
