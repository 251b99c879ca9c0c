"""Kubernetes objects held against the types of the official client, which are made from the API's OpenAPI schema.

The client itself takes what it does not know in silence; here a field that the API does not have, a value of another type
and a field that is missing are errors which name the place.
"""

from __future__ import annotations

import re
from typing import Any

from kubernetes.client import models

KINDS = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "Service"): "V1Service",
    ("apps/v1", "Deployment"): "V1Deployment",
    ("apps/v1", "StatefulSet"): "V1StatefulSet",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
}
_PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": str}


def check(value: Any, kind: str, where: str) -> Any:
    """Raise ValueError where a value is not of a type of the client, such as `V1Pod`, `List[V1Container]`, `str`."""
    if listed := re.fullmatch(r"List\[(.*)\]", kind):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        return [check(item, listed[1], f"{where}[{i}]") for i, item in enumerate(value)]
    if mapped := re.fullmatch(r"Dict\[str, (.*)\]", kind):
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{where} must be a mapping of strings")
        return {key: check(item, mapped[1], f"{where}.{key}") for key, item in value.items()}
    if kind in _PLAIN:
        plain = _PLAIN[kind]
        if not isinstance(value, plain) or (isinstance(value, bool) and kind in ("int", "float")):  # type: ignore[arg-type]
            raise ValueError(f"{where} must be of type {kind}, not {value!r}")
        return value
    model = getattr(models, kind)
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a {kind}")
    names = {theirs: ours for ours, theirs in model.attribute_map.items()}
    if unknown := value.keys() - names.keys():
        raise ValueError(f"{where}: {kind} has no {sorted(unknown)}")
    fields = {names[key]: check(item, model.openapi_types[names[key]], f"{where}.{key}") for key, item in value.items()}
    try:
        return model(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_object(raw: dict[str, Any]) -> Any:
    """Raise ValueError where a whole object is not what its kind says."""
    kind = (raw["apiVersion"], raw["kind"])
    return check(raw, KINDS[kind], f"{raw['kind']} {raw['metadata']['name']}")
