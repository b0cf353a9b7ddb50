"""Support for the operator's tests: manifests, fixtures, and a cluster in memory that fails at any write."""
