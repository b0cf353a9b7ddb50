"""Hints of failures that only the operator can write, with the names of what has to be mended.

The runner knows what it was refused; the Secret, the ServiceAccount and the claim stand in the resource.
"""

from __future__ import annotations

import re

from tlt_api.failures import Reason
from tlt_api.resources import Resource
from tlt_api.status import Failure
from tlt_operator.objects.job import RUNNER_SERVICE_ACCOUNT, USER

_GOES_ON = "The next attempt goes on by itself once that is mended"


def with_names(failure: Failure, resource: Resource, namespace: str) -> Failure:
    """Return a failure with a hint that names the objects of the resource that mend it."""
    if failure.reason != Reason.STORAGE_DENIED:
        return failure
    hint = _keys(resource, namespace) if "s3://" in failure.message else _folder(failure, resource, namespace)
    return failure.model_copy(update={"hint": hint}) if hint else failure


def _keys(resource: Resource, namespace: str) -> str:
    secret = resource.spec.storage.s3.secret_ref
    if secret is None:
        return (
            f"The keys come from the ServiceAccount {RUNNER_SERVICE_ACCOUNT}: kubectl describe "
            f"serviceaccount {RUNNER_SERVICE_ACCOUNT} -n {namespace} shows its role, which needs the right "
            f"to read and write there. {_GOES_ON}"
        )
    return (
        f"Renew the keys: kubectl create secret generic {secret.name} -n {namespace} "
        "--from-literal=AWS_ACCESS_KEY_ID=KEY --from-literal=AWS_SECRET_ACCESS_KEY=SECRET --dry-run=client "
        f"-o yaml | kubectl apply -f -; or give their user the right to read and write there. {_GOES_ON}"
    )


def _folder(failure: Failure, resource: Resource, namespace: str) -> str:
    claims = re.findall(r"pvc://([^/\s:]+)", f"{failure.message} {resource.spec.output.uri}")
    # Public weights over https: nothing of the cluster mends them.
    if not claims or failure.message.startswith("https://"):
        return ""
    return (
        f"In a pod that mounts the claim {claims[0]} (namespace {namespace}), chown -R {USER} FOLDER gives "
        f"the folder to the runner; kubectl get persistentvolumeclaim {claims[0]} -n {namespace} shows "
        f"whether it can be written. {_GOES_ON}"
    )
