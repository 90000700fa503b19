"""Web chat's way in and out: a page, a session, messages, and a stream of what is said.

The stream reads the transcript from where the page left off, so a page that was away, or a server that was
killed, misses nothing. Events of the bus only make it quick; every second it looks by itself.

Refuses: to be there where nobody has bound a workflow to it (404): what anybody may write to is what somebody asked
for. To read or write without a session (401), a message id that came before with another body (422), more open
streams than a page, an address or a process needs (429).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from rise.api import description
from rise.api.answers import answer, request_id_of
from rise.api.reading import read_json_body
from rise.api.security import PAGE_POLICY, anonymous, bearer_of, source_of
from rise.api.tasks import trace_id_from
from rise.bus.port import Bus, Topic
from rise.channels.webchat import ACCOUNT, CHANNEL
from rise.envelope import encode_json, is_in_digits
from rise.errors import ChannelUnknown, CredentialsMissing, RateExceeded, Unavailable
from rise.ledger.port import Reply
from rise.runtime.assembly.house import House
from rise.runtime.entrance import requiring_same_body
from rise.runtime.open_files import open_files_max
from rise.runtime.starting import refuse_while_starting
from rise.service import Signal
from rise.telemetry import log

MESSAGE_BYTES_MAX: Final = 64 * 1024
LOOK_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 15.0
STREAM_SECONDS_MAX: Final = 900.0
"""A page comes back by itself; a stream nobody reads any more does not live for ever."""
STREAMS_MAX: Final = 5_000
STREAMS_PER_SESSION_MAX: Final = 8
TASKS_KNOWN_MAX: Final = 10_000
PAGE_SIZE: Final = 100
SEQUENCE_MAX: Final = (1 << 63) - 1

_PAGES: Final = Path(__file__).with_name("pages")
_FILES: Final = {
    "chat.css": "text/css; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "embed.js": "text/javascript; charset=utf-8",
}


class Bounds(NamedTuple):
    """How many streams may be open at once."""

    of_all: int
    per_source: int


def bounds_of(rate_per_source: float) -> Bounds:
    """An address may have as many open as it may make requests a second: behind a proxy both are everybody's together.

    All of them leave three quarters of what the process may have open to everything else.
    """
    return Bounds(
        of_all=min(STREAMS_MAX, open_files_max() // 4),
        per_source=max(STREAMS_PER_SESSION_MAX, int(rate_per_source)),
    )


class Watchers:
    """Who looks at which chat now, and what wakes them."""

    def __init__(self, bus: Bus, bounds: Bounds) -> None:
        self._bounds = bounds
        self._of_source: Counter[str] = Counter()
        self._of_session: dict[str, set[Watcher]] = defaultdict(set)
        self._session_of: OrderedDict[str, str] = OrderedDict()
        self._count = 0
        self.closing = False
        self._subscriptions = (
            bus.subscribe(Topic.RUN_STARTED, self._run_started),
            bus.subscribe(Topic.RUN_ENDED, self._run_ended),
            bus.subscribe(Topic.TASK_SETTLED, self._task_settled),
        )

    def close(self) -> None:
        """End all streams; their pages come back to the next process."""
        self.closing = True
        for unsubscribe in self._subscriptions:
            unsubscribe()
        for watchers in self._of_session.values():
            for watcher in watchers:
                watcher.changed.set()

    def expect(self, task_id: str, session: str) -> None:
        """The end of this task concerns that chat."""
        self._session_of[task_id] = session
        if len(self._session_of) > TASKS_KNOWN_MAX:
            self._session_of.popitem(last=False)  # its chat looks by itself

    @contextmanager
    def watching(self, session: str, source: str) -> Iterator[Watcher]:
        watcher = Watcher()
        self._of_session[session].add(watcher)
        self._of_source[source] += 1
        self._count += 1
        try:
            yield watcher
        finally:
            self._count -= 1
            self._of_source[source] -= 1
            if not self._of_source[source]:
                del self._of_source[source]
            self._of_session[session].discard(watcher)
            if not self._of_session[session]:
                del self._of_session[session]

    def refuse_too_many(self, session: str, source: str) -> None:
        if (
            self._count >= self._bounds.of_all
            or self._of_source[source] >= self._bounds.per_source
            or len(self._of_session.get(session, ())) >= STREAMS_PER_SESSION_MAX
        ):
            raise RateExceeded("too many open streams", retry_after_seconds=5)

    def _run_started(self, run: Mapping[str, Any]) -> None:
        if run.get("channel") == CHANNEL and run.get("chat_id"):
            task_id, session = str(run.get("run_id")).rpartition(".")[0], str(run["chat_id"])
            self.expect(task_id, session)
            self._wake(session, typing=True)

    def _run_ended(self, run: Mapping[str, Any]) -> None:
        session = self._session_of.get(str(run.get("run_id")).rpartition(".")[0])
        if session is not None:
            self._wake(session, typing=False)

    def _task_settled(self, event: Mapping[str, Any]) -> None:
        session = self._session_of.pop(str(event.get("task_id")), None)
        if session is not None:
            self._wake(session, typing=False)

    def _wake(self, session: str, *, typing: bool) -> None:
        for watcher in self._of_session.get(session, ()):
            watcher.typing = typing
            watcher.changed.set()


class Watcher:
    """One open page."""

    def __init__(self) -> None:
        self.changed = Signal()
        self.typing = False


def webchat_routes(house: House, watchers: Watchers) -> APIRouter:
    """The routes under /webchat. Anonymous: bounded in rate and size."""
    router = APIRouter(prefix="/webchat", dependencies=[Depends(anonymous)])
    _add_pages(router, house)
    _add_conversation(router, house, watchers)
    return router


async def _require_chat(house: House) -> None:
    """Raises `ChannelUnknown` where nobody has asked for a web chat, `CapabilityClosed` while that is not known yet."""
    if house.bindings.is_asked_for(CHANNEL, ACCOUNT):
        return
    await house.bindings.refresh()  # it may have been bound just now, by another process
    if house.bindings.is_asked_for(CHANNEL, ACCOUNT):
        return
    refuse_while_starting(house.capabilities, "whether there is a web chat")
    raise ChannelUnknown('there is no web chat here: a workflow has to ask for it, with channels=["webchat"]')


def _add_pages(router: APIRouter, house: House) -> None:
    page = (_PAGES / "chat.html").read_bytes()

    @router.get("", include_in_schema=False)
    async def chat_page() -> Response:
        with suppress(Unavailable):  # a page that is opened too soon asks again by itself
            await _require_chat(house)
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return Response(page, headers=headers, media_type="text/html; charset=utf-8")

    @router.get("/", include_in_schema=False)
    async def chat_page_in_a_folder(request: Request) -> Response:
        """The page's links are right without the slash. Relative, for a proxy may have put something before it."""
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"../webchat{query}", 308)

    for name, media_type in _FILES.items():
        _add_file(router, name, media_type)


def _add_file(router: APIRouter, name: str, media_type: str) -> None:
    content = (_PAGES / name).read_bytes()

    @router.get(f"/{name}", include_in_schema=False)
    async def file() -> Response:
        return Response(content, headers={"Cache-Control": "no-cache"}, media_type=media_type)


def _add_conversation(router: APIRouter, house: House, watchers: Watchers) -> None:
    channel, intake = house.channels.webchat, requiring_same_body(house)

    async def session_of(request: Request) -> str:
        token = bearer_of(request.scope)
        if token is None:
            raise CredentialsMissing("this needs a session: Authorization: Bearer …")
        return channel.session_of(token)

    @router.post("/session", **description.route(description.SESSION, *description.ANONYMOUS, 404, 503))
    async def open_session(request: Request) -> Response:
        """A new chat. Nothing is kept for it until its first message."""
        await _require_chat(house)
        token = channel.new_session()
        return answer(request, {"token": token, "session": channel.session_of(token)})

    @router.post(
        "/messages",
        **description.route(
            description.SAID,
            *description.WITH_SESSION,
            *description.WITH_BODY,
            404,
            503,
            takes=description.WORD,
        ),
    )
    async def send(request: Request, session: str = Depends(session_of)) -> Response:
        """Keep a message. It is durable when this answers 2xx; until then the page repeats it."""
        await _require_chat(house)
        body = await read_json_body(request.scope, request.receive, bytes_max=MESSAGE_BYTES_MAX)
        incoming = channel.read_message(
            body, session, request_id=request_id_of(request.scope), trace_id=trace_id_from(request)
        )
        accepted = await intake.accept(incoming)
        watchers.expect(accepted.task_id, session)
        return answer(request, {"taskId": accepted.task_id, "duplicate": not accepted.new})

    @router.get(
        "/events",
        response_class=StreamingResponse,
        **description.route_in_text("text/event-stream", description.EVENT, *description.WITH_SESSION, 422),
    )
    async def events(
        request: Request, session: str = Depends(session_of), after: int = Query(0, ge=0, le=SEQUENCE_MAX)
    ) -> Response:
        """What is said in the chat beyond `after` (or `Last-Event-ID`), as it is said."""
        source = source_of(request.scope)
        watchers.refuse_too_many(session, source)
        last = request.headers.get("last-event-id", "")
        if is_in_digits(last) and len(last) < 19:
            after = max(after, int(last))
        return StreamingResponse(
            _stream(house, watchers, session, source, after),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )


async def _stream(house: House, watchers: Watchers, session: str, source: str, after: int) -> AsyncIterator[bytes]:
    """Server-sent events: `reply` with the reply's sequence as id, and `typing`."""
    clock = house.clock
    typing_shown, quiet_since = False, clock.monotonic()
    ends_at = quiet_since + STREAM_SECONDS_MAX
    with watchers.watching(session, source) as watcher:
        yield b"retry: 1000\n\n"
        while not watchers.closing and clock.monotonic() < ends_at:
            try:
                replies = await house.ledger.transcript(CHANNEL, ACCOUNT, session, after=after, limit=PAGE_SIZE)
            except Unavailable as error:
                log.warning("webchat.stream_ended", error=error, consequence="the page comes back by itself")
                return
            for reply in replies:
                after = reply.sequence
                yield _event("reply", _shown(reply), id=after)
            if watcher.typing is not typing_shown:
                typing_shown = watcher.typing
                yield _event("typing", {"on": typing_shown})
            elif not replies and clock.monotonic() - quiet_since >= HEARTBEAT_SECONDS:
                yield b": still here\n\n"
            elif not replies:
                await watcher.changed.wait(LOOK_SECONDS)
                continue
            quiet_since = clock.monotonic()


def _event(name: str, value: Any, *, id: int | None = None) -> bytes:
    numbered = b"" if id is None else b"id: %d\n" % id
    return b"%bevent: %b\ndata: %b\n\n" % (numbered, name.encode(), encode_json(value))


def _shown(reply: Reply) -> dict[str, Any]:
    """What the page needs of a reply; who it is for is the session's secret."""
    return {"sequence": reply.sequence, "kind": reply.kind, "taskId": reply.task_id} | reply.call.params
