"""What is kept, and what processes say to each other: read, or called unreadable, and nothing worse."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import ANY_TEXT, JSON, NUMBERS, bytes_held, changed, damaged, tried

from rise.api.results import TaskResultBroker
from rise.api.webchat import Watchers, bounds_of
from rise.bus.local import LocalBus
from rise.bus.port import Topic
from rise.clock import SystemClock
from rise.envelope import Head, Progress, Status, Task, decode_head, encode_head, encode_json, envelope
from rise.errors import EnvelopeMalformed
from rise.testing.conformance.queue import delivery

HEAD: dict[str, Any] = msgspec.to_builtins(
    msgspec.structs.replace(
        delivery(1).head,
        user_text="Hello \U0001f600",
        metadata={"locale": "de", "deep": {"a": [1, 2.5, None]}},
        history_chunks=[{"role": "user"}],
        policy={"reply": {"text": "x"}},
        retry_max=3,
        workflow_id="wf_greeter",
    )
)
STORED = st.one_of(
    changed(st.just(HEAD)).map(json.dumps).map(str.encode),
    changed(st.just(HEAD), by=NUMBERS | ANY_TEXT).map(json.dumps).map(str.encode),
    damaged(st.just(encode_json(HEAD))),
    st.binary(max_size=100),
)


@pytest.mark.req("ENV-1")
@pytest.mark.failure("B14", "B15", "M4")
@given(STORED)
@tried(3000)
def test_a_stored_record_is_read_and_can_be_shown_and_kept_again_or_is_malformed(stored: bytes):
    try:
        head = decode_head(stored)
    except EnvelopeMalformed as error:
        assert len(error.public_message) < 500
        return
    assert decode_head(encode_head(head)) == head
    json.loads(encode_json(envelope(Task(head, b"{}", Progress(status=Status.PENDING)))))


@pytest.mark.failure("B3", "B15")
@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
def test_no_record_costs_more_than_in_proportion_to_its_size(nested: bytes):
    stored = encode_json(HEAD).replace(b'{"locale":"de"', b'{"locale":' + nested)

    def read() -> None:
        with pytest.raises(EnvelopeMalformed):
            decode_head(stored)

    assert bytes_held(read) < 100 * len(stored)


@given(
    st.builds(
        lambda changes: HEAD | changes,
        st.dictionaries(st.sampled_from(sorted(HEAD.keys() - {"order"})), JSON, max_size=2),
    )
)
@tried(1000)
def test_what_is_read_of_a_record_is_what_is_in_it(record: dict[str, Any]):
    try:
        head = decode_head(json.dumps(record).encode())
    except EnvelopeMalformed:
        return
    read = msgspec.to_builtins(head)
    assert isinstance(head, Head)
    assert {name: read.get(name, record[name]) for name in record} == record


# --- the bus ----------------------------------------------------------------------------------------------------

EVENTS = st.builds(
    lambda topic, payload: json.dumps([topic, payload]).encode(),
    st.sampled_from([*Topic, "a topic of tomorrow"]),
    JSON
    | st.fixed_dictionaries(
        {},
        optional={
            name: JSON | st.sampled_from(["webchat", "w_1", "t_1.0", "t_1"])
            for name in ("task_id", "run_id", "channel", "account", "chat_id", "status", "seconds", "outcome")
        },
    ),
)


class Hub:
    """A bus whose listeners are those of the API, and a stranger who has found its socket."""

    def __init__(self, directory: Path) -> None:
        self.bus = LocalBus(directory, SystemClock())
        self.broken: list[Any] = []
        self.heard = asyncio.Event()
        self._stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def open(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.broken.append(context))
        await self.bus.start()
        self.watchers = Watchers(self.bus, bounds_of(50.0))
        self.broker = TaskResultBroker(None, None, self.bus, None)  # type: ignore[arg-type]
        self.bus.subscribe(Topic.DEFINITIONS_CHANGED, lambda payload: self.heard.set())

    async def close(self) -> None:
        self._stranger.close()
        await self.bus.stop()

    async def say(self, datagram: bytes) -> None:
        """And wait until it has been dealt with."""
        address = f"/proc/self/fd/{self.bus._directory_fd}/{self.bus.member}.sock"
        self._stranger.sendto(datagram, address)
        self.heard.clear()
        self._stranger.sendto(encode_json((Topic.DEFINITIONS_CHANGED, {})), address)
        async with asyncio.timeout(10):
            await self.heard.wait()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path / "bus")
    await hub.open()
    yield hub
    await hub.close()


@pytest.mark.failure("H4", "D15")
@given(EVENTS | damaged(EVENTS) | st.binary(max_size=100))
@tried(1000)
async def test_no_datagram_stops_the_bus_or_anybody_in_the_api_who_listens(hub: Hub, datagram: bytes):
    with hub.watchers.watching("w_1", "192.0.2.1"), hub.broker._listening("t_1"):  # type: ignore[arg-type]
        await hub.say(datagram[:8000])
    assert hub.broken == []
