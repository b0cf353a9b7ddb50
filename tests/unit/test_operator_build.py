"""Manifest of an attempt's Job: restricted, complete, and with the user's choices."""

from __future__ import annotations

from typing import Any

from operator_ring.manifests import SHA, resource
from tlt_api.resources import parse
from tlt_api.runspec import PROGRESS_VARIABLE, RUN_SPEC_ANNOTATION, RUN_SPEC_PATH, RunSpec, for_attempt
from tlt_api.status import Inputs, ResolvedModel, ResolvedRecords
from tlt_operator.objects import job
from tlt_operator.settings import Settings


def run(kind: str = "TrainingJob", inputs: Inputs | None = None, **spec: Any) -> RunSpec:
    body = resource(kind, **spec)
    body["metadata"]["uid"] = "u-1"
    parsed = parse(body)
    return for_attempt(parsed, parsed.spec, inputs or Inputs(), 2)


def built(settings: Settings | None = None, **options: Any) -> dict[str, Any]:
    return job.build(run(**options), settings or Settings())


def pod(**options: Any) -> dict[str, Any]:
    return built(**options)["spec"]["template"]["spec"]


def container(**options: Any) -> dict[str, Any]:
    return pod(**options)["containers"][0]


def environment(**options: Any) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(**options)["env"]}


def test_the_job_runs_once_and_belongs_to_its_resource() -> None:
    body = built()
    assert body["metadata"]["name"] == "traffic-train-2"
    assert body["spec"]["backoffLimit"] == 0
    assert body["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert body["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "tlt.dev/v1alpha1",
            "kind": "TrainingJob",
            "name": "traffic",
            "uid": "u-1",
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    assert body["metadata"]["labels"]["tlt.dev/owner-kind"] == "TrainingJob"
    assert body["spec"]["template"]["metadata"]["labels"] == body["metadata"]["labels"]


def test_the_same_attempt_always_gives_the_same_job() -> None:
    assert built() == built()


def test_the_pod_is_restricted() -> None:
    security = pod()["securityContext"]
    assert security["runAsNonRoot"] is True
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (65532, 65532, 65532)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_run_spec_reaches_the_pod_as_a_file() -> None:
    body = built()
    template = body["spec"]["template"]
    run_spec = RunSpec.from_json(template["metadata"]["annotations"][RUN_SPEC_ANNOTATION])
    assert run_spec == run()
    volume = next(item for item in template["spec"]["volumes"] if item["name"] == "run")
    item = volume["downwardAPI"]["items"][0]
    mount = next(m for m in container()["volumeMounts"] if m["name"] == "run")
    assert f"{mount['mountPath']}/{item['path']}" == RUN_SPEC_PATH
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{RUN_SPEC_ANNOTATION}']"
    assert container()["args"] == ["train", "--spec", RUN_SPEC_PATH]


def test_every_claim_that_the_run_needs_is_mounted_once_and_inputs_read_only() -> None:
    inputs = Inputs(
        model=ResolvedModel(uri="pvc://models/a.keras", sha256=SHA),
        records=ResolvedRecords(uri="pvc://data/records", digest="d"),
    )
    mounts = container(
        inputs=inputs, model={"pretrainedWeights": {"uri": "pvc://models.shared/w.h5"}}
    )["volumeMounts"]  # fmt: skip
    claims = {m["mountPath"]: m["readOnly"] for m in mounts if m["mountPath"].startswith("/mnt/tlt")}
    assert claims == {
        "/mnt/tlt/data": True,
        "/mnt/tlt/models": True,
        "/mnt/tlt/models.shared": True,
        "/mnt/tlt/runs": False,
    }
    names = [volume["name"] for volume in pod(inputs=inputs)["volumes"]]
    assert len(names) == len(set(names))
    assert all("." not in name for name in names)


def test_an_encoded_dot_dot_mounts_no_other_claim() -> None:
    mounts = container(output={"uri": "pvc://runs/%2e%2e/models/x"})["volumeMounts"]
    claims = {m["mountPath"]: m["readOnly"] for m in mounts if m["mountPath"].startswith("/mnt/tlt")}
    assert claims == {"/mnt/tlt/data": True, "/mnt/tlt/runs": False}


def test_a_claim_that_is_read_and_written_is_writable() -> None:
    mounts = container(output={"uri": "pvc://data/out"})["volumeMounts"]
    assert [m["readOnly"] for m in mounts if m["mountPath"] == "/mnt/tlt/data"] == [False]


def test_object_stores_need_no_volume_and_get_their_secret_as_environment() -> None:
    spec = {
        "dataset": {**resource()["spec"]["dataset"], "uri": "s3://bucket/data"},
        "output": {"uri": "s3://bucket/out"},
        "storage": {"s3": {"endpoint": "http://minio:9000", "secretRef": {"name": "s3"}}},
    }
    assert not [v for v in pod(**spec)["volumes"] if "persistentVolumeClaim" in v]
    assert container(**spec)["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert "envFrom" not in container()


def test_gpus_are_limits_and_a_pod_without_them_uses_the_cpu() -> None:
    assert container(resources={"gpus": 4, "cpu": "8", "memory": "32Gi"})["resources"] == {
        "requests": {"cpu": "8", "memory": "32Gi"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "4"},
    }
    assert container(resources={"gpus": 0})["resources"] == {}
    assert environment(resources={"gpus": 0})["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in environment()


def test_the_pod_template_is_applied() -> None:
    template = {
        "image": "registry/runner:7",
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "pull"}],
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "env": [{"name": "HOME", "value": "/tmp/me"}, {"name": "X", "value": "1"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
    }
    body = pod(podTemplate=template)
    assert body["imagePullSecrets"] == [{"name": "pull"}]
    assert body["nodeSelector"] == {"gpu": "a100"}
    assert body["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert (body["runtimeClassName"], body["priorityClassName"]) == ("nvidia", "high")
    runner = body["containers"][0]
    assert (runner["image"], runner["imagePullPolicy"]) == ("registry/runner:7", "Always")
    assert environment(podTemplate=template)["HOME"] == "/tmp/me"
    assert len([item for item in runner["env"] if item["name"] == "HOME"]) == 1


def test_the_installations_image_and_service_account_are_the_defaults() -> None:
    settings = Settings(runner_image="ours:1")
    body = built(settings)["spec"]["template"]["spec"]
    assert body["containers"][0]["image"] == "ours:1"
    assert body["serviceAccountName"] == "tlt-runner"


def test_the_job_has_the_deadline_and_no_ttl_yet() -> None:
    policy = {"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 5}
    body = built(runPolicy=policy)
    # Of the pod: the Job's would count the wait for a node.
    assert body["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 60
    assert "activeDeadlineSeconds" not in body["spec"]
    assert "ttlSecondsAfterFinished" not in body["spec"]


def test_labels_for_kueue_are_copied_to_the_job_and_no_others() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "team": "vision"}
    body = job.build(run(), Settings(), labels)
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "team" not in body["metadata"]["labels"]


def test_each_kind_runs_its_own_command() -> None:
    commands = [container(kind=kind)["args"][0] for kind in ("TrainingJob", "PruneJob", "ExportJob")]
    assert commands == ["train", "prune", "export"]


def test_a_slower_pace_of_progress_is_a_variable_that_the_user_may_set() -> None:
    assert PROGRESS_VARIABLE not in environment()
    given = [{"name": PROGRESS_VARIABLE, "value": "9"}]
    for spec, seconds in (({}, "60"), ({"podTemplate": {"env": given}}, "9")):
        body = job.build(run(**spec), Settings(), progress_seconds=60)
        variables = body["spec"]["template"]["spec"]["containers"][0]["env"]
        assert {"name": PROGRESS_VARIABLE, "value": seconds} in variables


def test_a_thousand_writers_of_one_output_are_named_and_more_are_not() -> None:
    def names(count: int) -> list[str]:
        writers = [f"{number:036}" for number in range(count)]
        body = job.build(run(), Settings(), sharing_output=writers)
        [container] = body["spec"]["template"]["spec"]["containers"]
        return [item["value"] for item in container["env"] if item["name"] == "TLT_OUTPUT_WRITERS"]

    [text] = names(1000)
    assert len(text) == 1000 * 37 - 1
    assert names(1001) == []
