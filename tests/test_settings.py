"""What could not work is refused at start, with everything that is wrong and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rise.errors import SettingsInvalid
from rise.retries import DEFAULT_CURVE_SECONDS
from rise.runtime.assembly.house import build
from rise.runtime.processes import BEAT_SECONDS
from rise.settings import (
    CHANNELS,
    WORKER_STALL_SECONDS_MIN,
    Settings,
    environment_of_another,
    load_settings,
    preset,
    unknown_names,
)

TOKEN = "123456789:AAaaBBbbCCccDDddEEeeFFffGGggHHhhIIi"


def settings(**named: object) -> Settings:
    return load_settings(_env_file=None, **named)


def refusal(**named: object) -> str:
    with pytest.raises(SettingsInvalid) as refused:
        settings(**named)
    [problem] = refused.value.problems
    return problem


@pytest.mark.failure("D5")
def test_a_stall_that_a_healthy_worker_would_be_killed_for_is_refused():
    assert WORKER_STALL_SECONDS_MIN >= 3 * BEAT_SECONDS
    for seconds in (0.2, 1.0, 2.9):
        problem = refusal(worker_stall_seconds=seconds)
        assert problem.startswith(f"RISE_WORKER_STALL_SECONDS is {seconds:g}")
        assert f"Set it to {WORKER_STALL_SECONDS_MIN:g} or more" in problem
    assert settings(worker_stall_seconds=WORKER_STALL_SECONDS_MIN).worker_stall_seconds == WORKER_STALL_SECONDS_MIN


@pytest.mark.parametrize(
    ("pauses", "lane_block"), [((700.0,), 600.0), ((15.0, 501.0), 600.0), (DEFAULT_CURVE_SECONDS, 200.0)], ids=str
)
def test_a_pause_that_outlasts_the_patience_of_its_chat_is_refused(pauses: tuple[float, ...], lane_block: float):
    problem = refusal(retry_seconds=pauses, lane_block_seconds_max=lane_block)
    assert f"up to {max(pauses) * 1.2:g} s" in problem
    assert f"Set RISE_LANE_BLOCK_SECONDS_MAX to more than {max(pauses) * 1.2:g}" in problem


@pytest.mark.req("QUE-4")
def test_retries_are_tuned_for_a_channel_and_for_a_type_of_task():
    tuned = settings(retry_seconds_for="telegram=5,30 message.send=10", retry_max_for="http=0 message.send=5")
    assert tuned.retry_seconds_for == {"telegram": (5.0, 30.0), "message.send": (10.0,)}
    assert tuned.retry_max_for == {"http": 0, "message.send": 5}


@pytest.mark.req("QUE-4")
@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ({"retry_seconds_for": "telegramm=5"}, "number 1 is for none of http, message.send, telegram, webchat"),
        ({"retry_seconds_for": "telegram"}, "number 1 is not name=value"),
        ({"retry_seconds_for": "http=5 http=6"}, "number 2 is not name=value, or the second of its name"),
        ({"retry_seconds_for": "http=soon"}, "RISE_RETRY_SECONDS_FOR"),
        ({"retry_seconds_for": "http=700"}, "RISE_RETRY_SECONDS_FOR http has a pause of up to 840 s"),
        ({"retry_max_for": "http=101"}, "RISE_RETRY_MAX_FOR"),
    ],
)
def test_a_tuning_that_tunes_nothing_or_too_much_is_refused(named: dict[str, str], problem: str):
    assert problem in refusal(**named)


@pytest.mark.req("WRK-2")
def test_a_channel_and_an_account_have_places_of_their_own():
    limits = settings(worker_concurrency_for="http=8 telegram:123456=4").worker_concurrency_for
    assert limits == {"http": 8, "telegram:123456": 4}
    assert "number 1 is for none of http, telegram, webchat" in refusal(worker_concurrency_for="message.send=4")
    assert "RISE_WORKER_CONCURRENCY_FOR" in refusal(worker_concurrency_for="http=0")


def test_the_channels_that_can_be_tuned_are_those_that_there_are(tmp_path: Path):
    house = build(settings(data_dir=tmp_path, telegram_token="7:token-of-the-tests"))
    assert set(house.channels.by_name()) == set(CHANNELS)


def test_pauses_that_fit_into_the_patience_of_their_chat_are_taken():
    assert settings(retry_seconds=(500.0,)).retry_seconds == (500.0,)
    assert settings(retry_seconds=(700.0,), lane_block_seconds_max=841.0).retry_seconds == (700.0,)
    assert settings().retry_seconds == DEFAULT_CURVE_SECONDS


@pytest.mark.req("CPY-6")
def test_a_ledger_on_mongodb_without_a_queue_to_go_with_it_is_refused():
    problem = refusal(mongodb_url="mongodb://db/rise")
    assert problem.startswith("RISE_MONGODB_URL is set without RISE_REDIS_URL")
    assert "Set RISE_REDIS_URL, or unset RISE_MONGODB_URL" in problem
    problem = refusal(mongodb_url="https://db/rise", redis_url="redis://db")
    assert problem == "RISE_MONGODB_URL must begin with mongodb:// or mongodb+srv://."
    taken = settings(mongodb_url="mongodb://rise:hunter2@db/rise", redis_url="redis://db")
    assert "hunter2" not in repr(taken)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """Three settings in the environment, which are as before when the test has ended; and what is set at a time."""
    for name in [name for name in os.environ if name.startswith("RISE_")]:
        monkeypatch.delenv(name)
    for name, value in (("RISE_APP", ""), ("RISE_LOG_LEVEL", "error"), ("RISE_PORT", "1")):
        monkeypatch.setenv(name, value)
    return lambda: {name: value for name, value in os.environ.items() if name.startswith("RISE_")}


@pytest.mark.req("OPS-1")
def test_a_preset_holds_for_this_process_and_those_it_starts_and_yields_to_a_person_where_it_should(
    ours: Callable[[], dict[str, str]],
):
    preset({"port": 9000}, where_unset={"app": "bot.py", "log_level": "warning"})
    assert ours() == {"RISE_APP": "bot.py", "RISE_LOG_LEVEL": "error", "RISE_PORT": "9000"}
    assert (settings().port, settings().log_level) == (9000, "error")


@pytest.mark.req("OPS-1")
def test_another_installation_inherits_everything_but_settings(ours: Callable[[], dict[str, str]]):
    theirs = environment_of_another({"port": 9000, "app": None})
    assert {name: value for name, value in theirs.items() if name.startswith("RISE_")} == {"RISE_PORT": "9000"}
    assert theirs["PATH"] == os.environ["PATH"]
    assert ours()["RISE_PORT"] == "1"


@pytest.mark.req("OPS-1")
@pytest.mark.failure("M1")
def test_a_name_that_is_no_setting_is_told_with_the_one_that_may_be_meant(
    ours: Callable[[], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert list(unknown_names()) == []
    for name in ("RISE_RETRY_MX", "RISE_Q", "RISE_TEST_PICTURES", "rise_retry_max", "RISE_RABBITMQ_PASSWORD", "RISEN"):
        monkeypatch.setenv(name, "7")
    (tmp_path / ".env").write_text("RISE_HOTS=0.0.0.0\nRISE_HOST=::1\nOTHER=1\n")
    assert list(unknown_names()) == [
        "RISE_HOTS is no setting, it changes nothing; is RISE_HOST meant?",
        "RISE_Q is no setting, it changes nothing",
        "RISE_RETRY_MX is no setting, it changes nothing; is RISE_RETRY_MAX meant?",
    ]


@pytest.mark.failure("M1")
@pytest.mark.parametrize(
    ("named", "reason", "remedy"),
    [
        ({"accept_seconds": 60.0}, "Telegram hangs up after 60 s", "less than 60"),
        ({"public_url": "https://bot.example/?"}, "deliver elsewhere", "at most a path"),
        ({"public_url": "https://bot.example/#rise"}, "deliver elsewhere", "at most a path"),
        ({"public_url": "http://bot.example", "telegram_token": TOKEN}, "https:// only", "RISE_PUBLIC_URL=https://"),
        ({"telegram_api_base": "api.telegram.org"}, "no call would go anywhere", "https://api.telegram.org"),
        ({"telegram_api_base": "https://api.example?key=1"}, "no call would go anywhere", "https://api.telegram.org"),
    ],
)
def test_what_would_keep_telegram_from_ever_reaching_us_or_us_it_is_refused(
    named: dict[str, object], reason: str, remedy: str
):
    problem = refusal(**named)
    assert reason in problem
    assert remedy in problem
    assert "key=1" not in problem


@pytest.mark.parametrize(
    "named",
    [
        {"telegram_token": None},
        {"telegram_token": TOKEN, "telegram_mode": "off"},
        {"telegram_token": TOKEN, "telegram_api_base": "http://127.0.0.1:8081"},
        {"telegram_token": TOKEN, "telegram_api_base": "https://bots.example"},
    ],
    ids=["no bot", "no Telegram", "a stand-in", "a server of one's own"],
)
def test_http_is_taken_where_telegram_itself_delivers_nothing(named: dict[str, object]):
    settings(public_url="http://bot.example", **named)


def test_addresses_with_a_path_and_a_slow_disk_within_telegrams_patience_are_taken():
    settings(accept_seconds=59.0, public_url="https://bot.example/rise/", telegram_api_base="http://127.0.0.1:8081/api")


# --- too much, and who is told ------------------------------------------------------------------------------------

ALERTS_TO = "https://ops.example/rise?key=1"
ALERT_SECRET = "sixteen-characters"


@pytest.mark.req("SUP-3")
@pytest.mark.failure("M1")
@pytest.mark.parametrize(
    ("named", "remedy"),
    [
        ({"alert_webhook_url": ALERTS_TO}, "Set it to 16 characters"),
        ({"alert_webhook_url": ALERTS_TO, "alert_webhook_secret": "short"}, "use a longer one"),
        ({"alert_webhook_secret": ALERT_SECRET}, "Set the URL"),
        ({"alert_webhook_url": "http://ops.example", "alert_webhook_secret": ALERT_SECRET}, "must be https://"),
        ({"alert_telegram_chat": "42"}, "Set RISE_TELEGRAM_TOKEN"),
        ({"alert_telegram_chat": "ops", "telegram_token": "1:a"}, "a chat's number"),
        ({"alert_telegram_chat": "42", "telegram_token": "1:a", "telegram_mode": "off"}, "RISE_TELEGRAM_MODE"),
    ],
)
def test_alerts_that_would_reach_nobody_or_could_be_forged_are_refused(named: dict[str, object], remedy: str):
    assert remedy in refusal(**named)
    assert "key=1" not in refusal(**named)


@pytest.mark.req("SUP-3")
def test_alerts_to_a_signed_webhook_and_a_chat_are_taken():
    settings(
        alert_webhook_url=ALERTS_TO,
        alert_webhook_secret=ALERT_SECRET,
        alert_telegram_chat="-1001234",
        telegram_token="1:a",
    )
    settings(alert_webhook_url="http://127.0.0.1:9000/", alert_webhook_secret=ALERT_SECRET)


@pytest.mark.req("SUP-2")
@pytest.mark.failure("M1")
@pytest.mark.parametrize(
    ("named", "remedy"),
    [
        ({"backlog_warn": 10, "backlog_max": 10}, "Set RISE_BACKLOG_WARN to less"),
        ({"disk_free_warn_mb": 10, "disk_free_min_mb": 10}, "Set RISE_DISK_FREE_WARN_MB to more"),
        ({"overload": "queue-only", "backlog_max": 0}, "Set RISE_BACKLOG_MAX"),
    ],
)
def test_a_warning_that_comes_too_late_is_refused(named: dict[str, object], remedy: str):
    assert remedy in refusal(**named)


@pytest.mark.req("SUP-2")
def test_a_limit_alone_needs_no_warning_of_its_own():
    assert settings(backlog_max=5).backlog_max == 5


@pytest.mark.req("WFL-2")
def test_a_language_model_that_nobody_could_ask_is_refused_with_what_is_missing():
    problem = refusal(llm_base_url="http://localhost:11434/v1")
    assert problem.startswith("RISE_LLM_BASE_URL is set without RISE_LLM_MODEL")
    assert "Set RISE_LLM_MODEL to one that the server has" in problem
    for name, value in {"llm_model": "a-model", "llm_api_key": "sk-a-key"}.items():
        problem = refusal(**{name: value})
        assert problem.startswith(f"RISE_{name.upper()} is set without RISE_LLM_BASE_URL")
        assert "https://api.openai.com/v1" in problem
        assert value not in problem
    assert "must be https:// or http://" in refusal(llm_base_url="localhost:11434", llm_model="a-model")
    assert "has a ? or a #" in refusal(llm_base_url="https://model.example/v1?key=k", llm_model="a-model")
    key = refusal(llm_base_url="https://model.example", llm_model="a-model", llm_api_key="sk-a-key\n")
    assert key.startswith("RISE_LLM_API_KEY holds what no header can")
    assert settings(llm_base_url="https://model.example/v1", llm_model="a-model").llm_seconds == 120.0


@pytest.mark.req("SEC-3")
def test_what_http_stages_may_call_inside_is_named_by_hosts_and_networks():
    assert settings(http_stage_allow="intranet.example  10.1.0.0/16").http_stage_allow == (
        "intranet.example",
        "10.1.0.0/16",
    )
    problem = refusal(http_stage_allow="10.1.0.0/16 https://intranet.example")
    assert "number 2 is no host, no address and no network" in problem
    assert "https://intranet.example" not in problem


@pytest.mark.req("SEC-5")
def test_bytes_that_would_be_kept_longer_than_their_messages_are_refused():
    problem = refusal(keep_raw_days=31)
    assert "RISE_KEEP_RAW_DAYS is 31" in problem
    assert "Set it to 30 or less" in problem
    assert settings(keep_raw_days=30).keep_raw_days == 30
    assert settings(keep_raw_days=40, keep_finished_days=40).keep_raw_days == 40
    kept = settings()
    assert (kept.keep_raw_days, kept.keep_history_days) == (None, None)
    for days in (0, -1):
        assert "RISE_KEEP_HISTORY_DAYS" in refusal(keep_history_days=days)
