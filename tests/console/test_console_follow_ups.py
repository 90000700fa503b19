"""Follow-ups at the console: which there are, whether one is overdue, another moment for one, or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import BOT, OPERATOR, VIEWER, Work, as_, opened
from console_people import SignIn, form_key

from rise.capabilities import CapabilityStatus
from rise.console.app import build_front
from rise.runtime.assembly.house import House
from rise.testing.waiting import eventually

PLACE = "/console/follow-ups"

pytestmark = pytest.mark.req("OPS-3", "TMP-3")


async def planned(client: httpx.AsyncClient, text: str = "Was it all right?", **when: Any) -> str:
    """By the API in front of which the console stands."""
    body = {"channel": "telegram", "chatId": 42, "text": text} | (when or {"inSeconds": 3600})
    answer = await client.post("/api/follow-ups", json=body, headers=as_(OPERATOR))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["followUpId"])


async def status(client: httpx.AsyncClient, follow_up_id: str) -> str:
    return str((await client.get(f"/api/follow-ups/{follow_up_id}", headers=as_(OPERATOR))).json()["data"]["status"])


async def test_what_is_planned_is_listed_by_its_moment_and_what_is_overdue_stands_out(sign_in: SignIn) -> None:
    client = await sign_in(VIEWER)
    later = await planned(client, "later", at="2030-07-01T09:00:00", timeZone="Europe/Berlin", missed="skip")
    overdue = await planned(client, "overdue", at="2020-01-01T00:00:00Z", missed="coalesce")
    page = (await client.get(PLACE)).text
    assert page.index(overdue) < page.index(later)
    rows = {found[1]: found[0] for found in re.finditer(r'follow-ups/(t_\w+)".*?</a>', page, re.DOTALL)}
    assert ("overdue</span>" in rows[overdue], "overdue</span>" in rows[later]) == (True, False)
    for words in ("Europe/Berlin", "missed: not said", "telegram"):
        assert words in rows[later], words
    assert "only the latest is said" in rows[overdue]
    assert "The queue of this installation keeps the time." in page


async def test_they_are_found_by_chat_state_and_id(sign_in: SignIn) -> None:
    client = await sign_in(VIEWER)
    mine = await planned(client)
    other = await planned(client, chatId=7, inSeconds=60)
    for query, found in (
        ({"chat": "42", "channel": "telegram", "account": BOT}, {mine}),
        ({"chat": "7"}, {other}),
        ({"status": "planned"}, {mine, other}),
        ({"status": "suspended"}, set()),
        ({"channel": "webchat"}, set()),
    ):
        page = (await client.get(PLACE, params=query)).text
        assert {one for one in (mine, other) if one in page} == found, query
    straight = await client.get(PLACE, params={"q": mine})
    assert (straight.status_code, straight.headers["location"]) == (303, f"follow-ups/{mine}")
    assert (await client.get(PLACE, params={"q": "t_unknown"})).status_code == 200
    assert (await client.get(PLACE, params={"status": "fired"})).status_code == 422
    assert (await client.get(f"{PLACE}/t_unknown")).status_code == 404


@pytest.mark.req("SEC-4")
async def test_one_is_moved_by_the_clocks_of_a_zone(sign_in: SignIn, house: House) -> None:
    client = await sign_in(OPERATOR)
    follow_up_id = await planned(client, at="2030-01-01T12:00:00", timeZone="America/New_York")
    page = await client.get(f"{PLACE}/{follow_up_id}")
    assert 'value="2030-01-01T12:00:00"' in page.text
    assert 'value="America/New_York"' in page.text
    fields = {"form_key": form_key(page), "at": "2030-07-01T09:00", "timeZone": "Europe/Berlin"}
    moved = await client.post(f"{PLACE}/{follow_up_id}/move", data=fields)
    assert (moved.status_code, moved.headers["location"]) == (303, f"../{follow_up_id}?done=moved")
    page = await client.get(f"{PLACE}/{follow_up_id}?done=moved")
    for words in ("It has another moment now", "2030-07-01 07:00:00 UTC", "by the clocks of Europe/Berlin", "1 time"):
        assert words in page.text, words
    [entry, *_] = await house.ledger.operations(limit=1)
    assert (entry.who, "moved to 2030-07-01" in entry.why) == ("olga", True)


@pytest.mark.parametrize(
    ("typed", "field"),
    [({"at": "soon"}, "at"), ({"timeZone": "Nowhere/Atlantis"}, "timeZone"), ({"at": "2099-01-01T00:00"}, "at")],
)
async def test_a_moment_that_is_none_is_said_beside_its_field(
    sign_in: SignIn, typed: dict[str, str], field: str
) -> None:
    client = await sign_in(OPERATOR)
    follow_up_id = await planned(client)
    page = await client.get(f"{PLACE}/{follow_up_id}")
    fields = {"form_key": form_key(page), "at": "2030-07-01T09:00", "timeZone": "Europe/Berlin"} | typed
    refused = await client.post(f"{PLACE}/{follow_up_id}/move", data=fields)
    assert (refused.status_code, f'aria-describedby="wrong-{field}"' in refused.text) == (422, True)
    assert f'value="{fields[field]}"' in refused.text


@pytest.mark.req("SEC-4")
async def test_one_is_cancelled_and_who_comes_too_late_is_told(sign_in: SignIn, house: House, work: Work) -> None:
    client = await sign_in(OPERATOR)
    follow_up_id = await planned(client)
    fields = {"form_key": form_key(await client.get(f"{PLACE}/{follow_up_id}")), "why": "it is not needed"}
    assert (await client.post(f"{PLACE}/{follow_up_id}/cancel", data=fields)).status_code == 303
    page = (await client.get(f"{PLACE}/{follow_up_id}")).text
    for words in ("cancelled", "it is not needed", "olga"):
        assert words in page, words
    assert "Move it" not in page
    [entry, *_] = await house.ledger.operations(limit=1)
    assert (entry.who, entry.why) == ("olga", "it is not needed")

    async def bot(turn: Any) -> None:
        await turn.reply(turn.text)

    await work(bot)
    fired = await planned(client, inSeconds=0)

    async def has_fired() -> bool:
        return await status(client, fired) == "fired"

    await eventually(has_fired)
    late = await client.post(f"{PLACE}/{fired}/cancel", data=fields)
    assert (late.status_code, "the follow-up has fired" in late.text) == (409, True)
    assert "a message of its chat" in late.text


@pytest.mark.req("SEC-1")
async def test_a_viewer_moves_and_cancels_nothing(sign_in: SignIn) -> None:
    client = await sign_in(VIEWER)
    follow_up_id = await planned(client)
    page = await client.get(f"{PLACE}/{follow_up_id}")
    assert "needs the role operator" in page.text
    for verb in ("move", "cancel"):
        fields = {"form_key": form_key(page), "at": "2030-07-01T09:00", "timeZone": "UTC"}
        assert (await client.post(f"{PLACE}/{follow_up_id}/{verb}", data=fields)).status_code == 403
    assert await status(client, follow_up_id) == "planned"


@pytest.mark.req("TMP-4")
async def test_who_keeps_the_time_is_said_also_while_temporal_is_away(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", rate_per_source=1000, temporal_address="127.0.0.1:1") as house:
        front = build_front(house)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost") as client:
            await client.post("/console/sign-in", data={"token": VIEWER})
            house.capabilities.set("temporal", CapabilityStatus.AVAILABLE, "answers")
            assert "Temporal keeps the time." in (await client.get(PLACE)).text
            house.capabilities.set("temporal", CapabilityStatus.UNAVAILABLE, "it does not answer")
            page = (await client.get(PLACE)).text
            assert "Temporal is to keep the time, and is unavailable: it does not answer." in page
            assert "Meanwhile the queue does" in page
        front.close()


@pytest.mark.req("SEC-3")
async def test_what_a_follow_up_says_is_text(sign_in: SignIn) -> None:
    client = await sign_in(OPERATOR)
    follow_up_id = await planned(client, "<script>alert(1)</script>\u202e")
    for path in (PLACE, f"{PLACE}/{follow_up_id}"):
        page = (await client.get(path)).text
        assert ("<script>alert" in page, "&lt;script&gt;alert(1)" in page) == (False, True)
        assert re.search(r'dir="auto">[^<]*&lt;script', page), "what turns its direction ends where it ends"
