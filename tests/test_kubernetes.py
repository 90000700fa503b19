"""The manifests cannot be run here; what can be read in them is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rise.runtime.assembly.services import delivery_limits
from rise.settings import Settings

MANIFESTS = Path(__file__).parents[1] / "deploy" / "kubernetes"
STOP_SECONDS = Settings.model_fields["stop_seconds"].default
GATEWAY_STOP_SECONDS = 2 * STOP_SECONDS + 5.0 + delivery_limits(Settings.model_construct()).stop_seconds
THINGS: list[dict[str, Any]] = [
    thing for path in sorted(MANIFESTS.glob("*.yaml")) for thing in yaml.safe_load_all(path.read_text())
]
SETS = {thing["metadata"]["name"]: thing["spec"] for thing in THINGS if thing["kind"] == "StatefulSet"}


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {thing["metadata"]["name"]: thing for thing in THINGS if thing["kind"] == kind}


def container(name: str) -> dict[str, Any]:
    [only] = SETS[name]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


@pytest.mark.req("OPS-5")
def test_what_is_set_is_a_setting_and_what_is_named_is_there() -> None:
    known = {f"RISE_{name.upper()}" for name in Settings.model_fields}
    settings, secrets = of_kind("ConfigMap"), of_kind("Secret")
    assert {*settings["rise-settings"]["data"], *secrets["rise-secrets"]["stringData"]} <= known
    assert not any(secrets["rise-secrets"]["stringData"].values()), "a secret is filled in elsewhere"
    for name in SETS:
        [first, second] = container(name)["envFrom"]
        assert first["configMapRef"]["name"] in settings and second["secretRef"]["name"] in secrets


@pytest.mark.req("OPS-5", "CAP-6")
def test_a_pod_is_restarted_for_not_serving_and_left_alone_while_its_stores_are_away() -> None:
    gateway = container("rise")
    [port] = gateway["ports"]
    assert str(port["containerPort"]) == of_kind("ConfigMap")["rise-settings"]["data"]["RISE_PORT"]
    asked = {name: gateway[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/healthz/readiness",
    }
    assert {probe["port"] for probe in asked.values()} == {port["name"]}
    assert not [name for name in container("rise-worker") if name.endswith("Probe")], "it listens on nothing"


@pytest.mark.req("OPS-5", "CPY-2")
@pytest.mark.parametrize("name", SETS)
def test_a_pod_keeps_its_directory_and_its_journal(name: str) -> None:
    data = of_kind("ConfigMap")["rise-settings"]["data"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container(name)["volumeMounts"]}
    kept = {claim["metadata"]["name"] for claim in SETS[name]["volumeClaimTemplates"]}
    assert {mounts[data["RISE_DATA_DIR"]], mounts[data["RISE_JOURNAL_DIR"]]} == kept
    others = {volume["name"] for volume in SETS[name]["template"]["spec"]["volumes"]}
    assert set(mounts.values()) == kept | others
    assert str(Path(data["RISE_APP"]).parent) in mounts


@pytest.mark.req("OPS-5", "WRK-6")
def test_a_pod_has_the_time_that_an_orderly_stop_takes() -> None:
    grace = {name: spec["template"]["spec"]["terminationGracePeriodSeconds"] for name, spec in SETS.items()}
    assert grace["rise"] > GATEWAY_STOP_SECONDS
    assert grace["rise-worker"] > 2 * STOP_SECONDS
    assert [container(name)["args"] for name in SETS] == [["rise", "serve"], ["rise", "worker"]]


@pytest.mark.req("OPS-5")
@pytest.mark.parametrize("name", SETS)
def test_a_pod_is_not_given_the_places_of_services_as_if_they_were_settings(name: str) -> None:
    """Kubernetes makes `RISE_PORT=tcp://…` of a Service that is called `rise`, and five names that are no settings."""
    assert "rise" in of_kind("Service")
    assert SETS[name]["template"]["spec"]["enableServiceLinks"] is False


@pytest.mark.req("OPS-5")
def test_what_selects_pods_finds_them() -> None:
    services = of_kind("Service")
    for spec in SETS.values():
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        assert services[spec["serviceName"]]["spec"]["clusterIP"] == "None"
        assert services[spec["serviceName"]]["spec"]["selector"] == labels
    gateways = SETS["rise"]["template"]["metadata"]["labels"]
    assert services["rise"]["spec"]["selector"] == gateways
    assert of_kind("PodDisruptionBudget")["rise"]["spec"]["selector"]["matchLabels"] == gateways
