"""Secrets among the definitions: only the installation's key opens them, and nothing shows them."""

from __future__ import annotations

import pytest

from rise.runtime.sealing import Seal, masked
from rise.telemetry import redact

KEY, OTHER_KEY = "k" * 32, "o" * 32
TOKEN = "8000000002:AAE-sealed-in-a-test-0123456789"

pytestmark = pytest.mark.req("SEC-2")


def test_what_is_sealed_opens_with_the_key_alone_and_never_looks_the_same():
    seal = Seal(KEY)
    sealed = seal.close(TOKEN)
    assert TOKEN not in sealed and TOKEN.partition(":")[2] not in sealed
    assert seal.close(TOKEN) != sealed
    assert (Seal(KEY).open(sealed), Seal(OTHER_KEY).open(sealed), Seal(KEY).open(None)) == (TOKEN, None, None)
    assert Seal(KEY).open("no seal") is None
    assert Seal(KEY).open("not ascii ü") is None


def test_with_the_former_key_it_opens_and_is_sealed_anew_with_the_new_one():
    sealed = Seal(KEY).close(TOKEN)
    seal = Seal(OTHER_KEY, [KEY])
    assert seal.open(sealed) == TOKEN
    anew = seal.anew(sealed)
    assert anew is not None
    assert (Seal(OTHER_KEY).open(anew), Seal(KEY).open(anew)) == (TOKEN, None)
    assert seal.anew(anew) is None, "it is sealed with the new one already"
    assert Seal(OTHER_KEY).anew(sealed) is None, "nobody here can open it"


def test_what_was_opened_is_masked_wherever_it_is_written():
    opened = Seal(KEY).open(Seal(KEY).close("a-secret-that-looks-like-none"))
    assert opened is not None
    assert "looks-like-none" not in redact(f"it was {opened}")


@pytest.mark.parametrize(
    ("token", "shown"),
    [(None, None), (TOKEN, "8000000002:***"), ("hunter2", "***"), ("hunter2:x", "***"), ("٨٠٠٠:x", "***")],
)
def test_of_a_token_only_the_bots_number_is_shown(token: str | None, shown: str | None):
    assert masked(token) == shown
