"""What is handed out for deployment needs a container engine, or systemd, to be run, and tests need neither. What can
be read in it is checked, and that the settings it names work together. docs/deploy.md says what was tried by hand."""

from __future__ import annotations

import configparser
import fnmatch
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from rise.channels.telegram import CALL_SECONDS
from rise.runtime.assembly.services import delivery_limits
from rise.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
STOP_SECONDS = Settings.model_fields["stop_seconds"].default
GATEWAY_STOP_SECONDS = 2 * STOP_SECONDS + 5.0 + delivery_limits(Settings.model_construct()).stop_seconds
"""Doors, workflows, calls that are out, one after the other. Who is killed sooner was not stopped."""
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))
OVERLAYS = {"mongodb": {"mongodb", "mongodb-init"}, "temporal": {"temporal", "temporal-postgresql"}}
"""Files beside compose.yml, and what they add."""
OURS = ("rise", "worker")
GIVEN = {
    "RISE_RABBITMQ_PASSWORD": "a-password",
    "RISE_TELEGRAM_TOKEN": "123456789:AAaaBBbbCCccDDddEEeeFFffGGggHHhhIIi",
    "RISE_PUBLIC_URL": "https://bot.example",
    "RISE_SECRET_KEY": "k" * 32,
    "TEMPORAL_POSTGRES_PASSWORD": "another-password",
}
"""What the files ask of whoever starts them."""


def read(name: str) -> dict[str, Any]:
    contents: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return contents


def composed(*overlays: str) -> dict[str, dict[str, Any]]:
    """The services as they are started, after each file has added its own."""
    services: dict[str, dict[str, Any]] = read("compose.yml")["services"]
    for overlay in overlays:
        for name, more in read(f"compose.{overlay}.yml")["services"].items():
            former = services.get(name, {})
            environment = former.get("environment", {}) | more.get("environment", {})
            services[name] = former | more | {"environment": environment}
    return services


def known_settings() -> set[str]:
    return {f"RISE_{name.upper()}" for name in Settings.model_fields}


def resolved(value: object) -> str:
    """With what whoever starts it has set."""
    return re.sub(r"\$\{([A-Z_]+)[^}]*\}", lambda asked: GIVEN[asked[1]], str(value))


@pytest.mark.req("OPS-5")
def test_the_compose_file_sets_only_what_there_is_and_what_it_says_of_redis_holds():
    services = read("compose.yml")["services"]
    assert set(services) == {"redis", "rabbitmq", "rise", "worker"}
    assert set(services["rise"]["environment"]) <= known_settings()
    words = services["redis"]["command"]
    assert words[words.index("--maxmemory-policy") + 1] == "noeviction"
    assert words[words.index("--appendonly") + 1] == "yes"
    assert services["worker"]["command"] == ["rise", "worker"]
    # Merged, not extended: who reads several files may give an extension the ports back that one of them had taken.
    assert "extends" not in services["worker"] and "ports" not in services["worker"]
    assert services["worker"]["healthcheck"] == {"disable": True}, "it has no port to be asked at"
    assert float(services["rise"]["stop_grace_period"].removesuffix("s")) > GATEWAY_STOP_SECONDS


@pytest.mark.req("OPS-5", "SEC-1")
@pytest.mark.parametrize("overlays", [(), ("mongodb",), ("temporal",), ("mongodb", "temporal")], ids=" and ".join)
def test_what_is_started_together_works_together(
    overlays: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    services = composed(*overlays)
    assert set(services) == {"redis", "rabbitmq", *OURS}.union(*(OVERLAYS[overlay] for overlay in overlays))
    assert services["rise"]["environment"] == services["worker"]["environment"]
    for name in [name for name in os.environ if name.startswith("RISE_")]:
        monkeypatch.delenv(name)
    for name, value in services["rise"]["environment"].items():
        monkeypatch.setenv(name, resolved(value))
    app = tmp_path / "my_bot.py"
    app.write_text("")
    settings = load_settings(_env_file=None, data_dir=tmp_path, journal_dir=tmp_path, app=str(app))
    assert (settings.mongodb_url is not None, settings.temporal_address is not None) == (
        "mongodb" in overlays,
        "temporal" in overlays,
    )
    for name, service in services.items():
        # By version: what is started a year later is what was tried.
        assert name in OURS or re.fullmatch(r"[a-z/-]+:[0-9][0-9.]*", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    assert not any("depends_on" in services[name] for name in OURS), "it starts without its servers"


@pytest.mark.req("OPS-5")
@pytest.mark.parametrize("name", ["compose.yml", *(f"compose.{overlay}.yml" for overlay in OVERLAYS)])
def test_every_volume_that_is_used_is_declared(name: str):
    composition = read(name)
    used = [volume for service in composition["services"].values() for volume in service.get("volumes", [])]
    assert {volume.split(":")[0] for volume in used if isinstance(volume, str)} == set(composition["volumes"])


@pytest.mark.req("OPS-5")
def test_without_a_bot_beside_it_nothing_is_started():
    """A source that is not there becomes a directory otherwise, and the bot with it."""
    [bot] = [volume for volume in composed()["rise"]["volumes"] if not isinstance(volume, str)]
    assert bot["target"] == composed()["rise"]["environment"]["RISE_APP"]
    assert bot["read_only"] is True
    assert bot["bind"] == {"create_host_path": False}


@pytest.mark.req("OPS-5", "CPY-6")
def test_the_replica_set_that_is_made_is_the_one_that_is_asked_and_a_majority_has_what_was_written():
    services = composed("mongodb")
    command = services["mongodb"]["command"]
    assert command[command.index("--replSet") + 1] == "rise"
    url = services["rise"]["environment"]["RISE_MONGODB_URL"]
    assert url == "mongodb://mongodb:27017/rise?replicaSet=rise&w=majority&journal=true"
    makes = services["mongodb-init"]["command"][-1]
    assert "_id: 'rise'" in makes
    assert "host: 'mongodb:27017'" in makes
    assert "ports" not in services["mongodb"], "it asks for no password"


@pytest.mark.req("OPS-5")
def test_temporal_is_reached_where_it_is_and_its_database_is_its_own():
    services = composed("temporal")
    assert services["rise"]["environment"]["RISE_TEMPORAL_ADDRESS"] == "temporal:7233"
    assert services["temporal"]["environment"]["POSTGRES_SEEDS"] == "temporal-postgresql"
    database = services["temporal-postgresql"]["environment"]
    assert resolved(database["POSTGRES_PASSWORD"]) == resolved(services["temporal"]["environment"]["POSTGRES_PWD"])
    assert "ports" not in services["temporal"]


@pytest.mark.req("OPS-5", "SEC-1")
@pytest.mark.parametrize("name", OURS)
def test_its_containers_may_do_little(name: str):
    service = composed()[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True


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


# --- the image --------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Each with its words, in order."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def of_kind(kind: str) -> list[str]:
    return [words for name, words in instructions() if name == kind]


def image_settings() -> dict[str, str]:
    [words] = of_kind("ENV")
    return dict(one.split("=", 1) for one in words.split())


@pytest.mark.req("OPS-5")
def test_the_image_installs_what_it_is_told_to_and_nothing_for_tests():
    arguments = dict(words.split("=", 1) for words in of_kind("ARG"))
    assert set(arguments["EXTRAS"].split(",")) == {"redis", "rabbitmq", "mongodb", "temporal"}
    assert composed()["rise"]["build"]["args"]["EXTRAS"] == arguments["EXTRAS"]
    assert any('".[${EXTRAS}]"' in words for words in of_kind("RUN"))
    # By version, and small; the second is what runs, and has nothing of what builds.
    assert re.fullmatch(r"3\.11\.[0-9]+-slim-[a-z]+", arguments["PYTHON"])
    assert of_kind("FROM") == ["python:${PYTHON} AS build", "python:${PYTHON}"]
    assert not any("apt-get" in words or "dev]" in words for words in of_kind("RUN"))


@pytest.mark.req("OPS-5", "SEC-1")
def test_the_image_runs_as_nobody_else_and_hears_its_signals():
    [user] = of_kind("USER")
    assert user == "10001:10001", "numbers, by which it can be seen not to be root"
    assert json.loads(of_kind("CMD")[0]) == ["rise", "serve"], "a list: no shell in between"
    assert not of_kind("ENTRYPOINT")
    written = set(json.loads(of_kind("VOLUME")[0]))
    assert written == {image_settings()["RISE_DATA_DIR"], composed()["rise"]["environment"]["RISE_JOURNAL_DIR"]}
    assert {name for name in image_settings() if name.startswith("RISE_")} <= known_settings()
    assert all(place in words for place in written for words in of_kind("RUN") if "useradd" in words)


@pytest.mark.req("OPS-5", "EMB-1")
def test_the_image_starts_with_nothing_else_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("RISE_")]:
        monkeypatch.delenv(name)
    for name, value in image_settings().items():
        if name.startswith("RISE_"):
            monkeypatch.setenv(name, value)
    assert load_settings(_env_file=None, data_dir=tmp_path).redis_url is None, "and it refuses nothing"


@pytest.mark.req("OPS-5", "SEC-2")
def test_the_image_is_given_what_it_copies_and_nothing_else():
    copied = [source for words in of_kind("COPY") if "--from" not in words for source in words.split()[:-1]]
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", "what is not named stays here"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied)
    assert all((ROOT / source).exists() for source in copied)
    assert not any(fnmatch.fnmatch(".env", line[1:]) for line in lines if line.startswith("!"))


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers this to whoever asks how it is; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.req("OPS-5", "CAP-6")
@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (500, False), (None, False)])
def test_the_image_is_healthy_while_its_process_serves(status: int | None, is_healthy: bool):
    python, *words = json.loads(of_kind("HEALTHCHECK")[0].partition("CMD ")[2])
    assert python == "python"

    def code(port: int) -> int:
        # As if there were a proxy: it must not be asked instead.
        environment = os.environ | {"RISE_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
        return subprocess.run([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL).returncode

    if status is None:
        with answering(200) as port:
            pass
        assert code(port) != 0
    else:
        with answering(status) as port:
            assert (code(port) == 0) is is_healthy
