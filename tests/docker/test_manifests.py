"""The Kubernetes, KServe and compose files: valid by their schemas, and true of this server."""

from __future__ import annotations

import argparse
import copy
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from onnx import TensorProto

from onward_server import ServerThread
from onward_server.__main__ import _parser
from onward_server.model_settings import CrossCheckSettings
from onward_server.settings import ServerSettings, TrainingSettings
from onward_server.settings_files import load_settings, unknown_in_environment
from serving import identity, put, settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = sorted((DOCKER / "kubernetes").glob("*.yaml"))
KSERVE = sorted((DOCKER / "kserve").glob("*.yaml"))
KUBERNETES_VERSION = "1.33"
SCHEMA = json.loads((Path(__file__).parent / "kserve_schema.json").read_text())


def documents(paths: list[Path]) -> list[Any]:
    found = [document for path in paths for document in yaml.safe_load_all(path.read_text())]
    assert len(found) >= len(paths) > 0
    return found


def of_kind(paths: list[Path], kind: str) -> Any:
    (found,) = (document for document in documents(paths) if document["kind"] == kind)
    return found


def check_kserve(document: Any) -> None:
    schema = {**SCHEMA["kinds"][document["kind"]], "definitions": SCHEMA["definitions"]}
    jsonschema.Draft7Validator(schema).validate(document)


def test_kubernetes_takes_its_files() -> None:
    found = documents(KUBERNETES)
    kinds = {document["kind"] for document in found}
    assert kinds >= {"Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service"}
    for document in found:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_a_mistake_in_a_kubernetes_file_is_found() -> None:
    wrong = of_kind(KUBERNETES, "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


def test_kserve_takes_its_files() -> None:
    found = documents(KSERVE)
    assert {document["kind"] for document in found} == {"ServingRuntime", "InferenceService"}
    for document in found:
        check_kserve(document)
        wrong = copy.deepcopy(document)
        wrong["spec"]["protocolVersion"] = "v2"
        with pytest.raises(jsonschema.ValidationError):
            check_kserve(wrong)


def test_the_inference_service_names_the_runtime_and_a_format_of_it() -> None:
    runtime, service = of_kind(KSERVE, "ServingRuntime"), of_kind(KSERVE, "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [entry["name"] for entry in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def containers() -> Iterator[Any]:
    yield of_kind(KUBERNETES, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    yield of_kind(KSERVE, "ServingRuntime")["spec"]["containers"][0]


def _settings(container: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
    """What a server in a container would read."""
    dockerfile = (DOCKER / "Dockerfile").read_text()
    for name, value in re.findall(r"(ONWARD_SERVER_\w+)=(\S+)", dockerfile):
        monkeypatch.setenv(name, value)
    for entry in container.get("env", []):
        monkeypatch.setenv(entry["name"], entry["value"].replace("{{.Name}}", "lenet5"))
    monkeypatch.setenv("ONWARD_SERVER_REPOSITORY", str(tmp_path))
    given: dict[str, Any] = {}
    arguments = container.get("args", ["serve"])
    assert arguments[0] == "serve"
    options = [entry for entry in arguments[1:] if not entry.startswith("/")]
    parsed: argparse.Namespace = _parser().parse_args(options)
    for name in ("listen", "http_listen", "shutdown_pause", "drain_timeout"):
        if getattr(parsed, name) is not None:
            given[name] = getattr(parsed, name)
    return load_settings(None, **given)


def test_probes_and_ports_are_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for container in containers():
        with monkeypatch.context() as patched:
            chosen = _settings(container, tmp_path, patched)
        bound = {int(address.rpartition(":")[2]) for address in (chosen.listen, chosen.http_listen)}
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert set(named.values()) <= bound
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            if "grpc" in probe:
                assert probe["grpc"]["port"] == int(chosen.listen.rpartition(":")[2])
                continue
            port = probe["httpGet"]["port"]
            assert named.get(port, port) == int(chosen.http_listen.rpartition(":")[2])


def test_a_pod_has_time_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = of_kind(KUBERNETES, "Deployment")["spec"]["template"]["spec"]
    chosen = _settings(pod["containers"][0], tmp_path, monkeypatch)
    assert pod["terminationGracePeriodSeconds"] > chosen.shutdown_pause + chosen.drain_timeout
    # a load balancer learns of it within the pause
    probe = pod["containers"][0]["readinessProbe"]
    assert chosen.shutdown_pause > probe["periodSeconds"] * probe["failureThreshold"]


def test_a_pod_of_kserve_has_time_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = of_kind(KSERVE, "InferenceService")["spec"]["predictor"]
    chosen = _settings(of_kind(KSERVE, "ServingRuntime")["spec"]["containers"][0], tmp_path, monkeypatch)
    # 30 s is what Kubernetes gives a pod that says nothing
    assert predictor.get("terminationGracePeriodSeconds", 30) > chosen.shutdown_pause + chosen.drain_timeout


def test_compose_gives_time_to_drain(tmp_path: Path) -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    chosen = load_settings(repository=tmp_path)
    for name in ("server", "server-training"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > chosen.drain_timeout


def test_probes_and_metrics_are_answered(tmp_path: Path) -> None:
    pods = [
        of_kind(KUBERNETES, "Deployment")["spec"]["template"],
        {"metadata": {"annotations": {}}, "spec": of_kind(KSERVE, "ServingRuntime")["spec"]},
    ]
    prometheus = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())
    paths = {job["metrics_path"] for job in prometheus["scrape_configs"]}
    for pod in pods:
        annotations = {**pod["metadata"]["annotations"], **pod["spec"].get("annotations", {})}
        ports = {p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]}
        (scraped,) = (name.removesuffix("/path") for name in annotations if name.endswith("/path"))
        assert int(annotations[f"{scraped}/port"]) in ports
        paths.add(annotations[f"{scraped}/path"])
        probes = [value for name, value in pod["spec"]["containers"][0].items() if name.endswith("Probe")]
        assert len(probes) == 3
        paths |= {probe["httpGet"]["path"] for probe in probes if "httpGet" in probe}
    assert paths == {"/metrics", "/v2/health/live", "/v2/health/ready"}
    put(tmp_path, "m", 1, identity(TensorProto.FLOAT))
    chosen = settings(tmp_path, http_listen="127.0.0.1:0", isolation="thread")
    with ServerThread(chosen) as server:
        for path in paths:
            connection = http.client.HTTPConnection(server.http_address, timeout=30)
            connection.request("GET", path)
            assert connection.getresponse().status == 200, path
            connection.close()


def test_every_variable_of_a_server_is_a_setting() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    names = {name for service in services.values() for name in service.get("environment", {})}
    for container in containers():
        names |= {entry["name"] for entry in container.get("env", [])}
    names |= set(re.findall(r"(ONWARD_SERVER_\w+)=", (DOCKER / "Dockerfile").read_text()))
    assert {name for name in names if not name.startswith("ONWARD_SERVER_")} == set()
    assert unknown_in_environment(names) == []
    assert unknown_in_environment(["ONWARD_SERVER_MODEL_CONTROLS"]) != []
    nested = [name.removeprefix("ONWARD_SERVER_").lower().split("__") for name in names if "__" in name]
    for path in nested:
        assert (
            path[1] in {"cross_check": CrossCheckSettings, "training": TrainingSettings}[path[0]].model_fields
        )


def test_containers_need_no_privileges() -> None:
    for container in containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_selectors_find_the_pods() -> None:
    labels = of_kind(KUBERNETES, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget", "Deployment"):
        selector = of_kind(KUBERNETES, kind)["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= labels.items()
    target = of_kind(KUBERNETES, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == of_kind(KUBERNETES, "Deployment")["metadata"]["name"]


def test_prometheus_scrapes_the_server_of_the_compose_file() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    config = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in compose["services"]
    assert any(entry.endswith(f":{port}") for entry in compose["services"][host]["ports"])
    mounts = compose["services"]["prometheus"]["volumes"]
    assert any(mount.startswith("./prometheus.yaml:") for mount in mounts)
    # the one that stands in its place is found by its name
    assert host in compose["services"]["server-training"]["networks"]["default"]["aliases"]
