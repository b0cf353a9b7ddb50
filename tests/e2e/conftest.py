"""The product, installed on a real node as a user would; and a namespace with data to work in."""

from __future__ import annotations

import pytest

from cluster.existing import ExistingCluster
from cluster.images import Images
from cluster.node import Node
from demo import install
from e2e.product import Product, make_namespace


@pytest.fixture(scope="session")
def product(node_cluster: Node | ExistingCluster, cluster_images: Images) -> Product:
    """The operator, running as a pod from manifests/base."""
    install.operator(node_cluster, cluster_images)
    return Product(node_cluster, cluster_images)


@pytest.fixture(scope="session")
def namespace(product: Product) -> str:
    """A namespace opened to jobs, with tiny digits scenes at pvc://tlt-data/digits."""
    return make_namespace(product, "e2e")
