"""Two pods of the real image train one model together: they find each other by name, and index 0 reports."""

from __future__ import annotations

from e2e.product import Product, training


def test_two_nodes_train_one_model_to_success(product: Product, namespace: str) -> None:
    product.cluster.apply(training("pair", namespace, epochs=2, resources={"gpus": 0, "nodes": 2}))
    status = product.wait_finished("TrainingJob", "pair", namespace)
    assert (status["phase"], status["attempt"]) == ("Succeeded", 1), status
    assert 0 <= status["metrics"]["mAP"] <= 1
    assert status["progress"]["epoch"] == 2
    assert {"best", "last"} <= {item["name"] for item in status["artifacts"]}
    pods = product.list("Pod", namespace, "job-name=pair-train-1")
    ended = {
        pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: pod["status"]["phase"]
        for pod in pods
    }
    assert ended == {"0": "Succeeded", "1": "Succeeded"}
    services = product.list("Service", namespace)
    (service,) = [item for item in services if item["metadata"]["name"] == "tlt-pair-train-1"]
    assert service["spec"]["clusterIP"] == "None"
