"""Callbacks: what became of a task, posted to the URL that came with it.

That a result is to be posted is written by the same step as the result itself, and frozen with it. From there on it
is a reply like any other, taken from the outbox by `delivery.py`, and as durable: tried again through failures,
crashes and restarts until its receiver has taken it (2xx) or `GIVE_UP_SECONDS` have passed.

    what happens to the task                             what is posted            how often
    it is completed, expired, or dropped by a person     the task as it ended      once per run
    it is suspended                                      the task as it waits      once per run and reason

Each has an id that stays the same however often it is posted, so that its receiver can tell a repetition.

Refuses: to follow redirects; to post to an address that no stage may call; over http:// to what is not named as one's
own; to say in logs and answers more of a URL than its host.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from typing import Any, Final

import msgspec

from rise.channels.port import NotSent, Paused, Refused, SendOutcome, SendRates, Succeeded
from rise.clock import Clock
from rise.envelope import Call, Reason, Status, Task, callback_id_of, encode_json, masked_url
from rise.errors import PayloadInvalid, Rejected, SiteFailed, StageRefused, Unavailable
from rise.ledger.port import Ledger, Reply, ReplyKind, ReplyState, Run, RunResult, traced
from rise.queue.port import Queue
from rise.reachable import Address, Allowed, is_public
from rise.retries import RetryPolicy
from rise.signing import signed_headers
from rise.stories import TaskStory, shown
from rise.workflows.fetching import Fetch, HttpAnswer, HttpRequest, read_address

CHANNEL: Final = "callback"
ACCOUNT: Final = "default"
ENDED: Final = "ended"
URL_CHARS_MAX: Final = 2048
GIVE_UP_SECONDS: Final = 86_400.0
POST_SECONDS_MAX: Final = 10.0
PAUSE_SECONDS_MIN: Final = 2.0
PAUSE_SECONDS_MAX: Final = 3600.0
AT_ONCE_MAX: Final = 100
"""Half of the places of delivery: receivers that never answer must not keep people waiting for theirs."""
AT_ONCE_PER_HOST_MAX: Final = 32
CROWDED_SECONDS: Final = (1.0, 3.0)

_URL_RULE: Final = (
    f"callbackUrl is https:// and a host, without a name or password, at most {URL_CHARS_MAX} characters; "
    "http:// only to hosts named in RISE_HTTP_STAGE_ALLOW"
)
_FORBIDDEN: Final = (
    "callbackUrl leads to an address that is not public: name it in RISE_HTTP_STAGE_ALLOW if it may be called"
)

_INSIDE: Final = re.compile(r"(.*\.)?(localhost|[0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)
"""Names of this machine, and addresses in other clothes: `2130706433`, `127.1`. No name of the internet ends so."""


class Callbacks:
    """What is to be posted of a task, if anybody asked for it."""

    def __init__(self, queue: Queue, ledger: Ledger, policy: RetryPolicy | None = None) -> None:
        self._queue = queue
        self._ledger = ledger
        self._policy = policy or RetryPolicy()

    async def of_result(self, task: Task, result: RunResult, replies: list[Reply]) -> list[Reply]:
        """For a run that has a result, which its caller fetches: so it is over, and what it said has arrived."""
        if task.head.callback_url is None:
            return []
        run = self._ended(
            task,
            Status.COMPLETED,
            outcome=result.outcome,
            result=result.value,
            workflow_id=result.workflow_id,
            workflow_version=result.workflow_version,
        )
        said = [msgspec.structs.replace(reply, state=ReplyState.SENT) for reply in replies]
        return [await self._callback(task, run, said, occasion=ENDED)]

    async def of_end(self, task: Task, status: Status, *, by: str = "", why: str = "") -> Reply | None:
        """For a task that ends without a result."""
        if task.head.callback_url is None:
            return None
        run = self._ended(task, status, outcome=None, result=None, workflow_id=None, by=by or None, why=why or None)
        return await self._callback(task, run, [], occasion=ENDED)

    async def tell_suspended(self, task: Task, reason: Reason, error: str) -> bool:
        """Mean to say that it waits, once per run and reason. Whether that is new."""
        if task.head.callback_url is None:
            return False
        waits = msgspec.structs.replace(task.progress, status=Status.SUSPENDED, reason=reason, error=error)
        waiting = msgspec.structs.replace(task, progress=waits)
        return await self._ledger.add_notice(await self._callback(waiting, None, [], occasion=reason))

    def _ended(self, task: Task, status: Status, **more: Any) -> Run:
        """The run as the ledger is about to have it."""
        now_ms, generation = self._queue.now_ms(), task.progress.generation
        return Run(
            task_id=task.task_id,
            generation=generation,
            status=status,
            saved_at_ms=now_ms,
            finished_at_ms=now_ms,
            **more,
        )

    async def _callback(self, task: Task, run: Run | None, replies: list[Reply], *, occasion: str) -> Reply:
        url = task.head.callback_url or ""
        callback_id = callback_id_of(task.run_id, occasion)
        # Without the bytes that its caller sent: those are kept for as long as is asked for, and not a second time.
        known = TaskStory(
            msgspec.structs.replace(task, raw=b""),
            run,
            await self._ledger.attempts(task.run_id),
            replies,
            stages=run.stages if run else [],
        )
        body = encode_json({"data": shown(known, self._policy), "meta": {"callbackId": callback_id}})
        return Reply(
            reply_id=callback_id,
            run_id=task.run_id,
            task_id=task.task_id,
            channel=CHANNEL,
            account=ACCOUNT,
            # A line for each task: what one receiver does not take holds up nothing but what follows on it.
            chat_id=task.task_id,
            call=traced(Call("callback", {"url": url, "body": body.decode()}, masked_url(url)), task.head),
            kind=ReplyKind.CALLBACK,
            workflow_id=run.workflow_id if run else None,
            accepted_at_ms=task.head.accepted_at_ms,
            deadline_at_ms=self._queue.now_ms() + int(GIVE_UP_SECONDS * 1000),
        )


class CallbackReceiver:
    """Those who asked for results: `rise.channels.port.Receiver`.

    A repetition has the id of the first. So whatever was not taken may be posted again, and nothing is ever in doubt.
    """

    name = CHANNEL

    def __init__(self, secret: str, fetch: Fetch, allowed: Allowed, clock: Clock) -> None:
        """`allowed`: whom the fetch calls although they are not public."""
        self._secret = secret
        self._fetch = fetch
        self._allowed = allowed
        self._clock = clock
        self._out: Counter[str] = Counter()
        """Posts that are out, by host."""

    def refuse_unusable(self, url: str) -> None:
        """At the door, what could never be posted to. Raises `PayloadInvalid`. What the host's name leads to is looked
        at when something is posted, each time."""
        try:
            read = read_address(url)
        except StageRefused as error:
            raise PayloadInvalid(_URL_RULE, field="callbackUrl") from error
        host = read.raw_host.decode("ascii")
        address = _as_address(host)
        is_own = self._allowed.host(host) or (address is not None and self._allowed.address(address))
        is_outside = is_public(address) if address is not None else not _INSIDE.fullmatch(host)
        if not is_own and not is_outside:
            raise PayloadInvalid(_FORBIDDEN, field="callbackUrl")
        if len(url) > URL_CHARS_MAX or (read.scheme != "https" and not is_own):
            raise PayloadInvalid(_URL_RULE, field="callbackUrl")

    def marked(self, call: Call) -> Call:
        return call

    def is_repeatable(self, call: Call) -> bool:
        return True

    def rates(self, chat_id: str) -> SendRates:
        """No rate protects a receiver of which nothing is known; that few posts are out at once does."""
        return SendRates(chat_per_second=1e6, chat_per_minute=None, account_per_second=1e6)

    async def send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        host = call.text
        if self._out[host] >= AT_ONCE_PER_HOST_MAX or self._out.total() >= AT_ONCE_MAX:
            return Paused(self._clock.random.uniform(*CROWDED_SECONDS), "as many are being posted as may be at once")
        self._out[host] += 1
        try:
            return await self._post(call)
        finally:
            self._out[host] -= 1
            self._out += Counter()  # forgets whom nothing is posted to

    async def _post(self, call: Call) -> SendOutcome:
        body = call.params["body"].encode()
        request = HttpRequest(
            method="POST",
            url=call.params["url"],
            headers=signed_headers(self._secret, body, self._clock.now()),
            body=body,
            wants_status_only=True,
        )
        try:
            answer = await self._fetch.fetch(request, timeout_seconds=POST_SECONDS_MAX)
        except StageRefused as error:
            return Refused(error.public_message)
        except (Unavailable, SiteFailed, Rejected) as error:
            # Also an address that is not public: whoever allows it now still gets what waits.
            return NotSent(error.public_message)
        return _judged(answer)

    async def trouble(self, account: str) -> str | None:
        """There is nothing harmless that a receiver could be asked."""
        return None

    async def show_typing(self, account: str, chat_id: str) -> None:
        """Nobody looks."""

    async def close(self) -> None:
        await self._fetch.close()


def _judged(answer: HttpAnswer) -> SendOutcome:
    said = f"it answered {answer.status}"
    if 200 <= answer.status < 300:
        return Succeeded()
    if answer.status == 410:
        return Refused(f"{said}: nobody will take this any more")
    if answer.status in (429, 503) and (answer.retry_after or "").isdecimal():
        return Paused(min(max(float(answer.retry_after or 0), PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX), said)
    return NotSent(said)


def pause_seconds(reply: Reply, now_ms: int) -> float:
    """Before it is posted again: half as long as it has waited until now, and never more than an hour."""
    waited_seconds = GIVE_UP_SECONDS - ((reply.deadline_at_ms or now_ms) - now_ms) / 1000
    return min(max(waited_seconds / 2, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)


def _as_address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
