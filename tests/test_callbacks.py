"""Whom results may be posted to, how many at once, and what counts as taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from rise import callbacks
from rise.callbacks import (
    AT_ONCE_MAX,
    AT_ONCE_PER_HOST_MAX,
    GIVE_UP_SECONDS,
    PAUSE_SECONDS_MAX,
    PAUSE_SECONDS_MIN,
    CallbackReceiver,
    pause_seconds,
)
from rise.channels.port import NotSent, Paused, Refused, SendOutcome, Succeeded
from rise.clock import SystemClock
from rise.envelope import Call, masked_url
from rise.errors import PayloadInvalid
from rise.reachable import Allowed, read_allowed
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import callback, task
from rise.workflows.fetching import GuardedFetch, HttpAnswer, HttpRequest

SECRET = "a-secret-of-the-tests"
NOBODY = Allowed()


class Holding:
    """Lets nobody's request end before it is told."""

    def __init__(self, answer: HttpAnswer | None = None) -> None:
        self.out = 0
        self.let_go = asyncio.Event()
        self.answer = answer or HttpAnswer(status=200, content_type="", body=b"")

    async def fetch(self, request: HttpRequest, *, timeout_seconds: float) -> HttpAnswer:
        self.out += 1
        await self.let_go.wait()
        return self.answer

    async def close(self) -> None: ...


def call_of(url: str) -> Call:
    return Call("callback", {"url": url, "body": "{}"}, masked_url(url))


async def posted(receiver: CallbackReceiver, url: str) -> SendOutcome:
    return await receiver.send("default", "t_1", call_of(url))


# --- whom ---

USABLE = [
    "https://shop.example/results",
    "https://shop.example:8443/results?key=1",
    "https://93.184.216.34/",
    "http://intranet.example/results",
    "http://INTRANET.example./results",
    "http://10.1.2.3:8080/",
    "https://[fd00::1]/",
    "https://0x7f.example/",
    "https://localhost.example/",
    "https://shop.1x/",
]
NONSENSE = [
    "", " ", "shop.example", "/results", "ftp://shop.example/", "file:///etc/passwd", "https://", "https:///results",
    "https://user:secret@shop.example/", "https://shop.example:99999/", "https://sh op.example/", "javascript:alert(1)",
    "https://shop.example/" + "x" * 2048, "http://shop.example/", "http://93.184.216.34/",
]  # fmt: skip
INSIDE = [
    "https://127.0.0.1/",
    "https://10.2.0.1/",
    "https://169.254.169.254/latest",
    "https://[::1]/",
    "http://0.0.0.0/",
    *(f"https://{host}/" for host in ("2130706433", "127.1", "0x7f000001", "0177.0.0.0x1", "127.0.0.1.", "93.184.216")),
    *(f"https://{host}/" for host in ("localhost", "LocalHost.:8443", "rise.localhost")),
]


@pytest.fixture
def receiver() -> CallbackReceiver:
    allowed = read_allowed(["intranet.example", "10.1.0.0/16", "fd00::/8"])
    return CallbackReceiver(SECRET, Holding(), allowed, ManualClock())


@pytest.mark.req("ENV-7")
@pytest.mark.parametrize("url", USABLE)
def test_whom_results_can_be_posted_to(receiver: CallbackReceiver, url: str):
    receiver.refuse_unusable(url)


@pytest.mark.req("ENV-7", "SEC-3")
@pytest.mark.parametrize("url", [*NONSENSE, *INSIDE])
def test_what_is_nonsense_or_inside_is_refused_at_the_door(receiver: CallbackReceiver, url: str):
    with pytest.raises(PayloadInvalid) as refused:
        receiver.refuse_unusable(url)
    assert refused.value.field == "callbackUrl"
    assert "secret" not in refused.value.public_message
    assert ("RISE_HTTP_STAGE_ALLOW" in refused.value.public_message) is True


@pytest.mark.req("ENV-7", "SEC-2")
def test_of_a_url_the_host_alone_is_shown():
    assert masked_url("https://shop.example:8443/hooks/T0/secret?key=secret#secret") == "https://shop.example:8443/…"
    assert masked_url("https://user:secret@shop.example/") == "https://shop.example/…"


@pytest.mark.req("ENV-7", "SEC-3")
async def test_a_name_that_leads_inside_is_not_posted_to_and_can_be_allowed_later():
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    receiver = CallbackReceiver(SECRET, GuardedFetch(NOBODY, resolve=resolve), NOBODY, SystemClock())
    outcome = await posted(receiver, "https://shop.example/results?key=secret")
    assert isinstance(outcome, NotSent), "who allows it now still gets what waits"
    assert "RISE_HTTP_STAGE_ALLOW" in outcome.error
    assert "secret" not in outcome.error
    await receiver.close()


@pytest.mark.req("ENV-7")
async def test_what_was_kept_and_cannot_be_posted_is_given_up_at_once(receiver: CallbackReceiver):
    fetch = GuardedFetch(NOBODY)
    receiver = CallbackReceiver(SECRET, fetch, NOBODY, SystemClock())
    outcome = await posted(receiver, "no address")
    assert isinstance(outcome, Refused)


# --- how many ---


@pytest.mark.req("ENV-7")
async def test_no_host_has_more_than_its_part_and_all_together_leave_room_for_people():
    fetch = Holding()
    receiver = CallbackReceiver(SECRET, fetch, NOBODY, ManualClock())
    hosts = [f"https://shop{number}.example/" for number in range(5)]
    out = [asyncio.ensure_future(posted(receiver, url)) for url in hosts for _ in range(AT_ONCE_PER_HOST_MAX + 1)]
    done, waiting = await asyncio.wait(out, timeout=0.1, return_when=asyncio.ALL_COMPLETED)
    assert (fetch.out, len(waiting)) == (AT_ONCE_MAX, AT_ONCE_MAX)
    assert all(isinstance(one.result(), Paused) for one in done)
    fetch.let_go.set()
    assert all(isinstance(outcome, Succeeded) for outcome in await asyncio.gather(*waiting))
    assert isinstance(await posted(receiver, hosts[0]), Succeeded)


# --- how often ---


@pytest.mark.req("ENV-7")
def test_the_pauses_grow_with_what_was_waited_up_to_an_hour():
    ended_ms = task().head.accepted_at_ms
    due = msgspec.structs.replace(callback(task()), deadline_at_ms=ended_ms + int(GIVE_UP_SECONDS * 1000))
    pauses = [pause_seconds(due, ended_ms + seconds * 1000) for seconds in (0, 1, 60, 600, 86_000, 100_000)]
    assert pauses == [PAUSE_SECONDS_MIN, PAUSE_SECONDS_MIN, 30.0, 300.0, PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX]


# --- what counts as taken ---

ANSWERS: dict[str, tuple[Callable[[], web.Response], type[SendOutcome]]] = {
    "200": (lambda: web.Response(), Succeeded),
    "204": (lambda: web.Response(status=204), Succeeded),
    "a page longer than anybody reads": (lambda: web.Response(body=b"x" * (2 << 20)), Succeeded),
    "compressed": (lambda: web.Response(headers={"Content-Encoding": "gzip"}, body=b"x"), Succeeded),
    "a redirect": (lambda: web.Response(status=307, headers={"Location": "/"}), NotSent),
    "not there": (lambda: web.Response(status=404), NotSent),
    "gone": (lambda: web.Response(status=410), Refused),
    "an error": (lambda: web.Response(status=500), NotSent),
    "too many": (lambda: web.Response(status=429, headers={"Retry-After": "30"}), Paused),
    "too many, until a date": (lambda: web.Response(status=429, headers={"Retry-After": "Fri, 07 Nov"}), NotSent),
    "not now": (lambda: web.Response(status=503, headers={"Retry-After": "999999999"}), Paused),
}


@asynccontextmanager
async def serving(answer: web.Response) -> AsyncIterator[str]:
    """A server that answers with this, once."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return answer

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest.mark.req("ENV-7")
@pytest.mark.parametrize("name", ANSWERS)
async def test_success_and_nothing_else_is_taken(name: str):
    answered, expected = ANSWERS[name]
    answer = answered()
    here = read_allowed(["127.0.0.1"])
    receiver = CallbackReceiver(SECRET, GuardedFetch(here), here, SystemClock())
    async with serving(answer) as url:
        outcome = await posted(receiver, url)
    await receiver.close()
    assert isinstance(outcome, expected), outcome
    if isinstance(outcome, Paused):
        assert outcome.seconds == min(float(answer.headers["Retry-After"]), PAUSE_SECONDS_MAX)


@pytest.mark.req("ENV-7")
async def test_where_nobody_listens_it_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callbacks, "POST_SECONDS_MAX", 1.0)
    here = read_allowed(["127.0.0.1"])
    receiver = CallbackReceiver(SECRET, GuardedFetch(here), here, SystemClock())
    outcome = await posted(receiver, "http://127.0.0.1:1/?key=secret")
    await receiver.close()
    assert isinstance(outcome, NotSent)
    assert "secret" not in outcome.error
