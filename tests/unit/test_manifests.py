"""The manifests say the same as the code."""

import re
from pathlib import Path

from pydantic.alias_generators import to_camel

from tlt_api.status import OPERATOR_FIELDS

BASE = Path(__file__).parents[2] / "manifests" / "base"


def test_the_policy_keeps_runners_off_every_field_of_the_operator() -> None:
    policy = (BASE / "runner-policy.yaml").read_text()
    kept = re.findall(r"object\.\?status\.\?(\w+) == oldObject\.\?status\.\?\1\b", policy)
    assert set(kept) == {to_camel(field) for field in OPERATOR_FIELDS}
