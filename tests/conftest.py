"""Fixtures of all rings: the real cluster of tests/cluster, and the manifests of the samples."""

pytest_plugins = ["cluster.fixtures"]
