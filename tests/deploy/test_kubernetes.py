"""deploy/kubernetes: every object is one that the API takes, and they fit one another and the configuration."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_schema import check, check_object
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema
from ray_service import RayService

from serving.config import Config
from serving.ray_app import Arguments, application

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
CONFIG = Config.load(FOLDER / "baton.yaml")


def documents() -> list[dict[str, Any]]:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [raw for name in listed for raw in yaml.safe_load_all((FOLDER / name).read_text())]


OBJECTS = {f"{raw['kind']} {raw['metadata']['name']}": raw for raw in documents()}
SERVICE = RayService.model_validate(OBJECTS.pop("RayService baton"))
TEMPLATES = {
    "head": SERVICE.spec.rayClusterConfig.headGroupSpec.template,
    "lanes": SERVICE.spec.rayClusterConfig.workerGroupSpecs[0].template,
    **{name: raw["spec"]["template"] for name, raw in OBJECTS.items() if "template" in raw.get("spec", {})},
}


def labels(component: str) -> dict[str, str]:
    found: dict[str, str] = TEMPLATES[component]["metadata"]["labels"]
    return found


def ports(component: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in TEMPLATES[component]["spec"]["containers"][0]["ports"]}


def test_every_file_is_listed() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = {file.partition("=")[2] or file for made in kustomization["configMapGenerator"] for file in made["files"]}
    there = {path.name for path in FOLDER.iterdir()}
    assert there == {*kustomization["resources"], *files, "kustomization.yaml"}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_what_the_api_takes(name: str) -> None:
    check_object(OBJECTS[name])


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_are_locked_up_and_say_what_they_need(name: str) -> None:
    template = check(TEMPLATES[name], "V1PodTemplateSpec", name)
    assert template.spec.security_context.run_as_non_root
    mounted = {volume.name for volume in template.spec.volumes or []}
    claims = {
        claim["metadata"]["name"] for claim in OBJECTS.get(name, {}).get("spec", {}).get("volumeClaimTemplates", [])
    }
    for container in template.spec.containers:
        assert container.security_context.read_only_root_filesystem
        assert not container.security_context.allow_privilege_escalation
        assert container.security_context.capabilities.drop == ["ALL"]
        assert {"cpu", "memory"} <= container.resources.requests.keys()
        assert container.resources.limits["memory"] == container.resources.requests["memory"] or name.startswith("Dep")
        assert {mount.name for mount in container.volume_mounts} <= mounted | claims


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ({"spec": {"selector": {}, "podDisruption": 1}}, "has no"),
        ({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"a": 1}}}}, "must be of type str"),
        ({"metadata": ["a"]}, "must be a V1ObjectMeta"),
    ],
)
def test_the_check_sees_what_the_api_would_refuse(spoilt: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", **spoilt}, "V1PodDisruptionBudget", "budget")
    with pytest.raises(ValidationError):
        RayService.model_validate({**SERVICE.model_dump(), "speck": {}})


def test_the_application_is_one_that_ray_serve_deploys() -> None:
    raw = yaml.safe_load(SERVICE.spec.serveConfigV2)
    schema = ServeDeploySchema.model_validate(raw)
    (app,) = schema.applications
    assert app.import_path == "serving.ray_app:build"
    mounts = {m["name"]: m["mountPath"] for m in TEMPLATES["lanes"]["spec"]["containers"][0]["volumeMounts"]}
    assert Arguments.model_validate(app.args).config == Path(mounts["config"]) / "baton.yaml"
    assert CONFIG.home.parent == Path(mounts["home"])  # a folder inside the volume, which Baton makes for itself alone
    passwords = {CONFIG.state.password_file, CONFIG.traffic.password_file}
    assert all(path is not None and path.parent == Path(mounts["passwords"]) for path in passwords)
    assert SERVICE.spec.rayClusterConfig.rayVersion == version("ray")
    assert application(CONFIG) is not None


def test_replicas_fit_the_pods_that_are_made_for_them() -> None:
    (group,) = SERVICE.spec.rayClusterConfig.workerGroupSpecs
    head = SERVICE.spec.rayClusterConfig.headGroupSpec
    assert (group.minReplicas, group.maxReplicas) == (CONFIG.ray.min_replicas, CONFIG.ray.max_replicas)
    assert CONFIG.ray.fixed_port
    for start, needed, cpus in (
        (group.rayStartParams, CONFIG.ray.resources, CONFIG.ray.num_cpus or CONFIG.engine.lanes),
        (head.rayStartParams, CONFIG.ray.control_resources, 2),
    ):
        offered = json.loads(json.loads(start["resources"].strip("'")))
        assert all(offered.get(name, 0) >= amount for name, amount in needed.items())
        assert float(start["num-cpus"]) >= cpus
    requests = TEMPLATES["lanes"]["spec"]["containers"][0]["resources"]["requests"]
    assert float(requests["cpu"]) == float(group.rayStartParams["num-cpus"])


def test_who_looks_for_pods_finds_them() -> None:
    assert ports("lanes")["grpc"] == CONFIG.listen.grpc_port
    assert (ports("head")["http"], ports("head")["grpc-admin"]) == (CONFIG.listen.http_port, CONFIG.listen.admin_port)
    for service, component in (
        ("baton-lanes", "lanes"), ("baton-control", "head"), ("envoy", "Deployment envoy"),
        ("redis-state", "StatefulSet redis-state"), ("redis-cache", "StatefulSet redis-cache"),
    ):  # fmt: skip
        spec = OBJECTS[f"Service {service}"]["spec"]
        assert spec["selector"].items() <= labels(component).items()
        assert {port["targetPort"] for port in spec["ports"]} <= ports(component).keys()
    assert OBJECTS["Service baton-lanes"]["spec"]["clusterIP"] == "None"
    for name, raw in OBJECTS.items():
        if name.startswith("PodDisruptionBudget"):
            wanted = raw["spec"]["selector"]["matchLabels"].items()
            assert any(wanted <= labels(component).items() for component in TEMPLATES)
    probe = TEMPLATES["lanes"]["spec"]["containers"][0]["readinessProbe"]
    assert probe["grpc"]["port"] == CONFIG.listen.grpc_port


def test_redis_of_the_state_keeps_everything_and_that_of_the_cache_nothing() -> None:
    commands = {
        role: " ".join(OBJECTS[f"StatefulSet redis-{role}"]["spec"]["template"]["spec"]["containers"][0]["command"])
        for role in ("state", "cache")
    }
    assert "--maxmemory-policy noeviction --appendonly yes" in commands["state"]
    assert "--maxmemory-policy allkeys-lfu" in commands["cache"]
    assert OBJECTS["StatefulSet redis-state"]["spec"]["volumeClaimTemplates"]
    assert CONFIG.embedding.redis is not None
    assert (CONFIG.state.url, CONFIG.embedding.redis.url) == (
        "redis://redis-state:6379/0",
        "redis://redis-cache:6379/0",
    )


def test_envoy_asks_the_lanes_for_their_health() -> None:
    static = yaml.safe_load((FOLDER / "envoy-config.yaml").read_text())["static_resources"]
    cluster, control = static["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert (address["address"], address["port_value"]) == ("baton-lanes", CONFIG.listen.grpc_port)
    assert cluster["health_checks"][0]["grpc_health_check"] == {}
    (behind,) = control["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = behind["endpoint"]["address"]["socket_address"]
    assert (address["address"], address["port_value"]) == ("baton-control", CONFIG.listen.http_port)
    listening = {one["name"]: one["address"]["socket_address"]["port_value"] for one in static["listeners"]}
    assert listening == ports("Deployment envoy")
