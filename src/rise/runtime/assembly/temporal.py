"""What asks Temporal, and what works for it. The only file that names its backends.

Refuses: to need its client where it is not configured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from rise.capabilities import CapabilityStatus
from rise.clock import Clock
from rise.conversations.asking import Conversations
from rise.conversations.port import ConversationLimits, ConversationServer
from rise.conversations.running import ConversationRuns
from rise.errors import Unavailable
from rise.follow_ups.arming import Arming
from rise.follow_ups.ringing import Ringing
from rise.runtime.assembly.extras import needing
from rise.runtime.assembly.house import House
from rise.settings import CHANNELS, Settings
from rise.telemetry import keep_out_of_logs

if TYPE_CHECKING:
    from rise.connections.temporal import Temporal
    from rise.connections.temporal_worker import TemporalWorker, WorkerDuties

CONVERSATION_STOP_SECONDS: Final = 1.0


def reach_temporal(house: House) -> House:
    """The house of a process that asks Temporal, or works for it. Raises `SettingsInvalid` if its client is missing."""
    temporal = build_temporal(house.settings, house.clock, partial(_report_temporal, house))
    return house if temporal is None else replace(house, temporal=temporal)


def build_temporal(
    settings: Settings, clock: Clock, on_trouble: Callable[[Unavailable | None], None] = lambda trouble: None
) -> Temporal | None:
    """None where it is not configured."""
    if settings.temporal_address is None:
        return None
    with needing("RISE_TEMPORAL_ADDRESS", "temporal"):
        from rise.connections.temporal import Place, Temporal
    key = settings.temporal_api_key.get_secret_value() if settings.temporal_api_key else None
    keep_out_of_logs([key])
    place = Place(settings.temporal_address, settings.temporal_namespace, key, settings.temporal_tls)
    return Temporal(place, clock=clock, on_trouble=on_trouble)


def _report_temporal(house: House, trouble: Unavailable | None) -> None:
    if trouble is None:
        house.capabilities.set("temporal", CapabilityStatus.AVAILABLE, "answers again")
    else:
        house.capabilities.set("temporal", CapabilityStatus.UNAVAILABLE, trouble.public_message, trouble.remedy)


def build_temporal_worker(house: House, temporal: Temporal, *, on_built: Callable[[], None]) -> TemporalWorker:
    """What works for Temporal in this process. `on_built`: as in `TemporalWorker`."""
    from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits

    return TemporalWorker(
        temporal,
        _temporal_duties(house),
        house.clock,
        task_queue=house.settings.temporal_task_queue,
        identity=house.bus.member,
        limits=TemporalWorkerLimits(stop_seconds=house.settings.stop_seconds),
        on_built=on_built,
    )


def _temporal_duties(house: House) -> list[WorkerDuties]:
    """By the rooms that have any."""
    from rise.follow_ups.temporal import duties_of

    return [duties_of(build_ringing(house).ring)]


def build_ringing(house: House) -> Ringing:
    """What happens when a follow-up's timer rings."""
    return Ringing(house.queue, house.ledger, house.bus, house.clock, accept=house.intake_of_runs.accept)


def build_arming(house: House, temporal: Temporal) -> Arming:
    """What gives follow-ups to Temporal."""
    from rise.follow_ups.temporal import TemporalTimers

    timers = TemporalTimers(temporal, house.settings.temporal_task_queue)
    return Arming(timers, house.queue, house.bus, house.clock)


def build_conversations(house: House) -> Conversations | None:
    """What a worker of this process talks to. None: there is no Temporal here."""
    server = conversation_server(house)
    return None if server is None else Conversations(server, house.ledger, house.bus, house.clock)


def conversation_server(house: House) -> ConversationServer | None:
    if house.temporal is None:
        return house.conversations
    from rise.conversations.temporal import TemporalConversations

    limits = ConversationLimits(beat_seconds=house.settings.claim_seconds)
    return TemporalConversations(house.temporal, _conversation_queue(house), limits)


def build_conversation_worker(house: House, runs: ConversationRuns) -> TemporalWorker | None:
    """What carries conversations on, beside the worker whose runs these are: a process of user code."""
    if house.temporal is None:
        return None
    from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits
    from rise.conversations.temporal import conversation_duties

    settings = house.settings
    return TemporalWorker(
        house.temporal,
        [conversation_duties(runs, house.clock)],
        house.clock,
        task_queue=_conversation_queue(house),
        identity=house.bus.member,
        # Their messages are held by workers, in as many places at most: one that waits here would only hold up others.
        # What its worker has not waited for at a stop is run again from its kept steps: no second grace.
        limits=TemporalWorkerLimits(
            activities=_places(settings),
            stop_seconds=CONVERSATION_STOP_SECONDS,
            drain_seconds=settings.stop_seconds,
        ),
    )


def _conversation_queue(house: House) -> str:
    """Their own: whoever asks for work of a queue must be able to do all of it, and timers are no work of workers'."""
    return f"{house.settings.temporal_task_queue}.conversations"


def _places(settings: Settings) -> int:
    return max([settings.worker_concurrency, *settings.worker_concurrency_for.values()]) * len(CHANNELS)
