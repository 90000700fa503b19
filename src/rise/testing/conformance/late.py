"""What every place keeps to in which writes wait for the ledger. Use it by inheriting the class in a test file and
giving it the fixture `late`: a function that returns one more process's way to the same place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rise.ledger.late import LateWrites

Reached = Callable[[], LateWrites]


@pytest.mark.req("CPY-6", "EMB-2")
class LateWritesConformance:
    @pytest.mark.failure("F1")
    async def test_what_waits_is_found_by_all_in_the_order_of_coming(self, late: Reached) -> None:
        one, other = late(), late()
        for name in ("b", "a", "c"):
            await one.put(name, "chat", name.encode())
        assert await other.depth() == 3
        assert [(one.key, one.write) for one in await other.page(limit=10)] == [("b", b"b"), ("a", b"a"), ("c", b"c")]
        assert await other.about("chat") == [b"b", b"a", b"c"]
        assert (await other.get("a"), await other.get("d")) == (b"a", None)

    @pytest.mark.failure("F1")
    async def test_the_first_write_of_a_key_stands(self, late: Reached) -> None:
        assert await late().put("run:1", "chat", b"first") == b"first"
        assert await late().put("run:1", "elsewhere", b"second") == b"first"
        assert await late().depth() == 1
        assert (await late().about("chat"), await late().about("elsewhere")) == ([b"first"], [])

    async def test_of_several_keys_the_first_that_waits_is_found(self, late: Reached) -> None:
        place = late()
        for key in ("run:1", "run:2"):
            await place.put(key, "chat", key.encode())
        assert await late().first_of(["run:3", "run:2", "run:1"]) == b"run:2"
        assert await late().first_of(["run:1", "run:2"]) == b"run:1"
        assert (await late().first_of(["run:3"]), await late().first_of([])) == (None, None)

    async def test_of_many_that_write_at_once_one_stands(self, late: Reached) -> None:
        writes = [bytes([number]) for number in range(20)]
        standing = await asyncio.gather(*(late().put("run:1", "chat", write) for write in writes))
        assert len(set(standing)) == 1
        assert await late().get("run:1") == standing[0]

    async def test_they_are_gone_through_in_pages(self, late: Reached) -> None:
        place = late()
        for number in range(5):
            await place.put(f"k{number}", "chat", b"")
        first = await place.page(limit=2)
        rest = await place.page(limit=10, after=first[-1].number)
        assert [one.key for one in first + rest] == ["k0", "k1", "k2", "k3", "k4"]
        assert await place.page(limit=10, after=rest[-1].number) == []

    async def test_what_is_in_the_ledger_waits_no_more(self, late: Reached) -> None:
        place = late()
        for key in ("a", "b", "c"):
            await place.put(key, "chat", key.encode())
        await place.remove(["a", "c", "unknown"])
        await place.remove(["a"])
        await place.remove([])
        assert (await place.depth(), await place.about("chat")) == (1, [b"b"])
        assert await place.get("a") is None
        await place.put("a", "chat", b"again")
        assert [one.write for one in await place.page(limit=10)] == [b"b", b"again"], "behind all that wait"

    async def test_bytes_are_kept_as_they_are(self, late: Reached) -> None:
        odd = bytes(range(256))
        await late().put("step:r\nask \u00e4", "run\n\u00e4", odd)
        assert await late().get("step:r\nask \u00e4") == odd
        assert await late().about("run\n\u00e4") == [odd]
