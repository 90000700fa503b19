"""What `http` stages may call, over real connections: never an address that was not looked at."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rise.errors import AddressForbidden, SiteFailed, SiteUnavailable, StageRefused
from rise.reachable import read_allowed
from rise.workflows.fetching import BYTES_MAX, GuardedFetch, HttpAnswer, HttpRequest, json_of

HERE = read_allowed(["127.0.0.1", "::1"])


class Site:
    """A server on this machine, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.port = 0
        self.answer: Callable[[web.Request], Any] = lambda request: web.json_response({"ok": True})
        self.held = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.bodies.append(await request.read())
        found = self.answer(request)
        return await found if asyncio.iscoroutine(found) else found

    def url(self, path: str = "/", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def serving(site: Site, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, 0, ssl_context=tls).start()
    site.port = runner.addresses[0][1]
    try:
        yield site
    finally:
        site.held.set()
        await runner.cleanup()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Site()) as site:
        yield site


@asynccontextmanager
async def fetching(**options: Any) -> AsyncIterator[GuardedFetch]:
    fetch = GuardedFetch(**options)
    try:
        yield fetch
    finally:
        await fetch.close()


async def fetched(url: str, *, seconds: float = 10.0, method: str = "GET", body: bytes | None = None,
                  headers: dict[str, str] | None = None, **options: Any) -> HttpAnswer:  # fmt: skip
    async with fetching(**{"allowed": HERE, **options}) as fetch:
        request = HttpRequest(method=method, url=url, headers=headers or {}, body=body)
        return await fetch.fetch(request, timeout_seconds=seconds)


def resolving(*addresses: str) -> tuple[list[str], Callable[[str, int], Any]]:
    """A resolver that gives these, one list a question, and remembers what it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return list(addresses)

    return asked, resolve


@pytest.mark.req("WFL-2")
async def test_a_request_arrives_as_it_was_meant(site: Site):
    answer = await fetched(
        site.url("/a%20b?c=d"),
        method="POST",
        body=b'{"x":1}',
        headers={"X-Key": "k", "Content-Type": "application/json"},
    )
    assert (answer.status, json_of(answer)) == (200, {"ok": True})
    [asked] = site.asked
    assert (asked.method, asked.raw_path, asked.headers["X-Key"]) == ("POST", "/a%20b?c=d", "k")
    assert site.bodies == [b'{"x":1}']


INSIDE = [
    "http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://127.1:{port}/", "http://2130706433:{port}/",
    "http://0x7f.0.0.1:{port}/", "http://0177.0.0.1:{port}/", "http://0:{port}/", "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://localhost.:{port}/",
    "http://LOCALHOST:{port}/", "http://①②⑦.0.0.1:{port}/", "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/", "http://10.0.0.1/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/",
]  # fmt: skip


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize("url", INSIDE)
async def test_an_address_inside_is_not_called_however_it_is_spelled(site: Site, url: str):
    with pytest.raises((AddressForbidden, SiteFailed, StageRefused)) as refused:
        await fetched(url.format(port=site.port), allowed=None)
    assert not site.asked
    if "localhost:" in url or "169.254" in url or "[" in url:
        assert isinstance(refused.value, AddressForbidden)


@pytest.mark.req("SEC-3")
async def test_a_name_with_one_address_inside_is_not_called_at_all(site: Site):
    _, resolve = resolving("93.184.216.34", "127.0.0.1")
    with pytest.raises(AddressForbidden, match=r"rebound\.example leads to an address that is not public"):
        await fetched(site.url(host="rebound.example"), allowed=None, resolve=resolve)
    assert not site.asked


@pytest.mark.req("SEC-3")
async def test_what_is_connected_to_is_what_was_looked_at_whatever_the_name_means_a_moment_later(site: Site):
    """The system knows no `moved.example`: were the name looked up again to connect, this would fail."""
    asked, resolve = resolving("127.0.0.1")
    answer = await fetched(site.url(host="moved.example"), resolve=resolve)
    assert answer.status == 200
    assert asked == ["moved.example"]
    assert site.asked[0].headers["Host"] == f"moved.example:{site.port}"


@pytest.mark.req("SEC-3")
async def test_a_host_that_is_allowed_by_name_may_be_anywhere(site: Site):
    _, resolve = resolving("127.0.0.1")
    allowed = read_allowed(["intranet.example"])
    assert (await fetched(site.url(host="Intranet.example"), allowed=allowed, resolve=resolve)).status == 200
    with pytest.raises(AddressForbidden):
        await fetched(site.url(host="other.example"), allowed=allowed, resolve=resolve)


@pytest.mark.req("SEC-3")
async def test_a_redirect_is_an_answer_and_is_not_followed(site: Site):
    site.answer = lambda request: web.Response(status=302, headers={"Location": "http://169.254.169.254/"})
    assert (await fetched(site.url())).status == 302
    assert len(site.asked) == 1


@pytest.mark.req("SEC-3")
async def test_every_connection_is_new_and_asks_its_own_name_for_its_certificate(tmp_path: Path):
    """Two names on one address: what was opened for the first must not carry the second."""
    tls = certified(tmp_path, "first.example")
    _, resolve = resolving("127.0.0.1")
    async with serving(Site(), tls=tls) as site:
        trusted = {"allowed": HERE, "resolve": resolve}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
            async with fetching(**trusted) as fetch:
                first = HttpRequest(method="GET", url=site.url(host="first.example", scheme="https"))
                assert (await fetch.fetch(first, timeout_seconds=10)).status == 200
                second = HttpRequest(method="GET", url=site.url(host="second.example", scheme="https"))
                with pytest.raises(SiteUnavailable):
                    await fetch.fetch(second, timeout_seconds=10)
    assert [request.host for request in site.asked] == [f"first.example:{site.port}"]


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "//example.com/", "example.com", "", "http://",
     "http:///path", "http://user:password@example.com/", "http://exa mple.com/", "http://[::1", "http://a:99999/",
     "http://example.com\x00/", "http://\udcff/"],
)  # fmt: skip
async def test_what_is_no_address_of_the_web_is_refused(url: str):
    asked, resolve = resolving("127.0.0.1")
    with pytest.raises(StageRefused):
        await fetched(url, resolve=resolve)
    assert not asked


@pytest.mark.req("SEC-3")
async def test_no_proxy_of_the_environment_looks_up_names_for_us(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", site.url())
    monkeypatch.setenv("ALL_PROXY", site.url())
    _, resolve = resolving("127.0.0.1")
    with pytest.raises(SiteUnavailable):
        await fetched(f"http://elsewhere.example:{free_port()}/", resolve=resolve)
    assert not site.asked


@pytest.mark.req("WFL-2")
async def test_who_does_not_answer_in_time_is_tried_later_also_if_it_drips(site: Site):
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not site.held.is_set():
            await response.write(b"x")
            await asyncio.sleep(0.02)
        return response

    site.answer = drip
    with pytest.raises(SiteUnavailable, match=r"127\.0\.0\.1 did not answer within 0\.3 s"):
        await fetched(site.url("/?key=secret"), seconds=0.3)


@pytest.mark.req("WFL-2")
async def test_who_refuses_the_connection_is_tried_later_and_the_address_stays_out_of_the_words():
    with pytest.raises(SiteUnavailable) as refused:
        await fetched(f"http://127.0.0.1:{free_port()}/?key=secret")
    assert "secret" not in str(refused.value)


@pytest.mark.req("WFL-2")
async def test_the_next_address_is_tried_where_the_first_lets_nobody_in(site: Site):
    _, resolve = resolving("127.0.0.2", "127.0.0.1")
    answer = await fetched(site.url(host="two.example"), allowed=read_allowed(["127.0.0.0/8"]), resolve=resolve)
    assert answer.status == 200


@pytest.mark.req("WFL-2")
async def test_an_address_that_swallows_everything_leaves_time_for_the_next(site: Site):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.2", site.port))
        deaf.listen(0)
        full = [socket.socket() for _ in range(3)]  # its backlog: whoever comes now hears nothing
        for one in full:
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", site.port))
        _, resolve = resolving("127.0.0.2", "127.0.0.1")
        answer = await fetched(
            site.url(host="two.example"), seconds=3.0, allowed=read_allowed(["127.0.0.0/8"]), resolve=resolve
        )
        assert answer.status == 200
        for one in full:
            one.close()


@pytest.mark.req("WFL-2")
@pytest.mark.parametrize(("number", "error"), [(socket.EAI_NONAME, SiteFailed), (socket.EAI_AGAIN, SiteUnavailable)])
async def test_a_name_that_is_not_there_uses_up_tries_and_a_resolver_that_is_away_does_not(number: int, error: type):
    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(number, "as the system says it")

    with pytest.raises(error):
        await fetched("http://nowhere.example/", resolve=resolve)


@pytest.mark.req("SEC-3")
async def test_an_answer_is_bounded_and_is_not_unpacked(site: Site):
    site.answer = lambda request: web.Response(body=b"x" * BYTES_MAX)
    assert len((await fetched(site.url())).body) == BYTES_MAX
    site.answer = lambda request: web.Response(body=b"x" * (BYTES_MAX + 1))
    with pytest.raises(StageRefused, match="more than"):
        await fetched(site.url())
    site.answer = lambda request: web.Response(body=b"x", headers={"Content-Encoding": "gzip"})
    with pytest.raises(StageRefused, match="compressed"):
        await fetched(site.url())
    assert site.asked[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize("header", [{"X-A": "a\r\nX-B: b"}, {"X-A": "a\nb"}, {"X A": "a"}, {"X-A": "\udcff"}])
async def test_a_header_cannot_become_two(site: Site, header: dict[str, str]):
    with pytest.raises(StageRefused):
        await fetched(site.url(), headers=header)
    assert not site.asked


async def test_an_address_of_ipv6_is_called():
    async with serving(Site(), host="::1") as site:
        assert (await fetched(site.url(host="[::1]"))).status == 200
        assert site.asked[0].headers["Host"] == f"[::1]:{site.port}"


async def test_what_an_answer_holds_is_its_value():
    def answer(body: bytes, kind: str) -> HttpAnswer:
        return HttpAnswer(status=200, content_type=kind, body=body)

    assert json_of(answer(b'{"a":1}', "application/problem+json; charset=utf-8")) == {"a": 1}
    assert json_of(answer(b"", "application/json")) is None
    assert json_of(answer(b"h\xe9", "text/plain")) == "h\ufffd"
    for body in (b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(StageRefused, match="is none"):
            json_of(answer(body, "application/json"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certified(directory: Path, name: str) -> ssl.SSLContext:
    """A server's side, with a certificate for this name that whoever reads the file trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    return context


@pytest.mark.req("SEC-3")
async def test_names_that_nobody_answers_for_keep_nobody_else_from_looking_names_up(monkeypatch: pytest.MonkeyPatch):
    """Whoever edits a workflow may name any host; the bot's own calls need the same threads."""
    is_over, find = threading.Event(), socket.getaddrinfo

    def find_slowly(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "slow.example":
            is_over.wait(20)
        return find(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", find_slowly)
    try:
        for _ in range((os.cpu_count() or 1) + 4):  # as many threads as a loop has
            with pytest.raises(SiteUnavailable):
                await fetched("http://slow.example/", seconds=0.01)
        async with asyncio.timeout(5):
            assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
    finally:
        is_over.set()
