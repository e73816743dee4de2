"""The manifests: their schemas, what they name, and the times of a pod's end."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import tomli

from relay.config.find import plain_state_dir
from relay.shared.wanted_overrides import parse_wanted
from tests.support.gateway import ROOT
from tests.support.programs import program

yaml = pytest.importorskip("yaml", reason="PyYAML not installed")

HERE = ROOT / "conf" / "kubernetes"
SCHEMAS = Path(__file__).with_name("schemas")
FILES = sorted(HERE.rglob("*.yaml"))
VALIDATOR = Path(sys.executable).with_name("kubernetes-validate")
CORE = json.loads((SCHEMAS / "kubernetes.json").read_text())
# What the variants have in common with Kubernetes' level "restricted".
VOLUMES = {"configMap", "emptyDir", "projected", "secret"}
# Secrets and ConfigMaps that cert-manager makes, or the operator.
MADE = {"relay-server", "relay-machine", "relay-clients-ca", "relay-backends-ca"}


def resources(text: str) -> list[dict]:
    """The resources of a file. kustomize's own files are none."""
    found = [each for each in yaml.safe_load_all(text) if each]
    return [each for each in found if not each["apiVersion"].startswith("kustomize.")]


def check(resource: dict) -> None:
    """Validate a resource; an unknown field is an error."""
    kind = resource["kind"]
    if kind in CORE["kinds"]:
        schema = {**CORE, "$ref": f"#/definitions/{CORE['kinds'][kind]}"}
    else:
        schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
        assert schema["$comment"].startswith(f"{resource['apiVersion']} {kind}, ")
    jsonschema.Draft7Validator(schema).validate(resource)


@functools.cache
def rendered(directory: Path) -> tuple[dict, ...]:
    """What kustomize makes of a directory. Skips without a kubectl that can."""
    kubectl = program("kubectl")
    told = subprocess.run(
        [kubectl, "version", "--client", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    # Without allowKindChange before.
    if (version := re.search(r'"minor": "(\d+)', told)) is None or int(version[1]) < 27:
        pytest.skip("this kubectl is older than 1.27")
    done = subprocess.run(
        [kubectl, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(resources(done.stdout))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The example with all that is commented out, and a configuration of its own."""
    place = tmp_path_factory.mktemp("kubernetes") / "all"
    shutil.copytree(HERE, place)
    own = place / "example" / "kustomization.yaml"
    text = own.read_text().replace("# - ../gateway", "- ../gateway")
    text = re.sub(r"^# (?=configMapGenerator| )", "", text, flags=re.MULTILINE)
    own.write_text(text)
    shutil.copy(place / "base" / "relay.toml", place / "example" / "relay.toml")
    return place / "example"


def by_kind(found, kind: str) -> dict:
    (one,) = [each for each in found if each["kind"] == kind]
    return one


def pod_of(found) -> dict:
    (one,) = [each for each in found if each["kind"] in {"Deployment", "DaemonSet"}]
    return one["spec"]["template"]["spec"]


def sources_of(pod: dict) -> list[dict]:
    (config,) = [each for each in pod["volumes"] if each["name"] == "config"]
    return config["projected"]["sources"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HERE)))
def test_a_file_fits_its_schemas(file):
    text = file.read_text()
    assert all(len(line) <= 100 for line in text.splitlines())
    for resource in resources(text):
        check(resource)


def test_the_schemas_find_a_misspelt_field():
    text = (HERE / "base" / "deployment.yaml").read_text()
    for right, wrong in (("runAsNonRoot", "runAsNonroot"), ("Seconds: 70", "Seconds: long")):
        assert right in text
        with pytest.raises(jsonschema.ValidationError):
            check(yaml.safe_load(text.replace(right, wrong)))


@pytest.mark.skipif(not VALIDATOR.exists(), reason="kubernetes-validate not installed (108 MB)")
def test_kubernetes_validate_finds_nothing():
    kinds = {file: {each["kind"] for each in resources(file.read_text())} for file in FILES}
    core = [file for file, found in kinds.items() if found and found <= CORE["kinds"].keys()]
    done = subprocess.run(
        [VALIDATOR, "--strict", *core], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["base", "daemonset", "example", "all"])
def test_a_variant_is_whole(name, everything):
    """Valid, restricted, and each name leads to something."""
    found = rendered(everything if name == "all" else HERE / name)
    for resource in found:
        check(resource)
    names = {(each["kind"], each["metadata"]["name"]) for each in found}
    assert len(names) == len(found)
    pod = pod_of(found)
    workload = next(each for each in found if each["kind"] in {"Deployment", "DaemonSet"})
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    for each in found:
        spec = each.get("spec", {})
        for selector in (
            spec.get("selector", {}) if each["kind"] == "Service" else None,
            spec.get("podSelector", {}).get("matchLabels"),
            spec.get("selector", {}).get("matchLabels") if each["kind"] != "Service" else None,
        ):
            assert selector is None or selector.items() <= labels, each
    (generated,) = [name for kind, name in names if kind == "ConfigMap"]
    sources = [each.get("secret") or each["configMap"] for each in sources_of(pod)]
    assert {each["name"] for each in sources} == {generated, *MADE}
    if name in {"example", "all"}:
        secrets = [each["spec"]["secretName"] for each in found if each["kind"] == "Certificate"]
        bundles = [name for kind, name in names if kind == "Bundle"]
        assert {*secrets, *bundles} == MADE
        target = by_kind(found, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in names
        assert "replicas" not in workload["spec"]
        assert pod["containers"][0]["image"] == "registry.example.com/relay:0.1.0"
    ports = {each["name"]: each["containerPort"] for each in pod["containers"][0]["ports"]}
    service = by_kind(found, "Service")["spec"]
    assert [each["targetPort"] for each in service["ports"]] == ["https"]
    if name == "all":
        route = by_kind(found, "TLSRoute")["spec"]
        (backend,) = route["rules"][0]["backendRefs"]
        assert ("Service", backend["name"]) in names
        assert backend["port"] == service["ports"][0]["port"]
        gateway = by_kind(found, "Gateway")
        parent = route["parentRefs"][0]
        assert parent["name"] == gateway["metadata"]["name"]
        assert parent["sectionName"] in {each["name"] for each in gateway["spec"]["listeners"]}
        assert service["type"] == "ClusterIP"
        assert "externalTrafficPolicy" not in service
    else:
        assert service["externalTrafficPolicy"] == "Local"
    if name not in {"base", "daemonset"}:
        monitor = by_kind(found, "PodMonitor")["spec"]
        (endpoint,) = monitor["podMetricsEndpoints"]
        assert endpoint["port"] in ports
        # RelayDown asks for up{job="relay"}.
        assert monitor["selector"]["matchLabels"][monitor["jobLabel"]] == "relay"
    assert ports == ports_of(by_kind(found, "ConfigMap")["data"]["relay.toml"])


@pytest.mark.parametrize("variant", ["base", "daemonset"])
def test_every_pod_applies_the_overrides(variant, tmp_path):
    """By a container that sees the file and the control socket, and no key."""
    place = tmp_path / "kubernetes"
    shutil.copytree(HERE, place)
    own = place / "example" / "kustomization.yaml"
    own.write_text(f"resources: [../{variant}]\ncomponents: [../overrides]\n")
    found = rendered(place / "example")
    for resource in found:
        check(resource)
    pod = pod_of(found)
    relay, overrides = pod["containers"]
    assert overrides["securityContext"] == relay["securityContext"]
    # A container that ends makes the pod not ready, and kube-proxy drops its clients.
    assert overrides["lifecycle"] == relay["lifecycle"]
    assert {each["name"] for each in overrides["volumeMounts"]} == {"overrides", "run"}
    (data,) = [
        each["data"]
        for each in found
        if each["kind"] == "ConfigMap" and each["metadata"]["name"] == "relay-overrides"
    ]
    file = tmp_path / "relay.toml"
    file.write_text(data["relay.toml"])
    assert plain_state_dir(file) == Path("/run/relay")
    wanted = parse_wanted(json.loads(data["overrides.json"]), "test", 0.0)
    assert (wanted.overrides, wanted.problems) == ({}, [])


def ports_of(text: str) -> dict[str, int]:
    """The ports on which relay.toml listens."""
    config = tomli.loads(text)
    listeners = {each["name"]: each["listen"][0] for each in config["listener"]}
    return {
        name: int(address.rpartition(":")[2])
        for name, address in {**listeners, "admin": config["admin"]["listen"]}.items()
    }


@pytest.mark.parametrize("kind", ["base", "daemonset"])
def test_the_pod_is_restricted(kind):
    pod = pod_of(rendered(HERE / kind)) if kind != "base" else base_pod()
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert not any("hostPort" in port for port in container["ports"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) - {"name"} <= VOLUMES for volume in pod["volumes"])
    image = dict(
        line.split(" ", 1)
        for line in (ROOT / "conf/container/Containerfile").read_text().splitlines()
        if line.startswith(("USER ", "EXPOSE "))
    )
    user, group = map(int, image["USER"].split(":"))
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (user, group)
    assert {each["containerPort"] for each in container["ports"]} == set(
        map(int, image["EXPOSE"].split())
    )


def base_pod() -> dict:
    return pod_of(resources((HERE / "base" / "deployment.yaml").read_text()))


def test_the_configuration_finds_its_files_and_its_time_to_drain():
    pod = base_pod()
    (container,) = pod["containers"]
    config = tomli.loads((HERE / "base" / "relay.toml").read_text())
    sources = [each for source in sources_of(pod) for each in source.values()]
    mounted = {item["path"] for each in sources for item in each["items"]}
    (route,) = config["listener"][0]["route"]
    pool = config["pool"]["app"]
    named = {route[key] for key in ("certificate", "private_key", "client_ca")}
    named |= {pool[key] for key in ("machine_certificate", "machine_key", "backend_ca")}
    assert mounted == {*named, "relay.toml"}
    places = {each["mountPath"] for each in container["volumeMounts"]}
    assert places == {"/etc/relay", str(Path(config["relay"]["state_dir"]).parent)}
    # One of the two delays, and time for what comes after it.
    sleep_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    relay = config["relay"]
    assert relay["drain_delay_s"] == 0
    assert pod["terminationGracePeriodSeconds"] > sleep_s + relay["drain_timeout_s"] + 3
    assert {each: container[each]["httpGet"]["path"] for each in container if "Probe" in each} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_the_configuration_passes_an_offline_check(pki, tmp_path):
    shown = {"server": pki.gateway, "machine": pki.machine}
    for directory in ("server", "machine", "clients", "backends"):
        (tmp_path / directory).mkdir()
    for name, files in shown.items():
        shutil.copy(files.certificate, tmp_path / name / "tls.crt")
        shutil.copy(files.key, tmp_path / name / "tls.key")
    for name in ("clients", "backends"):
        shutil.copy(pki.ca, tmp_path / name / "ca.crt")
    shutil.copy(HERE / "base" / "relay.toml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "relay", "check", "--offline", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_sessions_fit_into_the_memory_and_pods_are_added_before_the_limit():
    (container,) = base_pod()["containers"]
    limits = container["resources"]["limits"]
    assert limits == {"cpu": "2", "memory": "1Gi"}
    config = tomli.loads((HERE / "base" / "relay.toml").read_text())
    sessions = int(limits["cpu"]) * config["limits"]["connections"]
    assert sessions * 70 * 2**10 + 110 * 2**20 < 0.9 * 2**30
    (scaler,) = resources((HERE / "autoscaling" / "scaler.yaml").read_text())
    (pods,) = [each["pods"] for each in scaler["spec"]["metrics"] if "pods" in each]
    assert int(pods["target"]["averageValue"]) <= 0.8 * sessions


def test_the_scaler_asks_for_a_metric_that_exists():
    (scaler,) = resources((HERE / "autoscaling" / "scaler.yaml").read_text())
    names = [each["pods"]["metric"]["name"] for each in scaler["spec"]["metrics"] if "pods" in each]
    documented = (ROOT / "docs" / "metrics.md").read_text()
    assert names
    assert all(f"| `{name}` | gauge |" in documented for name in names)
