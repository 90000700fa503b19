"""A message that goes the whole way and says nothing to anybody: through the door, into the stores, to a worker, its
end saved in the ledger. What it takes from one end to the other is the answer.

Refuses: to call the platform, or the account's workflow: people would hear of it. Of how those do, the platform and the
runs tell (`examiner.py`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rise.bus.port import Bus, Topic
from rise.channels.port import Incoming
from rise.clock import Clock
from rise.envelope import DeliveryKey, LaneKey, Status, TaskId, TaskType, new_key, task_id_of
from rise.intake import Intake
from rise.ledger.port import Ledger
from rise.service import Signal

SOURCE: Final = "channel-test"
LOOK_SECONDS: Final = 1.0
LIFETIME_SECONDS: Final = 600.0
"""What has not been worked on by then is not worked on any more: after an outage nobody needs to know."""


class PathTested(msgspec.Struct, frozen=True):
    task_id: TaskId
    status: Status
    seconds: float | None
    """From one end to the other; None: it has not got there in the time that was given."""

    @property
    def went_through(self) -> bool:
        return self.status is Status.COMPLETED


class PathTest:
    """Sends them through."""

    def __init__(self, intake: Intake, ledger: Ledger, bus: Bus, clock: Clock) -> None:
        self._intake = intake
        self._ledger = ledger
        self._bus = bus
        self._clock = clock
        self._waiting: set[Signal] = set()
        self._is_closed = False

    def close(self) -> None:
        """Nobody waits any longer for one that is under way."""
        self._is_closed = True
        for settled in self._waiting:
            settled.set()

    async def send(self, channel: str, account: str, *, seconds: float, request_id: str | None = None) -> PathTested:
        """Raises `Unavailable` if it is not accepted, or its end cannot be looked for."""
        key = DeliveryKey(f"test:{channel}:{account}:{new_key()}")
        task_id, settled = task_id_of(key), Signal()

        def hear(event: Any) -> None:
            if event.get("task_id") == task_id:
                settled.set()

        began = self._clock.monotonic()
        stop_hearing = self._bus.subscribe(Topic.TASK_SETTLED, hear)
        self._waiting.add(settled)
        try:
            await self._intake.accept(_test_message(channel, account, key, request_id))
            return await self._until_ended(task_id, settled, began, seconds)
        finally:
            stop_hearing()
            self._waiting.discard(settled)

    async def _until_ended(self, task_id: TaskId, settled: Signal, began: float, seconds: float) -> PathTested:
        while True:
            waited = self._clock.monotonic() - began
            run = await self._ledger.latest_run(task_id)
            if run is not None and run.status.is_finished:
                return PathTested(task_id, run.status, round(waited, 4))
            if waited >= seconds or self._is_closed:
                return PathTested(task_id, Status.PENDING, None)
            await settled.wait(min(seconds - waited, LOOK_SECONDS))


def _test_message(channel: str, account: str, key: DeliveryKey, request_id: str | None) -> Incoming:
    return Incoming(
        channel=channel,
        account=account,
        source=SOURCE,
        delivery_key=key,
        lane=LaneKey(key),  # its own: it neither waits for a chat nor holds one up
        raw=b"{}",
        raw_version="channel-test.v1",
        kind=SOURCE,
        lifetime_seconds=LIFETIME_SECONDS,
        task_type=TaskType.CHANNEL_TEST,
        retry_max=0,
        request_id=request_id,
    )
