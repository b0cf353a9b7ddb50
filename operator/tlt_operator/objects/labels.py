"""Labels of the objects that the operator creates, by which it finds them again."""

from __future__ import annotations

OWNER_KIND = "tlt.dev/owner-kind"
OWNER_NAME = "tlt.dev/owner-name"
OWNER_UID = "tlt.dev/owner-uid"
ATTEMPT = "tlt.dev/attempt"
INDEX = "batch.kubernetes.io/job-completion-index"
"""Label (and annotation) that Kubernetes sets on the pods of an Indexed Job."""
KUEUE_PREFIX = "kueue.x-k8s.io/"
"""Prefix of the labels by which Kueue admits a Job (queue-name, priority-class)."""
