"""Calls the bots' webhooks when the rules say so.

Promises: what goes over the wire is what the real server sends: compact JSON, the secret in its header, no
redirects followed, no answer within 60 seconds a failure. When to send and what follows is decided in the
rules. Unlike the real server it accepts any certificate and any address.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from yarl import URL

from rise.service import cancel_all, spawn
from rise.testing.telegram.faults import DeliveryFault
from rise.testing.telegram.records import Delivery
from rise.testing.telegram.rules import Attempt, Bot, CallParams, WebhookAnswer
from rise.testing.telegram.rules.webhook import ANSWER_SECONDS_MAX, called_method
from rise.testing.telegram.state import StandInState

_NOTHING_HEARD = WebhookAnswer(None, "Connection closed")


class Deliverer:
    def __init__(self, state: StandInState) -> None:
        self._state = state

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with _client_session() as session, asyncio.TaskGroup() as requests:
            while True:
                now = self._state.time.now()
                bots = list(self._state.bots.values())
                for bot in bots:
                    for attempt in bot.start_deliveries(now):
                        requests.create_task(self._deliver(session, bot, attempt))
                due = [at for bot in bots if (at := bot.next_delivery_at(now)) is not None]
                await self._state.time.wait(self._state.changes, until=min(due, default=None))

    async def _deliver(self, session: aiohttp.ClientSession, bot: Bot, attempt: Attempt) -> None:
        delivery = self._open_delivery(bot, attempt)
        fault = self._state.script.for_delivery(delivery)
        answer = _NOTHING_HEARD
        try:
            if fault is None:
                answer = await self._request(session, attempt)
            else:
                delivery.fault = fault.name
                answer = await self._request_with_fault(session, attempt, fault)
        finally:
            # Cancelled, because the stand-in stops, is one more lost connection: a request that never
            # finished would hold its chat back for ever once the stand-in is started again.
            self._close_delivery(bot, attempt, delivery, answer)

    def _close_delivery(self, bot: Bot, attempt: Attempt, delivery: Delivery, answer: WebhookAnswer) -> None:
        delivery.ended_at = self._state.time.now()
        delivery.status, delivery.error = answer.status, answer.reason if not answer.is_success else ""
        delivery.retry_after_header = answer.retry_after_header
        delivery.outcome = bot.finish_delivery(attempt, answer, delivery.ended_at)
        self._call_back(bot, answer)
        self._state.changes.notify()

    def _open_delivery(self, bot: Bot, attempt: Attempt) -> Delivery:
        update = attempt.update
        delivery = Delivery(
            number=len(self._state.records.deliveries) + 1,
            bot_id=bot.bot_id,
            update_id=update.update_id,
            kind=update.kind,
            sub_queue=update.sub_queue,
            attempt=attempt.number,
            body=update.body,
            started_at=attempt.started_at,
        )
        self._state.records.deliveries.append(delivery)
        return delivery

    async def _request_with_fault(
        self, session: aiohttp.ClientSession, attempt: Attempt, fault: DeliveryFault
    ) -> WebhookAnswer:
        await self._state.time.sleep(fault.delay_seconds)
        if not fault.is_sent:
            return _NOTHING_HEARD
        copies = [self._request(session, attempt) for _ in range(1 + fault.extra_copies)]
        answers = await asyncio.gather(*copies)
        return _NOTHING_HEARD if fault.loses_answer else answers[-1]

    async def _request(self, session: aiohttp.ClientSession, attempt: Attempt) -> WebhookAnswer:
        """Post the update, and wait no longer than the real server does."""
        tasks: set[asyncio.Task[Any]] = set()
        posting = spawn(_post(session, attempt), name="telegram stand-in webhook", into=tasks)
        spawn(self._state.time.sleep(ANSWER_SECONDS_MAX), name="telegram stand-in deadline", into=tasks)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return posting.result() if posting.done() else WebhookAnswer(None, "Read timeout expired")
        finally:
            await cancel_all(tasks)

    def _call_back(self, bot: Bot, answer: WebhookAnswer) -> None:
        """Do what the webhook's answer asks for. Nobody learns the result, as with the real server."""
        called = called_method(answer)
        if called is not None:
            method, values = called
            params = CallParams(values)
            call = self._state.open_call(bot, method, params, came_from_webhook=True)
            self._state.commit(bot, call, params)
            self._state.close_call(call)


def _client_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=False),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "gzip, deflate"},
        skip_auto_headers=("User-Agent", "Accept"),
    )


async def _post(session: aiohttp.ClientSession, attempt: Attempt) -> WebhookAnswer:
    settings = attempt.webhook.settings
    headers = {"Content-Type": "application/json"}
    if settings.secret_token:
        headers["X-Telegram-Bot-Api-Secret-Token"] = settings.secret_token
    try:
        async with session.post(
            URL(settings.url, encoded=True), data=attempt.update.body, headers=headers, allow_redirects=False
        ) as response:
            return WebhookAnswer(
                status=response.status,
                reason=response.reason or "",
                retry_after_header=response.headers.get("Retry-After"),
                body=await response.read(),
                is_connection_kept=response.headers.get("Connection", "").lower() != "close",
            )
    except (aiohttp.ClientError, OSError) as error:
        return WebhookAnswer(None, f"Connection failed: {error}")
