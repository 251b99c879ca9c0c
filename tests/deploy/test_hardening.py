"""Rules of our own for deploy/: what an audit of containers and clusters looks for, held against every file there."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_process import RedisProcess

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXACT = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*(@sha256:[0-9a-f]{64})?")
SECRET_WORDS = re.compile(r"(?i)pass(word)?|requirepass|secret|token|--pass|-a$")
Document = dict[str, Any]


def pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Name and specification of each pod template."""
    for raw in documents:
        where = f"{raw['kind']} {raw['metadata']['name']}"
        if raw["kind"] == "RayService":
            cluster = raw["spec"]["rayClusterConfig"]
            yield f"{where} head", cluster["headGroupSpec"]["template"]["spec"]
            yield from ((f"{where} {g['groupName']}", g["template"]["spec"]) for g in cluster["workerGroupSpecs"])
        elif "template" in raw.get("spec", {}):
            yield where, raw["spec"]["template"]["spec"]


def pod_faults(documents: list[Document]) -> Iterator[str]:
    """Faults of pods: who they are, what they may do, what they are told."""
    for where, pod in pods(documents):
        if pod.get("automountServiceAccountToken") is not where.endswith("head"):
            yield f"{where}: only the head, whose autoscaler asks Kubernetes for pods, has a service account's token"
        if pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC"):
            yield f"{where}: shares a namespace of its host"
        context = pod.get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("runAsUser")):
            yield f"{where}: may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where}: has no seccomp profile"
        for volume in pod.get("volumes", ()):
            if "hostPath" in volume:
                yield f"{where}: mounts a path of its host"
            for kind in ("secret", "projected"):
                if kind in volume and volume[kind].get("defaultMode", 0o644) & 0o007:
                    yield f"{where}: {volume['name']} may be read by others"
        for container in pod["containers"]:
            yield from container_faults(f"{where}: {container['name']}", container)


def container_faults(where: str, container: Document) -> Iterator[str]:
    """Faults of one container of Kubernetes."""
    if not EXACT.fullmatch(container["image"]):
        yield f"{where}: image {container['image']} is not an exact version"
    locked = container.get("securityContext", {})
    if locked.get("allowPrivilegeEscalation") is not False or locked.get("privileged"):
        yield f"{where}: may get more rights"
    if not locked.get("readOnlyRootFilesystem") or locked.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{where}: may write to its image, or has capabilities"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield f"{where}: may take all memory of its node"
    yield from (f"{where}: a password in {word}" for word in words_of_secrets(container))


def words_of_secrets(container: Document) -> Iterator[str]:
    """Values on the command line or in the environment that look like a secret of their own."""
    words = [*container.get("command", ()), *container.get("args", ())]
    for word in words:
        if re.search(r"\$\(?\{?\w*(PASS|SECRET|TOKEN)", word) or re.search(r"--requirepass|--masterauth", word):
            yield word
    for name in ("--pass", "-a"):
        if name in words and words[words.index(name) + 1] != "none":  # the health check's user has none
            yield name
    environment = container.get("env", ())
    listed = environment.items() if isinstance(environment, dict) else ((e["name"], e) for e in environment)
    for name, value in [*listed, *dict(container.get("environment", {})).items()]:
        if SECRET_WORDS.search(name) and not name.endswith("__FILE"):
            yield f"{name}={value}"


def network_faults(documents: list[Document]) -> Iterator[str]:
    """Faults of network policies."""
    policies = {raw["metadata"]["name"]: raw["spec"] for raw in documents if raw["kind"] == "NetworkPolicy"}
    if policies.get("default-deny") != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "there is no policy that denies all ways in and out"
    for name, spec in policies.items():
        for way, peers in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(way, ()):
                if way.capitalize() not in spec["policyTypes"]:
                    yield f"{name}: {way} is not in force"
                open_door = name == "envoy" and way == "ingress"  # the one door for everyone, and that by port
                if not rule.get(peers) and not open_door:
                    yield f"{name}: {way} for everyone"
                if not rule.get("ports") and rule.get(peers) != [OWN]:
                    yield f"{name}: {way} at every port"
                for peer in rule.get(peers, ()):
                    if "namespaceSelector" in peer and not (
                        peer["namespaceSelector"].get("matchLabels") and peer.get("podSelector", {}).get("matchLabels")
                    ):
                        yield f"{name}: a label of any namespace, or every pod of one, is let through"


OWN = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "baton"}}}
"""Pods of Baton among themselves: Ray takes ports as it likes."""


def compose_faults(documents: list[Document]) -> Iterator[str]:
    """Faults of deploy/compose.yaml; tests/deploy/test_compose.py has what its form demands."""
    (compose,) = documents
    for name, service in compose["services"].items():
        if not EXACT.fullmatch(service["image"]):
            yield f"{name}: image {service['image']} is not an exact version"
        if service.get("security_opt") != ["no-new-privileges:true"] or service.get("cap_drop") != ["ALL"]:
            yield f"{name}: may get more rights"
        if not service.get("read_only") or service.get("privileged"):
            yield f"{name}: may write to its image"
        if str(service.get("user", "0")).startswith(("0", "root")):
            yield f"{name}: runs as root"
        yield from (f"{name}: a password in {word}" for word in words_of_secrets(service))
        if "redis-server" in service.get("command", ()) and "--aclfile" not in service["command"]:
            yield f"{name}: Redis without a password"
        if "grafana/" in service["image"] and "GF_SECURITY_ADMIN_PASSWORD__FILE" not in service.get("environment", {}):
            yield f"{name}: has the password that everyone knows"
        for port in service.get("ports", ()):
            if not port.startswith("127.0.0.1:"):
                yield f"{name}: port {port} is published to other machines"
        for volume in service.get("volumes", ()):
            if "docker.sock" in volume:
                yield f"{name}: may command the container engine"


def loaded(*names: str) -> list[Document]:
    return [raw for name in names for raw in yaml.safe_load_all((DEPLOY / name).read_text())]


MANIFESTS = tuple(
    f"kubernetes/{name}" for name in ("namespace.yaml", "redis.yaml", "rayservice.yaml", "services.yaml", "network.yaml", "envoy.yaml")
)  # fmt: skip
RULES: dict[str, tuple[Callable[[list[Document]], Iterator[str]], tuple[str, ...]]] = {
    "pods": (pod_faults, MANIFESTS),
    "networks": (network_faults, MANIFESTS),
    "compose": (compose_faults, ("compose.yaml",)),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_is_deployed_keeps_the_rules(rule: str) -> None:
    faults, files = RULES[rule]
    assert list(faults(loaded(*files))) == []


def _find(documents: list[Document], kind: str, name: str) -> Document:
    return next(raw for raw in documents if raw["kind"] == kind and raw["metadata"]["name"] == name)


def _redis(documents: list[Document]) -> Document:
    found: Document = _find(documents, "StatefulSet", "redis-state")["spec"]["template"]["spec"]
    return found


def _policy(documents: list[Document], name: str) -> Document:
    found: Document = _find(documents, "NetworkPolicy", name)["spec"]
    return found


SPOILT: list[tuple[str, Callable[[list[Document]], Any], str]] = [
    ("pods", lambda d: _redis(d).pop("automountServiceAccountToken"), "service account"),
    ("pods", lambda d: _redis(d)["containers"][0].update(image="redis:7"), "exact version"),
    ("pods", lambda d: _redis(d)["containers"][0].update(image="redis:latest"), "exact version"),
    ("pods", lambda d: _redis(d)["containers"][0]["command"].append("--requirepass $PASSWORD"), "a password in"),
    ("pods", lambda d: _redis(d)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"), "more rights"),
    ("pods", lambda d: _redis(d)["volumes"][0]["secret"].pop("defaultMode"), "read by others"),
    ("pods", lambda d: _redis(d)["containers"][0].update(env=[{"name": "REDIS_PASSWORD", "value": "x"}]), "a password in"),
    ("networks", lambda d: _policy(d, "default-deny").update(policyTypes=["Ingress"]), "denies all"),
    ("networks", lambda d: _policy(d, "ray")["ingress"][1]["from"][0].update(namespaceSelector={}), "any namespace"),
    ("networks", lambda d: _policy(d, "ray")["ingress"][1].pop("ports"), "every port"),
    ("networks", lambda d: _policy(d, "bundles")["egress"][0].pop("to"), "for everyone"),
    ("compose", lambda d: d[0]["services"]["grafana"]["environment"].clear(), "everyone knows"),
    ("compose", lambda d: d[0]["services"]["redis-state"].pop("security_opt"), "more rights"),
    ("compose", lambda d: d[0]["services"]["redis-state"]["command"].__setitem__(1, "--port"), "without a password"),
    ("compose", lambda d: d[0]["services"]["redis-state"]["command"].extend(["--requirepass", "x"]), "a password in"),
    ("compose", lambda d: d[0]["services"]["control"]["ports"].append("8000:8000"), "other machines"),
    ("compose", lambda d: d[0]["services"]["control"].update(image="baton"), "exact version"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "spoil", "why"), SPOILT)
def test_a_rule_that_is_broken_is_seen(rule: str, spoil: Callable[[list[Document]], Any], why: str) -> None:
    faults, files = RULES[rule]
    documents = copy.deepcopy(loaded(*files))
    spoil(documents)
    assert any(why in fault for fault in faults(documents))


def test_the_image_is_made_of_exact_versions_and_of_named_parts_alone() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases
    assert all(EXACT.fullmatch(base) for base in bases)
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    for name in (
        "home/traffic/labels.db",
        "serving/home/control.db",
        "deploy/secrets/x",
        "server.key",
        "serving/a.pem",
        ".git/config",
    ):
        assert not _in_context(name, rules), name
    assert _in_context("serving/cli/main.py", rules)
    assert _in_context("protos/inference/inference.binpb", rules)


def _in_context(path: str, rules: list[str]) -> bool:
    """Whether docker takes a file into the image's context: the last rule that fits it or a folder of it."""
    parts = path.split("/")
    heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    taken = True
    for rule in rules:
        pattern = rule.lstrip("!")
        fits = [pattern] if not pattern.startswith("**/") else [pattern, pattern[3:], f"*/{pattern[3:]}"]
        if any(fnmatch(head, one) and (one != "*" or "/" not in head) for head in heads for one in fits):
            taken = rule.startswith("!")
    return taken


def test_passwords_are_made_once_for_their_owner_and_redis_takes_them(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    for _ in range(2):  # what is there is kept
        subprocess.run(["sh", str(DEPLOY / "secrets.sh"), str(folder)], check=True, capture_output=True, timeout=30)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    wanted = {Path(secret["file"]).name for secret in loaded("compose.yaml")[0]["secrets"].values()}
    assert set(made) == wanted
    password = made["redis-state.password"]
    assert len(password) == 64
    assert len({text for name, text in made.items() if name.endswith(".password")}) == 3
    assert hashlib.sha256(password.encode()).hexdigest() in made["redis-state.acl"]
    assert password not in made["redis-state.acl"]
    with RedisProcess(tmp_path / "redis", "--aclfile", str(folder / "redis-state.acl")) as server:
        of = {"unix_socket_path": str(server.socket), "protocol": 2, "retry": Retry(NoBackoff(), 0)}
        assert redis.Redis(password=password, **of).set("a", "b")
        health = redis.Redis(username="health", password="none", **of)
        assert health.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            health.get("a")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(**of).get("a")


def test_a_moved_tag_changes_nothing_once_images_are_pinned(tmp_path: Path) -> None:
    copied = tmp_path / "deploy"
    subprocess.run(["cp", "-r", str(DEPLOY), str(copied)], check=True, timeout=30)
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\necho "sha256:$(printf %s "$4" | sha256sum | cut -c1-64)"\n')
    docker.chmod(0o755)
    paths = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(copied / "pin.sh")], check=True, env=paths, capture_output=True, timeout=30)
    named = re.compile(r"^ *(?:(?:- )?image:|FROM) +(\S+)", re.MULTILINE)
    for path in (copied / "Dockerfile", copied / "compose.yaml", *copied.glob("kubernetes/*.yaml")):
        for image in named.findall(path.read_text()):
            assert "@sha256:" in image or image.startswith("baton:"), f"{path.name}: {image}"
