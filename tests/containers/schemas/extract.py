"""Makes the files beside it: the structure of resources, without their descriptions.

    python extract.py SOURCE CRD.yaml...   custom resources; SOURCE is a word for them
python extract.py                      the resources of Kubernetes itself, from the
                                       package kubernetes-validate
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
KEPT = {"type", "required", "enum", "const", "pattern", "format", "$ref"}
KEPT |= {"minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"}
NESTED = {"items", "additionalProperties", "not", "anyOf", "oneOf", "allOf"}
KINDS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "DaemonSet": "io.k8s.api.apps.v1.DaemonSet",
    "Service": "io.k8s.api.core.v1.Service",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "HorizontalPodAutoscaler": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
}


def structure(schema):
    """The schema without words; other properties than its own are refused."""
    if isinstance(schema, list):
        return [structure(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {name: structure(each) for name, each in value.items()}
        elif key == "$ref":
            found[key] = f"#/definitions/{value.rpartition('/')[2]}"
        elif key in NESTED:
            found[key] = structure(value)
        elif key in KEPT:
            found[key] = value
    if "properties" in found and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def custom(source: str, file: Path) -> None:
    """The newest version of a custom resource that is served."""
    spec = yaml.safe_load(file.read_text())["spec"]
    kind = spec["names"]["kind"]
    versions = [each for each in spec["versions"] if each["served"]]
    version = next((each for each in versions if each["name"] == "v1"), versions[-1])
    found = structure(version["schema"]["openAPIV3Schema"])
    found["properties"].pop("status", None)
    found["properties"]["metadata"] = {"type": "object"}
    comment = f"{spec['group']}/{version['name']} {kind}, structure only, from {source}"
    write(kind, {"$comment": comment, **found})


def core() -> None:
    """The resources in `KINDS`, and what they refer to."""
    version = importlib.metadata.version("kubernetes-validate")
    place = importlib.util.find_spec("kubernetes_validate").submodule_search_locations[0]
    directory = Path(place, "kubernetes-json-schema", f"v{version}-local-strict")
    known = json.loads((directory / "_definitions.json").read_text())["$defs"]
    found: dict = {}
    wanted = list(KINDS.values())
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = structure(known[name])
        found[name].get("properties", {}).pop("status", None)
        text = json.dumps(found[name])
        wanted += [each.split('"')[0] for each in text.split("#/definitions/")[1:]]
    comment = f"Kubernetes {version}, structure only, from kubernetes-validate"
    definitions = {name: found[name] for name in sorted(found)}
    write("kubernetes", {"$comment": comment, "definitions": definitions, "kinds": KINDS})


def write(name: str, schema: dict) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(schema, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        for each in sys.argv[2:]:
            custom(sys.argv[1], Path(each))
    else:
        core()
