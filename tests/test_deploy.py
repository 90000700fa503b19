"""What is handed out for deployment cannot be run here; what can be read in it is checked."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import yaml

from rise.channels.telegram import CALL_SECONDS
from rise.runtime.assembly import delivery_limits
from rise.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
STOP_SECONDS = Settings.model_fields["stop_seconds"].default
GATEWAY_STOP_SECONDS = 2 * STOP_SECONDS + 5.0 + delivery_limits(Settings.model_construct()).stop_seconds
"""Doors, workflows, calls that are out, one after the other. Who is killed sooner was not stopped."""
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))


class Compose(yaml.SafeLoader):
    """Knows the tag by which an extension takes something back."""


Compose.add_constructor("!reset", lambda loader, node: [])


def known_settings() -> set[str]:
    return {f"RISE_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.req("OPS-5")
def test_the_compose_file_sets_only_what_there_is_and_what_it_says_of_redis_holds():
    services = yaml.load((DEPLOY / "compose.yml").read_text(), Loader=Compose)["services"]
    assert set(services) == {"redis", "rabbitmq", "rise", "worker"}
    assert set(services["rise"]["environment"]) <= known_settings()
    words = services["redis"]["command"]
    assert words[words.index("--maxmemory-policy") + 1] == "noeviction"
    assert words[words.index("--appendonly") + 1] == "yes"
    assert services["worker"]["command"] == ["rise", "worker"]
    assert "depends_on" not in services["rise"], "it starts without its servers"
    assert float(services["rise"]["stop_grace_period"].removesuffix("s")) > GATEWAY_STOP_SECONDS
    named = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    volumes = yaml.load((DEPLOY / "compose.yml").read_text(), Loader=Compose)["volumes"]
    assert {name for name in named if not name.startswith(".")} == set(volumes)


@pytest.mark.req("WRK-6", "OUT-1")
@pytest.mark.failure("D18")
@pytest.mark.parametrize("seconds", [1.0, 20.0, 120.0])
def test_a_stop_waits_for_as_long_as_a_call_may_take(seconds: float):
    grace = delivery_limits(Settings.model_construct(stop_seconds=seconds)).stop_seconds
    assert grace >= max(seconds, CALL_SECONDS + 5.0), "and for the question that some answers need"


@pytest.mark.req("OPS-5")
def test_the_units_say_what_systemd_reads():
    assert len(UNITS) == 3
    for name in UNITS:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment]
        unit.read(DEPLOY / name)
        assert set(unit.sections()) == {"Unit", "Service", "Install"}
        assert set(re.findall(r"RISE_[A-Z_]+(?==)", (DEPLOY / name).read_text())) <= known_settings()
        assert re.fullmatch(r"/\S+/rise (serve|worker)", unit["Service"]["ExecStart"])
        seconds = float(unit["Service"]["TimeoutStopSec"])
        assert seconds > (GATEWAY_STOP_SECONDS if unit["Service"]["ExecStart"].endswith("serve") else 2 * STOP_SECONDS)


@pytest.mark.req("OPS-5")
def test_the_image_installs_what_the_full_profile_needs():
    extras = re.search(r"\.\[([a-z,]+)\]", (DEPLOY / "Dockerfile").read_text())
    assert extras is not None
    assert set(extras[1].split(",")) == {"redis", "rabbitmq", "mongodb"}
