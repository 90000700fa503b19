"""The worker's side of a conversation: tell it of a message, and take what comes of that.

Whoever asks again, after a crash, or having let go meanwhile, finds by the same request what was computed before: a
message is told once for each try, and no answer is computed a second time because somebody died who waited for it.

Refuses: to hold a worker's place for as long as a run takes. After `HOLD_SECONDS` the message is let go of; its lane
stays its own, and is looked at every `CONVERSATION_LOOK_SECONDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from rise import tracing
from rise.bindings import Bound
from rise.bursts import Burst
from rise.bus.port import Bus, Topic
from rise.clock import TICK_SECONDS, Clock
from rise.conversations.port import (
    ConversationMessage,
    ConversationServer,
    Failure,
    FailureKind,
    Response,
    ResponseStatus,
    conversation_id_of,
    looks_again,
    message_of,
)
from rise.conversations.running import kept_as
from rise.definitions.records import TEMPORAL
from rise.envelope import Task
from rise.errors import ConversationFailed, ConversationRefused, TemporalUnavailable, WaitsForDependency
from rise.ledger.port import Ledger, count_tries
from rise.workflows.runner import Ran

HOLD_SECONDS: Final = 10.0
ELSEWHERE_SECONDS: Final = 2
"""How long a message is left to processes that have loaded its workflow: a `retry_after`, so in whole seconds."""
UNHEARD_TRIES: Final = 3
"""From so many noted tries on, a message of which its conversation knows nothing uses them up."""
_FIRST_LOOK_SECONDS: Final = 0.02
_LAST_LOOK_SECONDS: Final = 0.5
_DEPENDENCY_SECONDS: Final = 15.0


def is_conversation(bound: Bound, task: Task) -> bool:
    """Whether its run is left to the conversation of its chat. What has no chat is run by the worker itself."""
    return bound.binding is not None and bound.binding.engine == TEMPORAL and conversation_id_of(task.head) is not None


@dataclass(frozen=True, slots=True)
class Conversations:
    """All of them, as one worker talks to them."""

    server: ConversationServer
    ledger: Ledger
    bus: Bus
    clock: Clock
    hold_seconds: float = HOLD_SECONDS

    async def answer(self, burst: Burst, bound: Bound) -> Ran | None:
        """What its run came to; None: it goes on, look again after `CONVERSATION_LOOK_SECONDS`.

        Raises what the run failed by, in terms of the retry policy, and `TemporalUnavailable`.
        """
        task = burst.leader
        named = conversation_id_of(task.head)
        assert named is not None
        message = message_of(burst, bound, tries=await self._tries(task))
        known = await self._known(burst, named, message)
        if known is None:
            # Not by the interceptor of Temporal's SDK: it puts whatever a conversation does, for years, into the trace
            # of the message that began it. The run goes on from its own message, which its task says.
            with tracing.span("conversation.tell", kind="producer"):
                await self.server.tell(named, message)
            with tracing.span("conversation.ask", kind="client"):
                known = await self._awaited(task, bound, named, message)
        return await self._taken(known, burst, message)

    async def _tries(self, task: Task) -> int:
        """How many were written down: a failure that is not among them is news, also after a person had it resumed."""
        return 0 if task.progress.is_untouched else count_tries(await self.ledger.attempts(task.run_id))

    async def _known(self, burst: Burst, named: str, message: ConversationMessage) -> Response | None:
        """What was told before, if it is of use: else it is told again."""
        if burst.leader.progress.is_untouched:
            return None
        known = await self.server.ask(named, message.request_id)
        match known.status:
            case ResponseStatus.WAITING:
                return known
            case ResponseStatus.ANSWERED if await self._ran(known, burst, message) is not None:
                return known
            case ResponseStatus.FAILED if known.tries == message.tries and not known.is_untried:
                return known
        return None

    async def _awaited(self, task: Task, bound: Bound, named: str, message: ConversationMessage) -> Response:
        began = self.clock.monotonic()
        pause = _FIRST_LOOK_SECONDS
        is_heard = False
        while True:
            response = await self.server.ask(named, message.request_id)
            if response.status is ResponseStatus.UNKNOWN and not is_heard:
                unheard = "its conversation was told of it, and knows nothing of it"
                if message.tries < UNHEARD_TRIES:
                    raise looks_again(unheard)  # Temporal was emptied in between, perhaps: that is no fault of its own
                # From here on it uses up tries: what is never heard would hold its chat for ever.
                raise ConversationFailed(unheard)
            is_heard = True
            waited = self.clock.monotonic() - began
            if response.status is not ResponseStatus.WAITING:
                self._say_how_long(task, bound, waited)
                return response
            if waited + TICK_SECONDS >= self.hold_seconds:
                return response
            await self.clock.sleep(min(pause, self.hold_seconds - waited))
            pause = min(pause * 1.5, _LAST_LOOK_SECONDS)

    async def _taken(self, response: Response, burst: Burst, message: ConversationMessage) -> Ran | None:
        match response.status:
            case ResponseStatus.WAITING:
                return None
            case ResponseStatus.UNKNOWN:
                # Ended by a person while it was asked.
                raise looks_again("its conversation does not know of it any more")
            case ResponseStatus.FAILED if response.is_untried and response.failure is not None:
                # Not noted as a try, which it would be every two seconds: it is left to a process that has loaded it.
                raise TemporalUnavailable(response.failure.error, retry_after_seconds=ELSEWHERE_SECONDS)
            case ResponseStatus.FAILED:
                raise _error_of(response.failure)
        ran = await self._ran(response, burst, message)
        if ran is None:
            # Noted as a failed try, which makes the next one another: it is run again.
            raise looks_again(
                "what its run came to was lost, or is for other messages, or by another workflow, than by now"
            )
        return msgspec.convert(ran, Ran)

    async def _ran(self, response: Response, burst: Burst, message: ConversationMessage) -> Any:
        """None: it is lost; or was computed for others as well, one of which has ended by itself meanwhile, or by
        another workflow than is to answer now."""
        if response.has_other_followers(message) or response.is_of_another_workflow(message):
            return None
        if not response.is_kept:
            return response.ran
        step = (await self.ledger.steps(burst.leader.run_id)).get(burst.step_name(kept_as(message)))
        return None if step is None else msgspec.json.decode(step)

    def _say_how_long(self, task: Task, bound: Bound, seconds: float) -> None:
        said = {"channel": task.head.channel, "account": task.head.account, "seconds": round(seconds, 4)}
        self.bus.publish(Topic.CONVERSATION_ANSWERED, said | {"workflow_id": bound.workflow.workflow_id})


def _error_of(failure: Failure | None) -> Exception:
    """As the retry policy judges it."""
    failure = failure or Failure(FailureKind.OWN, "it failed without a word")
    match failure.kind:
        case FailureKind.DEPENDENCY:
            seconds = failure.retry_after_seconds or _DEPENDENCY_SECONDS
            return WaitsForDependency(failure.error, retry_after_seconds=seconds)
        case FailureKind.REFUSED:
            return ConversationRefused(failure.error)
        case FailureKind.OWN:
            return ConversationFailed(failure.error)
