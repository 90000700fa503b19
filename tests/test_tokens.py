"""Tokens by their digests: who is let in, and which entries are refused because nobody could tell what they mean."""

from __future__ import annotations

import hashlib

import pytest

from rise.api.security import Credentials, Principal, Role
from rise.errors import SettingsInvalid
from rise.settings import load_settings, token_entry
from rise.tokens import digest_of

ADMIN = "admin-token-of-the-tests"
TOKEN = "token-of-ann-is-long-enough"
DIGEST = f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
ANN = Principal("ann", Role.OPERATOR)


def credentials_of(monkeypatch: pytest.MonkeyPatch, tokens: str) -> Credentials:
    monkeypatch.setenv("RISE_TOKENS", tokens)
    return Credentials(ADMIN, load_settings(_env_file=None).tokens)


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("kept", [TOKEN, DIGEST], ids=["token", "digest"])
def test_a_token_is_known_by_itself_and_by_its_digest(monkeypatch: pytest.MonkeyPatch, kept: str):
    known = credentials_of(monkeypatch, f"bob:viewer:another-long-token-of-bob ann:operator:{kept}")
    assert known.principal(TOKEN) == ANN
    assert known.principal(ADMIN) == Principal("admin", Role.ADMIN)
    assert known.principal(TOKEN + "x") is None


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("kept", [TOKEN, DIGEST], ids=["token", "digest"])
def test_who_shows_the_digest_has_not_shown_the_token(monkeypatch: pytest.MonkeyPatch, kept: str):
    known = credentials_of(monkeypatch, f"ann:operator:{kept}")
    for shown in (DIGEST, DIGEST.removeprefix("sha256:"), digest_of(DIGEST)):
        assert known.principal(shown) is None


HEX = DIGEST.removeprefix("sha256:")
SPOILT = {
    "too short": f"sha256:{HEX[:-1]}",
    "too long": f"sha256:{HEX}0",
    "upper case": f"sha256:{HEX.upper()}",
    "another letter": f"sha256:{HEX[:-1]}g",
    "another spelling": f"SHA-256:{HEX}",
    "with an equals sign": f"sha256={HEX}",
    "nothing": "sha256:",
    "another digest": f"sha512:{HEX}{HEX}",
    "of a password": "$2b$12$abcdefghijklmnopqrstuv",
    "of a password, argon2": "$argon2id$v=19$m=65536,t=3,p=4$abc$def",
    "the digits alone": HEX,
    "the digits alone, upper case": HEX.upper(),
}


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("kept", SPOILT.values(), ids=SPOILT)
def test_what_may_be_meant_as_a_digest_and_is_none_is_refused_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, kept: str
):
    with pytest.raises(SettingsInvalid) as refused:
        credentials_of(monkeypatch, f"bob:viewer:another-long-token-of-bob ann:operator:{kept}")
    [problem] = refused.value.problems
    assert "RISE_TOKENS: number 2 looks like a digest" in problem
    assert "`rise tokens new`" in problem
    assert HEX[:8] not in problem.lower(), "it may be a token"
    assert "$" not in problem


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("kept", ["shadow:of-a-long-token", "argonaut-of-1234", "abc=def=ghi=jkl=mno", "a" * 63])
def test_a_token_that_merely_reminds_of_a_digest_is_one(monkeypatch: pytest.MonkeyPatch, kept: str):
    assert credentials_of(monkeypatch, f"ann:operator:{kept}").principal(kept) == ANN


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("both", [(TOKEN, DIGEST), (DIGEST, TOKEN), (DIGEST, DIGEST), (TOKEN, TOKEN)])
def test_a_token_and_its_digest_are_one_token(monkeypatch: pytest.MonkeyPatch, both: tuple[str, str]):
    with pytest.raises(SettingsInvalid, match="whose it is could not be told"):
        credentials_of(monkeypatch, f"ann:operator:{both[0]} bob:viewer:{both[1]}")


@pytest.mark.req("SEC-1")
def test_the_first_admins_token_is_not_also_anothers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RISE_ADMIN_TOKEN", ADMIN)
    with pytest.raises(SettingsInvalid, match="RISE_ADMIN_TOKEN too"):
        credentials_of(monkeypatch, f"ann:operator:{digest_of(ADMIN)}")


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("kept", [TOKEN, DIGEST], ids=["token", "digest"])
def test_the_first_admin_is_known_by_the_token_and_not_by_its_digest(monkeypatch: pytest.MonkeyPatch, kept: str):
    monkeypatch.setenv("RISE_ADMIN_TOKEN", kept)
    setting = load_settings(_env_file=None).admin_token
    assert setting is not None
    known = Credentials(setting.get_secret_value(), {})
    assert known.principal(TOKEN) == Principal("admin", Role.ADMIN)
    for shown in (DIGEST, DIGEST.removeprefix("sha256:"), digest_of(DIGEST)):
        assert known.principal(shown) is None
    for others in (TOKEN, DIGEST):
        with pytest.raises(SettingsInvalid, match="RISE_ADMIN_TOKEN too"):
            credentials_of(monkeypatch, f"ann:operator:{others}")


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("kept", SPOILT.values(), ids=SPOILT)
def test_a_first_admins_token_that_may_be_meant_as_a_digest_is_refused(monkeypatch: pytest.MonkeyPatch, kept: str):
    monkeypatch.setenv("RISE_ADMIN_TOKEN", kept)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(_env_file=None)
    assert [one for one in refused.value.problems if "RISE_ADMIN_TOKEN looks like a digest and is none" in one]
    assert not [one for one in refused.value.problems if HEX[:8] in one.lower() or "$" in one]


@pytest.mark.req("SEC-1")
def test_an_entry_names_somebody(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingsInvalid, match="number 1 is not name:role:token"):
        credentials_of(monkeypatch, f":operator:{DIGEST}")


@pytest.mark.req("SEC-1")
def test_an_entry_that_is_made_is_read_again(monkeypatch: pytest.MonkeyPatch):
    known = credentials_of(monkeypatch, token_entry("ann", "operator", TOKEN))
    assert known.principal(TOKEN) == ANN


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nb", "a\x00b", "\u2028"])
def test_a_name_that_could_not_be_read_again_is_refused(name: str):
    with pytest.raises(SettingsInvalid):
        token_entry(name, "operator", TOKEN)
