"""Whoever is not signed in sees the sign-in page; whoever is does what their role may, by forms of our own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from api_house import ADMIN, OPERATOR, VIEWER, as_, opened
from console_people import Keep, SignIn, form_key

from rise.api import reading
from rise.api.security import Credentials
from rise.console.app import Front, _next, _way_to_root
from rise.console.sessions import COOKIE, SESSION_SECONDS, Session, Sessions, SignInNeeded
from rise.definitions.records import BindingRecord, KillSwitch
from rise.envelope import Reason, Status
from rise.ledger.port import Attempt
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_workflows
from rise.testing.clock import ManualClock

PAGES = [
    "/console",
    "/console/events",
    "/console/messages",
    "/console/messages/t_x",
    "/console/messages/t_x/raw",
    "/console/suspended",
    "/console/bindings",
    *("/console/workflows", "/console/workflows/wf_x", "/console/workflows/wf_x/compare"),
    "/console/workflows/wf_x/rollback?version=1",
    *("/console/prompts", "/console/prompts/pr_x", "/console/prompts/pr_x/compare"),
    "/console/prompts/pr_x/rollback?version=1",
    *("/console/follow-ups", "/console/follow-ups/t_x"),
    "/console/trail",
    "/console/anything/else",
]
FORMS = [
    *("/console/suspended/review", "/console/suspended/resume", "/console/suspended/drop"),
    *("/console/bindings/change", "/console/bindings/switch", "/console/bindings/test"),
    *(f"/console/workflows/{path}" for path in ("new", "wf_x/edit", "wf_x/try", "wf_x/rollback", "wf_x/switch")),
    *(f"/console/prompts/{path}" for path in ("new", "pr_x/edit", "pr_x/try", "pr_x/rollback")),
    *("/console/follow-ups/t_x/move", "/console/follow-ups/t_x/cancel"),
    "/console/sign-out",
]
FORMS_OF_ADMINS = ["/console/workflows/wf_x/remove", "/console/prompts/pr_x/remove"]
STAGES = '[{"name": "say", "kind": "reply", "template": "hi"}]'
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>{{ 7 * 7 }}"


# --- who is let in -------------------------------------------------------------------------------------------------


@pytest.mark.req("SEC-1", "OPS-3")
async def test_without_a_session_every_page_is_the_sign_in_page(nobody: httpx.AsyncClient, keep: Keep) -> None:
    await keep("a secret word", Reason.POISON)
    for path in PAGES:
        page = await nobody.get(path)
        assert (page.status_code, 'type="password"' in page.text) == (401, True), path
        assert "secret word" not in page.text


@pytest.mark.req("SEC-1")
async def test_without_a_session_no_form_does_anything(nobody: httpx.AsyncClient, house: House, keep: Keep) -> None:
    task_id = await keep("kept", Reason.POISON)
    for path in FORMS + FORMS_OF_ADMINS:
        assert (await nobody.post(path, data={"task": task_id, "why": "x"})).status_code == 401, path
    assert await is_suspended(house, task_id)


@pytest.mark.req("SEC-1")
async def test_a_token_in_a_header_or_an_address_is_no_session(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/console", headers=as_(ADMIN))).status_code == 401
    assert (await nobody.get("/console", params={"token": ADMIN})).status_code == 401
    assert (await nobody.get("/console/sign-in", params={"token": ADMIN})).headers.get("set-cookie") is None


@pytest.mark.req("SEC-1")
async def test_a_session_is_no_token_for_the_api(sign_in: SignIn) -> None:
    client = await sign_in(ADMIN)
    assert (await client.get("/internal/tasks/stats")).status_code == 401


@pytest.mark.req("SEC-1")
async def test_a_wrong_token_is_refused_and_slowed_down(tmp_path) -> None:
    async with opened(tmp_path / "data", rate_per_source=0.1) as house:
        transport = httpx.ASGITransport(Front(house))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = await client.post("/console/sign-in", data={"token": "not-a-token-of-this-house"})
            assert (first.status_code, "not known" in first.text, COOKIE in client.cookies) == (401, True, False)
            again = await client.post("/console/sign-in", data={"token": "not-a-token-of-this-house"})
            assert (again.status_code, int(again.headers["retry-after"]) > 0) == (429, True)


@pytest.mark.req("SEC-1")
async def test_the_cookie_is_for_this_site_alone_and_tells_no_token(nobody: httpx.AsyncClient) -> None:
    answer = await nobody.post("/console/sign-in", data={"token": OPERATOR})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path" not in cookie, "the browser takes the console's own, whatever a proxy has put before it"
    assert Credentials.digest(OPERATOR).removeprefix("sha256:") not in cookie
    assert "Secure" not in cookie, "it came over plain HTTP, on loopback"


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize(
    ("host", "is_secure"),
    [
        *(
            (host, True)
            for host in ("bot.example", "Bot.Example:443", "rise:8080", "10.0.0.7", "[", "", "localhost.evil")
        ),
        *((host, False) for host in ("localhost:8080", "127.0.0.2", "[::1]:8080", "LOCALHOST", "rise.localhost")),
    ],
)
async def test_where_the_public_address_is_https_the_cookie_is_for_https_only_but_on_this_machine(
    nobody: httpx.AsyncClient, host: str, is_secure: bool
) -> None:
    answer = await nobody.post("/console/sign-in", data={"token": OPERATOR}, headers={"host": host})
    assert ("Secure" in answer.headers["set-cookie"]) is is_secure


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize(
    "wanted", ["https://evil.example", "//evil.example", "messages/../../x", "javascript:alert(1)", "a\nb"]
)
async def test_signing_in_leads_nowhere_else(nobody: httpx.AsyncClient, wanted: str) -> None:
    answer = await nobody.post("/console/sign-in", data={"token": VIEWER, "next": wanted})
    assert (answer.status_code, answer.headers["location"]) == (303, "../console")


async def test_signing_in_leads_to_the_page_that_was_wanted(nobody: httpx.AsyncClient) -> None:
    page = await nobody.get("/console/messages?state=ended&q=a+b")
    found = re.search(r'name="next" value="([^"]*)"', page.text)
    assert found is not None
    answer = await nobody.post("/console/sign-in", data={"token": VIEWER, "next": found[1].replace("&amp;", "&")})
    assert answer.headers["location"] == "./messages?state=ended&q=a+b"
    assert _next("") == "../console"


@pytest.mark.req("OPS-3", "OPS-5")
async def test_a_slip_in_the_token_does_not_forget_the_page_that_was_wanted(nobody: httpx.AsyncClient) -> None:
    refused = await nobody.post("/console/sign-in", data={"token": "a slip", "next": 'messages?q="a+b'})
    assert refused.status_code == 401
    assert 'name="next" value="messages?q=&#34;a+b"' in refused.text, "escaped, and followed only where it is a page"


@pytest.mark.req("OPS-3", "OPS-5")
async def test_the_address_that_serve_says_leads_to_the_console(nobody: httpx.AsyncClient) -> None:
    answer = await nobody.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "console")
    assert (await nobody.post("/")).status_code == 404


def sessions(clock: ManualClock, key: str = "key", **tokens: str) -> Sessions:
    return Sessions(Credentials(ADMIN, tokens or {VIEWER: "vic:viewer"}), key, clock)


@pytest.mark.req("SEC-1")
def test_a_session_ends_with_the_day_with_its_token_and_with_the_key() -> None:
    clock = ManualClock()
    cookie = sessions(clock).open(VIEWER)
    assert cookie is not None
    assert sessions(clock).read(cookie).principal.name == "vic", "any process of the installation reads it"
    for others in (sessions(clock, key="another"), sessions(clock, **{OPERATOR: "olga:operator"})):
        with pytest.raises(SignInNeeded):
            others.read(cookie)
    clock.advance(SESSION_SECONDS + 1)
    with pytest.raises(SignInNeeded):
        sessions(clock).read(cookie)


@pytest.mark.req("SEC-1")
def test_a_changed_cookie_is_none() -> None:
    clock = ManualClock()
    cookie = sessions(clock).open(VIEWER)
    assert cookie is not None
    later = str(int(cookie.partition(".")[0]) + 1000)
    admins = sessions(clock).open(ADMIN)
    assert admins is not None
    mixed = ".".join([*cookie.split(".")[:2], admins.split(".")[2], cookie.split(".")[3]])
    for changed in ("", cookie[:-1], cookie + "0", f"{later}.{cookie.partition('.')[2]}", mixed, "٣" + cookie[1:]):
        with pytest.raises(SignInNeeded):
            sessions(clock).read(changed)


@pytest.mark.req("SEC-1")
async def test_signing_out_takes_the_cookie(sign_in: SignIn) -> None:
    client = await sign_in(VIEWER)
    key = form_key(await client.get("/console"))
    answer = await client.post("/console/sign-out", data={"form_key": key})
    assert (answer.status_code, answer.headers["location"]) == (303, "sign-in")
    assert (await client.get("/console")).status_code == 401


# --- who may what --------------------------------------------------------------------------------------------------


@pytest.mark.req("SEC-1", "OPS-3")
async def test_a_viewer_sees_but_resumes_and_drops_nothing(sign_in: SignIn, house: House, keep: Keep) -> None:
    task_id = await keep("still here", Reason.POISON)
    client = await sign_in(VIEWER)
    page = await client.get("/console/suspended")
    assert "still here" in page.text
    assert 'type="checkbox"' not in page.text
    for path in FORMS[:-1]:
        answer = await client.post(path, data={"form_key": form_key(page), "task": task_id, "why": "x"})
        assert (answer.status_code, "this needs the role operator" in answer.text) == (403, True), path
    for someone in (client, await sign_in(OPERATOR)):
        key = form_key(await someone.get("/console"))
        for path in FORMS_OF_ADMINS:
            answer = await someone.post(path, data={"form_key": key})
            assert (answer.status_code, "this needs the role admin" in answer.text) == (403, True), path
    assert await is_suspended(house, task_id)


@pytest.mark.req("SEC-1")
async def test_the_bytes_of_a_message_are_for_operators(sign_in: SignIn, keep: Keep) -> None:
    task_id = await keep("in the bytes, too", Reason.POISON)
    viewer, operator = await sign_in(VIEWER), await sign_in(OPERATOR)
    assert "clientMessageId" not in (await viewer.get(f"/console/messages/{task_id}")).text
    assert (await viewer.get(f"/console/messages/{task_id}/raw")).status_code == 403
    assert "clientMessageId" in (await operator.get(f"/console/messages/{task_id}")).text
    raw = await operator.get(f"/console/messages/{task_id}/raw")
    assert raw.headers["content-type"] == "application/octet-stream"
    assert raw.headers["content-disposition"].startswith("attachment")
    assert b"in the bytes, too" in raw.content


@pytest.mark.req("SEC-1")
async def test_a_form_without_the_sessions_key_does_nothing(sign_in: SignIn, house: House, keep: Keep) -> None:
    task_id = await keep("kept", Reason.POISON)
    client, other, admin = await sign_in(OPERATOR), await sign_in(OPERATOR), await sign_in(ADMIN)
    foreign = form_key(await other.get("/console/suspended"))
    for key in ("", "0" * 64, foreign, "ключ"):
        for path in FORMS:
            answer = await client.post(path, data={"form_key": key, "task": task_id, "why": "x"})
            assert answer.status_code == 403, (path, key)
        for path in FORMS_OF_ADMINS:
            answer = await admin.post(path, data={"form_key": key, "version": "1"})
            assert answer.status_code == 403, (path, key)
    assert await is_suspended(house, task_id)


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_form_that_another_site_sends_does_nothing(
    sign_in: SignIn, keep: Keep, house: House, site: str
) -> None:
    task_id = await keep("kept", Reason.POISON)
    client = await sign_in(OPERATOR)
    fields = {"form_key": form_key(await client.get("/console/suspended")), "task": task_id}
    headers = {"sec-fetch-site": site}
    assert (await client.post("/console/suspended/resume", data=fields, headers=headers)).status_code == 403
    assert (await client.post("/console/sign-in", data={"token": OPERATOR}, headers=headers)).status_code == 403
    assert await is_suspended(house, task_id)


@pytest.mark.failure("A17")
async def test_what_was_not_read_of_a_form_is_left_with_its_connection(
    sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"why="
        await asyncio.Event().wait()

    client = await sign_in(OPERATOR)
    form = {"content-type": "application/x-www-form-urlencoded"}
    large = await client.post("/console/suspended/review", data={"why": "x" * 70_000})
    assert (large.status_code, large.headers["connection"]) == (413, "close")
    monkeypatch.setattr(reading, "BODY_SECONDS", 0.1)
    for path in ("/console/suspended/review", "/console/sign-in"):
        slow = await client.post(path, content=trickle(), headers=form)
        assert (slow.status_code, slow.headers["connection"]) == (408, "close")


@pytest.mark.req("SEC-1", "SEC-4")
async def test_a_form_is_a_form_and_of_bearable_size(sign_in: SignIn) -> None:
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console"))
    assert (await client.post("/console/suspended/review", json={"form_key": key})).status_code == 415
    large = {"form_key": key, "why": "x" * 70_000}
    assert (await client.post("/console/suspended/review", data=large)).status_code == 413
    many = {"form_key": key, "task": ["t_x"] * 2_000}
    assert (await client.post("/console/suspended/review", data=many)).status_code == 422
    for path in ("/console/suspended/resume", "/console/suspended/drop"):
        assert (await client.get(path)).status_code in (404, 405), "what changes something is never a link"


# --- what every answer has -------------------------------------------------------------------------------------------


@pytest.mark.req("SEC-3")
async def test_every_answer_has_a_strict_policy(sign_in: SignIn, nobody: httpx.AsyncClient, keep: Keep) -> None:
    task_id = await keep("hello", Reason.POISON)
    client = await sign_in(OPERATOR)
    pages = [await nobody.get(path) for path in PAGES]
    pages += [await client.get(path) for path in PAGES if path != "/console/events"]
    pages.append(await client.get(f"/console/messages/{task_id}"))
    pages += [await nobody.request(method, "/console") for method in ("POST", "TRACE")]
    pages.append(await nobody.request("TRACE", "/console/messages"))
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["x-request-id"]
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=\"|javascript:", page.text), page.url
        assert not re.search(r"(src|href|action)=\"(https?:)?//", page.text), "nothing from elsewhere"


@pytest.mark.req("SEC-3")
async def test_whatever_somebody_writes_is_text_in_every_place(sign_in: SignIn, house: House, keep: Keep) -> None:
    task_id = await keep(HOSTILE, Reason.POISON)
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console"))
    pages = [
        await client.get("/console/suspended"),
        await client.get("/console/messages"),
        await client.get("/console/messages", params={"q": HOSTILE, "chat": HOSTILE, "channel": HOSTILE}),
        await client.get(f"/console/messages/{task_id}"),
        await client.post("/console/suspended/review", data={"form_key": key, "task": [task_id], "verb": "resume"}),
        await client.post("/console/suspended/review", data={"form_key": key, "scope": "filter", "channel": HOSTILE}),
    ]
    await house.ledger.add_attempt(f"{task_id}.0", Attempt(at_ms=1, error=HOSTILE, counted=True))
    pages.append(await client.get(f"/console/messages/{task_id}"))
    await client.post("/console/suspended/drop", data={"form_key": key, "task": task_id, "why": HOSTILE})
    pages.append(await client.get(f"/console/messages/{task_id}"))
    pages.append(await client.get("/console/messages?state=ended"))
    await house.editor.bind(
        BindingRecord(
            channel="webchat", account="default", workflow_id=HOSTILE, kill_switch=KillSwitch(HOSTILE, "", HOSTILE)
        ),
        by=HOSTILE,
    )
    pages.append(await client.get("/console/bindings"))
    pages.append(await client.get("/console/bindings", params={"done": "tested", "name": HOSTILE, "warning": HOSTILE}))
    pages.append(await client.get("/console/trail"))
    pages.append(await client.get("/console/trail", params={"q": HOSTILE}))
    house.capabilities.set("disk", house.capabilities.all()["disk"].status, HOSTILE)
    pages.append(await client.get("/console"))
    pages.append(await client.get(f"/console/messages/{HOSTILE}"))
    for page in pages:
        assert page.status_code in (200, 404), page.url
        assert "<script>alert" not in page.text, page.url
        assert "<img src=x" not in page.text, page.url
        assert "<b>49" not in page.text, page.url
        assert "&lt;b&gt;49" not in page.text, "text is no template"
    assert sum("&lt;script&gt;alert(1)" in page.text for page in pages) >= 12, "it is shown, as text"


@pytest.mark.req("SEC-3")
async def test_a_link_puts_no_words_into_the_consoles_mouth(sign_in: SignIn, house: House) -> None:
    client, another = await sign_in(OPERATOR), await sign_in(OPERATOR)
    lie = "Rise was sold; mail your token to evil.example"
    made = await build_workflows(house).create("bot", [{"name": "say", "kind": "reply", "template": "hi"}], by="ann")
    key = form_key(await client.get("/console/workflows"))
    path = f"/console/workflows/{made.workflow_id}"
    form = {"form_key": key, "verb": "publish", "name": "bot", "stages": STAGES, "version": "1"}
    published = await client.post(f"{path}/edit", data=form)
    assert published.status_code == 303
    told = httpx.URL(f"http://localhost{path}/edit").join(published.headers["location"])
    assert "runs from the next message on" in (await client.get(told)).text
    for someone, said in (
        (another, told),
        (client, told.copy_set_param("warning", lie)),
        (client, told.copy_set_param("done", "saved")),
        (client, told.copy_remove_param("mark")),
        (client, told.copy_set_param("mark", "ключ")),
    ):
        page = await someone.get(said)
        assert (page.status_code, 'role="status"' in page.text, lie in page.text) == (200, False, False), said
    for place, words in (
        ("workflows", {"removed": lie}),
        ("prompts", {"removed": lie}),
        ("bindings", {"done": "killed", "name": lie, "warning": lie}),
    ):
        page = await client.get(f"/console/{place}", params=words)
        assert (page.status_code, 'role="status"' in page.text, lie in page.text) == (200, False, False), place


async def is_suspended(house: House, task_id: str) -> bool:
    task = await house.queue.get(task_id)
    return task is not None and task.progress.status is Status.SUSPENDED


# --- behind a proxy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("/console", "console"),
        ("/console/messages", "."),
        ("/console/messages/t_x", "./.."),
        ("/console/a/b/c", "./../.."),
    ],
)
def test_links_are_relative_so_that_a_proxy_may_put_a_path_before_them(path: str, base: str) -> None:
    assert _way_to_root(path) == base


def test_what_a_session_may_is_what_its_role_may() -> None:
    clock = ManualClock()
    cookie = sessions(clock, **{OPERATOR: "olga:operator"}).open(OPERATOR)
    assert cookie is not None
    session: Session = sessions(clock, **{OPERATOR: "olga:operator"}).read(cookie)
    assert [session.may(role) for role in ("viewer", "operator", "admin")] == [True, True, False]
    assert timedelta(seconds=SESSION_SECONDS) == timedelta(hours=12)
