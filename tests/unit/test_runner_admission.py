"""The local verdict on manifests: every rule of the CRDs is evaluated, and what breaks it is refused."""

import sys

import pytest

from operator_ring.manifests import DIGITS, resource, with_field
from tlt_api.resources import KINDS
from tlt_runner import admission
from violations import ALL, VIOLATIONS, Violation


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_has_a_violation_here_or_compares_two_versions(kind: str) -> None:
    rules = [rule for rule in admission.rules_of(kind) if not rule.compares_versions]
    named = {(item.path, rule.cel) for item in VIOLATIONS[kind] for rule in rules if _names(item, rule)}
    assert {(rule.path, rule.cel) for rule in rules} == named
    assert len(rules) == len(VIOLATIONS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_rules_that_are_skipped_are_those_of_immutability(kind: str) -> None:
    skipped = [rule for rule in admission.rules_of(kind) if rule.compares_versions]
    assert skipped
    assert [rule for rule in skipped if "is immutable" not in rule.message] == []


def _names(item: Violation, rule: admission.Rule) -> bool:
    return item.path == rule.path and rule.message.startswith(item.message)


@pytest.mark.parametrize(
    ("kind", "violation"), ALL, ids=lambda item: item if isinstance(item, str) else item.message
)
def test_a_broken_rule_is_the_only_problem(kind: str, violation: Violation) -> None:
    stored, _ = admission.as_stored(kind, violation.body)
    (problem,) = admission.problems(kind, stored)
    path, message = problem.path, problem.message
    if not violation.path:
        path, message = "", f"{path}: {message}"
    assert path == violation.path
    assert message.startswith(violation.message)
    assert message.endswith(violation.got)


@pytest.mark.parametrize("kind", KINDS)
def test_a_valid_resource_breaks_no_rule(kind: str) -> None:
    assert admission.problems(kind, admission.as_stored(kind, resource(kind))[0]) == []


def test_a_rule_that_meets_a_value_of_a_wrong_type_is_not_evaluated_and_the_type_is_named() -> None:
    body = with_field(DIGITS, "spec.training.learningRate", {"min": "much", "max": 0.01})
    assert [str(item) for item in admission.problems("TrainingJob", body)] == [
        "spec.training.learningRate.min: expected number (without quotes), got 'much'"
    ]


def test_whole_numbers_are_compared_with_fractions() -> None:
    body = resource("PruneJob", threshold=1)
    (problem,) = admission.problems("PruneJob", body)
    assert str(problem) == (
        "spec: expected threshold < 1 with normalizer max: no filter's norm exceeds the largest, got 1"
    )


def test_a_status_is_no_part_of_the_verdict() -> None:
    body = {**DIGITS, "status": {"phase": 7}}
    stored, dropped = admission.as_stored("TrainingJob", body)
    assert (stored, dropped) == (DIGITS, [])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, "metadata: expected an object with a name, got None"),
        ({}, "metadata.name: expected a text, got none"),
        ({"name": False}, "metadata.name: expected a text, got false (quote it"),
        ({"name": "a", "namespace": 7}, "metadata.namespace: expected a text, got 7 (quote it"),
    ],
)
def test_a_resource_without_a_name_has_this_problem_alone(metadata: object, expected: str) -> None:
    stored, _ = admission.as_stored("TrainingJob", {**DIGITS, "metadata": metadata})
    (problem,) = admission.problems("TrainingJob", stored)
    assert str(problem).startswith(expected)


def test_the_process_keeps_its_recursion_limit() -> None:
    before = sys.getrecursionlimit()
    admission._environment.cache_clear()
    admission._environment()
    assert sys.getrecursionlimit() == before
