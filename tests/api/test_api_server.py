"""The server on real sockets: slow, endless and lying requests, and stopping."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import Any

import httpx
import pytest
from api_house import OPERATOR, SECRET, Work, as_, opened, talk

import rise
from rise.api import reading
from rise.api import server as server_module
from rise.api.server import ApiServer
from rise.errors import SettingsInvalid
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.testing.waiting import eventually

UPDATE = json.dumps(
    {"update_id": 1, "message": {"message_id": 1, "date": 2_000_000_000, "chat": {"id": 42}, "text": "x"}}
).encode()
HEAD = f"POST /telegram/webhook HTTP/1.1\r\nHost: x\r\nX-Telegram-Bot-Api-Secret-Token: {SECRET}\r\n".encode()
APPLY_HEAD = (
    "POST /api/workflows/apply HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer {OPERATOR}\r\n"
).encode()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a test's length."""
    monkeypatch.setattr(reading, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(reading, "DISCARD_SECONDS", 0.3)
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.3)


async def open_tasks(house: House) -> list[Any]:
    return await house.queue.list_open(Selection(), limit=10)


async def requests_served(server: ApiServer) -> int:
    assert server._server is not None
    return len(server._server.server_state.tasks)


async def no_requests_served(server: ApiServer) -> bool:
    return await requests_served(server) == 0


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1]) if response else 0


@pytest.mark.req("TGM-1")
async def test_an_update_is_answered_with_nothing_but_a_status(server: ApiServer, house: House) -> None:
    response = await talk(server.port, HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(UPDATE) + UPDATE)
    assert response == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert len(await open_tasks(house)) == 1


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("head", [HEAD, APPLY_HEAD], ids=["webhook", "apply"])
async def test_a_body_that_does_not_come_is_408_and_the_connection_closed(
    server: ApiServer, house: House, head: bytes
) -> None:
    response = await talk(server.port, head + b"Content-Length: 1000\r\n\r\n{")
    assert status_of(response) == 408
    assert b"connection: close" in response.lower()
    assert await open_tasks(house) == []


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("head", [HEAD, APPLY_HEAD], ids=["webhook", "apply"])
async def test_a_body_that_trickles_has_one_deadline_for_all_of_it(
    server: ApiServer, house: House, head: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")

    async def trickle() -> None:
        while True:
            writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.05)

    trickling = asyncio.ensure_future(trickle())
    async with asyncio.timeout(5):
        response = await reader.readuntil(b"\r\n\r\n")
    trickling.cancel()
    writer.close()
    assert status_of(response) == 408
    assert await open_tasks(house) == []


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("head", [HEAD, APPLY_HEAD], ids=["webhook", "apply"])
async def test_an_endless_chunked_body_is_413(server: ApiServer, house: House, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")

    async def pour() -> None:
        while True:
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()

    pouring = asyncio.ensure_future(pour())
    async with asyncio.timeout(10):
        response = await reader.readuntil(b"\r\n\r\n")
    pouring.cancel()
    await asyncio.gather(pouring, return_exceptions=True)
    writer.close()
    assert status_of(response) == 413
    assert await open_tasks(house) == []


@pytest.mark.failure("A17")
@pytest.mark.parametrize("head", [HEAD, APPLY_HEAD], ids=["webhook", "apply"])
async def test_five_megabytes_are_413_and_the_client_gets_to_read_it(
    server: ApiServer, house: House, head: bytes
) -> None:
    response = await talk(server.port, head + b"Content-Length: 5242880\r\n\r\n" + b"x" * 5242880)
    assert status_of(response) == 413
    assert await open_tasks(house) == []


@pytest.mark.failure("A17")
async def test_a_client_that_asks_first_is_told_413_before_it_sends(server: ApiServer) -> None:
    response = await talk(server.port, APPLY_HEAD + b"Content-Length: 5242880\r\nExpect: 100-continue\r\n\r\n")
    assert status_of(response) == 413


@pytest.mark.failure("A17")
async def test_a_client_that_asks_first_may_send_what_fits(server: ApiServer, house: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(UPDATE))
    async with asyncio.timeout(5):
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 100
        writer.write(UPDATE)
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 200
    writer.close()
    assert len(await open_tasks(house)) == 1


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "lie",
    [b"Content-Length: -1\r\n", b"Content-Length: x\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"],
)
async def test_a_length_that_cannot_be_is_400(server: ApiServer, house: House, lie: bytes) -> None:
    assert status_of(await talk(server.port, HEAD + lie + b"\r\n" + UPDATE)) == 400
    assert await open_tasks(house) == []


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
async def test_a_length_that_is_too_short_harms_only_its_sender(server: ApiServer, house: House) -> None:
    response = await talk(server.port, HEAD + b"Content-Length: 5\r\n\r\n" + UPDATE)
    assert status_of(response) == 400  # after its five bytes comes what is no request
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/healthz")).status_code == 200


@pytest.mark.failure("A20")
async def test_a_client_that_hangs_up_within_its_body_leaves_nothing(server: ApiServer, house: House) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")
    await eventually(lambda: requests_served(server))
    writer.close()
    await eventually(lambda: no_requests_served(server))
    assert await open_tasks(house) == []


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [b"", b"POST /telegram", HEAD, b"\r\n\r\n"], ids=["nothing", "line", "head", "blank"])
async def test_headers_that_do_not_come_close_the_connection(server: ApiServer, begun: bytes) -> None:
    assert await talk(server.port, begun, seconds=3) == b""


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
async def test_headers_that_trickle_close_the_connection_too(server: ApiServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    # a first request, so that the connection is kept alive
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.readuntil(b"}}}")
        try:
            while not reader.at_eof():
                writer.write(b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            pass
    writer.close()


@pytest.mark.failure("A17")
async def test_headers_without_end_close_the_connection(server: ApiServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        try:
            writer.write(HEAD)
            for n in range(10_000):
                writer.write(b"X-%d: %s\r\n" % (n, b"x" * 1000))
                await writer.drain()
            raise AssertionError("ten megabytes of headers were taken")
        except ConnectionError:
            pass
    writer.close()
    assert reader is not None


@pytest.mark.failure("A17")
async def test_headers_cannot_grow_behind_a_request_that_takes_long(server: ApiServer) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        token = (await client.post("/webchat/session")).json()["data"]["token"]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /webchat/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % token.encode())
    async with asyncio.timeout(10):
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 200
        writer.write(b"GET / HTTP/1.1\r\n")
        try:
            while True:
                writer.write(b"X: " + b"x" * 1000 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            pass
    writer.close()


TRAILERS = f"0\r\nAuthorization: Bearer {OPERATOR}\r\n\r\n".encode()
NEEDS_TOKEN = b"GET /internal/tasks/stats HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.req("SEC-1")
async def test_what_stands_in_trailers_is_no_header(server: ApiServer) -> None:
    assert status_of(await talk(server.port, NEEDS_TOKEN + b"Connection: close\r\n" + CHUNKED + TRAILERS)) == 401


@pytest.mark.req("SEC-1")
async def test_trailers_are_no_headers_of_the_next_request_either(server: ApiServer) -> None:
    first = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + CHUNKED
    second = NEEDS_TOKEN + b"Connection: close\r\n\r\n"
    answers = (await talk(server.port, first + TRAILERS + second)).split(b"HTTP/1.1 ")
    assert [answer[:3] for answer in answers] == [b"", b"200", b"401"]


@pytest.mark.failure("A17")
@pytest.mark.parametrize("path", ["/webchat/events", "/webchat/session"], ids=["answered for long", "at once"])
@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"0\r\n", b"X: " + b"x" * 1000 + b"\r\n"),
        (b"0\r\nX: ", b"x" * 1000),
        (b"1;", b"x" * 1000),
    ],
    ids=["many trailers", "one long trailer", "what is said of a chunk"],
)
async def test_what_is_said_around_a_body_cannot_grow(server: ApiServer, path: str, begun: bytes, more: bytes) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        token = (await client.post("/webchat/session")).json()["data"]["token"]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % (path.encode(), token.encode()))
    writer.write(CHUNKED + begun)
    async with asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
        try:
            for _ in range(10_000):
                writer.write(more)
                await writer.drain()
            raise AssertionError("ten megabytes were taken")
        except ConnectionError:
            pass
    writer.close()


@pytest.mark.failure("A17")
async def test_a_body_of_many_small_chunks_is_read(server: ApiServer, house: House) -> None:
    body = UPDATE.ljust(40_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    response = await talk(server.port, HEAD + b"Connection: close\r\n" + CHUNKED + chunks + b"0\r\n\r\n")
    assert status_of(response) == 200
    assert len(await open_tasks(house)) == 1


@pytest.mark.failure("A16")
async def test_a_forged_request_is_answered_before_its_body_comes(server: ApiServer) -> None:
    response = await talk(server.port, b"POST /telegram/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    assert response == b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@pytest.mark.failure("A17")
@pytest.mark.usefixtures("impatient")
async def test_slow_clients_do_not_hold_up_the_others(server: ApiServer, house: House) -> None:
    slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(50)]
    for _, writer in slow:
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")
    request = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(UPDATE) + UPDATE
    assert status_of(await talk(server.port, request, seconds=2)) == 200
    for _, writer in slow:
        writer.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["words", "tls", "version", "path not ascii"],
)
async def test_what_is_no_http_is_400_and_the_server_goes_on(server: ApiServer, nonsense: bytes) -> None:
    assert status_of(await talk(server.port, nonsense)) == 400
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/healthz")).status_code == 200


async def test_answers_do_not_say_what_serves_them(server: ApiServer) -> None:
    async with httpx.AsyncClient() as client:
        headers = (await client.get(f"http://127.0.0.1:{server.port}/healthz")).headers
    assert "server" not in headers
    assert "date" not in headers


@pytest.mark.failure("L11")
async def test_a_taken_port_is_a_clear_error_that_names_the_setting(tmp_path: Any, server: ApiServer) -> None:
    async with opened(tmp_path / "second", port=server.port) as house:
        second = ApiServer(house)
        with pytest.raises(SettingsInvalid) as refused:
            await second.start()
        [problem] = refused.value.problems
        assert problem.startswith(f"RISE_PORT={server.port} is taken")
        await second.stop()


@pytest.mark.failure("L11")
async def test_a_host_that_is_not_here_is_a_clear_error(tmp_path: Any) -> None:
    for host in ("192.0.2.1", "no such host", "no..host", "x" * 64):
        async with opened(tmp_path / "far", host=host) as house:
            with pytest.raises(SettingsInvalid) as refused:
                await ApiServer(house).start()
            assert f"RISE_HOST={host}" in refused.value.problems[0]


@pytest.mark.failure("L11")
async def test_an_ipv6_address_is_listened_on(tmp_path: Any) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with opened(tmp_path / "six", host="::1") as house:
        server = ApiServer(house)
        await server.start()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://[::1]:{server.port}/healthz")).status_code == 200
        await server.stop()


async def test_signals_stay_the_callers(server: ApiServer) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.req("WRK-6")
async def test_a_stop_answers_what_is_being_answered(house: House, work: Work) -> None:
    server = ApiServer(house)
    await server.start()

    running, let_go = asyncio.Event(), asyncio.Event()

    async def slow(turn: rise.Turn) -> None:
        running.set()
        await let_go.wait()

    await work(slow)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        calling = asyncio.ensure_future(
            client.post("/api/workflows/apply", json={"waitForResult": True}, headers=as_(OPERATOR))
        )
        await running.wait()
        await server.stop()
        assert (await calling).status_code == 202
        with pytest.raises(httpx.ConnectError):
            await client.get("/healthz")
    await server.stop()
    let_go.set()


async def test_a_stopped_port_can_be_taken_again_at_once(tmp_path: Any) -> None:
    async with opened(tmp_path / "one") as house:
        first = ApiServer(house)
        await first.start()
        port = first.port
        await first.stop()
    async with opened(tmp_path / "two", port=port) as house:
        again = ApiServer(house)
        await again.start()
        assert again.port == port
        await again.stop()
