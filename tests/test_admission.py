"""What cannot be kept is refused at once, by one who tries and all others who need not."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from rise.admission import Admission
from rise.errors import Busy, CapabilityClosed, CopiesInsufficient, StoreUnavailable, Unavailable


class Store:
    """Keeps, or is away; and can be slow about both."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.is_away = False
        self.tried = 0
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def keep(self) -> str:
        with self.admission.entry():
            self.tried += 1
            self.asked.set()
            await self.answers.wait()
            if self.is_away:
                raise StoreUnavailable("the disk is full")
            return "kept"


@pytest.fixture
def admission() -> Admission:
    return Admission()


@pytest.fixture
def store(admission: Admission) -> Store:
    return Store(admission)


async def refused(store: Store) -> Unavailable:
    with pytest.raises(Unavailable) as refusal:
        await store.keep()
    return refusal.value


class _Leaves(Exception):
    """Without a word of the store."""


def lets_all_in(admission: Admission) -> bool:
    """Whether a second may come in beside the first. Both leave again, and all is as before."""
    is_let_in = True
    with suppress(_Leaves), admission.entry():
        try:
            with admission.entry():
                raise _Leaves
        except CapabilityClosed:
            is_let_in = False
            raise _Leaves from None
    return is_let_in


@pytest.mark.req("CAP-4")
@pytest.mark.failure("C28")
async def test_beside_the_one_who_tries_all_are_refused_without_trying(store: Store) -> None:
    store.is_away = True
    await refused(store)
    store.answers.clear()
    store.asked.clear()
    trial = asyncio.ensure_future(store.keep())
    await store.asked.wait()
    for _ in range(100):
        refusal = await refused(store)
        assert isinstance(refusal, CapabilityClosed)
        assert (refusal.name, refusal.detail) == ("disk", "the disk is full")
        assert refusal.retry_after_seconds == 2
    assert store.tried == 2
    store.answers.set()
    with pytest.raises(StoreUnavailable):
        await trial


@pytest.mark.req("CAP-4", "CAP-5")
async def test_the_first_that_is_kept_opens_the_door_for_all(store: Store) -> None:
    store.is_away = True
    await refused(store)
    store.is_away = False
    assert await store.keep() == "kept"
    store.answers.clear()
    both = asyncio.gather(store.keep(), store.keep())
    store.answers.set()
    assert await both == ["kept", "kept"]


@pytest.mark.req("CAP-4")
async def test_it_is_said_once_that_nothing_is_kept_and_once_that_something_is(store: Store) -> None:
    with capture_logs() as logged:
        store.is_away = True
        for _ in range(5):
            await refused(store)
        store.is_away = False
        for _ in range(5):
            await store.keep()
    assert [entry["event"] for entry in logged] == ["task_runtime.disabled", "task_runtime.enabled"]


@pytest.mark.req("CAP-4")
@pytest.mark.failure("A20")
async def test_a_trial_whose_caller_hangs_up_leaves_the_next_to_try(store: Store) -> None:
    store.is_away = True
    await refused(store)
    store.answers.clear()
    store.asked.clear()
    trial = asyncio.ensure_future(store.keep())
    await store.asked.wait()
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    store.is_away = False
    store.answers.set()
    assert await store.keep() == "kept"


@pytest.mark.req("CAP-5")
async def test_whoever_has_seen_the_store_work_opens_the_door(store: Store, admission: Admission) -> None:
    store.is_away = True
    await refused(store)
    assert not lets_all_in(admission)
    admission.open()
    assert lets_all_in(admission)


@pytest.mark.req("CAP-4")
def test_too_few_copies_close_the_door_too(admission: Admission) -> None:
    with pytest.raises(CopiesInsufficient), admission.entry():
        raise CopiesInsufficient("not in time")
    assert not lets_all_in(admission)


def test_what_is_the_callers_fault_closes_nothing(admission: Admission) -> None:
    with pytest.raises(ValueError, match="x"), admission.entry():
        raise ValueError("x")
    assert lets_all_in(admission)


@pytest.mark.req("SUP-2")
async def test_while_it_is_busy_nothing_is_tried(store: Store, admission: Admission) -> None:
    admission.refuse("100 messages are open", retry_after_seconds=30)
    refusal = await refused(store)
    assert isinstance(refusal, Busy)
    assert (refusal.code, refusal.retry_after_seconds) == ("busy", 30)
    assert store.tried == 0
    admission.admit()
    assert await store.keep() == "kept"
