"""Fixtures of all rings: the real cluster of tests/cluster, and what the operator's tests install there."""

pytest_plugins = ["cluster.fixtures", "operator_ring.fixtures"]
