"""What the operator's tests share: manifests, and a cluster in memory that can be killed at any write."""
