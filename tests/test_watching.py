"""The dashboard and the alerts ask for what the service tells."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from support.api import RAW
from support.fake import serving

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
METRIC = re.compile(r"\b((?:caption|process)_\w+)(?:\{([^}]*)\})?")
PROMETHEUS_ADDS = {"instance", "job", "le"}


async def told():
    """Give the labels of every sample that the service tells, by its name."""
    async with serving() as client:
        await client.post("/v1/captions", content=b"a", headers=RAW)
        text = (await client.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    labels = {sample.name: set(sample.labels) for one in families for sample in one.samples}
    for one in families:  # a counter that nobody has counted yet has no sample
        labels.setdefault(f"{one.name}_total" if one.type == "counter" else one.name, None)
    return labels


@pytest.mark.parametrize("expression", [*PANELS, *(rule["expr"] for rule in RULES)])
async def test_whatever_is_asked_for_is_told(expression):
    asked = METRIC.findall(expression)
    assert asked or re.search(r"\b(up\{|haproxy_)", expression)  # of others; test_balancer has them
    samples = await told()
    for name, selector in asked:
        assert name in samples, name
        for label in re.findall(r"(\w+)\s*=", selector):
            assert label in PROMETHEUS_ADDS | (samples[name] or {label})
    assert expression.count("(") == expression.count(")")


async def test_every_metric_of_ours_is_on_the_dashboard():
    shown = {name for expression in PANELS for name, _ in METRIC.findall(expression)}
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in await told()}
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    assert {name for name in families if name.startswith("caption_")} - shown == set()


def test_every_panel_shows_the_version_and_the_instance_that_are_chosen():
    variables = {each["name"]: each["query"] for each in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"version", "instance"}
    assert 'version=~"$version"' in variables["instance"]  # a version narrows the instances
    for expression in PANELS:
        for name, selector in METRIC.findall(expression):
            if name != "caption_ready":  # who is not ready may serve no version yet
                assert re.search(r"\$(instance|version)\b", selector), expression
            if name in {"caption_requests_total", "caption_images_total"}:
                assert "$version" in selector, expression


@pytest.mark.parametrize("series", ['up{job="caption"}', "caption_ready == 1"])
def test_somebody_is_called_when_what_should_be_there_is_absent(series):
    (rule,) = (rule for rule in RULES if rule["expr"] == f"absent({series})")
    assert rule["labels"]["severity"] == "page"


def test_every_alert_says_what_is_wrong_and_where_to_look():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 6
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "look_at"}


def test_compose_mounts_every_file_there_is():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    services = [compose["services"][name] for name in ("prometheus", "grafana")]
    mounted = [volume.split(":") for service in services for volume in service["volumes"]]
    files = {
        path
        for folder in ("prometheus", "grafana")
        for path in (ROOT / "deploy" / folder).iterdir()
    }
    assert {ROOT / source for source, _, mode in mounted if mode == "ro"} == files
    targets = {target for _, target, _ in mounted}
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert set(scrape["rule_files"]) <= targets
    assert scrape["scrape_configs"][0]["static_configs"] == [{"targets": ["caption:8000"]}]
    jobs = {each["job_name"] for each in scrape["scrape_configs"]}
    assert jobs == {job for rule in RULES for job in re.findall(r'job="(\w+)"', rule["expr"])}
    assert all(service["profiles"] == ["watch"] for service in services)
