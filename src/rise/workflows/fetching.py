"""The client of `http` stages and of callbacks: one request out, to an address that was looked at first.

Promises: it connects to the very address that was checked, so that a name which means something else a moment later
changes nothing; the name stays in `Host` and in the certificate that is asked for. Answers end within `BYTES_MAX` and
within their time, however slowly they come.

Refuses: every address that is not public and not allowed (`reachable.py`), and a name if one of its addresses is; other
schemes than http and https; names and passwords in an address. Redirects are not followed: they are the answer, and
where they lead is for a stage to ask. No proxy of the environment is used, because that would look up the name itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from rise import tracing
from rise.errors import AddressForbidden, SiteFailed, SiteUnavailable, StageRefused
from rise.reachable import Address, Allowed, is_public
from rise.unreached import why_unreached

if TYPE_CHECKING:
    import httpx

BYTES_MAX: Final = 1 << 20
ADDRESSES_TRIED_MAX: Final = 3
CONNECT_SECONDS_MAX: Final = 10.0
LOOKUPS_MAX: Final = 32
"""Of names at once, in all runs of a process."""
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}|[0-9A-Fa-f:.]{2,45}")
"""A name, or an address of IPv6 without its brackets."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host for a port, in the order in which they are to be tried. Raises `OSError` if it has none."""


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    url: str
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    body: bytes | None = None
    wants_status_only: bool = False
    """What the answer says beside it is neither read nor judged."""


class HttpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None


class Fetch(Protocol):
    """Something that makes requests for stages."""

    async def fetch(self, request: HttpRequest, *, timeout_seconds: float) -> HttpAnswer:
        """Made once; any status is an answer. Raises `SiteUnavailable` where nothing answers in time, `SiteFailed`
        where there is nothing of that name, `AddressForbidden` or `StageRefused` where it must not be asked, or cannot.
        """
        ...

    async def close(self) -> None: ...


_LOOKUPS: Final = ThreadPoolExecutor(max_workers=LOOKUPS_MAX, thread_name_prefix="rise-lookup")


async def resolve(host: str, port: int) -> list[str]:
    """By the system, in threads of its own: a name whose servers never answer keeps one for half a minute, and those of
    the event loop are few. Everything else in this process looks its names up with them."""
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, lookup)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedFetch:
    """Over httpx, with every address looked at before it is connected to."""

    def __init__(
        self, allowed: Allowed | None = None, *, resolve: Resolve = resolve, bytes_max: int = BYTES_MAX
    ) -> None:
        self._allowed = allowed or Allowed()
        self._resolve = resolve
        self._bytes_max = bytes_max
        self._transport: httpx.AsyncHTTPTransport | None = None

    async def fetch(self, request: HttpRequest, *, timeout_seconds: float) -> HttpAnswer:
        url = read_address(request.url)
        # Without the path: what it holds may be a key.
        asked = {"http.request.method": request.method, "server.address": url.host, "server.port": url.port}
        with tracing.span(request.method, kind="client", attributes=asked) as span:
            answer = await self._fetch(request, url, timeout_seconds)
            span.note({"http.response.status_code": answer.status})
            return answer

    async def _fetch(self, request: HttpRequest, url: httpx.URL, timeout_seconds: float) -> HttpAnswer:
        async with _errors(url.host, timeout_seconds):
            addresses = await self._addresses(url)
            # One that swallows what it is sent leaves time for the next.
            patience = _patience(timeout_seconds, timeout_seconds / len(addresses))
            for address in addresses[:-1]:
                answer = await self._ask_unless_unreachable(request, url, address, patience)
                if answer is not None:
                    return answer
            return await self._ask(request, url, addresses[-1], patience)

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def _addresses(self, url: httpx.URL) -> list[Address]:
        """Those of its host, all of which may be called."""
        host, port = url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
        addresses = _read_all(await self._resolve(host, port))
        if not addresses:
            raise SiteFailed(f"{_shown(host)} has no address")
        if not self._allowed.host(host):
            for address in addresses:
                if not is_public(address) and not self._allowed.address(address):
                    # Not which: whoever may edit a workflow may not therefore learn what the names in here mean.
                    raise AddressForbidden(
                        f"{_shown(host)} leads to an address that is not public: "
                        "name it in RISE_HTTP_STAGE_ALLOW if it may be called"
                    )
        return addresses[:ADDRESSES_TRIED_MAX]

    async def _ask_unless_unreachable(
        self, request: HttpRequest, url: httpx.URL, address: Address, patience: httpx.Timeout
    ) -> HttpAnswer | None:
        """None: no connection came about, so nothing was asked, and the next address can be."""
        import httpx

        try:
            return await self._ask(request, url, address, patience)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return None

    async def _ask(self, request: HttpRequest, url: httpx.URL, address: Address, patience: httpx.Timeout) -> HttpAnswer:
        import httpx

        headers = httpx.Headers(dict(request.headers))
        headers.setdefault("User-Agent", "rise")
        headers.update({"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"})
        to = httpx.Request(
            request.method,
            url.copy_with(host=str(address)),
            headers=headers,
            content=request.body,
            extensions={"sni_hostname": url.raw_host.decode("ascii"), "timeout": patience.as_dict()},
        )
        response = await self._opened().handle_async_request(to)
        try:
            return HttpAnswer(
                status=response.status_code,
                content_type=response.headers.get("content-type", ""),
                body=b"" if request.wants_status_only else await self._body(response),
                retry_after=response.headers.get("retry-after"),
            )
        finally:
            await response.aclose()

    async def _body(self, response: httpx.Response) -> bytes:
        # Not unpacked: a kilobyte can be a gigabyte then, at once.
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise StageRefused("the answer is compressed, which was not asked for")
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._bytes_max:
                raise StageRefused(f"the answer has more than {self._bytes_max} bytes")
        return bytes(body)

    def _opened(self) -> httpx.AsyncHTTPTransport:
        """The transport alone: a client would keep cookies, and use the proxies of the environment."""
        import httpx  # here, because most bots make no requests, and start sooner without

        if self._transport is None:
            # No connection is used twice: it was opened to an address, under the certificate of one of its names, and
            # the next request may be for another name there.
            self._transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
        return self._transport


def read_address(text: str) -> httpx.URL:
    """Where a request would go. Raises `StageRefused` for what is no such address."""
    import httpx

    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise StageRefused("the address cannot be read") from error
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(host) or not 0 < (url.port or 80) <= 65535:
        raise StageRefused("the address is not http:// or https://, a host and perhaps a port")
    if url.userinfo:
        raise StageRefused("the address holds a name or a password: put them into a header")
    return url


def _patience(seconds: float, connect_seconds: float) -> httpx.Timeout:
    import httpx

    return httpx.Timeout(seconds, connect=min(connect_seconds, CONNECT_SECONDS_MAX))


def _read_all(found: Iterable[str]) -> list[Address]:
    return [ipaddress.ip_address(text) for text in found]


@asynccontextmanager
async def _errors(host: str, seconds: float) -> AsyncIterator[None]:
    """Within its time, and every error one of ours."""
    import httpx

    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except (httpx.TimeoutException, TimeoutError) as error:
        raise SiteUnavailable(f"{_shown(host)} did not answer within {seconds:g} s") from error
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        raise StageRefused(f"the request to {_shown(host)} cannot be made: {type(error).__name__}") from error
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise SiteUnavailable(f"nobody can say now which address {_shown(host)} has") from error
        # A name that was misspelt has none tomorrow either: that must not be waited for without end.
        raise SiteFailed(f"{_shown(host)} has no address") from error
    except (httpx.HTTPError, OSError) as error:
        raise SiteUnavailable(f"{_shown(host)} does not answer: {why_unreached(error)}") from error


def _shown(host: str) -> str:
    return ascii(host)[1:-1][:100]


def json_of(answer: HttpAnswer) -> Any:
    """The value of an answer: what its JSON says, or its text."""
    kind = answer.content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return msgspec.json.decode(answer.body) if answer.body.strip() else None
        except (msgspec.DecodeError, RecursionError) as error:
            raise StageRefused("the answer says that it is JSON, and is none") from error
    return answer.body.decode("utf-8", "replace")
