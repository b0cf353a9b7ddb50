"""Shared by the operator's tests: manifests, fixtures, and a cluster in memory that dies at any write."""
