"""The kustomize tree: each overlay is what Kubernetes takes, and agrees with the service."""

import copy
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app.dialects.kserve import KSERVE
from app.settings import Settings

ROOT = Path(__file__).parents[1]
TREE = ROOT / "deploy/kubernetes"
SCHEMAS = Path(__file__).parent / "support/schemas"
OVERLAYS = ("cpu", "canary", "gpu", "kserve")
COMPONENTS = ("checkpoint-claim", "checkpoint-image")
KUBERNETES = "1.33"  # the first that has image volumes without a feature gate
NAME = "app.kubernetes.io/name"
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
KUSTOMIZE = next(
    (
        [program, *verb]
        for program, verb in (("kustomize", ["build"]), ("kubectl", ["kustomize"]))
        if shutil.which(program)
    ),
    None,
)
pytestmark = pytest.mark.skipif(KUSTOMIZE is None, reason="neither kustomize nor kubectl")


@cache
def rendered(folder):
    """Give what kustomize makes of a folder, by kind."""
    done = subprocess.run([*KUSTOMIZE, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def overlay(name):
    return copy.deepcopy(rendered(TREE / "overlays" / name))


def with_component(name, tmp_path):
    """Render the overlay for a CPU with one more component, as an operator would add it."""
    shutil.copytree(TREE, tmp_path / "kubernetes")
    file = tmp_path / "kubernetes/overlays/cpu/kustomization.yaml"
    added = f"components:\n  - ../../components/{name}\n"
    file.write_text(file.read_text(encoding="utf-8").replace("components:\n", added))
    return rendered(file.parent)


def pod_of(name):
    if name == "kserve":
        return overlay(name)["InferenceService"]["spec"]["predictor"]
    return overlay(name)["Deployment"]["spec"]["template"]["spec"]


def environment(pod):
    return {each["name"]: each["value"] for each in pod["containers"][0]["env"]}


def bytes_of(quantity):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]


def check(document):
    """Hold a document to the schema of its kind; an unknown field is an error."""
    schema = SCHEMAS / f"{document['kind']}.json"
    if schema.exists():
        jsonschema.validate(document, json.loads(schema.read_text(encoding="utf-8")))
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


KSERVES_OWN = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}


def as_pod(predictor):
    """Give the pod that KServe makes of a predictor: all but what is KServe's own."""
    spec = {name: value for name, value in predictor.items() if name not in KSERVES_OWN}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_takes_every_document_of_an_overlay(name):
    documents = overlay(name)
    assert documents
    for document in documents.values():
        check(document)


def test_kubernetes_takes_the_pod_that_kserve_makes():
    check(as_pod(pod_of("kserve")))


@pytest.mark.parametrize(
    ("name", "kind", "place"),
    [
        ("cpu", "Deployment", ("spec", "replica")),
        ("cpu", "HorizontalPodAutoscaler", ("spec", "metric")),
        ("cpu", "ServiceMonitor", ("spec", "endpoint")),
        ("kserve", "InferenceService", ("spec", "predictor", "minReplica")),
    ],
)
def test_a_misspelt_field_is_noticed(name, kind, place):
    document = overlay(name)[kind]
    *path, field = place
    inner = document
    for part in path:
        inner = inner[part]
    inner[field] = 1
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)


@pytest.mark.parametrize("name", ["cpu", "canary", "gpu"])
def test_every_selector_finds_the_pods_and_nothing_else(name):
    documents = overlay(name)
    template = documents["Deployment"]["spec"]["template"]
    selectors = [
        documents["Service"]["spec"]["selector"],
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        documents["ServiceMonitor"]["spec"]["selector"]["matchLabels"],
        *(
            each["labelSelector"]["matchLabels"]
            for each in template["spec"]["topologySpreadConstraints"]
        ),
    ]
    assert len(selectors) == 7
    labels = {NAME: "caption-service-canary" if name == "canary" else "caption-service"}
    assert all(selector == labels == template["metadata"]["labels"] for selector in selectors)
    assert documents["Service"]["metadata"]["labels"] == labels  # which the monitor looks for


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_is_locked_down_and_ends_in_peace(name):
    pod = pod_of(name)
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    drain_s = DEFAULTS["drain_delay_s"] + DEFAULTS["drain_timeout_s"] + 8
    assert pod["terminationGracePeriodSeconds"] > drain_s


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_variable_is_a_setting_and_takes_its_value(name):
    told = environment(pod_of(name))
    names = {variable.removeprefix("CAPTION_").lower(): told[variable] for variable in told}
    assert names.keys() <= Settings.model_fields.keys()
    Settings(**names)
    assert told["CAPTION_CHECKPOINT"] == str(DEFAULTS["checkpoint"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_names_an_image_with_a_tag(name):
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    tag = version[1] + ("-gpu" if name == "gpu" else "")
    assert pod_of(name)["containers"][0]["image"] == f"caption-service:{tag}"


@pytest.mark.parametrize("name", ["cpu", "kserve"])
def test_there_are_as_many_workers_as_cores_are_asked_for(name):
    pod = pod_of(name)
    cores = pod["containers"][0]["resources"]["requests"]["cpu"]
    assert environment(pod)["CAPTION_INFERENCE_THREADS"] == cores


@pytest.mark.parametrize("name", OVERLAYS)
def test_memory_holds_what_was_measured(name):
    resources = pod_of(name)["containers"][0]["resources"]
    requested = bytes_of(resources["requests"]["memory"])
    limit = bytes_of(resources["limits"]["memory"])
    # docs/performance.md: two workers under load, eight workers, one on a GPU
    two, eight, gpu, decoding = 440e6, 1115e6, 1.6e9, 650e6
    assert requested >= (gpu if name == "gpu" else two)
    assert limit >= eight + decoding
    assert "cpu" not in resources["limits"]


def test_each_replica_has_one_gpu_and_a_rollout_needs_no_other():
    deployment = overlay("gpu")["Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert environment(pod)["CAPTION_DEVICE"] == "cuda"
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("name", ["cpu", "canary", "gpu"])
def test_the_autoscaler_asks_for_what_the_adapter_makes_of_our_metric(name):
    scaler = overlay(name)["HorizontalPodAutoscaler"]["spec"]
    asked = scaler["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load((TREE / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == asked
    series = re.match(r"(\w+)\{", rule["seriesQuery"])[1]
    assert f"`{series}`" in (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert "replicas" not in overlay(name)["Deployment"]["spec"]  # it would undo the autoscaler's
    assert scaler["minReplicas"] == (1 if name == "canary" else 2)
    assert scaler["scaleTargetRef"]["name"] == overlay(name)["Deployment"]["metadata"]["name"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_checkpoint_may_come_from_a_volume(name, tmp_path):
    documents = with_component(name, tmp_path)
    for document in documents.values():
        check(document)
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    told = environment(pod)["CAPTION_CHECKPOINT"]
    (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] != "tmp")
    assert mount["readOnly"]
    assert told.startswith(f"{mount['mountPath']}/")
    assert {each["name"] for each in pod["volumes"]} == {"tmp", mount["name"]}


def test_kserve_gets_the_pod_of_the_others():
    own, other = pod_of("kserve"), pod_of("cpu")
    (container,), (usual,) = own["containers"], other["containers"]
    assert container["name"] == "kserve-container"  # the name that KServe looks for
    for part in ("image", "env", "resources", "securityContext", "volumeMounts"):
        assert container[part] == usual[part], part
    for part in ("securityContext", "volumes", "terminationGracePeriodSeconds"):
        assert own[part] == other[part], part
    probes = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness")}
    assert probes <= {route.path for route in KSERVE.routes}
    assert own["timeout"] > DEFAULTS["deadline_s"]
    assert container["ports"][0]["containerPort"] == DEFAULTS["port"]
    scraped = overlay("kserve")["InferenceService"]["metadata"]["annotations"]["prometheus.io/port"]
    assert scraped == environment(own)["CAPTION_ADMIN_PORT"]


@pytest.mark.parametrize("name", ["cpu", "canary", "gpu"])
def test_only_monitoring_reaches_the_operators_port(name):
    documents = overlay(name)
    pod = pod_of(name)
    port = int(environment(pod)["CAPTION_ADMIN_PORT"])
    assert {"name": "admin", "containerPort": port} in pod["containers"][0]["ports"]
    callers, monitoring = documents["NetworkPolicy"]["spec"]["ingress"]
    assert callers["ports"] == [{"port": "http"}]
    assert monitoring["ports"] == [{"port": "admin"}]
    assert monitoring["from"][0]["namespaceSelector"]
    assert documents["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == "admin"
    assert {each["name"] for each in documents["Service"]["spec"]["ports"]} == {"http", "admin"}


def test_nothing_may_leave_a_pod():
    policy = overlay("cpu")["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_two_versions_share_nothing_in_the_cluster():
    one, two = overlay("cpu"), overlay("canary")
    assert one.keys() == two.keys()
    for kind in one:
        assert two[kind]["metadata"]["name"] == f"{one[kind]['metadata']['name']}-canary"


def test_the_alerts_are_a_rule_of_the_operator_by_the_command_that_is_documented():
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```\n(\{ printf .*?)```", page, re.DOTALL)
    command = command.replace("kubectl apply -f -", "cat")
    done = subprocess.run(["/bin/bash", "-c", command], cwd=ROOT, capture_output=True, check=True)
    rule = yaml.safe_load(done.stdout)
    check(rule)
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    assert rule["spec"] == alerts
