"""What is asked of each store to know whether it can be used now.

What a store says of itself while it is used is believed at once (`assembly/house.py`); these ask when nobody does.

Refuses: to call a Redis a copy that may throw away what it holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rise.capabilities import PROBE_SECONDS_MAX, Acceptance, CapabilityRegistry, CapabilityStatus
from rise.copies.journals import Journals
from rise.copies.port import Mirror
from rise.runtime.assembly.house import House
from rise.runtime.assembly.stores import FullProfile
from rise.runtime.directory import space_of
from rise.runtime.overload import MEGABYTE, warns_below
from rise.workflows.model import Model

if TYPE_CHECKING:
    from rise.connections.mongodb import MongoDatabase
    from rise.connections.redis import RedisDatabase
    from rise.connections.temporal import Temporal

Answer = tuple[CapabilityStatus, str]

WRITTEN = "written and synced"
MODEL_SECONDS = 60.0
"""How often a language model is asked, which costs nothing, and may be anyone's: a quick look would be a nuisance."""


def register_probes(house: House) -> None:
    """For every store that is configured, and which of them an acceptance needs."""
    full = house.stores.full
    if full is None:
        # One that was written is there: nothing else has to be waited for.
        house.capabilities.register_capability_probe("disk", lambda: _disk(house), hard=True, good_in_a_row=1)
    else:
        _register_full(house, full)
    temporal = house.temporal
    if temporal is not None:
        # An answer proves it; nothing that is accepted waits for it.
        house.capabilities.register_capability_probe(
            "temporal", lambda: ask_temporal(temporal), hard=True, good_in_a_row=1
        )
    if house.settings.llm_base_url is not None:
        house.capabilities.register_capability_probe(
            "llm", lambda: ask_model(house.model), hard=True, ttl_seconds=MODEL_SECONDS, good_in_a_row=1
        )


def run_needs(house: House) -> tuple[str, ...]:
    """The capabilities without which nothing is run."""
    ledger = house.stores.ledger_capability
    return (ledger, "worker") if house.stores.full is None else ("redis", ledger, "worker")


def _register_full(house: House, full: FullProfile) -> None:
    capabilities, mirror = house.capabilities, full.mirror
    capabilities.acceptance = _acceptance(capabilities, house.settings.copies_min, has_mirror=mirror is not None)
    mongo = house.stores.mongo
    if mongo is None:
        capabilities.register_capability_probe("ledger", lambda: _database(house), hard=True, good_in_a_row=1)
    else:
        capabilities.register_capability_probe("mongo", lambda: ask_mongo(mongo), hard=True, good_in_a_row=1)
    capabilities.register_capability_probe("disk", lambda: _journal(house, full.journals), hard=True, good_in_a_row=1)
    capabilities.register_capability_probe("redis", lambda: ask_redis(full.redis), hard=True, good_in_a_row=1)
    if mirror is not None:
        capabilities.register_capability_probe("rabbitmq", lambda: _rabbitmq(mirror), hard=True, good_in_a_row=1)


def _acceptance(capabilities: CapabilityRegistry, copies_min: int, *, has_mirror: bool) -> Acceptance:
    doors = capabilities.acceptance.doors
    if not has_mirror:
        # The journal is what survives the loss of Redis: without it nothing is promised.
        return Acceptance(copies=("disk", "redis"), copies_min=copies_min, synced=("disk",), doors=doors)
    return Acceptance(("disk", "redis", "rabbitmq"), copies_min=copies_min, synced=("disk", "rabbitmq"), doors=doors)


async def _database(house: House) -> Answer:
    """Written and synced just now; anything else raises."""
    await house.stores.database.write(lambda connection: None)
    return CapabilityStatus.AVAILABLE, WRITTEN


async def _disk(house: House) -> Answer:
    await _database(house)
    return _written(house, house.settings.data_dir)


async def _journal(house: House, journals: Journals) -> Answer:
    await journals.own.note((), "redis", "probe")
    return _written(house, journals.slots.directory)


def _written(house: House, place: Path) -> Answer:
    """Just now. SQLite goes on in the room that it has, so a disk that is full is written for a while yet."""
    space, before = space_of(place), house.capabilities.get("disk")
    if space is not None:
        free, size = space
        has_warned = before is not None and before.status is CapabilityStatus.DEGRADED
        limit = house.settings.disk_free_warn_mb * MEGABYTE
        if free < warns_below(limit, size_bytes=size, has_warned=has_warned):
            return CapabilityStatus.DEGRADED, f"{WRITTEN}, but only {free / MEGABYTE:.0f} MB are free for {place}"
    return CapabilityStatus.AVAILABLE, WRITTEN


async def ask_redis(redis: RedisDatabase) -> Answer:
    facts = await redis.facts()
    policy = facts.get("maxmemory_policy", "")
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        return CapabilityStatus.DEGRADED, f"it may throw messages away ({policy}): set maxmemory-policy to noeviction"
    if facts.get("role") == "slave":
        return CapabilityStatus.UNAVAILABLE, "it is a replica: name its primary, or wait for the failover"
    if facts.get("maxmemory", "0") != "0" and int(facts.get("used_memory", "0")) >= int(facts["maxmemory"]):
        return CapabilityStatus.UNAVAILABLE, "it is full: raise maxmemory"
    kept = "its log" if facts.get("aof_enabled") == "1" else "no log of its own (appendonly no)"
    return CapabilityStatus.AVAILABLE, f"answers; over a restart it has {kept}, and the other copies"


async def ask_mongo(mongo: MongoDatabase) -> Answer:
    await mongo.ping()
    return CapabilityStatus.AVAILABLE, "answers; its indexes are in place"


async def ask_temporal(temporal: Temporal) -> Answer:
    await temporal.check()
    return CapabilityStatus.AVAILABLE, "answers; its namespace is there"


async def ask_model(model: Model) -> Answer:
    """That it answers, takes the key and has the model; which costs nothing."""
    return CapabilityStatus.AVAILABLE, await model.probe(timeout_seconds=PROBE_SECONDS_MAX)


async def _rabbitmq(mirror: Mirror) -> Answer:
    depth = await mirror.depth()
    return CapabilityStatus.AVAILABLE, f"holds {depth.fresh + depth.parked} copies"
