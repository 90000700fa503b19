"""What operators see holds no secret and forges no line."""

from __future__ import annotations

import io
import json
import logging
import string
import sys
import threading
import unicodedata

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from rise import telemetry
from rise.telemetry import configure_logs, keep_out_of_logs, printable, redact

pytestmark = pytest.mark.req("SEC-2")

TOKEN_CHARACTERS = string.ascii_letters + string.digits + "_-"
TOKENS = st.builds(
    lambda bot, secret: f"{bot}:{secret}",
    st.integers(10**6, 10**11),
    st.text(TOKEN_CHARACTERS, min_size=34, max_size=50).map(lambda text: f"A{text}"),
)
AROUND = st.text(max_size=30)
SECRETS = st.text(TOKEN_CHARACTERS, min_size=6, max_size=40)


@pytest.fixture(autouse=True)
def no_known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_known_secrets", set())


@pytest.mark.failure("M1")
@given(TOKENS, st.sampled_from(["", "bot", "/bot", "https://api.telegram.org/bot", "token=", "\n"]), AROUND)
def test_no_bot_token_survives(token: str, before: str, after: str):
    secret = token.partition(":")[2]
    assert secret not in redact(f"{before}{token}/{after}")
    assert secret not in redact(f"{before}{token.replace(':', '%3A')}/{after}")
    assert secret not in redact(f"{before}{token}")


def test_the_bots_number_is_still_seen():
    """It is no secret, and says which bot it was."""
    assert redact("POST /bot123456:" + "A" * 35 + "/sendMessage") == "POST /bot123456:***/sendMessage"


@given(
    st.text(TOKEN_CHARACTERS + "./+=", min_size=12, max_size=60), st.sampled_from(["Bearer ", "bearer  ", "BEARER "])
)
def test_no_bearer_token_survives(secret: str, word: str):
    assert redact(f"authorization: {word}{secret}") == f"authorization: {word}***"


@given(st.sets(SECRETS, min_size=1, max_size=5), st.data())
def test_no_known_secret_survives_not_even_where_one_is_part_of_another(secrets: set[str], data: st.DataObject):
    telemetry._known_secrets.clear()
    whole = [f"{secret}{data.draw(SECRETS)}" for secret in secrets]
    keep_out_of_logs([*secrets, *whole, None, "", "short"])
    text = data.draw(AROUND).join([*whole, *secrets])
    clean = redact(text)
    assert not [secret for secret in [*whole, *secrets] if secret in clean]


def test_a_longer_secret_leaves_no_tail():
    keep_out_of_logs(["secret-key", "secret-key-of-ann"])
    assert redact("x secret-key-of-ann y secret-key") == "x *** y ***"


@pytest.mark.failure("M1")
def test_of_a_bots_token_the_part_that_is_secret_is_masked_alone_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telemetry, "_known_secrets", set())
    tail = "AAaaBBbbCCccDDddEEeeFFffGGggHHhhIIi"
    keep_out_of_logs([f"123456789:{tail}", "7:a-word"])
    assert redact(f"it is {tail}, of 123456789") == "it is ***, of 123456789"
    assert redact(f"bot123456789:{tail}/getMe") == "bot***/getMe"
    assert redact("a-word is no secret") == "a-word is no secret"


@pytest.mark.failure("B7")
@given(st.text(st.characters(codec=None)))
def test_no_character_moves_the_cursor_the_line_or_the_direction(text: str):
    clean = printable(text)
    assert not [
        character
        for character in clean
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]
    clean.encode()


class Opaque:
    """A library's object."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"Opaque({self._text})"


class Sink(io.StringIO):
    """What standard error would get; lines are written by another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.has_line = threading.Event()

    def write(self, text: str) -> int:
        text.encode()  # as a terminal or a file does
        written = super().write(text)
        if text.endswith("\n"):
            self.has_line.set()
        return written


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch):
    """Whatever is logged, in either style, as it would reach the operator."""
    before = structlog.get_config()

    def write(style: str, **fields: object) -> str:
        sink = Sink()
        monkeypatch.setattr(sys, "stderr", sink)
        configure_logs(style)
        structlog.get_logger().warning("test.logged", **fields)
        assert sink.has_line.wait(10)
        return sink.getvalue()

    handlers = logging.getLogger().handlers[:]
    yield write
    logging.getLogger().handlers[:] = handlers
    structlog.configure(**before)


TOKEN = "123456:" + "AbCdEfGhIj" * 4
HIDING_PLACES = {
    "text": f"calling https://api.telegram.org/bot{TOKEN}/getMe",
    "bytes": f"bot{TOKEN}".encode(),
    "error": ValueError(f"bot{TOKEN} refused"),
    "object": Opaque(TOKEN),
    "list": [f"a {TOKEN}", {"b": TOKEN}],
    "key": {TOKEN: 1},
    "set": {TOKEN},
    "nested": {"a": [{"b": (Opaque(TOKEN),)}]},
}


@pytest.mark.failure("B7")
@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("place", HIDING_PLACES)
def test_wherever_a_token_hides_it_is_not_written(written, style: str, place: str):
    line = written(style, field=HIDING_PLACES[place])
    assert "test.logged" in line
    assert TOKEN.partition(":")[2] not in line


@pytest.mark.parametrize("style", ["json", "console"])
def test_what_is_called_a_secret_is_not_written(written, style: str):
    line = written(style, bot_token="hunter2", headers={"Authorization": "hunter2"}, passwords=["hunter2", b"hunter2"])
    assert "hunter2" not in line


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_is_written_without_its_secrets(written, style: str):
    try:
        raise ValueError(TOKEN)
    except ValueError as error:
        line = written(style, exc_info=error)
    assert "ValueError" in line
    assert TOKEN.partition(":")[2] not in line


@pytest.mark.failure("B7")
def test_a_traceback_can_be_read_line_by_line_and_forges_none(written):
    """What an error quotes of a message stays within its indentation."""
    try:
        raise ValueError("not a number: 1\n2025-11-08 [error] all is lost\x1b[2J")
    except ValueError as error:
        first, *trace = written("console", exc_info=error).splitlines()
        machines = json.loads(written("json", exc_info=error))
    assert "test.logged" in first
    assert trace[0] == "  Traceback (most recent call last):"
    assert trace[-2:] == ["  ValueError: not a number: 1", "  2025-11-08 [error] all is lost\\u001b[2J"]
    assert machines["exception"].splitlines() == trace


@pytest.mark.failure("B2", "B7")
@pytest.mark.parametrize("style", ["json", "console"])
def test_a_message_cannot_forge_a_line(written, style: str):
    line = written(style, text="hello\n2025-11-08 [error] all is lost\x1b[2J\u202e\x9b \ud800")
    assert line.count("\n") == 1
    assert "\x1b[2J" not in line
    assert "\x9b" not in line
    line.encode()


def test_json_lines_can_be_read_back(written):
    line = json.loads(written("json", number=7, share=0.5, yes=True, nothing=None, many=[1, "a"]))
    assert (line["event"], line["level"], line["number"], line["many"]) == ("test.logged", "warning", 7, [1, "a"])
    assert (line["share"], line["yes"], line["nothing"]) == (0.5, True, None)
    assert line["timestamp"].endswith("Z")
