"""The fault proxy over real sockets: each fault does what its name says, and nothing before or after it does."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from rise.testing.clock import ManualClock
from rise.testing.faults.proxy import Direction, FaultProxy, LinkFault

pytestmark = pytest.mark.req("TST-4")

PATIENCE_SECONDS = 10
LINE_BYTES_MAX = 4_000_000
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Listener:
    """Answers every line with `heard LINE`, and remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Listener:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LINE_BYTES_MAX)
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.close()
        self.reset()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def reset(self) -> None:
        """Leave the open ones with a reset."""
        for writer in self._open:
            writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while line := await reader.readline():
                self.heard.append(line.decode().rstrip("\n"))
                writer.write(b"heard " + line)
        except ConnectionError:
            return
        finally:
            self._open.discard(writer)
            writer.close()


class Caller:
    """One connection through the link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, line: str) -> None:
        self._writer.write(f"{line}\n".encode())

    async def answer(self) -> str:
        """The next line, or what came of it before the connection ended."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await self._reader.readline()).decode().rstrip("\n")

    async def answers_nothing(self) -> bool:
        """Whether the connection ends, in order or by a reset, with nothing said."""
        try:
            return await self.ask("Hello") == ""
        except ConnectionError:
            return True

    async def ask(self, line: str) -> str:
        self.say(line)
        return await self.answer()

    def listen(self) -> asyncio.Task[str]:
        """Done as soon as anything comes, be it an end."""
        return asyncio.create_task(self.answer())

    def end(self) -> None:
        self._writer.write_eof()

    def hang_up(self) -> None:
        self._writer.transport.abort()


class Link:
    """A link, what listens behind it, and who calls through it."""

    def __init__(self, proxy: FaultProxy, listener: Listener, clock: ManualClock) -> None:
        self.proxy = proxy
        self.listener = listener
        self.clock = clock
        self._callers: list[Caller] = []

    async def call(self) -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.proxy.port, limit=LINE_BYTES_MAX))
        self._callers.append(caller)
        return caller

    async def answers(self, line: str = "Hello") -> bool:
        """Whether a new connection works now."""
        caller = await self.call()
        return await caller.ask(line) == f"heard {line}"

    def hang_up(self) -> None:
        for caller in self._callers:
            caller.hang_up()


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    clock = ManualClock()
    async with Listener() as listener, FaultProxy(listener.port, clock=clock) as proxy:
        link = Link(proxy, listener, clock)
        try:
            yield link
        finally:
            link.hang_up()


async def test_a_healthy_link_passes_bytes_and_ends_in_both_directions(link: Link):
    caller = await link.call()
    assert await caller.ask("one") == "heard one"
    much = "x" * (LINE_BYTES_MAX // 2)
    assert await caller.ask(much) == f"heard {much}"
    caller.end()
    assert await caller.answer() == "", "the listener ended too, and that came through"
    assert link.proxy.struck == 0


async def test_several_behind_one_address_take_turns_and_stand_in_for_one_that_is_gone():
    async with Listener() as one, Listener() as other, FaultProxy(one.port, other.port) as proxy:
        link = Link(proxy, one, ManualClock())
        for number in range(4):
            assert await link.answers(f"{number}")
        assert (one.heard, other.heard) == (["0", "2"], ["1", "3"])
        one.close()
        for number in range(4, 8):
            assert await link.answers(f"{number}")
        assert other.heard[2:] == ["4", "5", "6", "7"]
        other.close()
        assert await (await link.call()).answers_nothing()
        link.hang_up()


async def test_latency_delivers_everything_so_much_later(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.latency(2.0))
    caller.say("late")
    answer = caller.listen()
    await link.clock.until_sleeping()
    assert link.listener.heard == ["before"]
    link.clock.advance(2.0)
    await link.clock.until_sleeping()
    assert link.listener.heard == ["before", "late"]
    assert not answer.done(), "the way back takes its time too"
    link.clock.advance(2.0)
    assert await answer == "heard late"
    link.proxy.heal()
    assert await caller.ask("after") == "heard after"


async def test_jitter_varies_the_latency_within_its_bounds(link: Link):
    link.proxy.apply(LinkFault.latency(2.0, jitter_seconds=1.0))
    seen = set()
    for number in range(5):
        caller = await link.call()
        caller.say(str(number))
        await link.clock.until_sleeping()
        delay = link.clock.next_wake_seconds
        assert delay is not None and 1.0 <= delay <= 3.0
        seen.add(delay)
        caller.hang_up()
        link.clock.advance(10.0)
    assert len(seen) > 1


async def test_a_blackhole_on_the_way_there_keeps_requests_until_it_is_healed(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.blackhole(Direction.REQUESTS))
    caller.say("held")
    answer = caller.listen()
    await link.proxy.until_struck()
    assert link.listener.heard == ["before"]
    assert not answer.done()
    link.proxy.heal()
    assert await answer == "heard held"


async def test_a_blackhole_on_the_way_back_lets_requests_through_and_no_answer(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.blackhole(Direction.ANSWERS))
    caller.say("done all the same")
    answer = caller.listen()
    await link.proxy.until_struck()
    assert link.listener.heard == ["before", "done all the same"]
    assert not answer.done()
    link.proxy.heal()
    assert await answer == "heard done all the same"


async def test_what_a_caller_gave_up_in_a_blackhole_still_arrives_when_it_is_healed(link: Link):
    """As the packets of a request do whose sender has timed out."""
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.blackhole(Direction.REQUESTS))
    caller.say("given up")
    caller.end()
    await link.proxy.until_struck()
    assert link.listener.heard == ["before"]
    link.proxy.heal()
    assert await caller.answer() == "heard given up"
    assert await caller.answer() == "", "the end was held back behind it"


async def test_a_refusal_keeps_new_connections_out_and_leaves_old_ones_alone(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.refusal())
    with pytest.raises(ConnectionRefusedError):
        await link.call()
    assert await caller.ask("still here") == "heard still here"
    link.proxy.heal()
    assert await link.answers()


async def test_a_reset_ends_open_connections_at_once_and_new_ones_at_their_first_byte(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.reset())
    with pytest.raises(ConnectionResetError):
        await caller.answer()
    newcomer = await link.call()
    with pytest.raises(ConnectionResetError):
        await newcomer.ask("never heard")
    assert link.listener.heard == ["before"]
    link.proxy.heal()
    assert await link.answers()


async def test_a_cut_lets_so_many_bytes_through_and_ends_the_connection(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.cut(len("one\nt")))
    assert await caller.ask("one") == "heard one"
    await caller.ask("two")
    assert "two" not in link.listener.heard, "its first letter came, and then the end"
    link.proxy.heal()
    assert await link.answers()


async def test_a_cut_on_the_way_back_leaves_half_an_answer(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.cut(len("heard"), Direction.ANSWERS))
    assert await caller.ask("now") == "heard"
    assert link.listener.heard == ["before", "now"]
    link.proxy.heal()
    assert await link.answers()


async def test_a_lost_answer_was_given_and_never_comes(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.lost_answer())
    assert await caller.ask("done") == "", "the connection is closed without a word"
    assert link.listener.heard == ["before", "done"]
    link.proxy.heal()
    assert await link.answers()


async def test_a_lost_answer_may_leave_its_caller_hanging_until_the_link_heals(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.proxy.apply(LinkFault.lost_answer(hangs=True))
    caller.say("done")
    answer = caller.listen()
    await link.proxy.until_struck()
    assert link.listener.heard == ["before", "done"]
    assert not answer.done()
    link.proxy.heal()
    with pytest.raises(ConnectionResetError):
        await answer
    assert await link.answers()


async def test_where_nobody_listens_a_connection_is_reset(link: Link):
    assert await link.answers()
    link.listener.close()
    caller = await link.call()
    with pytest.raises(ConnectionResetError):
        await caller.ask("Hello?")


async def test_a_reset_on_one_side_is_a_reset_on_the_other(link: Link):
    caller = await link.call()
    assert await caller.ask("before") == "heard before"
    link.listener.reset()
    with pytest.raises(ConnectionResetError):
        await caller.answer()
