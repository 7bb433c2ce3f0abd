"""The container files agree with the settings and with one another."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DEPLOYMENT, SERVICE = (
    yaml.safe_load((ROOT / f"deploy/kubernetes/base/{name}.yaml").read_text(encoding="utf-8"))
    for name in ("deployment", "service")
)
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
DRAIN_S = DEFAULTS["drain_delay_s"] + DEFAULTS["drain_timeout_s"]
HEALTHCHECK = ["caption-service", "healthcheck"]


STAGES = dict(
    re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
)


def instruction(name):
    """The last instruction of that name, which is the one that counts."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1]


def test_the_server_is_process_one_and_hears_sigterm():
    assert json.loads(instruction("ENTRYPOINT")) == ["caption-service"]
    assert json.loads(instruction("CMD")) == ["serve"]


def test_the_user_is_a_number_that_kubernetes_can_check():
    assert instruction("USER") == "10001:10001"
    assert POD["securityContext"]["runAsUser"] == 10001
    assert POD["securityContext"]["runAsNonRoot"]


def test_the_image_checks_its_health_with_its_own_command():
    assert json.loads(instruction("HEALTHCHECK").split("CMD ")[1]) == HEALTHCHECK
    assert COMPOSE["services"]["caption"]["healthcheck"]["test"] == ["CMD", *HEALTHCHECK]
    assert "curl" not in DOCKERFILE


def test_the_grace_period_is_longer_than_the_drain():
    assert POD["terminationGracePeriodSeconds"] > DRAIN_S
    assert int(COMPOSE["services"]["caption"]["stop_grace_period"].removesuffix("s")) > DRAIN_S


def test_every_file_names_the_same_port():
    assert int(instruction("EXPOSE")) == DEFAULTS["port"]
    assert CONTAINER["ports"][0] == {"name": "http", "containerPort": DEFAULTS["port"]}
    published = COMPOSE["services"]["caption"]["ports"]
    assert published == [f"127.0.0.1:{DEFAULTS['port']}:{DEFAULTS['port']}"]
    assert SERVICE["spec"]["ports"][0]["targetPort"] == "http"


class Overriding(yaml.SafeLoader):
    """Reads what Compose replaces and does not merge."""


Overriding.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def test_compose_publishes_on_loopback_and_to_the_network_only_with_a_key():
    public = yaml.load((ROOT / "docker-compose.public.yml").read_text(), Overriding)["services"]  # noqa: S506
    for name, service in COMPOSE["services"].items():
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports), name
        if "CAPTION" in str(service) or "build" in service:
            assert public[name]["environment"]["CAPTION_API_KEYS"].startswith(
                "${CAPTION_API_KEYS:?"
            )
    published = {name: one["ports"] for name, one in public.items() if "ports" in one}
    assert published == {
        name: [COMPOSE["services"][name]["ports"][0].removeprefix("127.0.0.1:")]
        for name in ("caption", "caption-gpu", "balancer")
    }


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")],
)
def test_each_probe_asks_its_own_question(probe, path):
    assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "http"}


def test_the_service_selects_the_pods():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()


def test_the_root_is_read_only_and_uploads_spool_to_tmp():
    compose = COMPOSE["services"]["caption"]
    assert compose["read_only"]
    assert compose["cap_drop"] == ["ALL"]
    assert compose["security_opt"] == ["no-new-privileges:true"]
    assert compose["tmpfs"][0].startswith("/tmp:")  # noqa: S108 - the path in the container
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert CONTAINER["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108


def test_the_spool_holds_all_uploads_in_flight():
    size = POD["volumes"][0]["emptyDir"]["sizeLimit"]
    assert int(size.removesuffix("Mi")) * 2**20 > DEFAULTS["max_inflight_bytes"]


def test_the_context_carries_what_the_builder_copies():
    allowed = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert {name for line in copied for name in line.split()} == allowed


def test_the_image_is_for_a_cpu_unless_another_is_asked_for():
    assert list(STAGES)[-1] == "cpu"
    assert "--from=packages-cpu " in STAGES["cpu"]
    assert "--from=packages-gpu " in STAGES["gpu"]
    assert "dependencies.py gpu " in STAGES["packages-gpu"]
    assert "dependencies.py ${EXTRAS}" in STAGES["packages-cpu"]


def test_compose_names_the_target_of_each_service():
    services = COMPOSE["services"]
    targets = {name: one["build"]["target"] for name, one in services.items() if "build" in one}
    assert targets == {"caption": "cpu", "caption-gpu": "gpu", "caption-replica": "gpu"}
    assert services["caption"]["image"] != services["caption-gpu"]["image"]
    assert CONTAINER["image"] == services["caption"]["image"]


def dependencies_of(*extras):
    command = [sys.executable, ROOT / "deploy/dependencies.py", *extras]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {re.match(r"[\w-]+", line)[0] for line in done.stdout.splitlines()}


def test_only_the_image_for_a_gpu_gets_torch():
    assert not dependencies_of() & {"torch", "torchvision", "caption-service"}
    assert "openvino" in dependencies_of()
    assert dependencies_of("gpu") - dependencies_of() == {"torch", "torchvision"}


def test_an_extra_that_names_another_brings_what_that_one_has():
    assert {"torch", "nncf", "opentelemetry-sdk"} <= dependencies_of("train", "dev")
    assert "caption-service" not in dependencies_of("train", "dev")


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_lock_names_every_dependency_and_nothing_but_names_and_versions():
    locked = constraints()
    wanted = dependencies_of("train", "dev", "otel", "bench")
    assert {re.sub("[-_.]+", "-", name) for name in locked} >= wanted
    assert all(re.fullmatch(r"[\w.*]+", version) for version in locked.values())


def test_the_lock_leaves_the_build_of_torch_to_the_machine():
    assert [name for name in constraints() if name.startswith(("nvidia", "cuda"))] == []
    assert "triton" not in constraints()
    assert constraints()["torch"].endswith(".*")
    assert constraints()["torchvision"].endswith(".*")


def test_make_ci_and_the_image_install_what_is_locked():
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--constraint constraints.txt" in DOCKERFILE
    assert "make test-all" in (ROOT / ".ci/run").read_text(encoding="utf-8")
