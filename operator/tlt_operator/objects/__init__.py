"""Objects that the operator creates, a module each, and the labels by which it finds them again.

The modules are pure: the same attempt always gives the same objects.
"""

from __future__ import annotations

OWNER_KIND = "tlt.dev/owner-kind"
OWNER_NAME = "tlt.dev/owner-name"
OWNER_UID = "tlt.dev/owner-uid"
ATTEMPT = "tlt.dev/attempt"
INDEX = "batch.kubernetes.io/job-completion-index"
"""Label (and annotation) that Kubernetes sets on the pods of an Indexed Job."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a Job that Kueue admits: Kueue alone sets its spec.suspend, as its Workload says."""
KUEUE_GROUP = "kueue.x-k8s.io"
"""API group of Kueue's Workloads, of which the cluster may serve any version, or none."""
WORKLOAD_OF_JOB = "kueue.x-k8s.io/job-uid"
"""Label of a Workload with the uid of its Job."""
SUSPENDED_BY_US = "tlt.dev/suspended"
"""Annotation of a Job that the operator suspended, and may resume: a person may have suspended it too."""
KUEUE_PREFIX = "kueue.x-k8s.io/"
"""Prefix of the labels by which Kueue admits a Job (queue-name, priority-class)."""
