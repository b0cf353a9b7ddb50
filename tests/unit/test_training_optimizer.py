"""A field that an optimizer has no use for is refused."""

import pytest
from pydantic import ValidationError

from tlt_api.training import Optimizer


@pytest.mark.parametrize(
    "fields",
    [
        {"rho": 0.9},
        {"epsilon": 1e-7},
        {"beta2": 0.9},
        {"weightDecay": 0.01},
        {"type": "adam", "weightDecay": 0.01},
        {"type": "adamw", "rho": 0.9},
        {"type": "rmsprop", "beta2": 0.9},
        {"type": "adam", "nesterov": True},
        {"momentum": 0, "nesterov": True},
    ],
)
def test_a_field_that_the_optimizer_does_not_use_is_refused(fields: dict) -> None:
    with pytest.raises(ValidationError, match="expected .* only with type"):
        Optimizer.model_validate(fields)


def test_every_optimizer_has_its_usual_numbers() -> None:
    assert Optimizer().effective_momentum == 0.9
    assert Optimizer(type="rmsprop").effective_momentum == 0.0
    assert Optimizer(type="adam").betas == (0.9, 0.999)
    assert Optimizer(type="adamw").effective_weight_decay == 0.01
    assert Optimizer(type="adam").effective_weight_decay == 0.0
