"""What every backend of `rise.definitions.port.Definitions` promises. Subclass it, with a fixture `stage`."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
import pytest

from rise.clock import SystemClock
from rise.definitions.port import VERSIONS_KEPT, Definition, Definitions, Kind
from rise.errors import VersionStale


class DefinitionsStage(Protocol):
    """One store, and several processes' ways to it."""

    definitions: Definitions

    async def another(self) -> Definitions:
        """As another process has it."""
        ...


def definition(version: int = 1, *, kind: Kind = Kind.PROMPT, name: str = "greeting", body: bytes | None = b"{}",
               by: str = "ann", comment: str = "") -> Definition:  # fmt: skip
    return Definition(kind=kind, name=name, version=version, body=body, at_ms=version * 1000, by=by, comment=comment)


class DefinitionsConformance:
    """The promises, executable."""

    @pytest.fixture
    def definitions(self, stage: DefinitionsStage) -> Definitions:
        return stage.definitions

    async def test_nothing_is_there_at_first(self, definitions: Definitions) -> None:
        assert await definitions.changes() == 0
        assert (await definitions.latest(list(Kind))).definitions == []
        assert await definitions.version(Kind.PROMPT, "greeting") is None
        assert await definitions.versions(Kind.PROMPT, "greeting", limit=10) == []

    @pytest.mark.failure("H5")
    async def test_every_change_counts_and_all_processes_see_it(self, stage: DefinitionsStage) -> None:
        definitions, other, counts = stage.definitions, await stage.another(), []
        for change in (
            definition(1),
            definition(2, body=b'{"text":"Hello"}'),
            definition(1, name="another"),
            definition(1, kind=Kind.BINDINGS),
            definition(3, body=None),
        ):
            await definitions.put(change)
            counts.append(await other.changes())
        assert counts == sorted(set(counts))
        latest = await other.latest([Kind.PROMPT, Kind.BINDINGS])
        assert latest.changes == counts[-1]
        assert latest.definitions == [definition(1, kind=Kind.BINDINGS), definition(1, name="another")]

    @pytest.mark.req("BND-2", "BND-5")
    async def test_what_is_in_force_is_seen_as_it_was_at_one_moment(self, stage: DefinitionsStage) -> None:
        """Whoever sees the second of two changes sees the first, and the count is that of what is seen."""
        definitions, clock, is_over = stage.definitions, SystemClock(), asyncio.Event()
        seen: list[tuple[int, int, int]] = []

        async def change() -> None:
            try:
                for version in range(1, 21):
                    for name in ("one", "two"):
                        await definitions.put(definition(version, name=name))
                        await clock.sleep(0.01)
            finally:
                is_over.set()

        async def look(process: Definitions) -> None:
            while not is_over.is_set():
                latest = await process.latest([Kind.PROMPT])
                found = {one.name: one.version for one in latest.definitions}
                seen.append((latest.changes, found.get("one", 0), found.get("two", 0)))
                await clock.sleep(0)

        await asyncio.gather(change(), *[look(await stage.another()) for _ in range(3)])
        torn = [(changes, one, two) for changes, one, two in seen if changes != one + two or one - two not in (0, 1)]
        assert not torn

    async def test_all_of_a_definition_comes_back_as_it_was(self, definitions: Definitions) -> None:
        whole = definition(body='{"text":"Grüß Gott 🙂"}'.encode(), by="Zoë", comment="friendlier\nand shorter")
        await definitions.put(whole)
        assert await definitions.version(Kind.PROMPT, "greeting") == whole
        assert (await definitions.latest([Kind.PROMPT])).definitions == [whole]

    async def test_only_the_kinds_that_are_asked_for_are_read(self, definitions: Definitions) -> None:
        for kind in Kind:
            await definitions.put(definition(kind=kind))
        assert [one.kind for one in (await definitions.latest([Kind.PUBLISHED])).definitions] == [Kind.PUBLISHED]
        assert (await definitions.latest([])).definitions == []

    @pytest.mark.req("WFL-1")
    async def test_every_version_can_be_read_afterwards(self, definitions: Definitions) -> None:
        versions = [definition(n, body=None if n == 2 else b"%d" % n) for n in (1, 2, 3)]
        for one in versions:
            await definitions.put(one)
        assert await definitions.versions(Kind.PROMPT, "greeting", limit=10) == versions[::-1]
        assert await definitions.versions(Kind.PROMPT, "greeting", limit=2) == versions[:0:-1]
        assert [await definitions.version(Kind.PROMPT, "greeting", n) for n in (1, 2, 3)] == versions
        assert await definitions.version(Kind.PROMPT, "greeting", 4) is None
        assert await definitions.version(Kind.PROMPT, "greeting") == versions[2]

    async def test_what_was_removed_is_known_as_removed(self, definitions: Definitions) -> None:
        await definitions.put(definition(1))
        await definitions.put(definition(2, body=None))
        assert await definitions.version(Kind.PROMPT, "greeting") == definition(2, body=None)
        await definitions.put(definition(3))
        assert (await definitions.latest([Kind.PROMPT])).definitions == [definition(3)]

    @pytest.mark.req("BND-2", "WFL-1")
    @pytest.mark.parametrize("version", [0, 1, 2, 4, 5])
    async def test_only_the_next_version_is_taken(self, definitions: Definitions, version: int) -> None:
        await definitions.put(definition(1))
        await definitions.put(definition(2))
        with pytest.raises(VersionStale, match="2"):
            await definitions.put(definition(version, by="another"))
        assert await definitions.versions(Kind.PROMPT, "greeting", limit=9) == [definition(2), definition(1)]

    async def test_the_first_version_is_one(self, definitions: Definitions) -> None:
        with pytest.raises(VersionStale, match="0"):
            await definitions.put(definition(2))
        assert await definitions.changes() == 0

    async def test_written_again_because_the_answer_was_lost_it_changes_nothing(self, definitions: Definitions) -> None:
        await definitions.put(definition(1))
        await definitions.put(definition(1))
        assert await definitions.changes() == 1

    @pytest.mark.req("BND-2")
    async def test_of_many_who_change_one_thing_at_once_one_succeeds(self, stage: DefinitionsStage) -> None:
        processes = [await stage.another() for _ in range(4)]
        tries = [one.put(definition(1, by=f"person {n}")) for n, one in enumerate(processes)]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["VersionStale"] * 3
        kept = await stage.definitions.version(Kind.PROMPT, "greeting")
        assert kept is not None
        assert kept.by == f"person {[type(outcome) for outcome in outcomes].index(type(None))}"

    async def test_old_versions_are_forgotten_and_the_count_goes_on(self, definitions: Definitions) -> None:
        for n in range(1, VERSIONS_KEPT + 4):
            await definitions.put(definition(n))
        assert await definitions.version(Kind.PROMPT, "greeting", 3) is None
        assert await definitions.version(Kind.PROMPT, "greeting", 4) == definition(4)
        assert len(await definitions.versions(Kind.PROMPT, "greeting", limit=1000)) == VERSIONS_KEPT
        assert await definitions.changes() == VERSIONS_KEPT + 3

    async def test_names_are_told_apart_by_kind_and_every_letter(self, definitions: Definitions) -> None:
        names = ["a", "A", "a:b", "ä"]
        for name in names:
            await definitions.put(definition(name=name, by=name))
            await definitions.put(msgspec.structs.replace(definition(name=name, by=name), kind=Kind.WORKFLOW))
        assert [one.by for one in (await definitions.latest([Kind.WORKFLOW])).definitions] == sorted(names)
