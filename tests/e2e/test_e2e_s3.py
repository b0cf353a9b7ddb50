"""A data set in an object store, results into it; the keys come from a Secret and appear nowhere else."""

from __future__ import annotations

import hashlib
import json

import boto3

from cluster import paths
from cluster.object_store import ObjectStore
from e2e.product import TINY, Product, resource, training


def upload(s3: ObjectStore, bucket: str) -> None:
    """Put the tiny digits scenes, which the namespace fixture has generated, into the bucket."""
    s3.make_bucket(bucket)
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
    )
    folder = paths.CACHE / "e2e" / f"digits-{TINY.images}-{TINY.width}-{TINY.seed}"
    for file in sorted(folder.rglob("*.*")):
        client.upload_file(str(file), bucket, f"digits/{file.relative_to(folder)}")


def test_a_training_reads_and_writes_an_object_store_with_the_keys_of_a_secret(
    product: Product, namespace: str, s3: ObjectStore
) -> None:
    upload(s3, "data")
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    metadata = {"name": "bucket", "namespace": namespace}
    product.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})
    storage = {"s3": {"endpoint": s3.endpoint, "secretRef": {"name": "bucket"}}}
    body = training("remote", namespace, storage=storage, output={"uri": "s3://data/runs/remote"})
    body["spec"]["dataset"]["uri"] = "s3://data/digits"
    product.cluster.apply(body)
    spec = {
        "model": {"trainingJobRef": {"name": "remote"}},
        "target": {"parameters": 0.9},
        "minFilters": 8,
        "storage": storage,
        "output": {"uri": "s3://data/runs/remote-pruned"},
        "resources": {"gpus": 0},
    }
    product.cluster.apply(resource("PruneJob", "remote-pruned", namespace, spec))

    trained = product.wait_finished("TrainingJob", "remote", namespace)
    assert trained["phase"] == "Succeeded", trained.get("failure")
    pruned = product.wait_finished("PruneJob", "remote-pruned", namespace)
    assert pruned["phase"] == "Succeeded", pruned.get("failure")
    for artifact in trained["artifacts"] + pruned["artifacts"]:
        stored = s3.directory / artifact["uri"].removeprefix("s3://")
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == artifact["sha256"]

    objects = [product.get("TrainingJob", "remote", namespace)]
    for kind in ("Pod", "Job", "Event"):
        objects += product.list(kind, namespace)
    logs = product.cluster.kubectl("logs", "-n", namespace, "job/remote-train-1")
    assert s3.secret_key not in json.dumps(objects)
    assert s3.secret_key not in logs


def test_wrong_keys_are_storage_denied_until_the_users_limit(
    product: Product, namespace: str, s3: ObjectStore
) -> None:
    upload(s3, "closed")
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": "not-the-key"}
    metadata = {"name": "wrong", "namespace": namespace}
    product.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})
    storage = {"s3": {"endpoint": s3.endpoint, "secretRef": {"name": "wrong"}}}
    body = training("denied", namespace, storage=storage)
    body["spec"]["dataset"]["uri"] = "s3://closed/digits"
    body["spec"]["runPolicy"] = {"startTimeoutSeconds": 240}
    product.cluster.apply(body)
    status = product.wait_finished("TrainingJob", "denied", namespace)
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "StorageDenied")
    assert "kubectl create secret generic wrong" in status["failure"]["hint"]
    assert status["restarts"] > 0
