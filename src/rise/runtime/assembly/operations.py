"""What people ask for: by HTTP, on the console, on the command line."""

from __future__ import annotations

from functools import partial

from rise.clock import epoch_ms
from rise.follow_ups.port import FollowUps
from rise.follow_ups.queued import QueuedFollowUps
from rise.ledger.port import Operation
from rise.runtime.assembly.house import House
from rise.runtime.assembly.temporal import conversation_server
from rise.runtime.assembly.workers import build_tools
from rise.runtime.channel_bindings import ChannelBindings
from rise.runtime.forgetting import Forgetting
from rise.runtime.messages import Messages
from rise.runtime.operations import Operations
from rise.runtime.path_test import PathTest
from rise.runtime.prompts import Prompts
from rise.runtime.publishing import Workflows
from rise.runtime.stage_secrets import StageSecrets
from rise.runtime.trying import Tries
from rise.runtime.versions import Versions
from rise.workflows.stages import VALUES, read_stages, secrets_asked_for
from rise.workflows.templates import placeholders, stages_named


def build_operations(house: House) -> Operations:
    full = house.stores.full
    return Operations(
        house.queue,
        house.ledger,
        house.bus,
        house.clock,
        restart=None if full is None else full.copies.restart,
        copies=None if full is None else full.shown,
        callbacks=house.callbacks,
    )


def build_follow_ups(house: House) -> FollowUps:
    """The same with Temporal and without: what is decided, the ledger decides, and what waits is in the queue."""
    drop = build_operations(house).drop
    return QueuedFollowUps(house.queue, house.ledger, house.clock, accept=house.intake.accept, drop=drop)


def build_messages(house: House) -> Messages:
    return Messages(house.queue, house.ledger, build_operations(house))


def build_forgetting(house: House) -> Forgetting:
    compact = house.stores.database.compact
    return Forgetting(
        house.queue,
        house.ledger,
        build_operations(house),
        house.clock,
        compact=compact,
        is_filled=house.stores.is_filled,
        lacked_by_queue=house.stores.lacked_by_queue,
        conversations=conversation_server(house),
    )


def build_path_test(house: House) -> PathTest:
    return PathTest(house.intake, house.ledger, house.bus, house.clock)


def build_channel_bindings(house: House) -> ChannelBindings:
    return ChannelBindings(
        definitions=house.stores.definitions,
        editor=house.editor,
        health=house.health,
        registry=house.bindings,
        bus=house.bus,
        clock=house.clock,
        seal=house.seal,
        accounts=house.channels.accounts(),
        public_url=house.settings.public_url,
        is_polling=house.settings.effective_telegram_mode == "polling",
        delivers_to_https_only=house.settings.asks_telegram_itself,
        served=frozenset(house.channels.by_name()),
        has_temporal=house.settings.temporal_address is not None,
    )


def build_workflows(house: House) -> Workflows:
    return Workflows(
        house.stores.definitions, _versions(house), house.editor, read_stages, stages_named, secrets_asked_for
    )


def build_prompts(house: House) -> Prompts:
    return Prompts(house.stores.definitions, _versions(house), placeholders, VALUES, stages_named)


def build_stage_secrets(house: House) -> StageSecrets:
    return StageSecrets(house.stores.definitions, _versions(house), house.seal, secrets_asked_for)


def _versions(house: House) -> Versions:
    return Versions(house.stores.definitions, house.ledger, house.bus, house.clock)


def build_tries(house: House) -> Tries:
    async def record(*, who: str, what: str) -> None:
        at_ms = epoch_ms(house.clock.now())
        await house.ledger.record_operation(Operation(at_ms=at_ms, who=who, action="try", target=what))

    return Tries(partial(build_tools, house, {}), record, house.clock)
