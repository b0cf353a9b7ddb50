"""A cluster that KUBECONFIG names, with the surface of `Node`, for machines where none can be started.

Called by fixtures and the demo. Nothing is imported into it: TLT_OPERATOR_IMAGE and TLT_RUNNER_IMAGE name
images that it can pull. Naming them is also the sign that tests may write to that cluster.
"""

import os
from pathlib import Path

from .control_plane import Cluster
from .errors import UnavailableError
from .images import Images

_IMAGES = ("TLT_OPERATOR_IMAGE", "TLT_RUNNER_IMAGE")


class ExistingCluster(Cluster):
    """Somebody else's cluster."""

    is_local = False

    def __init__(self, kubeconfig: Path, images: Images) -> None:
        super().__init__(kubeconfig, "")
        self.server = self.kubectl(
            "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"
        )
        self.images = images

    @property
    def host_address(self) -> str:
        """Refuse: pods of an existing cluster need not reach this host."""
        raise UnavailableError(
            "pods of an existing cluster may not reach this machine; use object storage of your own"
        )

    def set_gpus(self, count: int) -> None:
        """Refuse: nodes that are not ours keep the GPUs they have."""
        raise UnavailableError(
            f"expected an own node to give {count} fake GPUs, but KUBECONFIG names an existing cluster"
        )

    def persistent_volume(
        self, claim_name: str, namespace: str, size: str = "10Gi", folder: Path | None = None
    ) -> None:
        """Makes a claim of the cluster's default storage class. There is no folder of this host behind it."""
        if folder is not None:
            raise UnavailableError(f"an existing cluster cannot mount {folder} of this machine")
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim_name, "namespace": namespace},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
            }
        )


def is_named() -> bool:
    """Return True if the environment names a cluster and the images for it."""
    return bool(os.environ.get("KUBECONFIG")) and all(os.environ.get(name) for name in _IMAGES)


def existing_cluster() -> ExistingCluster:
    """The cluster that KUBECONFIG names.

    Raises:
        UnavailableError: a variable is missing.
    """
    missing = [name for name in ("KUBECONFIG", *_IMAGES) if not os.environ.get(name)]
    if missing:
        raise UnavailableError(
            f"using an existing cluster needs the environment variables {', '.join(missing)}"
        )
    operator, runner = (os.environ[name] for name in _IMAGES)
    return ExistingCluster(Path(os.environ["KUBECONFIG"]), Images(operator, runner))
