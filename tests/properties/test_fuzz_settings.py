"""Whatever the environment says, it is refused at once with a remedy, or a house can be built of it."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import damaged, tried

from rise.errors import SettingsInvalid
from rise.runtime.assembly.house import build
from rise.runtime.assembly.services import build_sender
from rise.runtime.assembly.supervision import build_supervisor
from rise.runtime.assembly.workers import build_worker
from rise.settings import Settings, load_settings

pytestmark = [pytest.mark.failure("M1")]

NAMES = sorted(set(Settings.model_fields) - {"data_dir"})
SECRETS = {name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)} | {"tokens"}
CANARY = "CanaryCanaryCanary"
"""A secret, where one is kept."""

# As an environment holds them: anything but NUL, and not always text.
VALUES = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "1.5", "inf", "-inf", "nan", "1e300", "1e-300", "9" * 30, "9" * 5000, "٣", "1_000", "0x10",
         "true", "json", "polling", "webhook", "https://", "https://[", "https://bot.example", "http://[::1]:8080/x",
         "1,2,3", "1,,2", ",", "1,inf", "7:" + "A" * 35, "12:", "²:abc", "a:b", "a:admin:", ":admin:" + CANARY,
         f"ann:viewer:{CANARY}", f"{CANARY}:ann:viewer", f"ann:{CANARY}:viewer", f"ann:viewer:{CANARY} {CANARY}",
         f"a:viewer:{CANARY} b:admin:{CANARY}", "a..b", "x" * 64, "\udcff", "\n", " ", CANARY]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.binary(max_size=20).map(lambda value: os.fsdecode(value.replace(b"\0", b""))),
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own settings, and a directory that may be written to."""
    for name in list(os.environ):
        if name.startswith("RISE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def loaded(environment: dict[str, str]) -> Settings | SettingsInvalid:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(f"RISE_{name.upper()}", value)
        try:
            return load_settings()
        except SettingsInvalid as refused:
            return refused


def holds_canary(environment: dict[str, str]) -> bool:
    named = {name for name, value in environment.items() if CANARY in value}
    return bool(named) and named <= SECRETS


def assert_helpful(refused: SettingsInvalid, environment: dict[str, str]) -> None:
    assert refused.problems
    for problem in refused.problems:
        assert problem.startswith("RISE_"), "it names the setting"
        assert problem.endswith(".")
        assert not holds_canary(environment) or CANARY not in problem
    assert any(f"RISE_{name.upper()}" in problem for name in environment for problem in refused.problems)


async def build_all_of_it(settings: Settings) -> None:
    house = build(settings)
    build_worker(house, {})
    build_sender(house)
    build_supervisor(house)
    await house.channels.close()


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=4))
@tried(700)
def test_any_environment_is_refused_at_once_or_makes_a_house(environment: dict[str, str]):
    settings = loaded(environment)
    if isinstance(settings, SettingsInvalid):
        assert_helpful(settings, environment)
        assert not Path(".rise").exists(), "nothing has been made"
        return
    assert not holds_canary(environment) or CANARY not in repr(settings)
    try:
        asyncio.run(build_all_of_it(settings))
    finally:
        shutil.rmtree(".rise")


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize(
    "environment",
    [
        {"tokens": f"{CANARY}:ann:viewer"},
        {"tokens": f"ann:{CANARY}:viewer"},
        {"tokens": f"ann:viewer:{CANARY} bob:admin:{CANARY}"},
        {"tokens": f"ann:viewer:{CANARY}", "admin_token": CANARY},
    ],
)
def test_a_token_in_the_wrong_place_is_refused_and_not_repeated(environment: dict[str, str]):
    refused = loaded(environment)
    assert isinstance(refused, SettingsInvalid)
    assert_helpful(refused, environment)


FILE = b"RISE_HOST=127.0.0.1\nRISE_PORT=\"8080\"\n# a comment\nexport RISE_LOG=json\nRISE_LATE_MESSAGE='so\nlate'\n"


@given(damaged(st.just(FILE)) | st.binary(max_size=60))
@tried(500)
def test_any_file_of_settings_is_read_or_refused(content: bytes):
    Path(".env").write_bytes(content)
    settings = loaded({})
    if isinstance(settings, SettingsInvalid):
        assert all(problem.startswith(("RISE_", "The file .env")) for problem in settings.problems)
